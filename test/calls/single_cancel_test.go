package calls

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// A caller that gives up, and what its handler sees of that.

// ends are the ways in which a caller gives up before its deadline.
var ends = map[string]func(ctx context.Context) (context.Context, context.CancelFunc){
	"cancelled": context.WithCancel,
	"cancelled before a deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, time.Hour)
	},
	"with a cause": func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancelCause(ctx)
		return ctx, func() { cancel(rig.ErrCause) }
	},
	"of a context of its own": func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		return ownContext{ctx}, cancel
	},
}

type ownContext struct{ context.Context }

func TestRequest_CancelEndsTheContextOfItsHandler(t *testing.T) {
	t.Parallel()
	typed := grid.NewSingleHandler(rig.Handler+1, grid.NewBytes, grid.NewBytes)
	for name, with := range ends {
		for _, local := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", local: ", local), func(t *testing.T) {
				rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					server := g.Manager(1)
					if local {
						c = server.Connection(g.Host(1))
					}
					causes := make(chan error, 10)
					wait := func(ctx context.Context) {
						// Whoever derives a context from it, or asks only for its error, learns the same.
						derived, cancel := context.WithCancel(ctx)
						defer cancel()
						<-derived.Done()
						if ctx.Err() != context.Canceled {
							t.Error(ctx.Err())
						}
						causes <- context.Cause(derived)
					}
					require.NoError(t, server.RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
						wait(ctx)
						return b, nil
					}, "sub"))
					require.NoError(t, typed.RegisterContext(server, func(ctx context.Context, b *grid.Bytes) (*grid.Bytes, *grid.RemoteErr) {
						wait(ctx)
						return b, nil
					}, "sub"))
					ctx, cancel := with(t.Context())
					defer cancel()
					ended := make(chan error, 3)
					sub := c.Subroute("sub")
					go func() { _, err := sub.SingleRequest(ctx, rig.Handler, nil); ended <- err }()
					go func() { _, err := sub.WithTimeout(time.Hour).SingleRequest(ctx, rig.Handler, nil); ended <- err }()
					go func() { _, err := typed.Call(ctx, sub, grid.NewBytes()); ended <- err }()
					synctest.Wait()
					require.Empty(t, causes)
					cancel()
					for range 3 {
						require.ErrorIs(t, <-ended, context.Canceled)
						require.Equal(t, context.Canceled, <-causes)
					}
					synctest.Wait()
					require.Equal(t, grid.StateConnected, c.State())
					g.RequireNothingKept()
				})
			})
		}
	}
}

// A handler that only looks at its context now and then sees that its caller has gone.
func TestRequest_CancelIsSeenByAHandlerThatAsks(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ended := make(chan error, 1)
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			for ctx.Err() == nil {
				time.Sleep(time.Second)
			}
			ended <- context.Cause(ctx)
			return b, nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		time.AfterFunc(10*time.Second, cancel)
		start := time.Now()
		_, err := c.SingleRequest(ctx, rig.Handler, nil)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, context.Canceled, <-ended)
		require.LessOrEqual(t, time.Since(start), 11*time.Second)
	})
}

// A large request that is given up while it is sent never runs, and one whose answer is large is
// answered no further.
func TestRequest_CancelOfLargeOnes(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := make(chan error, 1)
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return b, nil
		}))
		ctx, cancel := context.WithCancel(t.Context())
		ended := rig.InBackground(func() error { _, err := c.SingleRequest(ctx, rig.Handler, make([]byte, 10<<20)); return err })
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.Equal(t, context.Canceled, <-causes)
		g.RequireNothingKept()
	})
}

// The handler that forwards what it is asked hands its end on, from host to host.
func TestRequest_CancelGoesOnToWhomItsHandlerAsks(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		causes := make(chan error, 1)
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			b, err := g.Conn(1, 2).SingleRequest(ctx, rig.Handler, b)
			return b, grid.NewRemoteErr(err)
		}))
		require.NoError(t, g.Manager(2).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return b, nil
		}))
		ctx, cancel := context.WithCancel(t.Context())
		ended := rig.InBackground(func() error { _, err := g.Conn(0, 1).SingleRequest(ctx, rig.Handler, nil); return err })
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.Equal(t, context.Canceled, <-causes)
		g.RequireNothingKept()
	})
}
