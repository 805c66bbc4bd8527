package attack

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
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

// Who says a token back to the one that it is from.

// echoToken needs quoting or escaping wherever that is done.
const echoToken = `s3cr3t: "of <the> cluster" & \its nodes/ü`

// tokenSpellings are ways to write a token.
func tokenSpellings(token string) []string {
	return []string{
		token, fmt.Sprintf("%q", token), fmt.Sprintf("%+q", token), url.QueryEscape(token), url.PathEscape(token), html.EscapeString(token),
		token[:len(token)-3], token[3:], "x" + token + token + "x", strings.Repeat("-", 240) + token, strings.Repeat(token+" ", 100),
	}
}

// requireUntold requires that nothing of the token is in a log or the statistics.
func requireUntold(t *testing.T, book *rig.LogBook, m *grid.Manager) {
	t.Helper()
	text := strings.Join(book.About(""), "\n") + fmt.Sprintf("%+v", m.Stats())
	for _, part := range []string{"s3cr3t", "of <the>", "cluster", "its nodes", `of \u003cthe`, "&lt;the", "%3Cthe"} {
		require.NotContains(t, text, part)
	}
}

// echoing starts a node that dials a host, of which each connection is the test's.
func echoing(t *testing.T, serve func(c net.Conn, in *bufio.Reader, r *http.Request), edit ...func(o *grid.ManagerOptions)) (m *grid.Manager, conn *grid.Connection, book *rig.LogBook) {
	t.Helper()
	n := faultconn.NewNetwork()
	l, err := n.Listen(rig.HostAddr(rig.PeerHost(t, false)))
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			if r, err := http.ReadRequest(in); err == nil {
				serve(c, in, r)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	book = new(rig.LogBook)
	g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) {
		o.Logger = slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.AuthFn = func() string { return echoToken }
		for _, f := range edit {
			f(o)
		}
	})
	return g.Manager(0), g.Manager(0).Connection(raw), book
}

func TestToken_EchoedInAnAnswerToTheUpgradeIsNotTold(t *testing.T) {
	for name, answer := range map[string]func(said string) string{
		"status line":       func(said string) string { return "HTTP/1.1 403 " + said + "\r\nContent-Length: 0\r\n\r\n" },
		"status line alone": func(said string) string { return said + "\r\n\r\n" },
		"status code":       func(said string) string { return "HTTP/1.1 " + said + "\r\n\r\n" },
		"protocol":          func(said string) string { return said + "/1.1 403 Forbidden\r\n\r\n" },
		"malformed header":  func(said string) string { return "HTTP/1.1 403 Forbidden\r\n" + said + "\r\n\r\n" },
		"header's name":     func(said string) string { return "HTTP/1.1 403 Forbidden\r\nX " + said + ": x\r\n\r\n" },
		"length":            func(said string) string { return "HTTP/1.1 403 Forbidden\r\nContent-Length: " + said + "\r\n\r\n" },
		"encoding":          func(said string) string { return "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: " + said + "\r\n\r\n" },
		"body": func(said string) string {
			return fmt.Sprintf("HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s", len(said), said)
		},
		"location": func(said string) string {
			return "HTTP/1.1 302 Found\r\nLocation: https://" + said + "\r\nContent-Length: 0\r\n\r\n"
		},
		"body of chunks": func(said string) string {
			return "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n" + said + "\r\n"
		},
		"websocket header": func(said string) string {
			return "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + said + "\r\n\r\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, said := range tokenSpellings(echoToken) {
				synctest.Test(t, func(t *testing.T) {
					m, conn, book := echoing(t, func(c net.Conn, _ *bufio.Reader, r *http.Request) {
						if r.Header.Get("Authorization") != "Bearer "+echoToken {
							t.Errorf("another token: %q", r.Header)
						}
						io.WriteString(c, answer(said))
					})
					time.Sleep(5 * time.Second)
					synctest.Wait()
					require.NotEmpty(t, conn.Stats().LastError)
					require.NotEmpty(t, book.About("cannot connect"))
					requireUntold(t, book, m)
				})
			}
		})
	}
}

// The same behind the upgrade, in both roles.
func TestToken_EchoedInTheHandshakeIsNotTold(t *testing.T) {
	answer := func(r rawpeer.ConnectResponse) func(p *rawpeer.Peer) {
		r.ID = make([]byte, 16)
		return func(p *rawpeer.Peer) { _ = p.TrySend(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: r.Encode()}) }
	}
	closing := func(said string) func(p *rawpeer.Peer) {
		return func(p *rawpeer.Peer) {
			text := websocket.FormatCloseMessage(websocket.ClosePolicyViolation, said[:min(len(said), 120)])
			_ = p.WS.WriteControl(websocket.CloseMessage, text, time.Now().Add(time.Second))
		}
	}
	for name, say := range map[string]func(said string) func(p *rawpeer.Peer){
		"reason": func(said string) func(p *rawpeer.Peer) { return answer(rawpeer.ConnectResponse{Reason: said}) },
		"host": func(said string) func(p *rawpeer.Peer) {
			return answer(rawpeer.ConnectResponse{Accepted: true, Host: said})
		},
		"proof": func(said string) func(p *rawpeer.Peer) {
			return answer(rawpeer.ConnectResponse{Accepted: true, Host: "http://other:1", Proof: []byte(said)})
		},
		"close text": closing,
		"close text, later": func(said string) func(p *rawpeer.Peer) {
			return func(p *rawpeer.Peer) {
				answer(rawpeer.ConnectResponse{Accepted: true})(p)
				time.Sleep(time.Second)
				closing(said)(p)
			}
		},
		"in place of an answer": func(said string) func(p *rawpeer.Peer) {
			return func(p *rawpeer.Peer) { _ = p.TrySendBytes([]byte(said)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, said := range tokenSpellings(echoToken) {
				rig.InWireOnce(t, false, rawpeer.Config{Bare: true}, func(o *grid.ManagerOptions) {
					o.AuthFn = func() string { return echoToken }
				}, func(r *rig.Wire) {
					p := r.Next()
					p.Expect(rawpeer.OpConnect)
					say(said)(p)
					time.Sleep(3 * time.Second)
					synctest.Wait()
					require.NotEmpty(r, r.Conn.Stats().LastError)
					requireUntold(r.T, r.Book, r.Node.Manager)
				})
			}
		})
	}
	// Who dials has a token that is good at other hosts as well.
	for name, edit := range map[string]func(h *rawpeer.Connect, said string){
		"host of a Connect": func(h *rawpeer.Connect, said string) { h.Host = said },
		"to of a Connect":   func(h *rawpeer.Connect, said string) { h.To = said },
		"bad token":         func(h *rawpeer.Connect, said string) { h.Token = said },
	} {
		t.Run(name, func(t *testing.T) {
			for _, said := range tokenSpellings(echoToken) {
				rig.InWireOnce(t, true, rawpeer.Config{Bare: true}, func(o *grid.ManagerOptions) {
					o.AuthToken = func(token string) error {
						if token != echoToken {
							return fmt.Errorf("%q is no token", token)
						}
						return nil
					}
				}, func(r *rig.Wire) {
					c := rawpeer.Config{Token: echoToken, Dial: r.Grid.Net.Dialer(rig.HostAddr(r.Raw)), Bare: true}
					p := rawpeer.DialConfig(r, rig.LoneHost, c)
					h := rawpeer.Connect{ID: make([]byte, 16), Host: r.Raw, Time: time.Now(), Token: echoToken}
					edit(&h, said)
					p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
					if said != echoToken || name != "bad token" {
						p.Expect(rawpeer.OpConnectResponse)
						p.ExpectClosed()
					}
					synctest.Wait()
					requireUntold(r.T, r.Book, r.Node.Manager)
				})
			}
		})
	}
}
