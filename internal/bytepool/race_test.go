//go:build race

package bytepool

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStrictPoolCatchesMisuse(t *testing.T) {
	before := Out()
	b := Get(512)
	require.Equal(t, before+1, Out())
	b = append(b, "secret"...)
	Put(b)
	require.Equal(t, before, Out())
	require.Equal(t, byte(poison), b[:1][0], "poisoned")
	require.PanicsWithValue(t, "bytepool: buffer put back twice", func() { Put(b) })

	old := b[0]
	b[0] = 'x' // on purpose: a write after the put
	require.PanicsWithValue(t, "bytepool: buffer written to after it was put back", func() {
		for range 2 * keep {
			Get(512)
		}
	})
	b[0] = old
}
