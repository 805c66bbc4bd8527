package calls

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Code of the application's may end the goroutine that it runs on, as require does in a test.

func TestGoexit_OfOnStateChangeHoldsNothingUp(t *testing.T) {
	changes := make(chan grid.StateChange, 100)
	edit := func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			o.OnStateChange = func(c grid.StateChange) {
				changes <- c
				runtime.Goexit()
			}
		}
	}
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		for range 3 {
			g.Cut(0, 1)
			synctest.Wait()
			g.WaitConnected()
		}
		require.NoError(t, g.Manager(0).Close())
		last := grid.StateUnconnected
		for len(changes) > 0 {
			c := <-changes
			require.Equal(t, last, c.From)
			last = c.To
		}
		require.Equal(t, grid.StateShutdown, last)
	})
}

type exits struct{}

func (exits) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, func(grid.CallResult) { runtime.Goexit() }, nil
}

func TestGoexit_OfAServeInterceptorFreesSlots(t *testing.T) {
	edit := func(i int, o *grid.ManagerOptions) {
		if o.MaxHandlers = 4; i == 1 {
			o.ServeInterceptors = []grid.ServeInterceptor{exits{}}
		}
	}
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			<-ctx.Done()
			return nil, nil
		}))
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			st, err := c.NewStream(ctx, rig.Block, []byte("x"))
			require.NoError(t, err)
			_, err = c.SingleRequest(ctx, rig.Echo, []byte("x"))
			require.NoError(t, err)
			_, err = c.SingleRequest(ctx, rig.Handler, []byte("x")) // not answered: its time is over
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
			<-st.Done()
			synctest.Wait()
			require.Zero(t, g.Conn(1, 0).Stats().Handlers)
			require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
		}
	})
}

// leaver ends the goroutine that encodes it.
type leaver struct{ grid.MSS }

func (l *leaver) MarshalMsg(b []byte) ([]byte, error)   { runtime.Goexit(); return b, nil }
func (l *leaver) UnmarshalMsg(b []byte) ([]byte, error) { return l.MSS.UnmarshalMsg(b) }
func (l *leaver) Msgsize() int                          { return l.MSS.Msgsize() }

func TestGoexit_OfAnEncoderEndsItsStream(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewStream[grid.NoPayload, *leaver, grid.NoPayload](rig.Handler, nil, func() *leaver { return new(leaver) }, grid.NewNoPayload)
		require.NoError(t, h.WithInCapacity(1).RegisterNoPayload(g.Manager(1), func(_ context.Context, in <-chan *leaver, _ chan<- grid.NoPayload) *grid.RemoteErr {
			for range in {
			}
			return nil
		}))
		st, err := h.Call(t.Context(), c, grid.NoPayload{})
		require.NoError(t, err)
		st.Requests <- new(leaver)
		require.ErrorContains(t, st.Results(func(grid.NoPayload) error { return nil }), "ended by an encoder")
		for range 10 {
			st.Requests <- new(leaver) // does not block for ever
		}
		close(st.Requests)
		runtime.KeepAlive(st)
	})
}
