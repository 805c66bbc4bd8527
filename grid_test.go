package grid_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// The whole over real sockets: both directions, all shapes.
func TestManager_TwoServersCallEachOther(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	for range 100 {
		b, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, []byte("hello"))
		require.NoError(t, err)
		require.Equal(t, "hello", string(b))
		grid.PutByteBuffer(b)
	}
	_, err := g.Conn(1, 0).SingleRequest(t.Context(), rig.Fail, []byte("boom"))
	require.EqualError(t, err, "boom")
	_, err = g.Conn(1, 0).SingleRequest(t.Context(), rig.Unused, []byte("boom"))
	require.True(t, grid.IsRemoteErr(err))
	st, err := g.Conn(0, 1).NewStream(t.Context(), rig.Stream, make([]byte, 100))
	require.NoError(t, err)
	require.Nil(t, st.Requests)
	n := 0
	require.NoError(t, st.Results(func(b []byte) error { require.Equal(t, byte(n), b[0]); n++; grid.PutByteBuffer(b); return nil }))
	require.Equal(t, 100, n)
	st, err = g.Conn(0, 1).NewStream(t.Context(), rig.TwoWay, nil)
	require.NoError(t, err)
	go func() {
		for i := range 1000 {
			st.Requests <- append(grid.GetByteBuffer(), fmt.Sprint(i)...)
		}
		close(st.Requests)
	}()
	n = 0
	require.NoError(t, st.Results(func(b []byte) error {
		require.Equal(t, fmt.Sprint(n), string(b))
		n++
		grid.PutByteBuffer(b)
		return nil
	}))
	require.Equal(t, 1000, n)
	require.ErrorIs(t, st.Send(nil), io.EOF)
}

// What package rig has written down of the limits is what they are: else this does not compile.
var (
	same = [1]struct{}{}
	_    = same[grid.MinBackoff-rig.MinBackoff]
	_    = same[grid.MaxBackoff-rig.MaxBackoff]
	_    = same[grid.StableLife-rig.StableLife]
	_    = same[grid.ProbeTime-rig.ProbeTime]
	_    = same[grid.HangUpTime-rig.HangUpTime]
	_    = same[grid.DrainLook-rig.DrainLook]
	_    = same[grid.DefaultDeadline-rig.DefaultDeadline]
	_    = same[grid.FrameOverhead-rig.FrameOverhead]
	_    = same[grid.PendingLimit-rig.PendingLimit]
	_    = same[grid.WholeSize-rig.WholeSize]
	_    = same[grid.FragmentSize-rig.FragmentSize]
	_    = same[grid.RetainSize-rig.RetainSize]
	_    = same[grid.MaxErrorText-rig.MaxErrorText]
	_    = same[grid.MaxMetadata-rig.MaxMetadata]
	_    = same[grid.MaxCapacity-rig.MaxCapacity]
	_    = same[grid.MaxWindow-rig.MaxWindow]
	_    = same[grid.MaxWindowBytes-rig.MaxWindowBytes]
	_    = same[grid.MessageCost-rig.MessageCost]
	_    = same[grid.MaxInBuffer-rig.MaxInBuffer]
	_    = same[grid.MaxOutBuffer-rig.MaxOutBuffer]
	_    = same[grid.AllCaps-rig.AllCaps]
)
