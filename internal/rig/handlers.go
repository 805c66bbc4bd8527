package rig

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

const (
	Echo grid.HandlerID = iota + 1
	Fail
	Stream
	Input
	TwoWay
	Block
	Empty
	Unused
)

// RegisterHandlers registers what most tests need.
func RegisterHandlers(t testing.TB, m *grid.Manager) {
	t.Helper()
	require.NoError(t, m.RegisterSingleHandler(Echo, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
	require.NoError(t, m.RegisterSingleHandler(Fail, func(b []byte) ([]byte, *grid.RemoteErr) {
		return nil, grid.NewRemoteErrString(string(b))
	}))
	// Answers with as many messages as the payload is long.
	require.NoError(t, m.RegisterStreamingHandler(Stream, grid.StreamHandler{
		Handle: func(ctx context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for i := range payload {
				out <- append(grid.GetByteBuffer(), byte(i))
			}
			grid.PutByteBuffer(payload)
			return nil
		},
	}))
	// Echoes its input.
	require.NoError(t, m.RegisterStreamingHandler(TwoWay, grid.StreamHandler{
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				out <- b
			}
			if ctx.Err() != nil {
				return grid.NewRemoteErr(context.Cause(ctx))
			}
			return nil
		},
		OutCapacity: 1, InCapacity: 1,
	}))
	// Waits for its context.
	require.NoError(t, m.RegisterStreamingHandler(Block, grid.StreamHandler{
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			<-ctx.Done()
			return grid.NewRemoteErr(context.Cause(ctx))
		},
		InCapacity: 1,
	}))
}
