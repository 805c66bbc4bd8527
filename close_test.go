package grid

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

	"github.com/gridrpc/grid/internal/faultconn"
)

// That Close leaves no goroutine and no timer shows where these tests end: a
// bubble does not while there are any, and TestMain looks outside of them. That
// it leaves no socket is looked at by testGrid.

// requireShutdown checks a connection after the Close of its manager.
func requireShutdown(t *testing.T, c *Connection) {
	t.Helper()
	require.Equal(t, StateShutdown, c.State())
	require.ErrorIs(t, c.WaitForConnect(context.Background()), ErrDisconnected)
	_, err := c.SingleRequest(context.Background(), testEcho, nil)
	require.ErrorIs(t, err, ErrDisconnected)
	_, err = c.NewStream(context.Background(), testStream, nil)
	require.ErrorIs(t, err, ErrDisconnected)
}

func TestCloseEndsEverythingOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handlerEnded := make(chan error, 1)
		register := func(n *node) {
			require.NoError(t, n.RegisterStreamingHandler(testUnused, StreamHandler{Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
				<-ctx.Done()
				handlerEnded <- context.Cause(ctx)
				return nil
			}}))
		}
		g := newTestGrid(t, 2, nil)
		register(g.nodes[0])
		register(g.nodes[1])
		for closing := range 2 { // the caller, then the server
			st, err := g.conn(0, 1).NewStream(context.Background(), testUnused, nil)
			require.NoError(t, err)
			begin := time.Now()
			require.NoError(t, g.nodes[closing].Close())
			requireShutdown(t, g.nodes[closing].Connection(g.hosts[1-closing]))
			require.ErrorIs(t, st.Results(func([]byte) error { return nil }), ErrDisconnected)
			require.ErrorIs(t, <-handlerEnded, ErrDisconnected)
			require.Zero(t, time.Since(begin))
			synctest.Wait()
			require.NotEqual(t, StateConnected, g.nodes[1-closing].Connection(g.hosts[closing]).State())
			g.stop(closing)
			g.start(closing)
			register(g.nodes[closing])
			g.waitConnected()
		}
	})
}

func TestCloseTwiceAndConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 3, nil)
		var closers sync.WaitGroup
		for range 20 {
			closers.Go(func() {
				if err := g.nodes[0].Close(); err != nil {
					t.Error(err)
				}
				if s := g.conn(0, 1).State(); s != StateShutdown {
					t.Errorf("one Close has returned while the state is %v", s)
				}
			})
		}
		closers.Wait()
		require.NoError(t, g.nodes[0].Close())
		require.NoError(t, g.nodes[0].Shutdown(t.Context()))
		requireShutdown(t, g.conn(0, 1))
	})
}

func TestCloseFromAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		closed := make(chan error, 1)
		n := g.nodes[1]
		require.NoError(t, n.RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) {
			closed <- n.Close()
			return b, nil
		}))
		_, err := g.conn(0, 1).SingleRequest(t.Context(), testUnused, nil)
		require.ErrorIs(t, err, ErrDisconnected)
		require.NoError(t, <-closed)

		g.stop(1)
		n = g.start(1)
		require.NoError(t, n.RegisterStreamingHandler(testUnused, StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr {
			closed <- n.Close()
			return nil
		}}))
		g.waitConnected()
		st, err := g.conn(0, 1).NewStream(t.Context(), testUnused, nil)
		if err == nil { // the handler may be faster than the ack
			err = st.Results(func([]byte) error { return nil })
		}
		require.ErrorIs(t, err, ErrDisconnected)
		require.NoError(t, <-closed)
	})
}

func TestCloseWaitsForWhatGridHasStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newLoneGrid(t, faultconn.NewNetwork(), false, func(o *ManagerOptions) {
			o.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				time.Sleep(time.Second) // in no hurry
				return nil, ctx.Err()
			}
		})
		synctest.Wait()
		begin := time.Now()
		second := inBackground(g.nodes[0].Close)
		require.NoError(t, g.nodes[0].Close())
		require.NoError(t, <-second)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestCloseWaitsForNoHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		release, running := make(chan struct{}), make(chan struct{})
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) {
			close(running)
			<-release
			return b, nil
		}))
		failed := make(chan error)
		go func() {
			_, err := g.conn(0, 1).SingleRequest(context.Background(), testUnused, nil)
			failed <- err
		}()
		<-running
		require.NoError(t, g.nodes[1].Close())
		require.ErrorIs(t, <-failed, ErrDisconnected)
		close(release)
	})
}

// Lesson 21: ending the context does what Close does.
func TestCancellingTheContextStopsDiallingAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		var dialled atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		o := testOptions(loneHost, []string{loneHost, rawHostFor(t, false)})
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialled.Add(1)
			return n.Dialer("node0:9000")(ctx, network, addr)
		}
		m, err := NewManager(ctx, o)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Greater(t, dialled.Load(), int64(10))
		waited := make(chan error, 1)
		go func() { waited <- m.Connection(o.Hosts[1]).WaitForConnect(context.Background()) }()
		synctest.Wait()

		cancel()
		synctest.Wait()
		require.ErrorIs(t, <-waited, ErrDisconnected)
		requireShutdown(t, m.Connection(o.Hosts[1]))
		count := dialled.Load()
		time.Sleep(time.Hour)
		require.Equal(t, count, dialled.Load())
		require.NoError(t, m.Close())
	})
}

func TestCancellingTheContextClosesWhatIsConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		s := listenLone(t, n, rawConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		o := testOptions(loneHost, []string{loneHost, s.URL})
		o.Dialer = n.Dialer(hostAddr(loneHost))
		m, err := NewManager(ctx, o)
		require.NoError(t, err)
		p := s.accept()
		waitState(t, m.Connection(s.URL), StateConnected)
		cancel()
		p.expectClosed()
		synctest.Wait()
		requireShutdown(t, m.Connection(s.URL))
	})
}

func TestContextThatHasEndedGivesAClosedManager(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := NewManager(ctx, testOptions(loneHost, []string{loneHost, "http://node1:9000"}))
	require.NoError(t, err)
	waitState(t, m.Connection("http://node1:9000"), StateShutdown)
	require.NoError(t, m.Close())
}

func TestCloseWhileConnectingReturnsAtOnce(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, n *faultconn.Network) (*testGrid, func()){
		"dialling into the void": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			n.Partition(hostAddr(loneHost), hostAddr(rawHostFor(t, false)))
			g, _ := newLoneGrid(t, n, false, nil)
			return g, func() {}
		},
		"upgrade not answered": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			l := listenMemory(t, n, rawHostFor(t, false))
			g, _ := newLoneGrid(t, n, false, nil)
			return g, func() { l.Close() }
		},
		"handshake not answered": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			s := listenLone(t, n, rawConfig{Bare: true})
			g, _ := newLoneGrid(t, n, false, nil)
			s.accept()
			return g, func() {}
		},
		"handshake not begun by the dialler": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			g, raw := newLoneGrid(t, n, true, nil)
			g.dialLone(raw, rawConfig{Bare: true})
			return g, func() {}
		},
		"accepting is held back": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			g, raw := newLoneGrid(t, n, true, func(o *ManagerOptions) { o.BlockConnect = make(chan struct{}) })
			refused := make(chan error, 1)
			go func() {
				_, _, err := upgradeRaw(context.Background(), loneHost, rawConfig{Token: testToken, Dial: n.Dialer(hostAddr(raw))})
				refused <- err
			}()
			return g, func() { require.Error(t, <-refused) }
		},
		"dialling is held back": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			g, _ := newLoneGrid(t, n, false, func(o *ManagerOptions) { o.BlockConnect = make(chan struct{}) })
			return g, func() {}
		},
		"between two attempts": func(t *testing.T, n *faultconn.Network) (*testGrid, func()) {
			g, _ := newLoneGrid(t, n, false, nil)
			time.Sleep(time.Minute)
			return g, func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, after := begin(t, faultconn.NewNetwork())
				synctest.Wait()
				start := time.Now()
				require.NoError(t, g.nodes[0].Close())
				require.Zero(t, time.Since(start))
				after()
			})
		})
	}
}

func TestCloseDoesNotHangOnAPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		g.net.Partition(g.addr(0), g.addr(1))
		failed := make(chan error, 100)
		for range cap(failed) { // more than the socket and the queue take
			go func() {
				_, err := g.conn(0, 1).SingleRequest(context.Background(), testEcho, make([]byte, 64<<10))
				failed <- err
			}()
		}
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, g.nodes[0].Close())
		for range cap(failed) {
			require.ErrorIs(t, <-failed, ErrDisconnected)
		}
		require.Zero(t, time.Since(begin))
	})
}

func TestCloseDuringEverything(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			g := newTestGrid(t, 2, nil)
			var users sync.WaitGroup
			use := func(f func() error) {
				users.Go(func() {
					for {
						err := f()
						if errors.Is(err, ErrDisconnected) {
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
				c, n := g.conn(i, 1-i), g.nodes[i]
				use(func() error {
					b, err := c.SingleRequest(context.Background(), testEcho, make([]byte, 100))
					PutByteBuffer(b)
					return err
				})
				use(func() error {
					st, err := c.NewStream(context.Background(), testStream, make([]byte, 10))
					if err != nil {
						return err
					}
					return st.Results(func(b []byte) error { PutByteBuffer(b); return nil })
				})
				use(func() error {
					n.Stats()
					return c.WaitForConnect(context.Background())
				})
			}
			users.Go(func() { g.nodes[0].Close() })
			users.Go(func() { g.nodes[1].Close() })
			users.Go(func() { g.cut(0, 1) })
			users.Wait()
		})
	}
}
