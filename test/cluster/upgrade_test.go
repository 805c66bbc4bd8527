package cluster

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
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

func TestUpgrade_PlainRequestIsAnswered426(t *testing.T) {
	m, err := grid.NewManager(t.Context(), rig.Options(rig.LoneHost, []string{rig.LoneHost}))
	require.NoError(t, err)
	defer m.Close()
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", grid.RoutePath, nil),
		httptest.NewRequest("POST", grid.RoutePath, strings.NewReader("hello")),
		{Method: "GET", Header: rig.Bearer(rig.Token)},
	} {
		w := httptest.NewRecorder()
		m.Handler()(w, r)
		require.Equal(t, http.StatusUpgradeRequired, w.Code)
		require.Equal(t, "websocket", w.Header().Get("Upgrade"))
		require.Contains(t, w.Body.String(), "websocket")
	}
}

// A nil *RemoteErr of a function that is asked is no yes; and it is not a panic for each stranger.
func TestUpgrade_IsRefusedWithAnErrorThatHasNoText(t *testing.T) {
	m, err := grid.NewManager(t.Context(), rig.Options(rig.LoneHost, []string{rig.LoneHost}))
	require.NoError(t, err)
	defer m.Close()
	r := httptest.NewRequest("GET", grid.RoutePath, nil)
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	w := httptest.NewRecorder()
	m.Handler(func(*http.Request) error { return grid.NewRemoteErr(nil) })(w, r)
	require.Equal(t, http.StatusForbidden, w.Code)
}

// So it is in the handshake, where the peer is told.
func TestHandshake_IsRefusedWithAnErrorThatHasNoText(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(o *grid.ManagerOptions){
		"VerifyPeer": func(o *grid.ManagerOptions) {
			o.VerifyPeer = func(string, *http.Request) error { return grid.NewRemoteErr(nil) }
		},
		"AuthToken": func(o *grid.ManagerOptions) {
			var asked atomic.Int64
			o.AuthToken = func(string) error {
				if asked.Add(1)%2 == 1 { // about the upgrade
					return nil
				}
				return grid.NewRemoteErr(nil)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InWireOnce(t, true, rawpeer.Config{Bare: true}, edit, func(r *rig.Wire) {
				p := r.Next()
				hello := rawpeer.Connect{ID: make([]byte, 16), Host: r.Raw, Time: time.Now(), Token: rig.Token}
				p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()})
				answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
				require.NoError(t, err)
				require.False(t, answer.Accepted)
				require.Contains(t, answer.Reason, "an error that has no text")
				p.ExpectClosed()
			})
		})
	}
}

// A client of HTTP/2 takes the headers of an upgrade for a broken protocol, as curl does.
func TestUpgrade_OverHTTP2IsAnswered426WithoutItsHeaders(t *testing.T) {
	m, err := grid.NewManager(t.Context(), rig.Options(rig.LoneHost, []string{rig.LoneHost}))
	require.NoError(t, err)
	defer m.Close()
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	s := httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: proto == "HTTP/2.0"}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+grid.RoutePath, nil)
		require.NoError(t, err)
		r.Header = rig.Bearer(rig.Token)
		resp, err := (&http.Client{Transport: transport}).Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, proto, resp.Proto)
		require.Equal(t, http.StatusUpgradeRequired, resp.StatusCode)
		if proto == "HTTP/1.1" {
			require.Equal(t, "websocket", resp.Header.Get("Upgrade"))
			require.Equal(t, "grid: a websocket upgrade is required here\n", string(body))
			continue
		}
		for _, forbidden := range []string{"Connection", "Upgrade", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding"} {
			require.Empty(t, resp.Header[forbidden], forbidden)
		}
		require.Equal(t, "grid: a websocket upgrade is required here, over HTTP/1.1\n", string(body))
	}
}

func TestUpgrade_BadTokenIsAnswered403BeforeIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, _ := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		for _, header := range []http.Header{nil, rig.Bearer("wrong"), rig.Bearer(""), {"Authorization": {rig.Token + "x"}}, {"Authorization": {"Basic " + rig.Token}}} {
			body := g.RequireRefused(header, http.StatusForbidden)
			require.NotContains(t, body, "wrong token", "the reason is told to a stranger")
		}
		g.RequireUpgraded(rig.Bearer(rig.Token))
	})
}

func TestUpgrade_ChecksOfTheRequestStandForTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		header := func(name string) func(*http.Request) error {
			return func(r *http.Request) error {
				if r.Header.Get(name) == "" {
					return errors.New("no " + name)
				}
				return nil
			}
		}
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil, func(n *rig.Node) {
			n.Server.Handler = n.Handler(header("One"), header("Two"))
		})
		g.RequireRefused(rig.Bearer(rig.Token), http.StatusForbidden)
		g.RequireRefused(http.Header{"One": {"1"}}, http.StatusForbidden)
		g.RequireRefused(http.Header{"Two": {"1"}}, http.StatusForbidden)
		g.RequireUpgraded(http.Header{"One": {"1"}, "Two": {"1"}})

		// The handshake after it still needs the token.
		ws, _, err := g.Upgrade(http.Header{"One": {"1"}, "Two": {"1"}}, false)
		require.NoError(t, err)
		p := rawpeer.NewPeer(t, ws, rawpeer.Config{})
		defer p.Close()
		hello := rawpeer.Connect{ID: p.Config.Instance(), Host: raw, Time: time.Now(), Token: "wrong"}
		p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()})
		m, err := p.ReadHandshake(rawpeer.OpConnectResponse)
		require.NoError(t, err)
		answer, err := rawpeer.DecodeConnectResponse(m.Payload)
		require.NoError(t, err)
		require.False(t, answer.Accepted)
		require.Contains(t, answer.Reason, "token")
	})
}

func TestUpgrade_PageOfAnotherOriginIsAnswered403(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, _ := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		for _, origin := range []string{"http://evil.example", "https://evil.example:9000", "http://node0", "null", "http://node0.evil.example:9000"} {
			header := rig.Bearer(rig.Token)
			header.Set("Origin", origin)
			g.RequireRefused(header, http.StatusForbidden)
		}
		header := rig.Bearer(rig.Token)
		header.Set("Origin", rig.LoneHost)
		g.RequireUpgraded(header)
	})
}

func TestUpgrade_CompressionIsNotTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, _ := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		ws, resp, err := g.Upgrade(rig.Bearer(rig.Token), true)
		require.NoError(t, err)
		defer ws.Close()
		require.Contains(t, resp.Header.Get("Upgrade"), "websocket")
		require.Empty(t, resp.Header.Values("Sec-Websocket-Extensions"))
	})
}

func TestUpgrade_ClosedManagerAnswers503(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, _ := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		require.NoError(t, g.Manager(0).Close())
		g.RequireRefused(rig.Bearer(rig.Token), http.StatusServiceUnavailable)
		// The checks come first: a stranger learns nothing.
		g.RequireRefused(rig.Bearer("wrong"), http.StatusForbidden)
	})
}

// unwrapped is a middleware's ResponseWriter as http.ResponseController likes it.
type unwrapped struct{ http.ResponseWriter }

func (w unwrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// hijackable is one of the older kind.
type hijackable struct{ http.ResponseWriter }

func (w hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

// opaque hides what the server's own ResponseWriter can do.
type opaque struct{ http.ResponseWriter }

func TestUpgrade_WorksBehindMiddleware(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"Unwrap":         func(w http.ResponseWriter) http.ResponseWriter { return unwrapped{w} },
		"Unwrap twice":   func(w http.ResponseWriter) http.ResponseWriter { return unwrapped{unwrapped{w}} },
		"Hijacker":       func(w http.ResponseWriter) http.ResponseWriter { return hijackable{w} },
		"both, in turns": func(w http.ResponseWriter) http.ResponseWriter { return unwrapped{hijackable{w}} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := rig.Setup{Hosts: []string{"http://a:1", "http://b:1"}, Prepare: func(n *rig.Node) {
					h := n.Server.Handler
					n.Server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(wrap(w), r) })
				}}.Start(t)
				g.RequireWorks()
			})
		})
	}
}

func TestUpgrade_ResponseWriterThatCannotBeHijackedIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, _ := rig.NewLone(t, faultconn.NewNetwork(), true, nil, func(n *rig.Node) {
			h := n.Server.Handler
			n.Server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(opaque{w}, r) })
		})
		body := g.RequireRefused(rig.Bearer(rig.Token), http.StatusInternalServerError)
		require.Contains(t, body, "hijack")
	})
}

func TestUpgrade_WorksAtOtherRoutes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		route string
		mount func(m *grid.Manager) http.Handler
	}{
		"custom RoutePath": {"/a/b/c", func(m *grid.Manager) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/a/b/c", m.Handler())
			return mux
		}},
		"no mux at all": {"/anything", func(m *grid.Manager) http.Handler { return m.Handler() }},
		"mux in a mux": {"/api/v2/grid", func(m *grid.Manager) http.Handler {
			inner, outer := http.NewServeMux(), http.NewServeMux()
			inner.Handle("GET /grid", m.Handler())
			outer.Handle("/api/v2/", http.StripPrefix("/api/v2", inner))
			return outer
		}},
		"pattern with a host": {grid.RoutePath, func(m *grid.Manager) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("a"+grid.RoutePath, m.Handler())
			mux.Handle("b"+grid.RoutePath, m.Handler())
			return mux
		}},
		"subtree": {"/tree/of/grid", func(m *grid.Manager) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/tree/", m.Handler())
			return mux
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := rig.Setup{
					Hosts:   []string{"http://a:1", "http://b:1"},
					Edit:    func(_ int, o *grid.ManagerOptions) { o.RoutePath = c.route },
					Prepare: func(n *rig.Node) { n.Server.Handler = c.mount(n.Manager) },
				}.Start(t)
				g.RequireWorks()
			})
		})
	}
}
