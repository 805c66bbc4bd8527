package grid

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// Who has not shown yet who he is.

// knock asks for an upgrade, and says nothing more. The socket is closed at the end.
func (a *attacked) knock(header http.Header) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{NetDialContext: a.grid.net.Dialer("stranger:1"), HandshakeTimeout: time.Minute, EnableCompression: true}
	ws, resp, err := d.DialContext(context.Background(), strings.Replace(loneHost, "http", "ws", 1)+RoutePath, header)
	if err == nil {
		a.Cleanup(func() { ws.Close() })
	}
	return ws, resp, err
}

// reconnects requires that the honest host, when its link is cut, is let in again.
func (a *attacked) reconnects() {
	a.Helper()
	a.grid.cut(0, 1)
	synctest.Wait()
	began := time.Now()
	a.grid.waitConnected()
	require.Less(a, time.Since(began), time.Second)
	a.served()
}

func doorLimits(o *ManagerOptions) {
	o.MaxHandshakes = 16
	o.HandshakeTimeout = 5 * time.Second
}

// A thousand sockets that were upgraded and say nothing: the oldest give way.
func TestAttackThousandSilentSockets(t *testing.T) {
	atTheDoor(t, rawConfig{}, doorLimits, func(a *attacked) {
		before, conns := bubbleGoroutines(), a.grid.net.Conns()
		for i := range 1000 {
			_, _, err := a.knock(bearer(attackToken))
			require.NoError(a, err)
			if i%100 == 0 {
				a.served()
			}
		}
		synctest.Wait()
		// One to accept, and to watch the deadline, for each.
		require.LessOrEqual(a, bubbleGoroutines()-before, 2*16+4)
		require.LessOrEqual(a, a.grid.net.Conns()-conns, 1000+16, "the strangers' own ends, and those of the node")
		a.requireGrown(24 << 20) // most of it is the strangers' own
		a.reconnects()
		a.logged("handshake failed", "MaxHandshakes is 16")
		time.Sleep(6 * time.Second)
		require.LessOrEqual(a, bubbleGoroutines()-before, 2)
		require.LessOrEqual(a, a.grid.net.Conns()-conns, 1000)
	})
}

// The same where BlockConnect keeps everybody waiting.
func TestAttackThousandUpgradesBehindBlockConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blocked := make(chan struct{})
		a := &attacked{T: t, log: new(logBook)}
		logger, book := newLogBook()
		a.log = book
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, func(o *ManagerOptions) {
			doorLimits(o)
			o.BlockConnect, o.Logger = blocked, logger
		})
		a.grid, a.raw, a.node = g, raw, g.nodes[0]
		before := bubbleGoroutines()
		var refused atomic.Int64
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				ws, resp, err := a.knock(bearer(testToken))
				if err == nil {
					ws.Close()
				} else if resp != nil && resp.StatusCode == http.StatusServiceUnavailable {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		require.EqualValues(t, 1000-16, refused.Load())
		require.LessOrEqual(t, bubbleGoroutines()-before, 16*6)
		a.logged("handshake failed", "MaxHandshakes is 16")
		// Somebody honest is the newest.
		honest := inBackground(func() error {
			ws, _, err := a.knock(bearer(testToken))
			if err == nil {
				err = ws.Close()
			}
			return err
		})
		synctest.Wait()
		require.Empty(t, honest)
		close(blocked)
		require.NoError(t, <-honest)
		wg.Wait()
		time.Sleep(6 * time.Second)
		a.checkLog()
	})
}

// slowChecks are of one token, which the door or the handshake may see.
type slowChecks struct {
	running, most atomic.Int64
	release       func()
}

// withSlowChecks runs f where the check of the token "slow" takes until it is released.
func withSlowChecks(t *testing.T, f func(a *attacked, c *slowChecks)) {
	var c slowChecks
	atTheDoor(t, rawConfig{}, func(o *ManagerOptions) {
		doorLimits(o)
		released := make(chan struct{})
		c.release = sync.OnceFunc(func() { close(released) })
		check := o.AuthToken
		o.AuthToken = func(token string) error {
			if token == "slow" {
				c.most.Store(max(c.most.Load(), c.running.Add(1)))
				<-released
				c.running.Add(-1)
			}
			return check(token)
		}
	}, func(a *attacked) {
		a.Cleanup(c.release)
		before := bubbleGoroutines()
		f(a, &c)
		require.LessOrEqual(a, bubbleGoroutines()-before, 16*6)
		require.EqualValues(a, 16, c.running.Load())
		a.served() // who is in is served
		c.release()
		synctest.Wait()
		require.EqualValues(a, 16, c.most.Load())
		a.reconnects()
		a.logged("handshake failed", "MaxHandshakes is 16")
	})
}

// A check of the token that takes its time is not to be made to run without end. Who
// is in it can't be turned away, so others are.
func TestAttackSlowTokenChecksDoNotPileUp(t *testing.T) {
	t.Run("of the upgrade", func(t *testing.T) {
		withSlowChecks(t, func(a *attacked, c *slowChecks) {
			var refused atomic.Int64
			for range 500 {
				go func() {
					_, resp, err := a.knock(bearer("slow"))
					if err == nil || resp == nil {
						a.Errorf("upgraded: %v", err)
					} else if resp.StatusCode == http.StatusServiceUnavailable {
						refused.Add(1)
					}
				}()
			}
			synctest.Wait()
			require.EqualValues(a, 500-16, refused.Load())
		})
	})
	t.Run("of the handshake", func(t *testing.T) {
		withSlowChecks(t, func(a *attacked, c *slowChecks) {
			refused := 0
			for range 100 {
				ws, _, err := a.knock(bearer(attackToken))
				if err != nil {
					refused++
					continue
				}
				hello := rawConnect{ID: make([]byte, 16), Host: a.raw, Time: time.Now(), Token: "slow"}
				require.NoError(a, ws.WriteMessage(websocket.BinaryMessage, rawMsg{Op: rawOpConnect, Payload: hello.encode()}.encode()))
				synctest.Wait()
			}
			require.Equal(a, 100-16, refused)
		})
	})
}

// drip writes bytes one by one until the other side has closed, and returns how long
// that took.
func drip(p *rawPeer, b []byte, pause time.Duration) time.Duration {
	began := time.Now()
	for _, octet := range b {
		if p.tryWriteRaw([]byte{octet}) != nil {
			break
		}
		time.Sleep(pause)
	}
	return time.Since(began)
}

// A handshake that takes too long, is too large, or is of another kind.
func TestAttackHandshakeOfOddShape(t *testing.T) {
	hello := func(a *attacked, dialled bool) []byte {
		if dialled {
			return rawMsg{Op: rawOpConnectResponse, Payload: rawConnectResponse{ID: make([]byte, 16), Accepted: true, Caps: allCaps}.encode()}.encode()
		}
		return rawMsg{Op: rawOpConnect, Payload: rawConnect{ID: make([]byte, 16), Host: a.raw, Time: time.Now(), Token: attackToken, Caps: allCaps}.encode()}.encode()
	}
	const timeout = 5 * time.Second
	for name, c := range map[string]struct {
		play func(a *attacked, p *rawPeer, hello []byte)
		why  string
		late bool
	}{
		"a byte at a time": {func(a *attacked, p *rawPeer, hello []byte) {
			drip(p, p.rawWS(wsFinal|wsBinary, 1000, make([]byte, 1000)), 100*time.Millisecond)
		}, "", true},
		"nothing": {func(a *attacked, p *rawPeer, hello []byte) { time.Sleep(timeout + time.Second) }, "", true},
		"a frame that is never the last": {func(a *attacked, p *rawPeer, hello []byte) {
			for p.tryWriteRaw(p.rawWS(wsContinued, 1, []byte{1})) == nil {
				time.Sleep(100 * time.Millisecond)
			}
		}, "", false},
		"in frames that never end": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.tryWriteRaw(p.rawWS(wsBinary, uint64(len(hello)), hello))
			for p.tryWriteRaw(p.rawWS(wsContinued, 1, []byte{1})) == nil {
				time.Sleep(100 * time.Millisecond)
			}
		}, "", true},
		"in empty frames": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.tryWriteRaw(p.rawWS(wsBinary, uint64(len(hello)), hello))
			for range 100_000 {
				if p.tryWriteRaw(p.rawWS(wsContinued, 0, nil)) != nil {
					return
				}
			}
			a.Error("not closed")
		}, "empty frames", false},
		"websocket pings": {func(a *attacked, p *rawPeer, hello []byte) {
			for p.tryWriteRaw(p.rawWS(wsFinal|wsPing, 125, make([]byte, 125))) == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}, "", true},
		"above 64 KiB": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.tryWriteRaw(p.rawWS(wsFinal|wsBinary, 64<<10+1, make([]byte, 64<<10+1)))
		}, "size limit", false},
		"above 64 KiB, in frames": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.tryWriteRaw(p.rawWS(wsBinary, 64<<10, make([]byte, 64<<10)))
			_ = p.tryWriteRaw(p.rawWS(wsContinued, 1, make([]byte, 1)))
		}, "size limit", false},
		"text": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.ws.WriteMessage(websocket.TextMessage, hello)
		}, "not binary", false},
		"compressed": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.tryWriteRaw(p.rawWS(wsFinal|wsBinary|0x40, uint64(len(hello)), hello))
		}, "RSV1", false},
		"a close": {func(a *attacked, p *rawPeer, hello []byte) {
			_ = p.ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "bye"))
		}, "1000", false},
	} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Bare: true, Unread: true, Timeout: time.Minute}, doorLimits, func(a *attacked) {
				before := bubbleGoroutines()
				p := a.next()
				began := time.Now()
				a.during(func() {
					c.play(a, p, hello(a, p.request != nil))
					p.startReading()
					_, _ = p.drain()
				})
				if c.late {
					require.InDelta(a, timeout, time.Since(began), float64(2*time.Second))
				} else {
					require.Less(a, time.Since(began), 2*time.Second)
				}
				p.close()
				synctest.Wait()
				require.NotEqual(a, StateConnected, a.conn.State())
				require.LessOrEqual(a, bubbleGoroutines()-before, 3)
				a.logged("level=WARN", c.why)
				a.requireGrown(1 << 20)
				// In one piece it is welcome.
				p = a.next()
				if p.request != nil {
					_, err := p.readHandshake(rawOpConnect)
					require.NoError(a, err)
				}
				require.NoError(a, p.trySendBytes(hello(a, p.request != nil)))
				p.startReading()
				a.session()
				a.echoes(p)
			})
		})
	}
}

// A page in a browser must not use the browser's address, or a token that it has.
func TestAttackPageOfAnotherOrigin(t *testing.T) {
	atTheDoor(t, rawConfig{}, doorLimits, func(a *attacked) {
		a.during(func() {
			for _, origin := range []string{"http://evil.example", "null", "http://node0:9001", "http://node0.evil.example:9000", loneHost + ".evil.example"} {
				for range 20 {
					header := bearer(attackToken)
					header.Set("Origin", origin)
					_, resp, err := a.knock(header)
					require.ErrorIs(a, err, websocket.ErrBadHandshake)
					require.Equal(a, http.StatusForbidden, resp.StatusCode, origin)
				}
			}
		})
		// Compression that is offered is not taken.
		_, resp, err := a.knock(bearer(attackToken))
		require.NoError(a, err)
		require.Empty(a, resp.Header.Values("Sec-Websocket-Extensions"))
	})
}

// A server that is dialled and answers the upgrade without end: what is read of it is
// bounded.
func TestAttackUpgradeAnsweredWithoutEnd(t *testing.T) {
	const answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	for name, c := range map[string]struct{ head, more string }{
		"status line":     {"HTTP/1.1 101 ", "x"},
		"a header":        {answer + "X: ", "x"},
		"many headers":    {answer, "X: y\r\n"},
		"a refusal":       {"HTTP/1.1 403 Forbidden\r\n\r\n", "x"},
		"early responses": {"", "HTTP/1.1 100 Continue\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				l := listenMemory(t, n, rawHostFor(t, false))
				logger, book := newLogBook()
				g, _ := newLoneGrid(t, n, false, func(o *ManagerOptions) { o.Logger = logger; doorLimits(o) })
				a := &attacked{T: t, grid: g, node: g.nodes[0], log: book, before: heap()}
				conn, err := l.Accept()
				require.NoError(t, err)
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				_, err = conn.Write([]byte(c.head))
				require.NoError(t, err)
				sent := 0
				more := bytes.Repeat([]byte(c.more), 16<<10/len(c.more))
				for sent < 16<<20 && err == nil {
					var k int
					k, err = conn.Write(more)
					sent += k
				}
				t.Logf("%d KiB were read", sent>>10)
				conn.Close()
				l.Close()
				require.Less(t, sent, 1<<20, "doc.go says 64 KiB")
				synctest.Wait()
				a.logged("cannot connect")
				a.checkLog()
			})
		})
	}
}

// A server that is dialled knows our token, and says it back wherever it can: it is not
// for the log.
func TestAttackTokenIsSaidBack(t *testing.T) {
	t.Run("in a refusal of the upgrade", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := faultconn.NewNetwork()
			l := listenMemory(t, n, rawHostFor(t, false))
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Error(w, r.Header.Get("Authorization"), http.StatusForbidden)
			})}
			go server.Serve(l)
			defer server.Close()
			logger, book := newLogBook()
			g, raw := newLoneGrid(t, n, false, func(o *ManagerOptions) {
				o.Logger = logger
				o.AuthFn = func() string { return attackToken }
			})
			a := &attacked{T: t, grid: g, node: g.nodes[0], log: book}
			synctest.Wait()
			a.logged("cannot connect", "403")
			require.NotContains(t, g.nodes[0].Connection(raw).Stats().LastError, attackToken)
			a.checkLog()
		})
	})
	t.Run("in the handshake", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			runAttack(t, false, rawConfig{Refuse: "bad token " + attackToken + strings.Repeat("!", 50_000)}, nil, func(a *attacked) {
				a.next()
				a.logged("cannot connect", "handshake rejected")
			})
		})
	})
}
