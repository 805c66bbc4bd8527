package grid

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
)

// Hosts that come and go while the manager runs.

func TestRemovedHostIsGone(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		a, b := g.nodes[0], g.nodes[1]
		back := g.conn(1, 0)
		contexts := make(chan context.Context, 1)
		g.stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
			contexts <- ctx
			<-ctx.Done()
			return nil
		})
		s := openStream(t, t.Context(), c)
		require.NoError(t, b.RegisterSingleHandlerContext(testHandler+1, func(ctx context.Context, _ []byte) ([]byte, *RemoteErr) {
			<-ctx.Done()
			return nil, nil
		}))
		call := make(chan error, 1)
		go func() {
			_, err := c.SingleRequest(t.Context(), testHandler+1, nil)
			call <- err
		}()
		synctest.Wait()

		require.NoError(t, a.RemoveHost(g.hosts[1]))
		for _, err := range []error{<-call, s.Results(func([]byte) error { return nil })} {
			require.ErrorIs(t, err, ErrDisconnected)
			require.ErrorContains(t, err, "the host was removed")
		}
		ctx := <-contexts
		<-ctx.Done()
		require.ErrorIs(t, context.Cause(ctx), ErrDisconnected)
		require.Nil(t, a.Connection(g.hosts[1]))
		require.Empty(t, a.Targets())
		require.Empty(t, a.Stats().Connections)
		require.Equal(t, StateShutdown, c.State())
		_, err := c.SingleRequest(t.Context(), testEcho, nil)
		require.ErrorIs(t, err, ErrDisconnected)
		require.ErrorContains(t, err, "the host was removed")
		err = c.WaitForConnect(t.Context())
		require.ErrorIs(t, err, ErrDisconnected)
		require.ErrorContains(t, err, "the host was removed")

		// The other side keeps trying, or waits, and has no link.
		time.Sleep(time.Minute)
		require.NotEqual(t, StateConnected, back.State())
		require.NoError(t, a.RemoveHost(g.hosts[1]), "it is not there")
		require.NoError(t, a.AddHost(g.hosts[1]))
		require.NoError(t, a.AddHost(g.hosts[1]), "it is there")
		again := a.Connection(g.hosts[1])
		require.NotSame(t, c, again)
		require.NoError(t, again.WaitForConnect(t.Context()))
		require.Same(t, back, b.Connection(g.hosts[0]))
		require.NoError(t, back.WaitForConnect(t.Context()))
		for _, c := range []*Connection{again, back} {
			_, err := c.SingleRequest(t.Context(), testEcho, nil)
			require.NoError(t, err)
		}
		require.Equal(t, StateShutdown, c.State())
	})
}

// Who still sends to a stream that has ended with its host does not block.
func TestSendersToARemovedHostGoOn(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		s, err := c.NewStream(t.Context(), testTwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, g.nodes[0].RemoveHost(g.hosts[1]))
		_, err = collect(s, 0)
		require.ErrorIs(t, err, ErrDisconnected)
		for range 100 {
			s.Requests <- []byte("x")
		}
		close(s.Requests)
	})
}

// Removed on both sides, nobody tries any more.
func TestRemovedHostIsNotDialled(t *testing.T) {
	var dials atomic.Int32
	count := func(_ int, o *ManagerOptions) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, addr)
		}
	}
	inPair(t, count, func(t *testing.T, g *testGrid, _ *Connection) {
		for i := range 2 {
			require.NoError(t, g.nodes[i].RemoveHost(g.hosts[1-i]))
		}
		synctest.Wait()
		before := dials.Load()
		require.Positive(t, before)
		time.Sleep(time.Minute)
		require.Equal(t, before, dials.Load())
	})
}

func TestSetHostsKeepsThoseThatStay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newTestGrid(t, 4, nil)
		kept, gone := g.conn(0, 1), g.conn(0, 2)
		s, err := kept.NewStream(t.Context(), testTwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, g.nodes[0].SetHosts([]string{g.hosts[1], g.hosts[0], g.hosts[3]}))
		require.Equal(t, []string{g.hosts[1], g.hosts[3]}, g.nodes[0].Targets())
		require.Same(t, kept, g.conn(0, 1))
		require.Nil(t, g.conn(0, 2))
		require.Equal(t, StateShutdown, gone.State())
		require.NoError(t, s.Send([]byte("on")))
		s.CloseSend()
		got, err := collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"on"}, got)
		require.NoError(t, g.nodes[0].SetHosts(g.hosts))
		g.waitConnected()
	})
}

func TestSetHostsRefusesAWrongList(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		m := g.nodes[0]
		for _, wrong := range []struct {
			hosts []string
			text  string
		}{
			{nil, "not in Hosts"},
			{[]string{g.hosts[1]}, fmt.Sprintf("local host %q is not in Hosts", g.hosts[0])},
			{append([]string{g.hosts[1]}, g.hosts...), fmt.Sprintf("host %q is given twice", g.hosts[1])},
			{append([]string{"HTTP" + g.hosts[1][4:]}, g.hosts...), "must begin with http://"},
			{append([]string{"http://a\xff"}, g.hosts...), "URL is not UTF-8"},
			{append([]string{"http://" + strings.Repeat("a", 256)}, g.hosts...), "host name has 256 bytes, the limit is 255"},
			{append([]string{"http://x:0"}, g.hosts...), "port"},
		} {
			err := m.SetHosts(wrong.hosts)
			require.ErrorContains(t, err, wrong.text)
			require.Equal(t, []string{g.hosts[1]}, m.Targets())
			require.Same(t, c, g.conn(0, 1))
		}
		require.ErrorContains(t, m.AddHost("http://new/path"), "must end after the host")
		require.ErrorContains(t, m.RemoveHost(g.hosts[0]), "local host")
		require.NoError(t, m.AddHost(g.hosts[0]))
		require.Equal(t, StateConnected, c.State())
	})
}

func TestHostsOfAManagerThatEnds(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		m := g.nodes[0]
		change := map[string]func() error{
			"add":    func() error { return m.AddHost("http://new:1") },
			"remove": func() error { return m.RemoveHost(g.hosts[1]) },
			"set":    func() error { return m.SetHosts(g.hosts[:1]) },
		}
		end := func(text string) {
			for name, f := range change {
				err := f()
				require.ErrorIs(t, err, ErrDisconnected, name)
				require.ErrorContains(t, err, text)
			}
		}
		release := make(chan struct{})
		g.single(func([]byte) ([]byte, *RemoteErr) { <-release; return nil, nil })
		go func() { _, _ = c.SingleRequest(t.Context(), testHandler, nil) }()
		synctest.Wait()
		stopped := make(chan error, 1)
		go func() { stopped <- m.Shutdown(context.Background()) }()
		synctest.Wait()
		end("shutting down")
		close(release)
		require.NoError(t, <-stopped)
		m.draining.Store(false)
		end("closed")
	})
}

// The default of MaxHandshakes goes by the number of hosts, and what was set stays.
func TestMaxHandshakesFollowsTheHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := []string{"http://me:1"}
		for i := range 499 {
			hosts = append(hosts, fmt.Sprintf("http://h%d:1", i))
		}
		for _, c := range []struct{ set, few, many int }{{0, 128, 1000}, {7, 7, 7}} {
			o := testOptions(hosts[0], hosts[:1])
			o.MaxHandshakes = c.set
			o.BlockConnect = make(chan struct{})
			m, err := NewManager(context.Background(), o)
			require.NoError(t, err)
			require.Equal(t, c.few, m.incoming.limit)
			require.NoError(t, m.SetHosts(hosts))
			require.Equal(t, c.many, m.incoming.limit)
			require.NoError(t, m.SetHosts(hosts[:1]))
			require.Equal(t, c.few, m.incoming.limit)
			m.Close()
		}
	})
}

// Calls and streams to all hosts go on while hosts come and go: each works, or ends
// with ErrDisconnected, and in the end all are connected.
func TestHostsChangeUnderTraffic(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const n, changes = 4, 100
		g := newTestGrid(t, n, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var users sync.WaitGroup
		for from := range n {
			for to := range n {
				if from == to {
					continue
				}
				users.Go(func() {
					for ctx.Err() == nil {
						c := g.conn(from, to)
						if err := twoWays(ctx, c); err != nil && ctx.Err() == nil && !errors.Is(err, ErrDisconnected) {
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
					other := g.hosts[(i+1+k%(n-1))%n]
					time.Sleep(time.Duration(10+i) * time.Millisecond)
					if k%5 == 4 {
						require.NoError(t, g.nodes[i].SetHosts(g.hosts[i:i+1]))
					} else {
						require.NoError(t, g.nodes[i].RemoveHost(other))
					}
					time.Sleep(time.Duration(10+i) * time.Millisecond)
					if k%2 == 1 {
						require.NoError(t, g.nodes[i].SetHosts(g.hosts))
					} else {
						require.NoError(t, g.nodes[i].AddHost(other))
					}
				}
			})
		}
		changers.Wait()
		g.waitConnected()
		cancel()
		users.Wait()
	})
}

// twoWays makes a request and a stream.
func twoWays(ctx context.Context, c *Connection) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := c.SingleRequest(ctx, testEcho, []byte("x")); err != nil {
		return err
	}
	s, err := c.NewStream(ctx, testTwoWay, nil)
	if err != nil {
		return err
	}
	if err := s.Send([]byte("y")); err == nil {
		s.CloseSend()
	}
	_, err = collect(s, 0)
	return err
}

// Who keeps the hosts in step with something else adds all of them each time.
func TestAddingAHostThatIsThereCostsNothing(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		m := g.nodes[0].Manager
		require.Zero(t, testing.AllocsPerRun(100, func() { require.NoError(t, m.AddHost(g.hosts[1])) }))
		require.NoError(t, m.Close())
		require.ErrorIs(t, m.AddHost(g.hosts[1]), ErrDisconnected)
	})
}
