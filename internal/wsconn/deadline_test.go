package wsconn

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

// tunnel is a connection without deadlines, as one through SSH is.
type tunnel struct{ net.Conn }

var errNoDeadlines = errors.New("ssh: tcpChan: deadline not supported")

func (tunnel) SetDeadline(time.Time) error      { return errNoDeadlines }
func (tunnel) SetReadDeadline(time.Time) error  { return errNoDeadlines }
func (tunnel) SetWriteDeadline(time.Time) error { return errNoDeadlines }

func dialTunnel(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return tunnel{c}, nil
}

func TestDial_ThroughATunnelWithoutDeadlines(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := Upgrade(w, r, nil, limit, time.Now().Add(10*time.Second), Counters{})
			if err != nil {
				return
			}
			defer c.Close()
			echo(c)
		}))
		o := DialOptions{Dial: dialTunnel}
		if secure {
			s.StartTLS()
			o.TLS = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"}
		} else {
			s.Start()
		}
		t.Cleanup(s.Close)
		c, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), o)
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(time.Hour)))
		require.NoError(t, c.SetDeadline(noDeadline))
		require.NoError(t, c.WriteMessage(room([]byte("hello"))))
		b, err := c.ReadMessage()
		require.NoError(t, err)
		require.Equal(t, "hello", string(b))
		bytepool.Put(b)

		// Its deadline holds all the same.
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Millisecond)))
		_, err = c.ReadMessage()
		require.Error(t, err)
		require.Error(t, c.SetDeadline(noDeadline))
		require.NoError(t, c.SetDeadline(noDeadline))
	}
}

// A server that says nothing, or that stops to read, holds up neither the dialler nor Close.
func TestDial_TunnelToAServerThatSaysNothing(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"ws://host:1", "wss://host:1"} {
		near, far := net.Pipe() // which has no buffer
		defer far.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, _, err := Dial(ctx, url, DialOptions{Limit: limit, Dial: func(context.Context, string, string) (net.Conn, error) {
			return tunnel{near}, nil
		}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
}

func TestConn_CloseOfATunnelThatReadsNothing(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer far.Close()
	r := httptest.NewRequest("GET", "/", nil)
	for k, v := range map[string]string{"Connection": "upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
		r.Header.Set(k, v)
	}
	_, err := Upgrade(hijacked{&pipeResponse{tunnel{near}, bufio.NewReader(near)}}, r, nil, limit, time.Now().Add(50*time.Millisecond), Counters{})
	require.ErrorIs(t, err, context.DeadlineExceeded, "the answer was not read")
}

// Package http would wait for the client before it hands over such a connection.
func TestUpgrade_OfAListenerWithoutDeadlinesIsRefused(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := Upgrade(w, r, nil, limit, time.Now().Add(10*time.Second), Counters{})
		if err == nil {
			panic("upgraded")
		}
	})}
	go s.Serve(tunnels{l})
	defer s.Close()
	_, err = dial(t, "ws://"+l.Addr().String(), DialOptions{})
	require.ErrorContains(t, err, "500 Internal Server Error")
	require.ErrorContains(t, err, "have no read deadlines")
	require.ErrorContains(t, err, errNoDeadlines.Error())
}

// hijacked is a ResponseWriter of another server than that of package http.
type hijacked struct{ p *pipeResponse }

func (h hijacked) Header() http.Header                          { return h.p.Header() }
func (h hijacked) Write(b []byte) (int, error)                  { return h.p.Write(b) }
func (h hijacked) WriteHeader(int)                              {}
func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.p.Hijack() }

// tunnels is a listener whose connections have no deadlines.
type tunnels struct{ net.Listener }

func (l tunnels) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tunnel{c}, nil
}
