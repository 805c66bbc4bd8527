package attack

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

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Who has not shown yet who he is.

// upgradeAndWait asks for an upgrade, and says nothing more. The socket is closed at the end.
func upgradeAndWait(a *rig.Attacked, header http.Header) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{NetDialContext: a.Grid.Net.Dialer("stranger:1"), HandshakeTimeout: time.Minute, EnableCompression: true}
	ws, resp, err := d.DialContext(context.Background(), strings.Replace(rig.LoneHost, "http", "ws", 1)+grid.RoutePath, header)
	if err == nil {
		a.Cleanup(func() { ws.Close() })
	}
	return ws, resp, err
}

// reconnects requires that the honest host, when its link is cut, is let in again.
func reconnects(a *rig.Attacked) {
	a.Helper()
	a.Grid.Cut(0, 1)
	synctest.Wait()
	began := time.Now()
	a.Grid.WaitConnected()
	require.Less(a, time.Since(began), time.Second)
	a.Served()
}

func fewHandshakes(o *grid.ManagerOptions) {
	o.MaxHandshakes = 16
	o.HandshakeTimeout = 5 * time.Second
}

// A thousand sockets that were upgraded and say nothing: the oldest give way.
func TestHandshake_ThousandSilentSocketsGiveWay(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{}, fewHandshakes, func(a *rig.Attacked) {
		before, conns := rig.BubbleGoroutines(), a.Grid.Net.Conns()
		for i := range 1000 {
			_, _, err := upgradeAndWait(a, rig.Bearer(rig.AttackToken))
			require.NoError(a, err)
			if i%100 == 0 {
				a.Served()
			}
		}
		synctest.Wait()
		// One to accept, and to watch the deadline, for each.
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 2*16+4)
		require.LessOrEqual(a, a.Grid.Net.Conns()-conns, 1000+16, "the strangers' own ends, and those of the node")
		a.RequireGrown(24 << 20) // most of it is the strangers' own
		reconnects(a)
		a.Logged("handshake failed", "MaxHandshakes is 16")
		time.Sleep(6 * time.Second)
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 2)
		require.LessOrEqual(a, a.Grid.Net.Conns()-conns, 1000)
	})
}

// The same where BlockConnect keeps everybody waiting.
func TestUpgrade_ThousandBehindBlockConnectAreRefusedBeyondTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blocked := make(chan struct{})
		a := &rig.Attacked{T: t, Book: new(rig.LogBook)}
		logger, book := rig.NewLogBook()
		a.Book = book
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, func(o *grid.ManagerOptions) {
			fewHandshakes(o)
			o.BlockConnect, o.Logger = blocked, logger
		})
		a.Grid, a.Raw, a.Node = g, raw, g.Node(0)
		before := rig.BubbleGoroutines()
		var refused atomic.Int64
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				ws, resp, err := upgradeAndWait(a, rig.Bearer(rig.Token))
				if err == nil {
					ws.Close()
				} else if resp != nil && resp.StatusCode == http.StatusServiceUnavailable {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		require.EqualValues(t, 1000-16, refused.Load())
		require.LessOrEqual(t, rig.BubbleGoroutines()-before, 16*6)
		a.Logged("handshake failed", "MaxHandshakes is 16")
		// Somebody honest is the newest.
		honest := rig.InBackground(func() error {
			ws, _, err := upgradeAndWait(a, rig.Bearer(rig.Token))
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
		a.CheckLog()
	})
}

// slowChecks are of one token, which the door or the handshake may see.
type slowChecks struct {
	running, most atomic.Int64
	release       func()
}

// withSlowChecks runs f where the check of the token "slow" takes until it is released.
func withSlowChecks(t *testing.T, f func(a *rig.Attacked, c *slowChecks)) {
	var c slowChecks
	rig.InAttackByDialler(t, rawpeer.Config{}, func(o *grid.ManagerOptions) {
		fewHandshakes(o)
		released := make(chan struct{})
		c.release = sync.OnceFunc(func() { close(released) })
		check := o.AuthToken
		o.AuthToken = func(token string) error {
			if token == "slow" {
				n := c.running.Add(1)
				for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
				}
				<-released
				c.running.Add(-1)
			}
			return check(token)
		}
	}, func(a *rig.Attacked) {
		a.Cleanup(c.release)
		before := rig.BubbleGoroutines()
		f(a, &c)
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 16*6)
		require.EqualValues(a, 16, c.running.Load())
		a.Served() // who is in is served
		c.release()
		synctest.Wait()
		require.EqualValues(a, 16, c.most.Load())
		reconnects(a)
		a.Logged("handshake failed", "MaxHandshakes is 16")
	})
}

// A check of the token that takes its time is not to be made to run without end. Who is in it can't
// be turned away, so others are.
func TestHandshake_SlowTokenChecksDoNotPileUp(t *testing.T) {
	t.Run("of the upgrade", func(t *testing.T) {
		withSlowChecks(t, func(a *rig.Attacked, c *slowChecks) {
			var refused atomic.Int64
			for range 500 {
				go func() {
					_, resp, err := upgradeAndWait(a, rig.Bearer("slow"))
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
		withSlowChecks(t, func(a *rig.Attacked, c *slowChecks) {
			refused := 0
			for range 100 {
				ws, _, err := upgradeAndWait(a, rig.Bearer(rig.AttackToken))
				if err != nil {
					refused++
					continue
				}
				hello := rawpeer.Connect{ID: make([]byte, 16), Host: a.Raw, Time: time.Now(), Token: "slow"}
				require.NoError(a, ws.WriteMessage(websocket.BinaryMessage, rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()}.Encode()))
				synctest.Wait()
			}
			require.Equal(a, 100-16, refused)
		})
	})
}

// drip writes bytes one by one until the other side has closed, and returns how long that took.
func drip(p *rawpeer.Peer, b []byte, pause time.Duration) time.Duration {
	began := time.Now()
	for _, octet := range b {
		if p.TryWrite([]byte{octet}) != nil {
			break
		}
		time.Sleep(pause)
	}
	return time.Since(began)
}

// A handshake that takes too long, is too large, or is of another kind.
func TestHandshake_OfOddShapeIsRefused(t *testing.T) {
	hello := func(a *rig.Attacked, dialled bool) []byte {
		if dialled {
			return rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{ID: make([]byte, 16), Accepted: true, Caps: rig.AllCaps}.Encode()}.Encode()
		}
		return rawpeer.Msg{Op: rawpeer.OpConnect, Payload: rawpeer.Connect{ID: make([]byte, 16), Host: a.Raw, Time: time.Now(), Token: rig.AttackToken, Caps: rig.AllCaps}.Encode()}.Encode()
	}
	const timeout = 5 * time.Second
	for name, c := range map[string]struct {
		play func(a *rig.Attacked, p *rawpeer.Peer, hello []byte)
		why  string
		late bool
	}{
		"a byte at a time": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			drip(p, p.Frame(rawpeer.FrameFinal|rawpeer.FrameBinary, 1000, make([]byte, 1000)), 100*time.Millisecond)
		}, "", true},
		"nothing": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) { time.Sleep(timeout + time.Second) }, "", true},
		"a frame that is never the last": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			for p.TryWrite(p.Frame(rawpeer.FrameContinued, 1, []byte{1})) == nil {
				time.Sleep(100 * time.Millisecond)
			}
		}, "", false},
		"in frames that never end": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.TryWrite(p.Frame(rawpeer.FrameBinary, uint64(len(hello)), hello))
			for p.TryWrite(p.Frame(rawpeer.FrameContinued, 1, []byte{1})) == nil {
				time.Sleep(100 * time.Millisecond)
			}
		}, "", true},
		"in empty frames": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.TryWrite(p.Frame(rawpeer.FrameBinary, uint64(len(hello)), hello))
			for range 100_000 {
				if p.TryWrite(p.Frame(rawpeer.FrameContinued, 0, nil)) != nil {
					return
				}
			}
			a.Error("not closed")
		}, "empty frames", false},
		"websocket pings": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			for p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FramePing, 125, make([]byte, 125))) == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}, "", true},
		"above 64 KiB": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FrameBinary, 64<<10+1, make([]byte, 64<<10+1)))
		}, "size limit", false},
		"above 64 KiB, in frames": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.TryWrite(p.Frame(rawpeer.FrameBinary, 64<<10, make([]byte, 64<<10)))
			_ = p.TryWrite(p.Frame(rawpeer.FrameContinued, 1, make([]byte, 1)))
		}, "size limit", false},
		"text": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.WS.WriteMessage(websocket.TextMessage, hello)
		}, "not binary", false},
		"compressed": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FrameBinary|0x40, uint64(len(hello)), hello))
		}, "RSV1", false},
		"a close": {func(a *rig.Attacked, p *rawpeer.Peer, hello []byte) {
			_ = p.WS.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "bye"))
		}, "1000", false},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Bare: true, Unread: true, Timeout: time.Minute}, fewHandshakes, func(a *rig.Attacked) {
				before := rig.BubbleGoroutines()
				p := a.Next()
				began := time.Now()
				a.During(func() {
					c.play(a, p, hello(a, p.Request != nil))
					p.StartReading()
					_, _ = p.Drain()
				})
				if c.late {
					require.InDelta(a, timeout, time.Since(began), float64(2*time.Second))
				} else {
					require.Less(a, time.Since(began), 2*time.Second)
				}
				p.Close()
				synctest.Wait()
				require.NotEqual(a, grid.StateConnected, a.Conn.State())
				require.LessOrEqual(a, rig.BubbleGoroutines()-before, 3)
				a.Logged("level=WARN", c.why)
				a.RequireGrown(1 << 20)
				// In one piece it is welcome.
				p = a.Next()
				if p.Request != nil {
					_, err := p.ReadHandshake(rawpeer.OpConnect)
					require.NoError(a, err)
				}
				require.NoError(a, p.TrySendBytes(hello(a, p.Request != nil)))
				p.StartReading()
				a.Session()
				a.Echoes(p)
			})
		})
	}
}

// A page in a browser must not use the browser's address, or a token that it has.
func TestUpgrade_EveryKindOfForeignOriginIsRefused(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{}, fewHandshakes, func(a *rig.Attacked) {
		a.During(func() {
			for _, origin := range []string{"http://evil.example", "null", "http://node0:9001", "http://node0.evil.example:9000", rig.LoneHost + ".evil.example"} {
				for range 20 {
					header := rig.Bearer(rig.AttackToken)
					header.Set("Origin", origin)
					_, resp, err := upgradeAndWait(a, header)
					require.ErrorIs(a, err, websocket.ErrBadHandshake)
					require.Equal(a, http.StatusForbidden, resp.StatusCode, origin)
				}
			}
		})
		// Compression that is offered is not taken.
		_, resp, err := upgradeAndWait(a, rig.Bearer(rig.AttackToken))
		require.NoError(a, err)
		require.Empty(a, resp.Header.Values("Sec-Websocket-Extensions"))
	})
}

// A server that is dialled and answers the upgrade without end: what is read of it is bounded.
func TestUpgrade_AnswerWithoutEndIsBounded(t *testing.T) {
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
				l := rig.ListenMemory(t, n, rig.PeerHost(t, false))
				logger, book := rig.NewLogBook()
				g, _ := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) { o.Logger = logger; fewHandshakes(o) })
				a := &rig.Attacked{T: t, Grid: g, Node: g.Node(0), Book: book, Before: rig.Heap()}
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
				a.Logged("cannot connect")
				a.CheckLog()
			})
		})
	}
}

// A server that is dialled knows our token, and says it back wherever it can: it is not for the
// log.
func TestSecret_TokenThatIsSaidBackIsNotLogged(t *testing.T) {
	t.Run("in a refusal of the upgrade", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := faultconn.NewNetwork()
			l := rig.ListenMemory(t, n, rig.PeerHost(t, false))
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Error(w, r.Header.Get("Authorization"), http.StatusForbidden)
			})}
			go server.Serve(l)
			defer server.Close()
			logger, book := rig.NewLogBook()
			g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) {
				o.Logger = logger
				o.AuthFn = func() string { return rig.AttackToken }
			})
			a := &rig.Attacked{T: t, Grid: g, Node: g.Node(0), Book: book}
			synctest.Wait()
			a.Logged("cannot connect", "403")
			require.NotContains(t, g.Manager(0).Connection(raw).Stats().LastError, rig.AttackToken)
			a.CheckLog()
		})
	})
	t.Run("in the handshake", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rig.RunAttack(t, false, rawpeer.Config{Refuse: "bad token " + rig.AttackToken + strings.Repeat("!", 50_000)}, nil, func(a *rig.Attacked) {
				a.Next()
				a.Logged("cannot connect", "handshake rejected")
			})
		})
	})
}
