package wsconn

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wrapped is a connection that says what it wraps.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

// embedding has all that a TCP connection has.
type embedding struct{ *net.TCPConn }

// endless wraps itself.
type endless struct{ net.Conn }

func (e endless) NetConn() net.Conn { return e }

type wrappingListener struct {
	net.Listener
	wrap func(c net.Conn) net.Conn
}

func (l wrappingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

func unsentLimitOf(t *testing.T, c *net.TCPConn) (n int) {
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { n, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat) }))
	require.NoError(t, err)
	return n
}

// The socket is tuned on both sides, also where a Dialer or a listener has wrapped it.
func TestTune_SocketThatIsWrapped(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(c net.Conn) net.Conn{
		"plain":         func(c net.Conn) net.Conn { return c },
		"NetConn":       func(c net.Conn) net.Conn { return wrapped{c} },
		"twice":         func(c net.Conn) net.Conn { return wrapped{wrapped{c}} },
		"SyscallConn":   func(c net.Conn) net.Conn { return embedding{c.(*net.TCPConn)} },
		"wrapped in it": func(c net.Conn) net.Conn { return wrapped{embedding{c.(*net.TCPConn)}} },
	} {
		t.Run(name, func(t *testing.T) {
			var near *net.TCPConn
			far, got := make(chan *net.TCPConn, 1), make(chan int, 1)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := Upgrade(w, r, nil, limit, time.Now().Add(10*time.Second), Counters{})
				if err == nil {
					got <- unsentLimitOf(t, <-far)
					c.Close()
				}
			}))
			s.Listener = wrappingListener{s.Listener, func(c net.Conn) net.Conn {
				far <- c.(*net.TCPConn)
				return wrap(c)
			}}
			s.Start()
			defer s.Close()
			_, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), DialOptions{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := new(net.Dialer).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				near = c.(*net.TCPConn)
				return wrap(c), nil
			}})
			require.NoError(t, err)
			require.Equal(t, unsentLimit, unsentLimitOf(t, near))
			require.Equal(t, unsentLimit, <-got)
		})
	}
	tune(endless{})
	tune(wrapped{})
}
