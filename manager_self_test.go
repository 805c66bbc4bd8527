package grid_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Calls of a host to itself.

func newLoner(t *testing.T, edit func(o *grid.ManagerOptions)) *grid.Manager {
	t.Helper()
	const host = "http://me:1"
	o := rig.Options(host, []string{host})
	o.LocalCalls = true
	if edit != nil {
		edit(&o)
	}
	m, err := grid.NewManager(context.Background(), o)
	require.NoError(t, err)
	rig.RegisterHandlers(t, m)
	t.Cleanup(func() { m.Close() })
	return m
}

func TestLocal_CallsAreLikeAllOthers(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		m := newLoner(t, nil)
		c := m.Connection(m.HostName())
		require.Equal(t, grid.StateConnected, c.State(), "from the beginning")
		require.NoError(t, c.WaitForConnect(t.Context()))
		require.Equal(t, m.HostName(), c.HostName())
		require.Empty(t, m.Targets())
		require.Empty(t, m.Stats().Connections)

		payload := []byte("mine")
		answer, err := c.SingleRequest(t.Context(), rig.Echo, payload)
		require.NoError(t, err)
		require.Equal(t, payload, answer)
		require.NotSame(t, &payload[0], &answer[0], "the payload stays the caller's")
		big := make([]byte, 3<<20)
		answer, err = c.SingleRequest(t.Context(), rig.Echo, big)
		require.NoError(t, err)
		require.Len(t, answer, len(big))
		_, err = c.SingleRequest(t.Context(), rig.Fail, nil)
		require.True(t, grid.IsRemoteErr(err))
		_, err = c.SingleRequest(t.Context(), rig.Unused, nil)
		require.ErrorContains(t, err, "no request handler")
		require.NoError(t, twoWays(t.Context(), c))

		require.NoError(t, m.RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			return []byte(grid.GetCaller(ctx).Name + " " + grid.GetSubroute(ctx)), nil
		}, "a", "b"))
		answer, err = c.Subroute("a/b").SingleRequest(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		require.Equal(t, m.HostName()+" a/b", string(answer))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, m.RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			<-ctx.Done()
			return nil, nil
		}))
		_, err = c.SingleRequest(ctx, rig.Handler, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Hour) // it is pinged like any other
		require.NoError(t, twoWays(t.Context(), c))
	})
}

func TestLocal_CallsHaveTheLimitsOfAHost(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		m := newLoner(t, func(o *grid.ManagerOptions) { o.MaxHandlers, o.MaxMessageSize = 1, 1000 })
		c := m.Connection(m.HostName())
		block, err := c.NewStream(t.Context(), rig.Block, nil)
		if err != nil { // MaxStreams is three quarters of one, and so is 1
			require.ErrorIs(t, err, grid.ErrOverloaded)
		}
		_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrOverloaded)
		_, err = c.SingleRequest(t.Context(), rig.Echo, make([]byte, 1001))
		require.ErrorIs(t, err, grid.ErrMessageTooLarge)
		if block != nil {
			close(block.Requests)
		}
	})
}

// A session of the host with itself that has ended is made anew.
func TestLocal_CallsHeal(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		m := newLoner(t, nil)
		c := m.Connection(m.HostName())
		for _, c := range grid.SelfLinks(m) {
			grid.SessionOf(c).Fail(errors.New("something"))
			time.Sleep(time.Second)
			require.NoError(t, grid.SelfLinks(m)[1].WaitForConnect(t.Context()))
			require.Equal(t, grid.StateConnected, c.State())
		}
		require.NoError(t, twoWays(t.Context(), c))
	})
}

func TestLocal_CallsEndWithTheManager(t *testing.T) {
	for name, end := range map[string]func(m *grid.Manager) error{
		"close":    func(m *grid.Manager) error { return m.Close() },
		"shutdown": func(m *grid.Manager) error { return m.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				m := newLoner(t, nil)
				c := m.Connection(m.HostName())
				release := make(chan struct{})
				require.NoError(t, m.RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) {
					<-release
					return []byte("done"), nil
				}))
				call := make(chan error, 1)
				go func() {
					_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
					call <- err
				}()
				synctest.Wait()
				ended := make(chan error, 1)
				go func() { ended <- end(m) }()
				time.Sleep(time.Second)
				close(release)
				require.NoError(t, <-ended)
				if err := <-call; name == "shutdown" {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, grid.ErrDisconnected)
				}
				_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrDisconnected)
				require.ErrorContains(t, err, "closed")
				require.Equal(t, grid.StateShutdown, c.State())
			})
		})
	}
}

// The host itself is none of the others.
func TestLocal_CallsAddNoHost(t *testing.T) {
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true }, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		m := g.Node(0)
		local := m.Connection(g.Host(0))
		require.NotNil(t, local)
		require.Nil(t, grid.PeerOf(m.Manager, g.Host(0)))
		require.NoError(t, m.SetHosts(g.Hosts()[:1]))
		require.NoError(t, twoWays(t.Context(), local))
	})
}

// A session of the host with itself that has lived is made anew without delay, however often one
// was lost before.
func TestLocal_CallsHealWithoutDelayAgainAndAgain(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		m := newLoner(t, nil)
		c := m.Connection(m.HostName())
		for i := range 20 {
			time.Sleep(time.Minute)
			require.NoError(t, twoWays(t.Context(), c))
			grid.SessionOf(c).Fail(errors.New("something"))
			lost := time.Now()
			require.NoError(t, c.WaitForConnect(t.Context()))
			require.LessOrEqual(t, time.Since(lost), 2*grid.MinBackoff, "loss %d", i)
		}
	})
}

// One that is lost as soon as it is there is not made again and again at full speed.
func TestLocal_SessionsThatDoNotLiveArePaced(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		m := newLoner(t, nil)
		c := m.Connection(m.HostName())
		begin := time.Now()
		const n = 8
		for range n {
			require.NoError(t, c.WaitForConnect(t.Context()))
			grid.SessionOf(c).Fail(errors.New("something"))
		}
		require.GreaterOrEqual(t, time.Since(begin), (1<<(n-1)-1)*grid.MinBackoff)
	})
}
