package attack

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Whatever a peer says, and wherever it says it: of its text no more than the beginning is kept,
// logged or made part of an error. What a handler answers is no such text; that is for its caller.

// maxHeld is how much of a text may be found in one place.
const maxHeld = 1536

// longPart is what long texts are made of, with characters that are quoted.
const longPart = "zq\n\x1b"

// longText has so many bytes.
func longText(n int) string { return strings.Repeat(longPart, n/len(longPart)) }

// longWord can be in a header.
func longWord(n int) string { return strings.Repeat("zq-.", n/4) }

// held is how much of a long text is in s, also where it is quoted.
func held(s string) int { return len(longPart) * strings.Count(s, "zq") }

// requireHeld requires that s has the beginning of a long text.
func requireHeld(t testing.TB, s string) {
	t.Helper()
	require.Positive(t, held(s), "%.200s", s)
	require.LessOrEqual(t, held(s), maxHeld, "%.200s", s)
}

// listener hears everything that is said about connections.
type listener struct {
	book rig.LogBook

	mu      sync.Mutex
	changes []string
}

// edit makes it that of a node, which begins.
func (l *listener) edit(o *grid.ManagerOptions) {
	l.book.Lines, l.changes = nil, nil
	o.Logger = slog.New(slog.NewTextHandler(&l.book, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.OnStateChange = func(c grid.StateChange) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changes = append(l.changes, c.String())
	}
}

// require requires that nothing which was said holds more than it may. It returns all places that
// hold something.
func (l *listener) require(t testing.TB, m *grid.Manager) (places []string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	texts := append([]string{fmt.Sprintf("%+v", m.Stats())}, l.changes...)
	for _, text := range append(texts, l.book.About("")...) {
		require.LessOrEqual(t, held(text), maxHeld, "%.200s", text)
		if held(text) > 0 {
			places = append(places, text)
		}
	}
	return places
}

func TestLongText_OfWhoDialsIsClipped(t *testing.T) {
	errOf := func(text string) error { return errors.New("no: " + text) }
	for name, c := range map[string]struct {
		edit   func(o *grid.ManagerOptions)
		header http.Header
		hello  func(h *rawpeer.Connect)
		untold bool // nothing of it is held
	}{
		"host":        {hello: func(h *rawpeer.Connect) { h.Host = longText(60_000) }},
		"wanted host": {hello: func(h *rawpeer.Connect) { h.To = longText(60_000) }},
		"token":       {hello: func(h *rawpeer.Connect) { h.Token = longText(60_000) }, untold: true},
		"token that is redacted": {
			edit: func(o *grid.ManagerOptions) {
				o.AuthToken = func(token string) error {
					if token != rig.Token {
						return fmt.Errorf("bad %q", token)
					}
					return nil
				}
			},
			hello: func(h *rawpeer.Connect) { h.Token = longText(30_000) }, untold: true,
		},
		// Such as the subject of a token, which no other function can know for a part of that.
		"what the check of a token makes of it": {
			edit: func(o *grid.ManagerOptions) {
				o.AuthToken = func(token string) error {
					if token != rig.Token {
						return errOf(longText(1 << 20))
					}
					return nil
				}
			},
			hello: func(h *rawpeer.Connect) { h.Token = "other" },
		},
		"header": {
			edit: func(o *grid.ManagerOptions) {
				o.VerifyPeer = func(_ string, r *http.Request) error { return errOf(r.Header.Get("X-Subject")) }
			},
			header: http.Header{"X-Subject": {longWord(900_000)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := new(listener)
			rig.InWireOnce(t, true, rawpeer.Config{Bare: true}, func(o *grid.ManagerOptions) {
				l.edit(o)
				if c.edit != nil {
					c.edit(o)
				}
			}, func(r *rig.Wire) {
				header := rig.Bearer(rig.Token)
				for k, v := range c.header {
					header[k] = v
				}
				ws, _, err := r.Grid.Upgrade(header, false)
				require.NoError(r, err)
				defer ws.Close()
				p := rawpeer.NewPeer(r, ws, rawpeer.Config{})
				h := rawpeer.Connect{ID: make([]byte, 16), Host: r.Raw, Time: time.Now(), Token: rig.Token}
				if c.hello != nil {
					c.hello(&h)
				}
				p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
				m, err := p.ReadHandshake(rawpeer.OpConnectResponse)
				require.NoError(r, err)
				answer, err := rawpeer.DecodeConnectResponse(m.Payload)
				require.NoError(r, err)
				require.False(r, answer.Accepted)
				require.LessOrEqual(r, held(answer.Reason), maxHeld)
				places := l.require(r, r.Node.Manager)
				require.NotEmpty(r, l.book.About("handshake failed"))
				require.Equal(r, c.untold, len(places) == 0, "%.200q", places)
				require.Equal(r, c.untold, held(answer.Reason) == 0, "%.200q", answer.Reason)
			})
		})
	}
}

func TestLongText_OfAnUpgradeRequestIsClipped(t *testing.T) {
	upgrade := func() *http.Request {
		r := httptest.NewRequest(http.MethodGet, grid.RoutePath, nil)
		for k, v := range map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
			"Authorization": "Bearer " + rig.Token, "X-Subject": longText(1 << 20),
		} {
			r.Header.Set(k, v)
		}
		return r
	}
	for name, c := range map[string]struct {
		edit   func(r *http.Request)
		check  func(r *http.Request) error
		log    string
		untold bool
	}{
		"header": {
			check: func(r *http.Request) error { return errors.New("unknown subject " + r.Header.Get("X-Subject")) }, log: "upgrade refused",
		},
		"header of one that is let in": {
			edit: func(r *http.Request) { r.Header.Set("Sec-Websocket-Version", longText(1<<20)) }, log: "upgrade failed", untold: true,
		},
		"token": {
			edit: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+longText(1<<20)) },
			log:  "token has 1048576 bytes, the limit is 32768", untold: true,
		},
		"address": {
			edit: func(r *http.Request) { r.RemoteAddr = longText(1 << 20); r.Header.Set("Authorization", "Bearer other") }, log: "upgrade refused",
		},
		"address of one that is let in": {
			edit: func(r *http.Request) { r.RemoteAddr = longText(1 << 20) }, log: "upgrade failed", // it can't be hijacked
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := new(listener)
			rig.InWireOnce(t, true, rawpeer.Config{Bare: true}, l.edit, func(w *rig.Wire) {
				r := upgrade()
				if c.edit != nil {
					c.edit(r)
				}
				var checks []func(*http.Request) error
				if c.check != nil {
					checks = append(checks, c.check)
				}
				answer := httptest.NewRecorder()
				w.Node.Handler(checks...)(answer, r)
				require.GreaterOrEqual(w, answer.Code, 400)
				require.Less(w, answer.Body.Len(), 2000)
				places := l.require(w, w.Node.Manager)
				require.Len(w, l.book.About(c.log), 1)
				require.Equal(t, c.untold, len(places) == 0, "%.200q", places)
			})
		})
	}
}

func TestLongText_OfWhoIsDialledIsClipped(t *testing.T) {
	said := longText(1 << 20)
	for name, c := range map[string]struct {
		answer string // to the upgrade request
		untold bool
	}{
		"body":        {answer: fmt.Sprintf("HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s", len(said), said)},
		"status line": {answer: "HTTP/1.1 403 " + longWord(1<<20) + "\r\nContent-Length: 0\r\n\r\n", untold: true},
		"header":      {answer: "HTTP/1.1 403 Forbidden\r\nX-Why: " + longWord(1<<20) + "\r\n\r\n", untold: true},
		"location":    {answer: "HTTP/1.1 302 Found\r\nLocation: http://" + longWord(60_000) + "\r\nContent-Length: 0\r\n\r\n"},
		"short line":  {answer: "HTTP/1.1 403 " + longWord(30_000) + "\r\nContent-Length: 0\r\n\r\n", untold: true},
		"extension":   {answer: "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Extensions: " + longWord(30_000) + "\r\n\r\n", untold: true},
		"no HTTP":     {answer: said, untold: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := new(listener)
				m, conn, _ := echoing(t, func(conn net.Conn, _ *bufio.Reader, _ *http.Request) {
					go io.WriteString(conn, c.answer)
					time.Sleep(time.Second)
				}, l.edit)
				requireNotConnected(t, l, m, conn, c.untold)
			})
		})
	}
	for name, c := range map[string]rawpeer.ConnectResponse{
		"reason": {Reason: longText(60_000)},
		"host":   {Accepted: true, Host: longText(60_000)},
	} {
		t.Run(name, func(t *testing.T) {
			l := new(listener)
			rig.InWireOnce(t, false, rawpeer.Config{Bare: true}, l.edit, func(r *rig.Wire) {
				p := r.Next()
				p.Expect(rawpeer.OpConnect)
				c.ID = make([]byte, 16)
				p.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: c.Encode()})
				requireNotConnected(r, l, r.Node.Manager, r.Conn, false)
			})
		})
	}
	// Such as that of a proxy.
	t.Run("error of a Dialer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := new(listener)
			m, conn, _ := echoing(t, nil, func(o *grid.ManagerOptions) {
				l.edit(o)
				o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New(said) }
			})
			requireNotConnected(t, l, m, conn, false)
		})
	})
}

// requireNotConnected requires that a node could not connect, and says why in all places.
func requireNotConnected(t testing.TB, l *listener, m *grid.Manager, conn *grid.Connection, untold bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	err := conn.WaitForConnect(ctx)
	require.ErrorContains(t, err, "no connection for 4s")
	require.LessOrEqual(t, held(err.Error()), maxHeld)
	places := l.require(t, m)
	require.NotEmpty(t, l.book.About("cannot connect"))
	if untold {
		require.Empty(t, places)
	} else {
		require.GreaterOrEqual(t, len(places), 3, "the log, the statistics and the change of the state")
	}
}

// A certificate may be good for thousands of names, which the error repeats when it is shown by
// another host.
func TestLongText_OfACertificateIsClipped(t *testing.T) {
	a := rig.NewAuthority(t)
	var names []string
	for i := range 90 {
		names = append(names, strings.Repeat("zq-a", 15)+"."+strings.Repeat("zq-a", 15)+fmt.Sprint(i))
	}
	many := a.Issue(strings.Join(names, " "))
	t.Run("of who is dialled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var listeners [2]listener
			g := rig.Setup{
				Hosts: []string{"https://a:9000", "https://b:9000"}, Stopped: true,
				Edit: func(i int, o *grid.ManagerOptions) {
					listeners[i].edit(o)
					o.TLSConfig = &tls.Config{RootCAs: a.Pool}
				},
				Prepare: func(n *rig.Node) { n.Server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{many}} },
			}.Start(t)
			g.Start(0)
			g.Start(1)
			i := 0
			if !g.Conn(0, 1).Stats().Dials {
				i = 1
			}
			requireNotConnected(t, &listeners[i], g.Manager(i), g.Conn(i, 1-i), false)
			require.Contains(t, g.Conn(i, 1-i).Stats().LastError, "certificate is valid for")
		})
	})
	t.Run("of who dials", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var listeners [2]listener
			g := rig.NewBound(t, 2, a, func(i int) (server, client tls.Certificate) {
				return a.Issue(fmt.Sprint("node", i)), many
			}, func(i int, o *grid.ManagerOptions) { listeners[i].edit(o) })
			time.Sleep(3 * time.Second)
			for i := range 2 {
				require.NotEmpty(t, listeners[i].require(t, g.Manager(i)))
				require.Contains(t, g.Conn(i, 1-i).Stats().LastError, "certificate is valid for")
			}
		})
	})
}

// What ends a link.
func TestLongText_OfWhatEndsALinkIsClipped(t *testing.T) {
	said := longText(1 << 20)
	for name, end := range map[string]func(p *rawpeer.Peer){
		"no message":     func(p *rawpeer.Peer) { _ = p.TrySendBytes([]byte(said)) },
		"array of texts": func(p *rawpeer.Peer) { _ = p.TrySendBytes(msgp.AppendString([]byte{0x97}, said)) },
		"ping":           func(p *rawpeer.Peer) { _ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpPing, Payload: []byte(said[:100_000])}) },
		"key of a ping":  func(p *rawpeer.Peer) { _ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpPing, Payload: keyed(said[:100_000])}) },
		"pong":           func(p *rawpeer.Peer) { _ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpPong, Payload: []byte(said)}) },
		"key of a pong":  func(p *rawpeer.Peer) { _ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpPong, Payload: keyed(said)}) },
		"MuxConnectError": func(p *rawpeer.Peer) {
			_ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpMuxConnectError, Payload: []byte(said)})
		},
		"Connect": func(p *rawpeer.Peer) { _ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: []byte(said)}) },
		"Disconnect": func(p *rawpeer.Peer) {
			_ = p.TrySend(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnect, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte(said)})
		},
		"close": func(p *rawpeer.Peer) {
			text := websocket.FormatCloseMessage(websocket.ClosePolicyViolation, longWord(120))
			_ = p.WS.WriteControl(websocket.CloseMessage, text, time.Now().Add(time.Second))
		},
		"text message": func(p *rawpeer.Peer) { _ = p.WS.WriteMessage(websocket.TextMessage, []byte(longWord(1<<20))) },
	} {
		t.Run(name, func(t *testing.T) {
			l := new(listener)
			rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, l.edit, func(r *rig.Wire) {
				call := r.Call(context.Background(), rig.Unused, nil)
				synctest.Wait()
				end(r.Peer)
				got := <-call
				require.ErrorIs(r, got.Err, grid.ErrDisconnected)
				require.LessOrEqual(r, held(got.Err.Error()), maxHeld)
				synctest.Wait()
				require.NotEmpty(r, l.book.About("connection lost"))
				l.require(r, r.Node.Manager)
			})
		})
	}
}

// keyed is a map of which a long text is the key, and what belongs to it is no value.
func keyed(key string) []byte {
	return append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), key), 0xc1)
}

// What the remote says of a call or stream of ours, rather than its handler. It is kept with the
// stream for as long as somebody holds that.
func TestLongText_ThatEndsACallOfOursIsClipped(t *testing.T) {
	said := longText(1 << 20)
	isErr := uint8(rawpeer.FlagPayloadIsErr)
	for name, c := range map[string]rawpeer.Msg{
		"MuxConnectError":                 {Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError(said)},
		"MuxConnectError, of a limit":     {Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError(grid.ErrOverloaded.Error() + ": " + said)},
		"DisconnectClientMux":             {Op: rawpeer.OpDisconnectClientMux, Flags: isErr, Payload: []byte(said)},
		"DisconnectClientMux, of a limit": {Op: rawpeer.OpDisconnectClientMux, Flags: isErr, Payload: []byte(grid.ErrOverloaded.Error() + ": " + said)},
		"Pong":                            {Op: rawpeer.OpPong, Payload: rawpeer.PongPayload(false, said)},
	} {
		t.Run(name, func(t *testing.T) {
			l := new(listener)
			seen := new(results)
			rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) {
				l.edit(o)
				o.CallInterceptors = []grid.CallInterceptor{seen}
			}, func(r *rig.Wire) {
				check := func(err error) {
					require.True(r, grid.IsRemoteErr(err), "%.200v", err)
					require.Equal(r, strings.HasSuffix(name, "limit"), errors.Is(err, grid.ErrOverloaded))
					requireHeld(r, err.Error())
				}
				if c.Op != rawpeer.OpPong {
					call := r.Call(context.Background(), rig.Unused, nil)
					c.MuxID = r.Peer.Expect(rawpeer.OpRequest).MuxID
					r.Peer.Send(c)
					check((<-call).Err)
				}
				opened := rig.InBackground(func() error {
					st, err := r.Conn.NewStream(context.Background(), rig.Unused, nil)
					if err == nil {
						err = rig.Consume(st)
					}
					return err
				})
				c.MuxID = r.Peer.Expect(rawpeer.OpConnectMux).MuxID
				if c.Op != rawpeer.OpMuxConnectError {
					r.Peer.Send(rawpeer.Msg{MuxID: c.MuxID, Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(rig.AllCaps, 0, 1)})
				}
				r.Peer.Send(c)
				check(<-opened)
				for _, text := range seen.take() {
					requireHeld(r, text)
				}
				require.Empty(r, l.require(r, r.Node.Manager))
			})
		})
	}
}

// results keeps the errors that interceptors are told.
type results struct {
	mu    sync.Mutex
	texts []string
}

func (s *results) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, s.add, nil
}

func (s *results) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, s.add, nil
}

func (s *results) add(r grid.CallResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts = append(s.texts, fmt.Sprint(r.Err))
}

func (s *results) take() (texts []string) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	texts, s.texts = s.texts, nil
	return texts
}

// What a handler answers is for its caller, who gets what handlers of ours may say, and nobody else
// holds it.
func TestLongText_OfAHandlersErrorIsTheCallers(t *testing.T) {
	said := longText(1 << 20)
	gets := grid.NewRemoteErrString(clip.To(said, rig.MaxErrorText))
	l := new(listener)
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, l.edit, func(r *rig.Wire) {
		call := r.Call(context.Background(), rig.Unused, nil)
		m := rawpeer.Msg{MuxID: r.Peer.Expect(rawpeer.OpRequest).MuxID, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte(said)}
		m.Op = rawpeer.OpResponse
		r.Peer.Send(m)
		require.Equal(r, gets, (<-call).Err)

		opened := rig.InBackground(func() error {
			st, err := r.Conn.NewStream(context.Background(), rig.Unused, nil)
			if err == nil {
				err = rig.Consume(st)
			}
			return err
		})
		m.MuxID, m.Op, m.Seq = r.Peer.Expect(rawpeer.OpConnectMux).MuxID, rawpeer.OpMuxServerMsg, 1
		r.Peer.Send(rawpeer.Msg{MuxID: m.MuxID, Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(rig.AllCaps, 0, 1)})
		r.Peer.Send(m)
		require.Equal(r, gets, <-opened)
		require.Empty(r, l.require(r, r.Node.Manager))
	})
}

// What a client says when it gives a stream up is the cause of the handler's context.
func TestLongText_ThatEndsAStreamWeServeIsClipped(t *testing.T) {
	l := new(listener)
	seen := new(results)
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) {
		l.edit(o)
		o.ServeInterceptors = []grid.ServeInterceptor{seen}
	}, func(r *rig.Wire) {
		cause := make(chan error, 1)
		require.NoError(r, r.Node.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{
			Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return nil
			},
		}))
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Unused), Op: rawpeer.OpConnectMux})
		r.Peer.Expect(rawpeer.OpAckMux)
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte(longText(1 << 20))})
		requireHeld(r, (<-cause).Error())
		for _, text := range seen.take() {
			requireHeld(r, text)
		}
		require.Empty(r, l.require(r, r.Node.Manager))
	})
}

// Handlers and interceptors panic with what they were sent.
func TestLongText_OfAPanicIsClipped(t *testing.T) {
	for name, f := range map[string]func(text string) any{
		"text":  func(text string) any { return text },
		"error": func(text string) any { return errors.New(text) },
		"bytes": func(text string) any { return struct{ Payload string }{text} },
	} {
		t.Run(name, func(t *testing.T) {
			l := new(listener)
			rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) {
				l.edit(o)
				o.ServeInterceptors = []grid.ServeInterceptor{atEnd(func() { panic(f(longText(1 << 20))) })}
			}, func(r *rig.Wire) {
				require.NoError(r, r.Node.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { panic(f(string(b))) }))
				require.NoError(r, r.Node.RegisterStreamingHandler(rig.Unused+1, grid.StreamHandler{
					Handle: func(_ context.Context, b []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
						panic(f(string(b)))
					},
				}))
				for i, m := range []rawpeer.Msg{
					{MuxID: 1, Op: rawpeer.OpRequest, Flags: rig.CRCEOF}, {MuxID: 2, Op: rawpeer.OpConnectMux, Flags: rig.CRCEOF},
				} {
					m.Handler, m.Payload = uint8(rig.Unused)+uint8(i), []byte(longText(1<<20))
					r.Peer.Send(m)
					answer := r.Peer.Recv()
					if answer.Op == rawpeer.OpAckMux {
						answer = r.Peer.Recv()
					}
					require.NotZero(r, answer.Flags&rawpeer.FlagPayloadIsErr)
					requireHeld(r, string(answer.Payload))
				}
				require.Len(r, l.require(r, r.Node.Manager), 3, "two handlers, and an interceptor")
				require.Len(r, l.book.About("panicked"), 3)
			})
		})
	}
}

// atEnd is called at the end of each call that is served.
type atEnd func()

func (f atEnd) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, func(grid.CallResult) { f() }, nil
}

// Metadata has a limit of its own, and its keys are in the error of what does not decode.
func TestLongText_OfMetadataIsClipped(t *testing.T) {
	l := new(listener)
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) {
		l.edit(o)
		o.ServeInterceptors = []grid.ServeInterceptor{new(results)}
	}, func(r *rig.Wire) {
		bad := msgp.AppendInt(msgp.AppendString(msgp.AppendMapHeader(nil, 1), longText(2000)), 1) // no text
		for i, metadata := range [][]byte{bad, keyed(longText(2000)), []byte(longText(2000))} {
			r.Peer.Send(rawpeer.Msg{
				MuxID: uint64(i + 1), Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF | rawpeer.FlagMetadata, Metadata: metadata,
			})
			answer := r.Peer.Expect(rawpeer.OpResponse)
			require.NotZero(r, answer.Flags&rawpeer.FlagPayloadIsErr)
			require.Contains(r, string(answer.Payload), "metadata")
			require.LessOrEqual(r, held(string(answer.Payload)), maxHeld)
		}
		l.require(r, r.Node.Manager)
	})
}

// badMood is a payload that can't be encoded, or panics when it is, with what it was sent.
type badMood struct{ text string }

func (b *badMood) Msgsize() int { return len(b.text) }

func (b *badMood) MarshalMsg([]byte) ([]byte, error) {
	if strings.HasPrefix(b.text, "panic") {
		panic(b.text)
	}
	return nil, errors.New(b.text)
}

func (b *badMood) UnmarshalMsg(text []byte) ([]byte, error) {
	b.text = string(text[5:]) // behind its header
	if strings.HasPrefix(b.text, "panic at once") {
		panic(b.text)
	}
	return nil, nil
}

func TestLongText_OfAnEncoderIsClipped(t *testing.T) {
	newT := func() *badMood { return new(badMood) }
	inTypedGrid(t, newT, nil, func(t *testing.T, c *grid.Connection, single *grid.SingleHandler[*badMood, *badMood], _ *grid.StreamTypeHandler[*badMood, *badMood, *badMood]) {
		for _, begin := range []string{"no", "panic", "panic at once"} {
			text := begin + longText(1<<20)
			_, err := c.SingleRequest(t.Context(), typedSingle, msgp.AppendString(nil, text))
			require.True(t, grid.IsRemoteErr(err))
			requireHeld(t, err.Error())
			_, err = single.Call(t.Context(), c, &badMood{text})
			requireHeld(t, err.Error())
		}
	})
}

// A connection of the application's may fail with anything.
func TestLongText_OfASocketIsClipped(t *testing.T) {
	l := new(listener)
	var broken atomic.Bool
	rig.InWireOnce(t, false, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) {
		l.edit(o)
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			return saying{c, &broken}, err
		}
	}, func(r *rig.Wire) {
		call := r.Call(context.Background(), rig.Unused, nil)
		r.Peer.Expect(rawpeer.OpRequest)
		broken.Store(true)
		r.Peer.Send(rawpeer.Ping(time.Now()))
		err := (<-call).Err
		require.ErrorIs(r, err, grid.ErrDisconnected)
		requireHeld(r, err.Error())
		require.GreaterOrEqual(r, len(l.require(r, r.Node.Manager)), 3)
	})
}

// saying is a socket that fails to read with a long text.
type saying struct {
	net.Conn
	broken *atomic.Bool
}

func (s saying) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if s.broken.Load() {
		return 0, errors.New(longText(1 << 20))
	}
	return n, err
}

// Names may come from anywhere: package gridmember has them from gossip.
func TestLongText_OfAHostThatIsAddedIsClipped(t *testing.T) {
	rig.InWireOnce(t, true, rawpeer.Config{Bare: true}, nil, func(r *rig.Wire) {
		for _, name := range []string{"", "http://", "http://a:", "http://[", "http://%zz", "http://[fe80::1%25"} {
			requireHeld(r, r.Node.AddHost(name+longText(1<<20)).Error())
			err := r.Node.AddHost(name + longWord(1<<20))
			requireHeld(r, err.Error())
		}
	})
}

// Whoever makes up ever new reasons to be refused does not fill the log.
func TestLog_EverNewReasonsAreFew(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{Bare: true}, nil, func(a *rig.Attacked) {
		const attempts = 200
		for i := range attempts {
			p := a.Next()
			name := "http://" + strings.Repeat("x", 1+i)
			p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: rawpeer.Connect{ID: make([]byte, 16), Host: name, Time: time.Now(), Token: rig.AttackToken}.Encode()})
			p.Expect(rawpeer.OpConnectResponse)
			p.ExpectClosed()
			time.Sleep(time.Second)
		}
		a.LoggedFew("handshake failed")
		require.Len(a, a.Book.About("handshake failed"), errlog.MaxReasons)
	})
	synctest.Test(t, func(t *testing.T) {
		var attempts int
		_, _, book := echoing(t, func(c net.Conn, _ *bufio.Reader, _ *http.Request) {
			attempts++
			fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: /%s\r\nContent-Length: 0\r\n\r\n", strings.Repeat("x", attempts))
		})
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		require.Greater(t, attempts, 100)
		require.Len(t, book.About("cannot connect", "302 Found, to"), errlog.MaxReasons)
	})
}
