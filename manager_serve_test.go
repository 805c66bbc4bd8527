package grid_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rig"
)

// served are two managers that serve themselves, over a network in memory.
type served struct {
	net   *faultconn.Network
	hosts []string
	m     []*grid.Manager
	stop  []context.CancelFunc
	ended []chan error
}

func serveTwo(t *testing.T, o grid.ServeOptions, edit func(o *grid.ManagerOptions)) *served {
	s := &served{net: faultconn.NewNetwork(), hosts: rig.Names("http", 2)}
	for _, host := range s.hosts {
		mo := rig.Options(host, s.hosts)
		mo.Dialer = s.net.Dialer(rig.HostAddr(host))
		if edit != nil {
			edit(&mo)
		}
		l, err := s.net.Listen(rig.HostAddr(host))
		require.NoError(t, err)
		m, err := grid.NewManager(context.Background(), mo)
		require.NoError(t, err)
		rig.RegisterHandlers(t, m)
		ctx, stop := context.WithCancel(t.Context())
		ended, gone := make(chan error, 1), make(chan struct{})
		go func() {
			defer close(gone)
			ended <- m.Serve(ctx, l, o)
		}()
		s.m, s.stop, s.ended = append(s.m, m), append(s.stop, stop), append(s.ended, ended)
		t.Cleanup(func() {
			stop()
			require.NoError(t, m.Close())
			<-gone
		})
	}
	return s
}

func (s *served) get(t *testing.T, path string) (status int, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: s.net.Dialer("client:1"), DisableKeepAlives: true}}
	resp, err := client.Get(s.hosts[0] + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

func TestServe_LinksAndWhatElseThereIs(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		s := serveTwo(t, grid.ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "at "+r.URL.Path)
		})}, nil)
		for i, m := range s.m {
			conn := m.Connection(s.hosts[1-i])
			require.NoError(t, conn.WaitForConnect(t.Context()))
			_, err := conn.SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)
		}
		status, body := s.get(t, "/x//y")
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "at /x//y", body)
		status, _ = s.get(t, grid.RoutePath)
		require.Equal(t, http.StatusUpgradeRequired, status)

		// No timeout of the server ends a link.
		time.Sleep(time.Hour)
		require.Zero(t, s.m[0].Stats().Reconnects)
		require.Equal(t, 1, s.m[0].Stats().Connected)

		s.stop[0]()
		require.NoError(t, <-s.ended[0])
		require.Equal(t, grid.StateShutdown, s.m[0].Connection(s.hosts[1]).State())
		_, err := s.net.Dialer("client:1")(t.Context(), "tcp", rig.HostAddr(s.hosts[0]))
		require.Error(t, err, "the listener is closed")
	})
	rig.InBubble(t, func(t *testing.T) {
		s := serveTwo(t, grid.ServeOptions{Authorize: []func(*http.Request) error{
			func(*http.Request) error { return errors.New("nobody") },
		}}, nil)
		time.Sleep(time.Minute)
		require.Zero(t, s.m[0].Stats().Connected)
		status, _ := s.get(t, "/")
		require.Equal(t, http.StatusNotFound, status)
	})
}

// What is under way goes on, with the server beside it, until both have ended.
func TestServe_EndsTheManagerBeforeTheServer(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		var s *served
		slow := make(chan struct{})
		s = serveTwo(t, grid.ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/ready":
				s.m[0].Ready(nil)(w, r)
			case "/slow":
				<-slow
				io.WriteString(w, "done")
			}
		})}, nil)
		conn := s.m[1].Connection(s.hosts[0])
		require.NoError(t, conn.WaitForConnect(t.Context()))
		require.NoError(t, s.m[0].Connection(s.hosts[1]).WaitForConnect(t.Context()))
		require.NoError(t, s.m[0].RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			time.Sleep(10 * time.Second)
			return b, nil
		}))
		status, body := s.get(t, "/ready")
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "grid: ready: 1 of 1 other hosts connected\n", body)
		answered, replied := make(chan error, 1), make(chan string, 1)
		go func() {
			_, err := conn.SingleRequest(t.Context(), rig.Handler, nil)
			answered <- err
		}()
		go func() {
			_, body := s.get(t, "/slow")
			replied <- body
		}()
		synctest.Wait()
		s.stop[0]()
		synctest.Wait()
		status, body = s.get(t, "/ready")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Equal(t, "grid: the manager is shutting down\n", body)
		require.NoError(t, <-answered)
		time.Sleep(5 * time.Second) // the manager has ended, a request has not
		require.Empty(t, s.ended[0])
		close(slow)
		require.Equal(t, "done", <-replied)
		require.NoError(t, <-s.ended[0])
	})
}

func TestServe_CutsOffWhatTakesTooLong(t *testing.T) {
	for what, path := range map[string]string{"a call": "", "a request": "/slow"} {
		t.Run(what, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				s := serveTwo(t, grid.ServeOptions{ShutdownTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
				})}, nil)
				conn := s.m[1].Connection(s.hosts[0])
				require.NoError(t, conn.WaitForConnect(t.Context()))
				go func() {
					if path == "" {
						stream, err := conn.NewStream(t.Context(), rig.Block, nil)
						if err == nil {
							_ = rig.Consume(stream)
						}
						return
					}
					client := &http.Client{Transport: &http.Transport{DialContext: s.net.Dialer("client:1"), DisableKeepAlives: true}}
					if resp, err := client.Get(s.hosts[0] + path); err == nil {
						resp.Body.Close()
					}
				}()
				synctest.Wait()
				s.stop[0]()
				took := rig.Elapsed(func() {
					err := <-s.ended[0]
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorContains(t, err, "not all had ended after 5s (ShutdownTimeout)")
				})
				require.InDelta(t, 5*time.Second, took, float64(time.Second))
			})
		})
	}
}

func TestServe_EndsWithTheManager(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		s := serveTwo(t, grid.ServeOptions{}, nil)
		synctest.Wait()
		require.NoError(t, s.m[0].Close())
		require.NoError(t, <-s.ended[0])
		l, err := s.net.Listen("again:1")
		require.NoError(t, err)
		require.ErrorIs(t, s.m[0].Serve(t.Context(), l, grid.ServeOptions{}), grid.ErrDisconnected)
		_, err = l.Accept()
		require.Error(t, err, "it is closed")
	})
}

// Who connects and says nothing, or says it slowly, is closed.
func TestServe_BoundsTheHeaderAndIdleConnections(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		s := serveTwo(t, grid.ServeOptions{}, func(o *grid.ManagerOptions) { o.HandshakeTimeout = 3 * time.Second })
		for request, want := range map[string]time.Duration{
			"":                                    3 * time.Second,
			"GET / HTTP/1.1\r\nHost: x":           3 * time.Second,
			"GET / HTTP/1.1\r\nHost: x\r\n\r\n":   2 * time.Minute,
			"GET / HTTP/1.1\r\nHost: x\r\nX: y\r": 3 * time.Second,
		} {
			c, err := s.net.Dialer("client:1")(t.Context(), "tcp", rig.HostAddr(s.hosts[0]))
			require.NoError(t, err)
			_, err = io.WriteString(c, request)
			require.NoError(t, err)
			require.InDelta(t, want, rig.Elapsed(func() { _, _ = io.Copy(io.Discard, bufio.NewReader(c)) }), float64(time.Second), "%q", request)
			c.Close()
		}
	})
}

// roundTrip sends request as it is, and returns what comes until the connection ends.
func (s *served) roundTrip(t *testing.T, request string) (answer string) {
	t.Helper()
	c, err := s.net.Dialer("client:1")(t.Context(), "tcp", rig.HostAddr(s.hosts[0]))
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, request)
	require.NoError(t, err)
	b, _ := io.ReadAll(c)
	return string(b)
}

// A body that is announced and never comes keeps no connection, and does not hold up the end.
func TestServe_BodyThatNeverComes(t *testing.T) {
	never := func(method, path, header string) string {
		return method + " " + path + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n"
	}
	const length, chunks = "Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n"
	upgrade := length + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for name, c := range map[string]struct {
		request, want string
		within        time.Duration
	}{
		"post":             {never("POST", grid.RoutePath, length), "426 ", 2 * time.Second},
		"get":              {never("GET", grid.RoutePath, length), "426 ", 2 * time.Second},
		"chunks":           {never("POST", grid.RoutePath, chunks), "426 ", 2 * time.Second},
		"continue":         {never("POST", grid.RoutePath, length+"Expect: 100-continue\r\n"), "426 ", 2 * time.Second},
		"knock":            {never("POST", grid.RoutePath, length+"Grid-Knock: http://x:1\r\n"), "403 ", 2 * time.Second},
		"upgrade":          {never("GET", grid.RoutePath, upgrade), "403 ", 2 * time.Second},
		"large":            {never("POST", grid.RoutePath, "Content-Length: 1000000\r\n"), "426 ", 2 * time.Second},
		"ready":            {never("GET", "/ready", length), "503 ", 2 * time.Second},
		"unread":           {never("PUT", "/unread", length), "200 ", 2 * time.Second},
		"long":             {never("PUT", "/long", length), "200 ", 2*time.Minute + 2*time.Second},
		"read":             {never("PUT", "/read", length), "408 ", 2*time.Minute + 2*time.Second},
		"read, continue":   {never("PUT", "/read", length+"Expect: 100-continue\r\n"), "408 ", 2*time.Minute + 2*time.Second},
		"unread, continue": {never("PUT", "/unread", length+"Expect: 100-continue\r\n"), "200 ", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				var s *served
				mux := http.NewServeMux()
				mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
					s.m[0].Ready(func([]grid.HostLink) bool { return false })(w, r)
				})
				mux.HandleFunc("/unread", func(http.ResponseWriter, *http.Request) {})
				mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 64<<10)) })
				mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.ReadAll(r.Body); errors.Is(err, os.ErrDeadlineExceeded) {
						w.WriteHeader(http.StatusRequestTimeout)
					}
				})
				s = serveTwo(t, grid.ServeOptions{Handler: mux, ShutdownTimeout: 5 * time.Second}, nil)
				var answer string
				took := rig.Elapsed(func() { answer = s.roundTrip(t, c.request) })
				require.Contains(t, answer, "HTTP/1.1 "+c.want)
				require.LessOrEqual(t, took, c.within)

				if c.within < time.Minute {
					go s.roundTrip(t, c.request)
					synctest.Wait()
					s.stop[0]()
					require.NoError(t, <-s.ended[0])
				}
			})
		})
	}
	t.Run("nowhere", func(t *testing.T) {
		rig.InBubble(t, func(t *testing.T) {
			s := serveTwo(t, grid.ServeOptions{}, nil)
			took := rig.Elapsed(func() { require.Contains(t, s.roundTrip(t, never("POST", "/x", length)), "404 ") })
			require.LessOrEqual(t, took, 2*time.Second)
		})
	})
	t.Run("server of the application's", func(t *testing.T) {
		rig.InBubble(t, func(t *testing.T) {
			s := serveTwo(t, grid.ServeOptions{}, nil)
			l, err := s.net.Listen("own:1")
			require.NoError(t, err)
			server := &http.Server{Handler: s.m[0].Handler()}
			go server.Serve(l)
			defer server.Close()
			s.hosts[0] = "http://own:1"
			took := rig.Elapsed(func() { require.Contains(t, s.roundTrip(t, never("POST", "/x", length)), "426 ") })
			require.LessOrEqual(t, took, 2*time.Second)
		})
	})
}

// A body that comes slowly is read to its end, and the context of its request is not ended by what
// bounds the reading.
func TestServe_BodyThatComesSlowly(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		type read struct {
			body     string
			err, ctx error
		}
		got := make(chan read, 1)
		s := serveTwo(t, grid.ServeOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			time.Sleep(time.Hour)
			got <- read{string(b), err, r.Context().Err()}
		})}, nil)
		c, err := s.net.Dialer("client:1")(t.Context(), "tcp", rig.HostAddr(s.hosts[0]))
		require.NoError(t, err)
		defer c.Close()
		for range 2 {
			_, err = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
			require.NoError(t, err)
			for range 10 {
				time.Sleep(time.Minute)
				_, err = io.WriteString(c, "x")
				require.NoError(t, err)
			}
			require.Equal(t, read{body: "xxxxxxxxxx"}, <-got)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.StatusCode, "and another request may follow")
		}
	})
}

type brokenListener struct{ net.Listener }

func (brokenListener) Accept() (net.Conn, error) { return nil, errors.New("out of order") }

func TestServe_FailsWithItsListenerOrOptions(t *testing.T) {
	for _, c := range []struct {
		local string
		o     grid.ServeOptions
		why   string
	}{
		{"http://127.0.0.1:1", grid.ServeOptions{}, "grid: out of order"},
		{"http://127.0.0.1:1", grid.ServeOptions{ShutdownTimeout: -1}, "ServeOptions.ShutdownTimeout is -1ns"},
		{"http://127.0.0.1:1", grid.ServeOptions{TLSConfig: new(tls.Config)}, `and Local "http://127.0.0.1:1" is http`},
		{"http://127.0.0.1:1", grid.ServeOptions{CertFile: "x"}, `and Local "http://127.0.0.1:1" is http`},
		{"https://127.0.0.1:1", grid.ServeOptions{}, "Local is https, and there is no certificate"},
		{"https://127.0.0.1:1", grid.ServeOptions{TLSConfig: new(tls.Config)}, "there is no certificate"},
		{"https://127.0.0.1:1", grid.ServeOptions{CertFile: "/no/such/file"}, "CertFile and KeyFile: open "},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		m, err := grid.NewManager(t.Context(), rig.Options(c.local, []string{c.local}))
		require.NoError(t, err)
		require.ErrorContains(t, m.Serve(t.Context(), brokenListener{l}, c.o), c.why)
		require.Error(t, l.Close(), "it is closed")
		require.NoError(t, m.AddHost(c.local[:len(c.local)-1]+"2"), "the manager goes on")
		require.NoError(t, m.Close())
	}
}

func TestListenAndServe_AtThePortOfLocal(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	local := "http://" + l.Addr().String()
	m, err := grid.NewManager(t.Context(), rig.Options(local, []string{local}))
	require.NoError(t, err)
	require.ErrorContains(t, m.ListenAndServe(t.Context(), l.Addr().String(), grid.ServeOptions{}), "address already in use")
	require.NoError(t, l.Close())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.ListenAndServe(ctx, "", grid.ServeOptions{}) }()
	require.Eventually(t, func() bool {
		resp, err := http.Get(local + "/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusNotFound
	}, 10*time.Second, time.Millisecond)
	http.DefaultClient.CloseIdleConnections()
	stop()
	require.NoError(t, <-ended)
}

// Two hosts with client certificates, of the options or of files.
func TestServe_TLS(t *testing.T) {
	for _, files := range []bool{false, true} {
		t.Run(fmt.Sprintf("files %v", files), func(t *testing.T) {
			cert, pool := rig.Certificate(t)
			var listeners []net.Listener
			var hosts []string
			for range 2 {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				require.NoError(t, err)
				listeners, hosts = append(listeners, l), append(hosts, "https://"+l.Addr().String())
			}
			var managers []*grid.Manager
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 2)
			for i, host := range hosts {
				o := rig.Options(host, hosts)
				o.VerifyPeer = grid.VerifyTLSHost
				o.TLSConfig = &tls.Config{
					RootCAs: pool, Certificates: []tls.Certificate{cert},
					ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
					VerifyConnection: func(s tls.ConnectionState) error { // about servers
						return s.PeerCertificates[0].VerifyHostname("127.0.0.1")
					},
				}
				var so grid.ServeOptions
				if files {
					so.CertFile, so.KeyFile = certificateFiles(t, cert)
					so.TLSConfig = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
				}
				m, err := grid.NewManager(context.Background(), o)
				require.NoError(t, err)
				rig.RegisterHandlers(t, m)
				managers = append(managers, m)
				go func() { ended <- m.Serve(ctx, listeners[i], so) }()
			}
			for i, m := range managers {
				require.NoError(t, m.Connection(hosts[1-i]).WaitForConnect(t.Context()))
			}
			_, err := managers[0].Connection(hosts[1]).SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)
			stop()
			require.NoError(t, <-ended)
			require.NoError(t, <-ended)
		})
	}
}

// Which certificate is shown, as by http.Server.ServeTLS: the files' before those of the
// configuration, and what its functions return before all.
func TestServe_WhichCertificateIsShown(t *testing.T) {
	cert, _ := rig.Certificate(t)
	other, _ := rig.Certificate(t)
	certFile, keyFile := certificateFiles(t, cert)
	one := func(c tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
	}
	for name, c := range map[string]struct {
		config *tls.Config
		want   tls.Certificate
	}{
		"files alone":    {nil, cert},
		"Certificates":   {&tls.Config{Certificates: []tls.Certificate{other}}, cert},
		"GetCertificate": {&tls.Config{GetCertificate: one(other)}, other},
		"GetConfigForClient": {&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{other}}, nil
		}}, other},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			local := "https://" + l.Addr().String()
			m, err := grid.NewManager(context.Background(), rig.Options(local, []string{local}))
			require.NoError(t, err)
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				ended <- m.Serve(ctx, l, grid.ServeOptions{CertFile: certFile, KeyFile: keyFile, TLSConfig: c.config})
			}()
			conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"})
			require.NoError(t, err)
			require.Equal(t, c.want.Certificate[0], conn.ConnectionState().PeerCertificates[0].Raw)
			conn.Close()
			stop()
			require.NoError(t, <-ended)
		})
	}
}

func certificateFiles(t *testing.T, cert tls.Certificate) (certFile, keyFile string) {
	dir := t.TempDir()
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	require.NoError(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, b := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		keyFile:  {Type: "EC PRIVATE KEY", Bytes: key},
	} {
		require.NoError(t, os.WriteFile(name, pem.EncodeToMemory(b), 0o600))
	}
	return certFile, keyFile
}

func TestReady_SaysWhetherThereAreEnoughLinks(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		block := make(chan struct{})
		g := rig.Setup{Hosts: rig.Names("http", 4), Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			if i == 0 {
				o.BlockConnect = block
			}
		}}.Start(t)
		g.Start(0)
		m := g.Manager(0)
		all := func(others []grid.HostLink) bool {
			return !slices.ContainsFunc(others, func(l grid.HostLink) bool { return !l.Connected })
		}
		none := func([]grid.HostLink) bool { return true }
		check := func(enough func([]grid.HostLink) bool, status int, text string) {
			t.Helper()
			w := httptest.NewRecorder()
			m.Ready(enough)(w, httptest.NewRequest("GET", "/ready", nil))
			require.Equal(t, status, w.Code)
			require.Equal(t, text+"\n", w.Body.String())
			require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		}
		const no, yes = http.StatusServiceUnavailable, http.StatusOK
		check(none, no, "grid: not ready: BlockConnect is not closed")
		close(block)
		check(nil, no, "grid: not ready: 0 of 3 other hosts connected")
		check(none, yes, "grid: ready: 0 of 3 other hosts connected")
		g.Start(1)
		rig.WaitState(t, g.Conn(0, 1), grid.StateConnected)
		check(nil, no, "grid: not ready: 1 of 3 other hosts connected") // two of four are no majority
		g.Start(2)
		rig.WaitState(t, g.Conn(0, 2), grid.StateConnected)
		check(nil, yes, "grid: ready: 2 of 3 other hosts connected")
		check(all, no, "grid: not ready: 2 of 3 other hosts connected")
		g.Start(3)
		rig.WaitState(t, g.Conn(0, 3), grid.StateConnected)
		check(all, yes, "grid: ready: 3 of 3 other hosts connected")
		require.NoError(t, m.RemoveHost(g.Host(3)))
		check(all, yes, "grid: ready: 2 of 2 other hosts connected")
		require.NoError(t, m.Close())
		check(none, no, "grid: the manager is closed")
	})
}

// What the server says goes to the Logger. Failed TLS handshakes, which any stranger can make, do so
// at a level that is off by default.
func TestServe_LogsWhatTheServerSays(t *testing.T) {
	cert, pool := rig.Certificate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	local := "https://" + l.Addr().String()
	book := new(rig.LogBook)
	o := rig.Options(local, []string{local})
	o.Logger = slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.TLSConfig = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}
	m, err := grid.NewManager(context.Background(), o)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- m.Serve(ctx, l, grid.ServeOptions{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			panic("from inside")
		})})
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, c)
	c.Close()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: o.TLSConfig, DisableKeepAlives: true}}
	_, err = client.Get(local + "/")
	require.Error(t, err)
	client.Transport = &http.Transport{TLSClientConfig: o.TLSConfig, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	_, err = client.Get(local + "/")
	require.Error(t, err)
	// What strangers say who have agreed on HTTP/2.
	frame := func(size, kind byte) []byte {
		return append([]byte{0, 0, size, kind, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{1}, int(size))...)
	}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	const settings, ping, goAway = 4, 6, 7
	for _, say := range []string{
		"level=WARN disk lost",
		preface + string(frame(4, ping)),
		preface + string(frame(0, settings)) + string(frame(3, settings)),
		preface + string(frame(0, settings)) + string(frame(48, goAway)),
	} {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}})
		require.NoError(t, err)
		_, err = io.WriteString(c, say)
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	stop()
	require.NoError(t, <-ended)
	require.Len(t, book.About("level=DEBUG", "grid: HTTP server", "TLS handshake error"), 1)
	require.Len(t, book.About("level=WARN", "grid: HTTP server", "http: panic serving", "from inside"), 1)
	require.Len(t, book.About("level=WARN", "grid: HTTP server", "http2: panic serving", "from inside"), 1)
	require.Len(t, book.About("level=WARN", "grid: HTTP server"), 2, "%v", book.About("level=WARN"))
	require.NotEmpty(t, book.About("level=DEBUG", "grid: HTTP server", "http2: server"), "%v", book.About("level=DEBUG"))
	require.NotEmpty(t, book.About("level=DEBUG", "grid: HTTP server", "received GOAWAY"))
}
