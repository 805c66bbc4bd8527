package rig

import (
	"context"
	"fmt"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// Streams that nobody reads, and what of them is kept.

// RequireNothingKept requires, in a bubble, that two nodes have nothing under way.
func (g *Grid) RequireNothingKept() {
	g.T.Helper()
	synctest.Wait()
	for i := range 2 {
		st := g.Conn(i, 1-i).Stats()
		require.Zero(g.T, st.KeptBytes, "node %d", i)
		require.Zero(g.T, st.Handlers+st.StreamsServed+st.Streams+st.Calls, "node %d: %+v", i, st)
	}
}

// Pour sends messages of a size until its context ends.
func Pour(size int) grid.StreamHandlerFn {
	return func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		for ctx.Err() == nil {
			out <- grid.GetByteBufferCap(size)[:size]
		}
		return grid.NewRemoteErr(context.Cause(ctx))
	}
}

// RequireWorks makes a call from every node to every other.
func (g *Grid) RequireWorks() {
	g.T.Helper()
	for i, a := range g.Nodes() {
		for j, b := range g.Nodes() {
			if i == j || a == nil || b == nil {
				continue
			}
			text := fmt.Sprintf("%d to %d", i, j)
			got, err := g.Conn(i, j).SingleRequest(context.Background(), Echo, []byte(text))
			require.NoError(g.T, err, text)
			require.Equal(g.T, text, string(got))
			grid.PutByteBuffer(got)
		}
	}
}

// RequireMeshWorks makes all pairs call at the same time.
func (g *Grid) RequireMeshWorks() {
	g.T.Helper()
	var calls []<-chan error
	for i, a := range g.Nodes() {
		for j, b := range g.Nodes() {
			if a == nil || b == nil || i == j {
				continue
			}
			text := fmt.Sprintf("%d to %d", i, j)
			calls = append(calls, InBackground(func() error {
				got, err := a.Connection(b.Host).SingleRequest(context.Background(), Echo, []byte(text))
				if err == nil && string(got) != text {
					err = fmt.Errorf("answer is %q", got)
				}
				grid.PutByteBuffer(got)
				if err != nil {
					err = fmt.Errorf("%s: %w", text, err)
				}
				return err
			}))
		}
	}
	for _, call := range calls {
		require.NoError(g.T, <-call)
	}
}
