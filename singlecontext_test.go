package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Handlers of single requests that want a context.

func TestSingleHandlerContext(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		var seen context.Context
		require.NoError(t, g.nodes[1].RegisterSingleHandlerContext(testHandler, func(ctx context.Context, payload []byte) ([]byte, *RemoteErr) {
			seen = ctx
			return payload, nil
		}, "disk", "1"))
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		answer, err := c.Subroute("disk/1").SingleRequest(ctx, testHandler, []byte("x"))
		require.NoError(t, err)
		require.Equal(t, "x", string(answer))
		deadline, ok := seen.Deadline()
		require.True(t, ok)
		require.Equal(t, 7*time.Second, time.Until(deadline))
		require.Equal(t, g.hosts[0], GetCaller(seen).Name)
		require.Equal(t, "disk/1", GetSubroute(seen))
		require.ErrorIs(t, context.Cause(seen), context.Canceled, "it has returned")

		// Without a deadline of the caller's it is the default one.
		_, err = c.Subroute("disk/1").SingleRequest(t.Context(), testHandler, nil)
		require.NoError(t, err)
		deadline, ok = seen.Deadline()
		require.True(t, ok)
		require.Equal(t, defaultDeadline, time.Until(deadline))
	})
}

func TestSingleHandlerContextEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(g *testGrid)
		cause error
	}{
		{"at the deadline", func(*testGrid) { time.Sleep(10 * time.Second) }, context.DeadlineExceeded},
		{"with the connection", func(g *testGrid) { g.cut(0, 1) }, ErrDisconnected},
		{"when the caller's manager closes", func(g *testGrid) { g.nodes[0].Close() }, ErrDisconnected},
		{"when its manager closes", func(g *testGrid) { g.nodes[1].Close() }, ErrDisconnected},
		{"when its manager's shutdown ends", func(g *testGrid) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			require.ErrorIs(g.t, g.nodes[1].Shutdown(ctx), context.DeadlineExceeded)
		}, ErrDisconnected},
		{"when the caller's host is removed", func(g *testGrid) { require.NoError(g.t, g.nodes[1].RemoveHost(g.hosts[0])) }, ErrDisconnected},
	} {
		t.Run(c.name, func(t *testing.T) {
			inPair(t, nil, func(t *testing.T, g *testGrid, conn *Connection) {
				ended := make(chan error, 1)
				require.NoError(t, g.nodes[1].RegisterSingleHandlerContext(testHandler, func(ctx context.Context, _ []byte) ([]byte, *RemoteErr) {
					<-ctx.Done()
					ended <- context.Cause(ctx)
					return nil, nil
				}))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				call := make(chan error, 1)
				go func() {
					_, err := conn.SingleRequest(ctx, testHandler, nil)
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

func TestSingleHandlerContextPanicIsAnswered(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		var seen context.Context
		require.NoError(t, g.nodes[1].RegisterSingleHandlerContext(testHandler, func(ctx context.Context, _ []byte) ([]byte, *RemoteErr) {
			seen = ctx
			panic("no")
		}))
		_, err := c.SingleRequest(t.Context(), testHandler, nil)
		require.ErrorContains(t, err, "panicked: no")
		require.Error(t, seen.Err())
		require.Error(t, g.nodes[1].RegisterSingleHandlerContext(testHandler+1, nil))
		require.ErrorIs(t, g.nodes[1].RegisterSingleHandlerContext(testHandler, func(context.Context, []byte) ([]byte, *RemoteErr) { return nil, nil }), ErrHandlerAlreadyExists)
	})
}

func TestTypedSingleHandlerContext(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		h := NewSingleHandler[*MSS, *MSS](testHandler, NewMSS, NewMSS)
		require.NoError(t, h.RegisterContext(g.nodes[1].Manager, func(ctx context.Context, req *MSS) (*MSS, *RemoteErr) {
			return NewMSSWith(map[string]string{"said": req.Get("say"), "to": GetSubroute(ctx)}), nil
		}, "somebody"))
		resp, err := h.Call(t.Context(), c.Subroute("somebody"), NewMSSWith(map[string]string{"say": "hello"}))
		require.NoError(t, err)
		require.Equal(t, "hello", resp.Get("said"))
		require.Equal(t, "somebody", resp.Get("to"))
		require.Error(t, h.RegisterContext(g.nodes[1].Manager, nil))
	})
}
