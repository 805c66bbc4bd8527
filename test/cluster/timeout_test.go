package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// An attempt to connect that takes too long: both sides say how far it came, and not what has
// become of a socket that the same timeout has closed.

const attemptTimeout = 3 * time.Second

// requireSays requires a text about a timeout, and nothing that is about a socket.
func requireSays(t *testing.T, text, want string) {
	t.Helper()
	require.Contains(t, text, want)
	for _, bare := range []string{"closed network connection", "i/o timeout", "closed pipe", "deadline exceeded", "odd text"} {
		require.NotContains(t, strings.TrimPrefix(text, context.DeadlineExceeded.Error()), bare)
	}
}

// silent accepts what comes, and hands it to serve, if there is one.
func silent(t *testing.T, l net.Listener, serve func(c net.Conn)) {
	t.Helper()
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			if serve != nil {
				serve(c)
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
}

// oddConn is a connection of an application's Dialer, whose errors have a text of its own.
type oddConn struct{ net.Conn }

func (c oddConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && err != io.EOF {
		err = errors.New("odd text")
	}
	return n, err
}

func TestTimeout_OfADialSaysHowFarItCame(t *testing.T) {
	t.Parallel()
	listen := func(serve func(c net.Conn)) func(t *testing.T, n *faultconn.Network, raw string) {
		return func(t *testing.T, n *faultconn.Network, raw string) {
			l, err := n.Listen(rig.HostAddr(raw))
			require.NoError(t, err)
			silent(t, l, serve)
		}
	}
	for name, c := range map[string]struct {
		scheme string
		stall  func(t *testing.T, n *faultconn.Network, raw string)
		edit   func(o *grid.ManagerOptions)
		want   string
	}{
		"AuthFn": {
			edit: func(o *grid.ManagerOptions) {
				o.AuthFn = func() string { time.Sleep(attemptTimeout + time.Second); return rig.Token }
			},
			want: "in AuthFn",
		},
		"dialling": {
			stall: func(_ *testing.T, n *faultconn.Network, raw string) {
				n.Partition(rig.HostAddr(rig.LoneHost), rig.HostAddr(raw))
			},
			want: "while dialling ADDR",
		},
		"dialling, a Dialer that ignores its context": {
			edit: func(o *grid.ManagerOptions) {
				o.Dialer = func(context.Context, string, string) (net.Conn, error) {
					time.Sleep(attemptTimeout + time.Second)
					return nil, net.ErrClosed
				}
			},
			want: "while dialling ADDR",
		},
		"TLS":     {scheme: "https", stall: listen(nil), want: "in the TLS handshake with ADDR"},
		"upgrade": {stall: listen(nil), want: "waiting for the answer to the upgrade request"},
		"upgrade, half an answer": {
			stall: listen(func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webs") }),
			want:  "waiting for the answer to the upgrade request",
		},
		"handshake": {
			stall: func(t *testing.T, n *faultconn.Network, raw string) {
				l, err := n.Listen(rig.HostAddr(raw))
				require.NoError(t, err)
				rawpeer.Serve(t, l, rawpeer.Config{Bare: true, Unread: true})
			},
			want: "in the handshake, waiting for ConnectResponse",
		},
	} {
		for _, odd := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/odd=%v", name, odd), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := faultconn.NewNetwork()
					raw := ""
					for port := 9000; raw == "" || rawpeer.DialOrder(raw, rig.LoneHost); port++ {
						raw = fmt.Sprintf("%s://raw:%d", cmp.Or(c.scheme, "http"), port)
					}
					log, book := rig.NewLogBook()
					changes := make(chan grid.StateChange, 100)
					o := rig.Options(rig.LoneHost, []string{rig.LoneHost, raw})
					o.Logger, o.HandshakeTimeout = log, attemptTimeout
					o.OnStateChange = func(c grid.StateChange) { changes <- c }
					dial := n.Dialer(rig.HostAddr(rig.LoneHost))
					o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
						conn, err := dial(ctx, network, addr)
						if err == nil && odd {
							conn = oddConn{conn}
						}
						return conn, err
					}
					if c.edit != nil {
						c.edit(&o)
					}
					if c.stall != nil {
						c.stall(t, n, raw)
					}
					want := strings.Replace(c.want, "ADDR", rig.HostAddr(raw), 1)
					m, err := grid.NewManager(t.Context(), o)
					require.NoError(t, err)
					defer m.Close()
					conn := m.Connection(raw)

					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					requireSays(t, conn.WaitForConnect(ctx).Error(), ": "+raw+": no connection for 1s, connecting ("+want+")")

					for c := range changes {
						if c.To == grid.StateConnectionError {
							requireSays(t, c.Err.Error(), want)
							require.ErrorIs(t, c.Err, context.DeadlineExceeded)
							break
						}
					}
					told := "timed out after 3s (HandshakeTimeout) " + want
					require.Equal(t, told, conn.Stats().LastError)
					synctest.Wait()
					require.Len(t, book.About("cannot connect", told), 1)
					_, err = conn.SingleRequest(t.Context(), rig.Echo, nil)
					rig.RequireKind(t, err, rig.IsDisconnected, "call")
					requireSays(t, err.Error(), ": "+told)
				})
			})
		}
	}
}

// By package net, which says what it does.
func TestTimeout_OfADialThatResolvesSaysSo(t *testing.T) {
	t.Parallel()
	stalls := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	silent(t, l, nil)
	for name, c := range map[string]struct {
		host   string
		dialer net.Dialer
		want   string
	}{
		"resolving": {
			"http://stalls.test", net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return nil, stalls(ctx)
			}}}, "while resolving stalls.test",
		},
		"dialling": {
			"http://localhost", net.Dialer{ControlContext: func(ctx context.Context, _, _ string, _ syscall.RawConn) error { return stalls(ctx) }},
			"while dialling ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := ""
			for port := 9000; host == "" || rawpeer.DialOrder(host, rig.LoneHost); port++ {
				host = fmt.Sprintf("%s:%d", c.host, port)
			}
			o := rig.Options(rig.LoneHost, []string{rig.LoneHost, host})
			o.HandshakeTimeout, o.Dialer = time.Second, c.dialer.DialContext
			m, err := grid.NewManager(t.Context(), o)
			require.NoError(t, err)
			defer m.Close()
			conn := m.Connection(host)
			require.Eventually(t, func() bool { return conn.Stats().LastError != "" }, 10*time.Second, 10*time.Millisecond)
			requireSays(t, conn.Stats().LastError, "timed out after 1s (HandshakeTimeout) "+c.want)
		})
	}
}

func TestTimeout_OfWhoDialsSaysHowFarItCame(t *testing.T) {
	t.Parallel()
	late := func() { time.Sleep(attemptTimeout + time.Second) }
	for name, c := range map[string]struct {
		edit  func(o *grid.ManagerOptions)
		block bool // the answers
		hello bool
		want  string
	}{
		"Connect":         {want: "in the handshake, waiting for Connect"},
		"ConnectResponse": {hello: true, block: true, want: "in the handshake, sending ConnectResponse"},
		"AuthToken":       {hello: true, edit: func(o *grid.ManagerOptions) { o.AuthToken = onSecond(late) }, want: "in the handshake, in AuthToken"},
		"VerifyPeer":      {hello: true, edit: func(o *grid.ManagerOptions) { o.VerifyPeer = func(string, *http.Request) error { late(); return nil } }, want: "in the handshake, in VerifyPeer"},
		"a refusal, late": {hello: true, edit: func(o *grid.ManagerOptions) {
			o.VerifyPeer = func(string, *http.Request) error { late(); return errors.New("not you") }
		}, want: "is not accepted: timed out after 3s (HandshakeTimeout) in the handshake, in VerifyPeer"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, book := rig.NewLogBook()
				n := faultconn.NewNetwork()
				g, raw := rig.NewLone(t, n, true, func(o *grid.ManagerOptions) {
					o.Logger, o.HandshakeTimeout = log, attemptTimeout
					if c.edit != nil {
						c.edit(o)
					}
				})
				n.SetLinkBuffer(g.Addr(0), rig.HostAddr(raw), 1)
				p := g.DialLone(raw, rawpeer.Config{Bare: true, Unread: true})
				if c.block {
					n.Stall(g.Addr(0), rig.HostAddr(raw), true)
				}
				if c.hello {
					p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: rawpeer.Connect{ID: make([]byte, 16), Host: raw, Time: time.Now(), Token: rig.Token}.Encode()})
				}
				time.Sleep(2 * attemptTimeout)
				synctest.Wait()
				lines := book.About("handshake failed", c.want)
				require.Len(t, lines, 1, "%q", book.About(""))
				requireSays(t, lines[0], c.want)
				require.Empty(t, book.About("connection lost"))
				if conn := g.Manager(0).Connection(raw); c.hello {
					requireSays(t, conn.Stats().LastError, c.want)
					_, err := conn.SingleRequest(t.Context(), rig.Echo, nil)
					requireSays(t, err.Error(), c.want)
				}
				p.Close()
			})
		})
	}
}

// onSecond is an AuthToken that does something when it is asked in the handshake.
func onSecond(f func()) func(string) error {
	calls := 0
	return func(string) error {
		if calls++; calls%2 == 0 {
			f()
		}
		return nil
	}
}

// Who does not read the answer to its upgrade request.
func TestTimeout_OfAnUpgradeSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book := new(rig.LogBook)
		n := faultconn.NewNetwork()
		g, raw := rig.NewLone(t, n, true, func(o *grid.ManagerOptions) {
			o.Logger, o.HandshakeTimeout = slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelDebug})), attemptTimeout
		})
		n.SetLinkBuffer(g.Addr(0), rig.HostAddr(raw), 1)
		n.Stall(g.Addr(0), rig.HostAddr(raw), true)
		c, err := n.Dialer(rig.HostAddr(raw))(t.Context(), "tcp", g.Addr(0))
		require.NoError(t, err)
		_, err = io.WriteString(c, "GET "+grid.RoutePath+" HTTP/1.1\r\nHost: node0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer "+rig.Token+"\r\n\r\n")
		require.NoError(t, err)
		time.Sleep(2 * attemptTimeout)
		synctest.Wait()
		lines := book.About("upgrade failed")
		require.Len(t, lines, 1)
		requireSays(t, lines[0], "timed out after 3s (HandshakeTimeout) sending the answer to the upgrade request")
		c.Close()
	})
}
