package grid_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Hosts that come and go while the manager runs.

func TestHosts_RemovedOneIsGone(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		a, b := g.Node(0), g.Node(1)
		back := g.Conn(1, 0)
		contexts := make(chan context.Context, 1)
		g.Stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			contexts <- ctx
			<-ctx.Done()
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		require.NoError(t, b.RegisterSingleHandlerContext(rig.Handler+1, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			<-ctx.Done()
			return nil, nil
		}))
		call := make(chan error, 1)
		go func() {
			_, err := c.SingleRequest(t.Context(), rig.Handler+1, nil)
			call <- err
		}()
		synctest.Wait()

		require.NoError(t, a.RemoveHost(g.Host(1)))
		for _, err := range []error{<-call, s.Results(func([]byte) error { return nil })} {
			require.ErrorIs(t, err, grid.ErrDisconnected)
			require.ErrorContains(t, err, "the host was removed")
		}
		ctx := <-contexts
		<-ctx.Done()
		require.ErrorIs(t, context.Cause(ctx), grid.ErrDisconnected)
		require.Nil(t, a.Connection(g.Host(1)))
		require.Empty(t, a.Targets())
		require.Empty(t, a.Stats().Connections)
		require.Equal(t, grid.StateShutdown, c.State())
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "the host was removed")
		err = c.WaitForConnect(t.Context())
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "the host was removed")

		// The other side keeps trying, or waits, and has no link.
		time.Sleep(time.Minute)
		require.NotEqual(t, grid.StateConnected, back.State())
		require.NoError(t, a.RemoveHost(g.Host(1)), "it is not there")
		require.NoError(t, a.AddHost(g.Host(1)))
		require.NoError(t, a.AddHost(g.Host(1)), "it is there")
		again := a.Connection(g.Host(1))
		require.NotSame(t, c, again)
		require.NoError(t, again.WaitForConnect(t.Context()))
		require.Same(t, back, b.Connection(g.Host(0)))
		require.NoError(t, back.WaitForConnect(t.Context()))
		for _, c := range []*grid.Connection{again, back} {
			_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)
		}
		require.Equal(t, grid.StateShutdown, c.State())
	})
}

// Who still sends to a stream that has ended with its host does not block.
func TestHosts_SendersToARemovedOneGoOn(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, g.Manager(0).RemoveHost(g.Host(1)))
		_, err = rig.Collect(s, 0)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		for range 100 {
			s.Requests <- []byte("x")
		}
		close(s.Requests)
	})
}

// Removed on both sides, nobody tries any more.
func TestHosts_RemovedOneIsNotDialled(t *testing.T) {
	var dials atomic.Int32
	count := func(_ int, o *grid.ManagerOptions) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, addr)
		}
	}
	rig.InPair(t, count, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		for i := range 2 {
			require.NoError(t, g.Manager(i).RemoveHost(g.Host(1-i)))
		}
		synctest.Wait()
		before := dials.Load()
		require.Positive(t, before)
		time.Sleep(time.Minute)
		require.Equal(t, before, dials.Load())
	})
}

func TestHosts_SetHostsKeepsThoseThatStay(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 4, nil)
		kept, gone := g.Conn(0, 1), g.Conn(0, 2)
		s, err := kept.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, g.Manager(0).SetHosts([]string{g.Host(1), g.Host(0), g.Host(3)}))
		require.Equal(t, []string{g.Host(1), g.Host(3)}, g.Manager(0).Targets())
		require.Same(t, kept, g.Conn(0, 1))
		require.Nil(t, g.Conn(0, 2))
		require.Equal(t, grid.StateShutdown, gone.State())
		require.NoError(t, s.Send([]byte("on")))
		s.CloseSend()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"on"}, got)
		require.NoError(t, g.Manager(0).SetHosts(g.Hosts()))
		g.WaitConnected()
	})
}

func TestHosts_SetHostsRefusesAWrongList(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Node(0)
		for _, wrong := range []struct {
			hosts []string
			text  string
		}{
			{nil, "not in Hosts"},
			{[]string{g.Host(1)}, fmt.Sprintf("local host %q is not in Hosts", g.Host(0))},
			{append([]string{g.Host(1)}, g.Hosts()...), fmt.Sprintf("host %q is given twice", g.Host(1))},
			{append([]string{"HTTP" + g.Host(1)[4:]}, g.Hosts()...), fmt.Sprintf("host %q is given twice, also as", g.Host(1))},
			{append([]string{"ftp://x:1"}, g.Hosts()...), "must begin with http://"},
			{append([]string{"http://a\xff"}, g.Hosts()...), "not ASCII"},
			{append([]string{"http://" + strings.Repeat("a", 254)}, g.Hosts()...), "host name has 254 bytes, the limit is 253"},
			{append([]string{"http://x:0"}, g.Hosts()...), "port"},
		} {
			err := m.SetHosts(wrong.hosts)
			require.ErrorContains(t, err, wrong.text)
			require.Equal(t, []string{g.Host(1)}, m.Targets())
			require.Same(t, c, g.Conn(0, 1))
		}
		require.ErrorContains(t, m.AddHost("http://new/path"), "must end after the host and port: write http://new")
		require.EqualError(t, m.AddHost("127.0.0.1:99"), `grid: host "127.0.0.1:99": URL must begin with http:// or https://: write http://127.0.0.1:99, or https://127.0.0.1:99`)
		require.ErrorContains(t, m.RemoveHost(g.Host(0)), "local host")
		require.NoError(t, m.AddHost(g.Host(0)))
		require.Equal(t, grid.StateConnected, c.State())
	})
}

func TestHosts_OfAManagerThatEnds(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Node(0)
		change := map[string]func() error{
			"add":    func() error { return m.AddHost("http://new:1") },
			"remove": func() error { return m.RemoveHost(g.Host(1)) },
			"set":    func() error { return m.SetHosts(g.Hosts()[:1]) },
		}
		end := func(text string) {
			for name, f := range change {
				err := f()
				require.ErrorIs(t, err, grid.ErrDisconnected, name)
				require.ErrorContains(t, err, text)
			}
		}
		release := make(chan struct{})
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { <-release; return nil, nil })
		go func() { _, _ = c.SingleRequest(t.Context(), rig.Handler, nil) }()
		synctest.Wait()
		stopped := make(chan error, 1)
		go func() { stopped <- m.Shutdown(context.Background()) }()
		synctest.Wait()
		end("shutting down")
		close(release)
		require.NoError(t, <-stopped)
		grid.EndDrain(m.Manager)
		end("closed")
	})
}

// The default of MaxHandshakes goes by the number of hosts, and what was set stays.
func TestHosts_MaxHandshakesFollowsTheirNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := []string{"http://me:1"}
		for i := range 499 {
			hosts = append(hosts, fmt.Sprintf("http://h%d:1", i))
		}
		for _, c := range []struct{ set, few, many int }{{0, 128, 1000}, {7, 7, 7}} {
			o := rig.Options(hosts[0], hosts[:1])
			o.MaxHandshakes = c.set
			o.BlockConnect = make(chan struct{})
			m, err := grid.NewManager(context.Background(), o)
			require.NoError(t, err)
			require.Equal(t, c.few, grid.HandshakeLimit(m))
			require.NoError(t, m.SetHosts(hosts))
			require.Equal(t, c.many, grid.HandshakeLimit(m))
			require.NoError(t, m.SetHosts(hosts[:1]))
			require.Equal(t, c.few, grid.HandshakeLimit(m))
			m.Close()
		}
	})
}

// Calls and streams to all hosts go on while hosts come and go: each works, or ends with
// ErrDisconnected, and in the end all are connected.
func TestHosts_ChangeUnderTraffic(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		const n = 4
		changes := 100
		if testing.Short() {
			changes = 30
		}
		g := rig.New(t, n, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var users sync.WaitGroup
		for from := range n {
			for to := range n {
				if from == to {
					continue
				}
				users.Go(func() {
					for ctx.Err() == nil {
						c := g.Conn(from, to)
						if err := twoWays(ctx, c); err != nil && ctx.Err() == nil && !errors.Is(err, grid.ErrDisconnected) {
							t.Error(err)
						}
						time.Sleep(time.Millisecond)
					}
				})
			}
		}
		var changers sync.WaitGroup
		for i := range n {
			changers.Go(func() {
				for k := range changes {
					other := g.Host((i + 1 + k%(n-1)) % n)
					time.Sleep(time.Duration(10+i) * time.Millisecond)
					if k%5 == 4 {
						require.NoError(t, g.Manager(i).SetHosts(g.Hosts()[i:i+1]))
					} else {
						require.NoError(t, g.Manager(i).RemoveHost(other))
					}
					time.Sleep(time.Duration(10+i) * time.Millisecond)
					if k%2 == 1 {
						require.NoError(t, g.Manager(i).SetHosts(g.Hosts()))
					} else {
						require.NoError(t, g.Manager(i).AddHost(other))
					}
				}
			})
		}
		changers.Wait()
		g.WaitConnected()
		cancel()
		users.Wait()
	})
}

// twoWays makes a request and a stream.
func twoWays(ctx context.Context, c *grid.Connection) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := c.SingleRequest(ctx, rig.Echo, []byte("x")); err != nil {
		return err
	}
	s, err := c.NewStream(ctx, rig.TwoWay, nil)
	if err != nil {
		return err
	}
	if err := s.Send([]byte("y")); err == nil {
		s.CloseSend()
	}
	_, err = rig.Collect(s, 0)
	return err
}

// Who keeps the hosts in step with something else adds all of them each time.
func TestHosts_AddingOneThatIsThereCostsNothing(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(0)
		require.Zero(t, testing.AllocsPerRun(100, func() { require.NoError(t, m.AddHost(g.Host(1))) }))
		require.NoError(t, m.Close())
		require.ErrorIs(t, m.AddHost(g.Host(1)), grid.ErrDisconnected)
	})
}

func TestHosts_LookupSaysWhichIsMeant(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Node(0)
		for _, spelling := range []string{g.Host(1), "HTTP://NODE1:09000"} {
			found, err := m.Lookup(spelling)
			require.NoError(t, err)
			require.Same(t, c, found)
		}
		for host, want := range map[string]string{
			"https://node1:9000":       `grid: "https://node1:9000" is not among the hosts (did you mean http://node1:9000?)`,
			"http://node1":             `grid: "http://node1" is not among the hosts (did you mean http://node1:9000?)`,
			"node1:9000":               `grid: "node1:9000" is not among the hosts (did you mean http://node1:9000?)`,
			"https://node0:9000":       `grid: "https://node0:9000" is not among the hosts (did you mean http://node0:9000?)`,
			"http://node2:9000":        `grid: "http://node2:9000" is not among the hosts`,
			"HTTP://NODE0:9000":        `grid: "HTTP://NODE0:9000" is the local host, and LocalCalls is not set`,
			"http://other/":            `grid: host "http://other/": URL must end after the host and port: write http://other`,
			"127.0.0.1:99":             `grid: host "127.0.0.1:99": URL must begin with http:// or https://: write http://127.0.0.1:99`,
			strings.Repeat("x", 1<<20): `grid: host "` + strings.Repeat("x", 128) + `"...: URL must begin with http:// or https://`,
		} {
			found, err := m.Lookup(host)
			require.Nil(t, found)
			require.ErrorContains(t, err, want)
			require.Less(t, len(err.Error()), 500)
			require.NotErrorIs(t, err, grid.ErrDisconnected)
		}
		require.NoError(t, m.RemoveHost(g.Host(1)))
		_, err := m.Lookup(g.Host(1))
		require.EqualError(t, err, `grid: "http://node1:9000" is not among the hosts`)
	})
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true }, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		self, err := g.Manager(0).Lookup(g.Host(0))
		require.NoError(t, err)
		_, err = self.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
	})
}
