package cluster

import (
	"context"
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
