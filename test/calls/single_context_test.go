package calls

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Handlers of single requests that want a context.

func TestRequest_HandlerContext(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var seen context.Context
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, payload []byte) ([]byte, *grid.RemoteErr) {
			seen = ctx
			return payload, nil
		}, "disk", "1"))
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		answer, err := c.Subroute("disk/1").SingleRequest(ctx, rig.Handler, []byte("x"))
		require.NoError(t, err)
		require.Equal(t, "x", string(answer))
		deadline, ok := seen.Deadline()
		require.True(t, ok)
		require.Equal(t, 7*time.Second, time.Until(deadline))
		require.Equal(t, g.Host(0), grid.GetCaller(seen).Name)
		require.Equal(t, "disk/1", grid.GetSubroute(seen))
		require.ErrorIs(t, context.Cause(seen), context.Canceled, "it has returned")

		// Without a deadline of the caller's it is the default one.
		_, err = c.Subroute("disk/1").SingleRequest(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		deadline, ok = seen.Deadline()
		require.True(t, ok)
		require.Equal(t, rig.DefaultDeadline, time.Until(deadline))
	})
}

func TestRequest_HandlerContextEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		end   func(g *rig.Grid)
		cause error
	}{
		{"at the deadline", func(*rig.Grid) { time.Sleep(10 * time.Second) }, context.DeadlineExceeded},
		{"with the connection", func(g *rig.Grid) { g.Cut(0, 1) }, grid.ErrDisconnected},
		{"when the caller's manager closes", func(g *rig.Grid) { g.Manager(0).Close() }, grid.ErrDisconnected},
		{"when its manager closes", func(g *rig.Grid) { g.Manager(1).Close() }, grid.ErrDisconnected},
		{"when its manager's shutdown ends", func(g *rig.Grid) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			require.ErrorIs(g.T, g.Manager(1).Shutdown(ctx), context.DeadlineExceeded)
		}, grid.ErrDisconnected},
		{"when the caller's host is removed", func(g *rig.Grid) { require.NoError(g.T, g.Manager(1).RemoveHost(g.Host(0))) }, grid.ErrDisconnected},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, conn *grid.Connection) {
				ended := make(chan error, 1)
				require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
					<-ctx.Done()
					ended <- context.Cause(ctx)
					return nil, nil
				}))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				call := make(chan error, 1)
				go func() {
					_, err := conn.SingleRequest(ctx, rig.Handler, nil)
					call <- err
				}()
				synctest.Wait()
				require.Empty(t, ended)
				c.end(g)
				synctest.Wait()
				require.ErrorIs(t, <-ended, c.cause)
				require.ErrorIs(t, <-call, c.cause)
			})
		})
	}
}

func TestRequest_HandlerContextPanicIsAnswered(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var seen context.Context
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			seen = ctx
			panic("no")
		}))
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.ErrorContains(t, err, "panicked: no")
		require.Error(t, seen.Err())
		require.Error(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler+1, nil))
		require.ErrorIs(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(context.Context, []byte) ([]byte, *grid.RemoteErr) { return nil, nil }), grid.ErrHandlerAlreadyExists)
	})
}

func TestTyped_HandlerContext(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewSingleHandler[*grid.MSS, *grid.MSS](rig.Handler, grid.NewMSS, grid.NewMSS)
		require.NoError(t, h.RegisterContext(g.Manager(1), func(ctx context.Context, req *grid.MSS) (*grid.MSS, *grid.RemoteErr) {
			return grid.NewMSSWith(map[string]string{"said": req.Get("say"), "to": grid.GetSubroute(ctx)}), nil
		}, "somebody"))
		resp, err := h.Call(t.Context(), c.Subroute("somebody"), grid.NewMSSWith(map[string]string{"say": "hello"}))
		require.NoError(t, err)
		require.Equal(t, "hello", resp.Get("said"))
		require.Equal(t, "somebody", resp.Get("to"))
		require.Error(t, h.RegisterContext(g.Manager(1), nil))
	})
}
