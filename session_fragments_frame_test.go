package grid

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/limit"
)

// A fragment is kept in the frame that it came in only where it is not small, and makes up a third
// of the frame or more; else what waits would be a small part of what it holds on to.
func TestFragments_KeepAFrameOnlyForAGoodPartOfIt(t *testing.T) {
	for _, c := range []struct {
		size, buffer int
		kept         bool
	}{
		{1, 1 << 10, false},
		{retainSize - 1, 2 * retainSize, false},
		{retainSize, 2 * retainSize, true},
		{retainSize, 3*retainSize + 2, true},
		{retainSize, 3*retainSize + 3, false},
		{fragmentSize, pendingLimit + largeLimit, false},
		{fragmentSize, 10 << 20, false},
		{10 << 20, 10<<20 + 100, true},
	} {
		var budget limit.Budget
		budget.Init("MaxHostBytes", 1<<30, nil)
		in := &intake{frame: frame{buf: make([]byte, c.buffer)}, now: time.Now(), maxSize: maxMaxMessageSize, budget: &budget}
		payload := in.frame.buf[:c.size]
		for i := range payload {
			payload[i] = byte(i)
		}
		m := &message{Op: opRequest, Flags: flagMore, Payload: payload}
		var parts *assembly
		for range 2 {
			_, whole, err := parcel{m, in}.addTo(&parts)
			require.NoError(t, err)
			require.False(t, whole)
		}
		require.Equal(t, c.kept, in.frame.shared != nil, "%d bytes in a frame of %d", c.size, c.buffer)
		require.EqualValues(t, 2*c.size, budget.Used())
		whole := arrived{parts: parts, budget: &budget}.join()
		require.True(t, bytes.Equal(append(bytes.Clone(payload), payload...), whole))
		require.Zero(t, budget.Used())
		if c.kept {
			require.EqualValues(t, 1, in.frame.shared.refs.Load(), "the reader's own is left")
		}
		bytepool.Put(whole)
	}
}
