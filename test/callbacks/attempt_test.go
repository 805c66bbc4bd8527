package callbacks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
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

// lone starts a node that dials a host of which there is nothing but its name.
func lone(t *testing.T, scheme string, edit func(o *grid.ManagerOptions)) (m *grid.Manager, raw string, book *rig.LogBook) {
	for port := 9000; raw == "" || rawpeer.DialOrder(raw, rig.LoneHost); port++ {
		raw = fmt.Sprintf("%s://raw:%d", scheme, port)
	}
	o := rig.Options(rig.LoneHost, []string{rig.LoneHost, raw})
	o.Logger, book = rig.NewLogBook()
	edit(&o)
	m, err := grid.NewManager(t.Context(), o)
	require.NoError(t, err)
	return m, raw, book
}

func TestAttempt_CallsAuthFnOnce(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		var calls, dials [2]atomic.Int64
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			o.AuthFn = func() string { calls[i].Add(1); return rig.Token }
			dial := o.Dialer
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials[i].Add(1)
				return dial(ctx, network, addr)
			}
		})
		const cuts = 5
		for range cuts {
			g.Cut(0, 1)
			synctest.Wait()
			g.WaitConnected()
		}
		for i := range 2 {
			if g.Conn(i, 1-i).Stats().Attempts > 0 {
				require.Greater(t, dials[i].Load(), int64(cuts))
				require.Equal(t, dials[i].Load(), calls[i].Load())
				continue
			}
			// A link may take the knock for it back between the two.
			require.LessOrEqual(t, dials[i].Load(), calls[i].Load())
			require.LessOrEqual(t, calls[i].Load(), int64(1+cuts), "one for each link")
		}
	})
}

// Of one that hangs there is one for each host, also where the host is removed and added again.
func TestAttempt_ThatHangsDoesNotAddUp(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		var hanging atomic.Int64
		stuck := make(chan struct{})
		m, raw, book := lone(t, "http", func(o *grid.ManagerOptions) {
			o.Dialer = func(context.Context, string, string) (net.Conn, error) {
				hanging.Add(1)
				<-stuck
				return nil, net.ErrClosed
			}
		})
		for range 20 {
			time.Sleep(10 * time.Minute)
			require.Equal(t, int64(1), hanging.Load())
			require.NoError(t, m.RemoveHost(raw))
			require.NoError(t, m.AddHost(raw))
		}
		time.Sleep(10 * time.Minute)
		conn := m.Connection(raw)
		require.Contains(t, conn.Stats().LastError, "an earlier attempt still hangs while dialling "+rig.HostAddr(raw)+", after ")
		_, err := conn.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "still hangs while dialling")
		require.Len(t, book.About("timed out after"), 1)
		require.LessOrEqual(t, rig.Elapsed(func() { m.Close() }), time.Second)
		close(stuck)
	})
}

// closer tells when a connection is closed.
type closer struct {
	net.Conn
	closed chan struct{}
}

func (c closer) Close() error { close(c.closed); return nil }

func TestAttempt_ClosesAConnectionThatComesTooLate(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		rig.InBubble(t, func(t *testing.T) {
			c := closer{closed: make(chan struct{})}
			var calls atomic.Int64
			m, _, _ := lone(t, scheme, func(o *grid.ManagerOptions) {
				o.Dialer = func(context.Context, string, string) (net.Conn, error) {
					if calls.Add(1) == 1 {
						time.Sleep(time.Minute)
						return c, nil
					}
					return nil, net.ErrClosed
				}
			})
			defer m.Close()
			<-c.closed // once
		})
	}
}

// secured is lone with a server behind the other host, and a function of TLSConfig.
func secured(t *testing.T, verify func(m *grid.Manager)) (m *grid.Manager, raw string, conns func() int) {
	n := faultconn.NewNetwork()
	m, raw, _ = lone(t, "https", func(o *grid.ManagerOptions) {
		o.Dialer = n.Dialer(rig.HostAddr(rig.LoneHost))
		o.TLSConfig = &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { verify(m); return nil }}
	})
	l, err := n.Listen(rig.HostAddr(raw))
	require.NoError(t, err)
	cert, _ := rig.Certificate(t)
	server := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan error)
	go func() { served <- server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return m, raw, n.Conns
}

// What leaves an attempt half way leaves no connection.
func TestAttempt_ThatPanicsClosesItsConnection(t *testing.T) {
	for name, leave := range map[string]func(){"panic": func() { panic("from inside") }, "goroutine ended": runtime.Goexit} {
		rig.InBubble(t, func(t *testing.T) {
			m, raw, conns := secured(t, func(*grid.Manager) { leave() })
			conn := m.Connection(raw)
			time.Sleep(time.Minute) // the first attempt may come before there is a listener
			require.Contains(t, conn.Stats().LastError, name+" in the TLS handshake with "+rig.HostAddr(raw))
			m.Close()
			synctest.Wait()
			require.Zero(t, conns())
		})
	}
}

// A function of TLSConfig that hangs, or calls Close, holds Close up for a second at most, and
// leaves no connection once it has returned.
func TestAttempt_WhoseTLSFunctionHangsOrCloses(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		stuck := make(chan struct{})
		m, raw, conns := secured(t, func(*grid.Manager) { <-stuck })
		time.Sleep(time.Minute)
		require.Contains(t, m.Connection(raw).Stats().LastError, "an earlier attempt still hangs in the TLS handshake with "+rig.HostAddr(raw))
		require.LessOrEqual(t, rig.Elapsed(func() { m.Close() }), time.Second)
		close(stuck)
		synctest.Wait()
		require.Zero(t, conns())
	})
	rig.InBubble(t, func(t *testing.T) {
		closed := make(chan time.Duration, 1)
		_, _, conns := secured(t, func(m *grid.Manager) { closed <- rig.Elapsed(func() { m.Close() }) })
		require.LessOrEqual(t, <-closed, time.Second)
		synctest.Wait()
		require.Zero(t, conns())
	})
}

// A Dialer that returns nothing is told so.
func TestAttempt_WithoutAConnection(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		m, raw, _ := lone(t, "http", func(o *grid.ManagerOptions) {
			o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, nil }
		})
		defer m.Close()
		rig.WaitState(t, m.Connection(raw), grid.StateConnectionError)
		require.Contains(t, m.Connection(raw).Stats().LastError, "neither a connection nor an error")
	})
}

// What Handler was given may hang, panic or end its goroutine: it refuses that request, and those
// that hang take no more places than there are.
func TestArrival_OfAFunctionThatIsStuck(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		stuck := make(chan struct{})
		var hang, exit atomic.Bool
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, func(o *grid.ManagerOptions) {
			o.MaxHandshakes = 3
			o.AuthToken = func(string) error {
				if hang.Load() {
					<-stuck
				}
				if exit.Load() {
					runtime.Goexit()
				}
				return nil
			}
		})
		exit.Store(true)
		g.RequireRefused(rig.Bearer(rig.Token), http.StatusForbidden)
		exit.Store(false)
		hang.Store(true)
		for range 3 {
			require.Equal(t, 10*time.Second, rig.Elapsed(func() { g.RequireRefused(rig.Bearer(rig.Token), http.StatusForbidden) }))
		}
		g.RequireRefused(rig.Bearer(rig.Token), http.StatusServiceUnavailable)
		hang.Store(false)
		close(stuck)
		synctest.Wait()
		p := g.DialLone(raw, rawpeer.Config{})
		rig.WaitState(t, g.Manager(0).Connection(raw), grid.StateConnected)
		p.Close()
	})
}

// The consumer of a stream that panics, or ends its goroutine, ends the stream and its handler.
func TestConsumer_ThatLeavesEndsItsStream(t *testing.T) {
	h := grid.NewStream[grid.NoPayload, grid.NoPayload, *grid.MSS](rig.Handler+1, nil, nil, grid.NewMSS)
	leave := map[string]func(){"panic": func() { panic("from inside") }, "Goexit": runtime.Goexit}
	for name, consume := range map[string]func(s *grid.Stream, typed *grid.TypedStream[grid.NoPayload, *grid.MSS], leave func()){
		"Results": func(s *grid.Stream, _ *grid.TypedStream[grid.NoPayload, *grid.MSS], leave func()) {
			_ = s.Results(func([]byte) error { leave(); return nil })
		},
		"All": func(s *grid.Stream, _ *grid.TypedStream[grid.NoPayload, *grid.MSS], leave func()) {
			for range s.All() {
				leave()
			}
		},
		"typed Results": func(_ *grid.Stream, s *grid.TypedStream[grid.NoPayload, *grid.MSS], leave func()) {
			_ = s.Results(func(*grid.MSS) error { leave(); return nil })
		},
		"typed All": func(_ *grid.Stream, s *grid.TypedStream[grid.NoPayload, *grid.MSS], leave func()) {
			for range s.All() {
				leave()
			}
		},
	} {
		for how, leave := range leave {
			t.Run(name+"/"+how, func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					ended := make(chan error, 1)
					g.Stream(4, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
						for range 4 {
							out <- []byte("x")
						}
						<-ctx.Done()
						ended <- context.Cause(ctx)
						return nil
					})
					require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ grid.NoPayload, _ <-chan grid.NoPayload, out chan<- *grid.MSS) *grid.RemoteErr {
						out <- grid.NewMSS()
						<-ctx.Done()
						ended <- context.Cause(ctx)
						return nil
					}))
					s := rig.OpenStream(t, t.Context(), c)
					typed, err := h.Call(t.Context(), c, grid.NoPayload{})
					require.NoError(t, err)
					gone := make(chan any, 1)
					go func() {
						defer func() { gone <- recover() }()
						consume(s, typed, leave)
					}()
					require.Equal(t, how == "panic", <-gone != nil, "the panic is the consumer's")
					require.ErrorIs(t, <-ended, context.Canceled)
					var last error
					select {
					case <-s.Done():
						last = s.Err()
					case <-typed.Done():
						last = typed.Err()
					}
					require.ErrorContains(t, last, "the consumer of the stream has panicked, or ended its goroutine")
					_ = s.Results(func([]byte) error { return errors.New("enough") })
					_ = typed.Results(func(*grid.MSS) error { return errors.New("enough") })
				})
			})
		}
	}
}

// What was left behind may go on with its request, which is its own.
func TestArrival_ThatWasLeftBehindMayChangeItsRequest(t *testing.T) {
	var hangs atomic.Bool
	change := func(r *http.Request) error {
		if hangs.Load() {
			time.Sleep(10 * time.Second) // HandshakeTimeout: it goes on when it is left behind
			for i := range 100 {
				r.Header.Set(fmt.Sprint("X-", i), "x")
				r.Header.Set("Authorization", "Bearer x")
			}
		}
		return nil
	}
	rig.InBubble(t, func(t *testing.T) {
		r := newRoom(t, callback{accepts: true, install: func(o *grid.ManagerOptions, _ func()) {
			o.VerifyPeer = func(_ string, r *http.Request) error { return change(r) }
		}}, nil)
		hangs.Store(true)
		r.Cut(r.it, r.peer)
		time.Sleep(10 * time.Minute)
		hangs.Store(false)
		time.Sleep(time.Minute) // until the last has returned
		r.WaitConnected()
	})
	hangs.Store(true)
	rig.InBubble(t, func(t *testing.T) {
		m, _, _ := lone(t, "http", func(o *grid.ManagerOptions) {
			o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
		})
		defer m.Close()
		serve := m.Handler(change)
		for range 10 {
			r := httptest.NewRequest(http.MethodGet, grid.RoutePath, nil)
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			r.Header.Set("Authorization", "Bearer y")
			w := httptest.NewRecorder()
			serve(w, r)
			require.GreaterOrEqual(t, w.Code, http.StatusBadRequest) // 403, unless it returned just in time
			for range 100 {
				require.Equal(t, "Bearer y", r.Header.Get("Authorization"))
			}
		}
	})
}
