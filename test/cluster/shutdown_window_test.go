package cluster

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// A call that is on its way while an idle host begins to shut down has run and been answered, or
// can be made again: nothing is lost, however slow the link.
func TestShutdown_OfAnIdleHostLosesNoCall(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Millisecond, 100 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				var ran, answered, refused atomic.Int64
				require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
					ran.Add(1)
					return b, nil
				}))
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{Serve: func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr {
					ran.Add(1)
					return nil
				}}))
				g.Net.Delay(g.Addr(0), g.Addr(1), delay)
				g.Net.Delay(g.Addr(1), g.Addr(0), delay)
				var callers sync.WaitGroup
				for i := range 40 {
					callers.Go(func() {
						time.Sleep(time.Duration(i) * delay / 10)
						var err error
						switch i % 4 {
						case 0:
							err = func() error {
								s, err := c.NewStream(t.Context(), rig.Handler+1, nil)
								if err != nil {
									return err
								}
								return s.Finish(t.Context())
							}()
						case 1:
							_, err = c.SingleRequest(t.Context(), rig.Handler, make([]byte, 200<<10)) // in fragments
						default:
							_, err = c.SingleRequest(t.Context(), rig.Handler, []byte("x"))
						}
						switch {
						case err == nil:
							answered.Add(1)
						case grid.CanRetry(err):
							refused.Add(1)
						default:
							t.Errorf("call %d: %v", i, err)
						}
					})
				}
				time.Sleep(2 * delay)
				require.NoError(t, g.Manager(1).Shutdown(t.Context()))
				callers.Wait()
				require.Equal(t, ran.Load(), answered.Load())
				require.EqualValues(t, 40, answered.Load()+refused.Load())
				if delay > 0 {
					require.Positive(t, refused.Load())
				}
			})
		})
	}
}

// A peer that says nothing to the announcement does not hold it up for long.
func TestShutdown_WaitsNoLongerThanASecondForAPeerThatDoesNotAnswer(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		took := rig.Elapsed(func() { require.NoError(t, g.Manager(1).Shutdown(t.Context())) })
		require.LessOrEqual(t, took, 3*time.Second)
	})
}

// The old Connection of a host that was removed and added again stays dead, and says so.
func TestRemoveHost_EndsWhatWasMadeOfItsConnection(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		caller, sub := c.WithTimeout(time.Minute), c.Subroute("a").With(grid.CallOptions{WaitForLink: true})
		under, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, g.Manager(0).RemoveHost(g.Host(1)))
		require.NoError(t, g.Manager(0).AddHost(g.Host(1)))
		rig.WaitState(t, g.Manager(0).Connection(g.Host(1)), grid.StateConnected)
		for _, r := range []grid.Requester{c, caller, sub} {
			_, err := r.SingleRequest(t.Context(), rig.Echo, nil)
			require.ErrorIs(t, err, grid.ErrHostRemoved)
			require.ErrorIs(t, err, grid.ErrDisconnected)
			require.ErrorContains(t, err, g.Host(1)+": the host was removed")
		}
		require.ErrorIs(t, c.WaitForConnect(t.Context()), grid.ErrHostRemoved)
		require.ErrorIs(t, under.Results(nil), grid.ErrHostRemoved)
		_, err = g.Manager(0).Connection(g.Host(1)).SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
		_, err = (*grid.Connection)(nil).SingleRequest(t.Context(), rig.Echo, nil)
		require.NotErrorIs(t, err, grid.ErrHostRemoved)
	})
}
