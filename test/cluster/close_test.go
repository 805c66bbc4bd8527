package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// That Close leaves no goroutine and no timer shows where these tests end: a bubble does not while
// there are any, and TestMain looks outside of them. That it leaves no socket is looked at by Grid.

// requireShutdown checks a connection after the Close of its manager.
func requireShutdown(t *testing.T, c *grid.Connection) {
	t.Helper()
	require.Equal(t, grid.StateShutdown, c.State())
	require.ErrorIs(t, c.WaitForConnect(context.Background()), grid.ErrDisconnected)
	_, err := c.SingleRequest(context.Background(), rig.Echo, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	_, err = c.NewStream(context.Background(), rig.Stream, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
}

func TestClose_EndsEverythingOnBothSides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		handlerEnded := make(chan error, 1)
		register := func(n *rig.Node) {
			require.NoError(t, n.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				<-ctx.Done()
				handlerEnded <- context.Cause(ctx)
				return nil
			}}))
		}
		g := rig.New(t, 2, nil)
		register(g.Node(0))
		register(g.Node(1))
		for closing := range 2 { // the caller, then the server
			st, err := g.Conn(0, 1).NewStream(context.Background(), rig.Unused, nil)
			require.NoError(t, err)
			begin := time.Now()
			require.NoError(t, g.Manager(closing).Close())
			requireShutdown(t, g.Manager(closing).Connection(g.Host(1-closing)))
			require.ErrorIs(t, st.Results(func([]byte) error { return nil }), grid.ErrDisconnected)
			require.ErrorIs(t, <-handlerEnded, grid.ErrDisconnected)
			require.Zero(t, time.Since(begin))
			synctest.Wait()
			require.NotEqual(t, grid.StateConnected, g.Manager(1-closing).Connection(g.Host(closing)).State())
			g.Stop(closing)
			g.Start(closing)
			register(g.Node(closing))
			g.WaitConnected()
		}
	})
}

func TestClose_TwiceAndConcurrently(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		var closers sync.WaitGroup
		for range 20 {
			closers.Go(func() {
				if err := g.Manager(0).Close(); err != nil {
					t.Error(err)
				}
				if s := g.Conn(0, 1).State(); s != grid.StateShutdown {
					t.Errorf("one Close has returned while the state is %v", s)
				}
			})
		}
		closers.Wait()
		require.NoError(t, g.Manager(0).Close())
		require.NoError(t, g.Manager(0).Shutdown(t.Context()))
		requireShutdown(t, g.Conn(0, 1))
	})
}

func TestClose_FromAHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		closed := make(chan error, 1)
		n := g.Node(1)
		require.NoError(t, n.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
			closed <- n.Close()
			return b, nil
		}))
		_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.NoError(t, <-closed)

		g.Stop(1)
		g.Start(1)
		n = g.Node(1)
		require.NoError(t, n.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
			closed <- n.Close()
			return nil
		}}))
		g.WaitConnected()
		st, err := g.Conn(0, 1).NewStream(t.Context(), rig.Unused, nil)
		if err == nil { // the handler may be faster than the ack
			err = st.Results(func([]byte) error { return nil })
		}
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.NoError(t, <-closed)
	})
}

func TestClose_WaitsForWhatGridHasStarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, _ := rig.NewLone(t, faultconn.NewNetwork(), false, func(o *grid.ManagerOptions) {
			o.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				time.Sleep(time.Second) // in no hurry
				return nil, ctx.Err()
			}
		})
		synctest.Wait()
		begin := time.Now()
		second := rig.InBackground(g.Manager(0).Close)
		require.NoError(t, g.Manager(0).Close())
		require.NoError(t, <-second)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestClose_WaitsForNoHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		release, running := make(chan struct{}), make(chan struct{})
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
			close(running)
			<-release
			return b, nil
		}))
		failed := make(chan error)
		go func() {
			_, err := g.Conn(0, 1).SingleRequest(context.Background(), rig.Unused, nil)
			failed <- err
		}()
		<-running
		require.NoError(t, g.Manager(1).Close())
		require.ErrorIs(t, <-failed, grid.ErrDisconnected)
		close(release)
	})
}

// Lesson 21: ending the context does what Close does.
func TestClose_ByTheContextStopsDialling(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		var dialled atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		o := rig.Options(rig.LoneHost, []string{rig.LoneHost, rig.PeerHost(t, false)})
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialled.Add(1)
			return n.Dialer("node0:9000")(ctx, network, addr)
		}
		m, err := grid.NewManager(ctx, o)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Greater(t, dialled.Load(), int64(10))
		waited := make(chan error, 1)
		go func() { waited <- m.Connection(o.Hosts[1]).WaitForConnect(context.Background()) }()
		synctest.Wait()

		cancel()
		synctest.Wait()
		require.ErrorIs(t, <-waited, grid.ErrDisconnected)
		requireShutdown(t, m.Connection(o.Hosts[1]))
		count := dialled.Load()
		time.Sleep(time.Hour)
		require.Equal(t, count, dialled.Load())
		require.NoError(t, m.Close())
	})
}

func TestClose_ByTheContextEndsWhatIsConnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		s := rig.ListenLone(t, n, rawpeer.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		o := rig.Options(rig.LoneHost, []string{rig.LoneHost, s.URL})
		o.Dialer = n.Dialer(rig.HostAddr(rig.LoneHost))
		m, err := grid.NewManager(ctx, o)
		require.NoError(t, err)
		p := s.Accept()
		rig.WaitState(t, m.Connection(s.URL), grid.StateConnected)
		cancel()
		p.ExpectClosed()
		synctest.Wait()
		requireShutdown(t, m.Connection(s.URL))
	})
}

func TestClose_ByAContextThatHasEndedBefore(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := grid.NewManager(ctx, rig.Options(rig.LoneHost, []string{rig.LoneHost, "http://node1:9000"}))
	require.NoError(t, err)
	rig.WaitState(t, m.Connection("http://node1:9000"), grid.StateShutdown)
	require.NoError(t, m.Close())
}

func TestClose_WhileConnectingReturnsAtOnce(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()){
		"dialling into the void": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			n.Partition(rig.HostAddr(rig.LoneHost), rig.HostAddr(rig.PeerHost(t, false)))
			g, _ := rig.NewLone(t, n, false, nil)
			return g, func() {}
		},
		"upgrade not answered": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			l := rig.ListenMemory(t, n, rig.PeerHost(t, false))
			g, _ := rig.NewLone(t, n, false, nil)
			return g, func() { l.Close() }
		},
		"handshake not answered": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			s := rig.ListenLone(t, n, rawpeer.Config{Bare: true})
			g, _ := rig.NewLone(t, n, false, nil)
			s.Accept()
			return g, func() {}
		},
		"handshake not begun by the dialler": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			g, raw := rig.NewLone(t, n, true, nil)
			g.DialLone(raw, rawpeer.Config{Bare: true})
			return g, func() {}
		},
		"accepting is held back": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			g, raw := rig.NewLone(t, n, true, func(o *grid.ManagerOptions) { o.BlockConnect = make(chan struct{}) })
			refused := make(chan error, 1)
			go func() {
				_, _, err := rawpeer.Upgrade(context.Background(), rig.LoneHost, rawpeer.Config{Token: rig.Token, Dial: n.Dialer(rig.HostAddr(raw))})
				refused <- err
			}()
			return g, func() { require.Error(t, <-refused) }
		},
		"dialling is held back": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			g, _ := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) { o.BlockConnect = make(chan struct{}) })
			return g, func() {}
		},
		"between two attempts": func(t *testing.T, n *faultconn.Network) (*rig.Grid, func()) {
			g, _ := rig.NewLone(t, n, false, nil)
			time.Sleep(time.Minute)
			return g, func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, after := begin(t, faultconn.NewNetwork())
				synctest.Wait()
				start := time.Now()
				require.NoError(t, g.Manager(0).Close())
				require.Zero(t, time.Since(start))
				after()
			})
		})
	}
}

func TestClose_DoesNotHangOnAPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		g.Net.Partition(g.Addr(0), g.Addr(1))
		failed := make(chan error, 100)
		for range cap(failed) { // more than the socket and the queue take
			go func() {
				_, err := g.Conn(0, 1).SingleRequest(context.Background(), rig.Echo, make([]byte, 64<<10))
				failed <- err
			}()
		}
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, g.Manager(0).Close())
		for range cap(failed) {
			require.ErrorIs(t, <-failed, grid.ErrDisconnected)
		}
		require.Zero(t, time.Since(begin))
	})
}

func TestClose_DuringEverything(t *testing.T) {
	t.Parallel()
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			g := rig.New(t, 2, nil)
			var users sync.WaitGroup
			use := func(f func() error) {
				users.Go(func() {
					for {
						err := f()
						if errors.Is(err, grid.ErrDisconnected) {
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for i := range 2 {
				c, n := g.Conn(i, 1-i), g.Node(i)
				use(func() error {
					b, err := c.SingleRequest(context.Background(), rig.Echo, make([]byte, 100))
					grid.PutByteBuffer(b)
					return err
				})
				use(func() error {
					st, err := c.NewStream(context.Background(), rig.Stream, make([]byte, 10))
					if err != nil {
						return err
					}
					return st.Results(func(b []byte) error { grid.PutByteBuffer(b); return nil })
				})
				use(func() error {
					n.Stats()
					return c.WaitForConnect(context.Background())
				})
			}
			users.Go(func() { g.Manager(0).Close() })
			users.Go(func() { g.Manager(1).Close() })
			users.Go(func() { g.Cut(0, 1) })
			users.Wait()
		})
	}
}
