package grid

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// upgrade asks the node of a lone grid for a websocket with any headers.
func (g *testGrid) upgrade(header http.Header, compress bool) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{NetDialContext: g.net.Dialer("stranger:1"), EnableCompression: compress}
	return d.DialContext(context.Background(), strings.Replace(loneHost, "http", "ws", 1)+RoutePath, header)
}

// requireRefused makes sure that an upgrade is answered with an error, and that
// the answer is complete.
func (g *testGrid) requireRefused(header http.Header, status int) string {
	g.t.Helper()
	_, resp, err := g.upgrade(header, false)
	require.ErrorIs(g.t, err, websocket.ErrBadHandshake)
	require.Equal(g.t, status, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(g.t, err)
	return string(body)
}

func (g *testGrid) requireUpgraded(header http.Header) {
	g.t.Helper()
	ws, _, err := g.upgrade(header, false)
	require.NoError(g.t, err)
	require.NoError(g.t, ws.Close())
	synctest.Wait()
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func TestPlainRequestIsAnswered426(t *testing.T) {
	m, err := NewManager(t.Context(), testOptions(loneHost, []string{loneHost}))
	require.NoError(t, err)
	defer m.Close()
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", RoutePath, nil),
		httptest.NewRequest("POST", RoutePath, strings.NewReader("hello")),
		{Method: "GET", Header: bearer(testToken)},
	} {
		w := httptest.NewRecorder()
		m.Handler()(w, r)
		require.Equal(t, http.StatusUpgradeRequired, w.Code)
		require.Equal(t, "websocket", w.Header().Get("Upgrade"))
		require.Contains(t, w.Body.String(), "websocket")
	}
}

func TestBadTokenIsAnswered403BeforeTheUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		for _, header := range []http.Header{nil, bearer("wrong"), bearer(""), {"Authorization": {testToken + "x"}}, {"Authorization": {"Basic " + testToken}}} {
			body := g.requireRefused(header, http.StatusForbidden)
			require.NotContains(t, body, "wrong token", "the reason is told to a stranger")
		}
		g.requireUpgraded(bearer(testToken))
	})
}

func TestChecksOfTheRequestStandForTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		header := func(name string) func(*http.Request) error {
			return func(r *http.Request) error {
				if r.Header.Get(name) == "" {
					return errors.New("no " + name)
				}
				return nil
			}
		}
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil, func(n *node) {
			n.server.Handler = n.Handler(header("One"), header("Two"))
		})
		g.requireRefused(bearer(testToken), http.StatusForbidden)
		g.requireRefused(http.Header{"One": {"1"}}, http.StatusForbidden)
		g.requireRefused(http.Header{"Two": {"1"}}, http.StatusForbidden)
		g.requireUpgraded(http.Header{"One": {"1"}, "Two": {"1"}})

		// The handshake after it still needs the token.
		ws, _, err := g.upgrade(http.Header{"One": {"1"}, "Two": {"1"}}, false)
		require.NoError(t, err)
		p := newRawPeer(t, ws, rawConfig{})
		defer p.close()
		hello := rawConnect{ID: p.c.instance(), Host: raw, Time: time.Now(), Token: "wrong"}
		p.send(rawMsg{Op: rawOpConnect, Payload: hello.encode()})
		m, err := p.readHandshake(rawOpConnectResponse)
		require.NoError(t, err)
		answer, err := decodeRawConnectResponse(m.Payload)
		require.NoError(t, err)
		require.False(t, answer.Accepted)
		require.Contains(t, answer.Reason, "token")
	})
}

func TestPageOfAnotherOriginIsAnswered403(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		for _, origin := range []string{"http://evil.example", "https://evil.example:9000", "http://node0", "null", "http://node0.evil.example:9000"} {
			header := bearer(testToken)
			header.Set("Origin", origin)
			g.requireRefused(header, http.StatusForbidden)
		}
		header := bearer(testToken)
		header.Set("Origin", loneHost)
		g.requireUpgraded(header)
	})
}

func TestCompressionIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		ws, resp, err := g.upgrade(bearer(testToken), true)
		require.NoError(t, err)
		defer ws.Close()
		require.Contains(t, resp.Header.Get("Upgrade"), "websocket")
		require.Empty(t, resp.Header.Values("Sec-Websocket-Extensions"))
	})
}

func TestClosedManagerAnswers503(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		require.NoError(t, g.nodes[0].Close())
		g.requireRefused(bearer(testToken), http.StatusServiceUnavailable)
		// The checks come first: a stranger learns nothing.
		g.requireRefused(bearer("wrong"), http.StatusForbidden)
	})
}

// unwrapped is a middleware's ResponseWriter as http.ResponseController likes
// it.
type unwrapped struct{ http.ResponseWriter }

func (w unwrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// hijackable is one of the older kind.
type hijackable struct{ http.ResponseWriter }

func (w hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

// opaque hides what the server's own ResponseWriter can do.
type opaque struct{ http.ResponseWriter }

func TestHandlerWorksBehindMiddleware(t *testing.T) {
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"Unwrap":         func(w http.ResponseWriter) http.ResponseWriter { return unwrapped{w} },
		"Unwrap twice":   func(w http.ResponseWriter) http.ResponseWriter { return unwrapped{unwrapped{w}} },
		"Hijacker":       func(w http.ResponseWriter) http.ResponseWriter { return hijackable{w} },
		"both, in turns": func(w http.ResponseWriter) http.ResponseWriter { return unwrapped{hijackable{w}} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: []string{"http://a:1", "http://b:1"}}
				g.prepare = func(n *node) {
					h := n.server.Handler
					n.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(wrap(w), r) })
				}
				g.startAll()
				g.requireWorks()
			})
		})
	}
}

func TestResponseWriterThatCannotBeHijackedIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newLoneGrid(t, faultconn.NewNetwork(), true, nil, func(n *node) {
			h := n.server.Handler
			n.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(opaque{w}, r) })
		})
		body := g.requireRefused(bearer(testToken), http.StatusInternalServerError)
		require.Contains(t, body, "hijack")
	})
}

func TestHandlerWorksAtOtherRoutes(t *testing.T) {
	for name, c := range map[string]struct {
		route string
		mount func(m *Manager) http.Handler
	}{
		"custom RoutePath": {"/a/b/c", func(m *Manager) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/a/b/c", m.Handler())
			return mux
		}},
		"no mux at all": {"/anything", func(m *Manager) http.Handler { return m.Handler() }},
		"mux in a mux": {"/api/v2/grid", func(m *Manager) http.Handler {
			inner, outer := http.NewServeMux(), http.NewServeMux()
			inner.Handle("GET /grid", m.Handler())
			outer.Handle("/api/v2/", http.StripPrefix("/api/v2", inner))
			return outer
		}},
		"pattern with a host": {RoutePath, func(m *Manager) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("a"+RoutePath, m.Handler())
			mux.Handle("b"+RoutePath, m.Handler())
			return mux
		}},
		"subtree": {"/tree/of/grid", func(m *Manager) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/tree/", m.Handler())
			return mux
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: []string{"http://a:1", "http://b:1"}}
				g.edit = func(_ int, o *ManagerOptions) { o.RoutePath = c.route }
				g.prepare = func(n *node) { n.server.Handler = c.mount(n.Manager) }
				g.startAll()
				g.requireWorks()
			})
		})
	}
}
