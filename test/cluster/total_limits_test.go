package cluster

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// One host that takes all it can of what all hosts share is refused in the end, and the others find
// what is their own; when it has let go, they may have more.
func TestTotals_OneGreedyHostDoesNotStarveOthers(t *testing.T) {
	const (
		hosts = 4 // besides the one that serves
		size  = 1000
		units = 80
	)
	request := func(c *grid.Connection, ctx context.Context) error {
		_, err := c.SingleRequest(ctx, rig.Handler, make([]byte, size))
		return err
	}
	stream := func(c *grid.Connection, ctx context.Context) error {
		st, err := c.NewStream(ctx, rig.Block, make([]byte, size))
		if err != nil {
			return err
		}
		return rig.Consume(st)
	}
	for _, tt := range []struct {
		option string
		set    func(o *grid.ManagerOptions)
		begin  func(c *grid.Connection, ctx context.Context) error
	}{
		{"MaxTotalBytes", func(o *grid.ManagerOptions) { o.MaxTotalBytes = units * size }, request},
		{"MaxTotalBytes", func(o *grid.ManagerOptions) { o.MaxTotalBytes = units * size }, stream},
		{"MaxTotalHandlers", func(o *grid.ManagerOptions) { o.MaxTotalHandlers = units }, request},
		{"MaxTotalStreams", func(o *grid.ManagerOptions) { o.MaxTotalStreams = units }, stream},
	} {
		t.Run(tt.option, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := rig.New(t, hosts+1, func(i int, o *grid.ManagerOptions) {
					if o.MaxMessageSize = size; i == 0 {
						tt.set(o)
					}
				})
				release := make(chan struct{})
				require.NoError(t, g.Manager(0).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
					<-release // the present one
					return nil, nil
				}))
				ctx := make([]context.Context, hosts+1)
				cancel := make([]context.CancelFunc, hosts+1)
				// hold begins calls until one is refused.
				hold := func(i int) (n int) {
					for ctx[i], cancel[i] = context.WithCancel(t.Context()); ; n++ {
						ended := rig.InBackground(func() error { return tt.begin(g.Conn(i, 0), ctx[i]) })
						synctest.Wait()
						select {
						case err := <-ended:
							require.ErrorIs(t, err, grid.ErrOverloaded)
							require.True(t, grid.IsRemoteErr(err))
							require.ErrorContains(t, err, "share of "+tt.option)
							return n
						default:
						}
					}
				}
				require.Equal(t, 10+20, hold(1), "its own, and half of what is lent")
				require.Equal(t, 10+10, hold(2))
				require.Equal(t, 10+5, hold(3))
				st := g.Manager(0).Stats()
				require.EqualValues(t, 30+20+15, st.Handlers)
				require.Positive(t, g.Manager(0).Connection(g.Host(1)).Stats().LimitsReached[tt.option])

				// A host that comes is given its own as well.
				require.GreaterOrEqual(t, hold(4), 10)
				for _, c := range cancel[1:] {
					c()
				}
				close(release)
				synctest.Wait()
				st = g.Manager(0).Stats()
				require.Zero(t, st.Handlers)
				require.Zero(t, st.KeptBytes)
				require.NoError(t, g.Manager(0).RemoveHost(g.Host(4)))
				require.NoError(t, g.Manager(0).RemoveHost(g.Host(3)))
				require.NoError(t, g.Manager(0).RemoveHost(g.Host(2)))
				release = make(chan struct{})
				require.Equal(t, units, hold(1), "there are no others any more")
				cancel[1]()
				close(release)
			})
		})
	}
}

// A host that is removed and added again, as gossip may do it, has its limits with what it has
// taken, also where handlers of before run on.
func TestTotals_HostThatComesAndGoesHasNoMore(t *testing.T) {
	const limit = 20
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, func(i int, o *grid.ManagerOptions) {
			if o.MaxMessageSize = 1000; i == 0 {
				o.MaxHandlers, o.MaxHostBytes = limit, limit*1000
			}
		})
		m := g.Manager(0)
		release := make(chan struct{})
		var running, most atomic.Int64
		require.NoError(t, m.RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			most.Store(max(most.Load(), running.Add(1)))
			<-release
			running.Add(-1)
			return nil, nil
		}))
		for range 10 {
			for {
				ended := rig.InBackground(func() error {
					_, err := g.Conn(1, 0).SingleRequest(t.Context(), rig.Handler, make([]byte, 900))
					return err
				})
				synctest.Wait()
				if len(ended) > 0 {
					require.ErrorIs(t, <-ended, grid.ErrOverloaded)
					break
				}
			}
			require.NoError(t, m.RemoveHost(g.Host(1)))
			require.NoError(t, m.AddHost(g.Host(1)))
			rig.WaitState(t, g.Conn(1, 0), grid.StateConnected)
			rig.WaitState(t, g.Conn(0, 1), grid.StateConnected)
			require.Equal(t, limit, m.Connection(g.Host(1)).Stats().Handlers)
			require.EqualValues(t, limit*900, m.Stats().KeptBytes)
		}
		require.EqualValues(t, limit, most.Load())
		require.NoError(t, m.RemoveHost(g.Host(1)))
		close(release)
		synctest.Wait()
		require.NoError(t, m.AddHost(g.Host(1)))
		require.Zero(t, m.Stats().Handlers)
		require.Zero(t, m.Stats().KeptBytes)
	})
}

// However few there are of what is shared, each host has one.
func TestTotals_SmallerThanTwiceTheHostsLeaveOneForEach(t *testing.T) {
	const hosts = 9
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, hosts+1, func(i int, o *grid.ManagerOptions) {
			if i == 0 {
				o.MaxTotalHandlers = 16
			}
		})
		release, _ := rig.Gate(t)
		require.NoError(t, g.Manager(0).RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) {
			<-release
			return nil, nil
		}))
		for i := range hosts {
			n := 0
			for ; ; n++ {
				ended := rig.InBackground(func() error {
					_, err := g.Conn(i+1, 0).SingleRequest(t.Context(), rig.Handler, nil)
					return err
				})
				synctest.Wait()
				if len(ended) > 0 {
					require.ErrorIs(t, <-ended, grid.ErrOverloaded)
					break
				}
			}
			require.Positive(t, n, "host %d", i+1)
		}
	})
}

// What one host holds, a little more than its own, does not keep the others from a large message.
func TestTotals_LargePayloadIsTakenBesideWhatOthersHold(t *testing.T) {
	const mib = 1 << 10 // to scale: the defaults on a machine of 1 GiB
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 5, func(i int, o *grid.ManagerOptions) {
			if o.MaxMessageSize = 32 * mib; i == 0 {
				o.MaxHostBytes, o.MaxTotalBytes = 256*mib, 256*mib
			}
		})
		h := grid.NewSingleHandler(rig.Handler, grid.NewMSS, grid.NewNoPayload)
		release, let := rig.Gate(t)
		require.NoError(t, h.Register(g.Manager(0), func(m *grid.MSS) (grid.NoPayload, *grid.RemoteErr) {
			if m.Get("wait") != "" {
				<-release
			}
			return grid.NoPayload{}, nil
		}))
		call := func(i int, key string, size int) error {
			_, err := h.Call(t.Context(), g.Conn(i, 0), grid.NewMSSWith(map[string]string{key: string(make([]byte, size))}))
			return err
		}
		held := rig.InBackground(func() error { return call(1, "wait", 8*mib+512) })
		synctest.Wait()
		for i := 2; i < 5; i++ {
			require.NoError(t, call(i, "", 31*mib))
		}
		let()
		require.NoError(t, <-held)
	})
}
