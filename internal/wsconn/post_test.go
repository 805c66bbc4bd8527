package wsconn

import (
	"context"
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

	"github.com/gridrpc/grid/internal/faultconn"
)

func postTo(t *testing.T, url string, o DialOptions) (Answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return Post(ctx, url, http.Header{"X": {"y"}}, o)
}

func TestPost_AsksOnceOverAConnectionOfItsOwn(t *testing.T) {
	var asked atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) > 0 || r.Method != http.MethodPost || r.Header.Get("X") != "y" || !r.Close {
			http.Error(w, "odd request", http.StatusBadRequest)
			return
		}
		switch r.URL.Path {
		case "/elsewhere":
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
		default:
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, "token was "+r.Header.Get("Authorization")+"\n")
		}
	})
	for _, server := range []*httptest.Server{httptest.NewServer(handler), httptest.NewTLSServer(handler)} {
		asked.Store(0)
		o := DialOptions{Token: "a-secret-token"}
		if server.TLS != nil {
			o.TLS = server.Client().Transport.(*http.Transport).TLSClientConfig
		}
		a, err := postTo(t, server.URL+"/path", o)
		require.NoError(t, err)
		require.Equal(t, Answer{http.StatusAccepted, "token was Bearer [redacted]"}, a)
		a, err = postTo(t, server.URL+"/elsewhere", o)
		require.NoError(t, err)
		require.Equal(t, http.StatusTemporaryRedirect, a.Status)
		require.EqualValues(t, 2, asked.Load(), "a redirect was followed")
		server.Close()
	}
}

func TestPost_ReadsNoMoreThanItMust(t *testing.T) {
	for name, c := range map[string]struct{ head, more string }{
		"status line": {"HTTP/1.1 200 ", "x"},
		"headers":     {"HTTP/1.1 200 OK\r\n", "X: y\r\n"},
		"body":        {"HTTP/1.1 200 OK\r\n\r\n", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				l, err := n.Listen("server:80")
				require.NoError(t, err)
				sent := make(chan int)
				go func() {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					defer conn.Close()
					_, _ = conn.Write([]byte(c.head))
					more, total := []byte(strings.Repeat(c.more, 1024)), 0
					for err == nil && total < 16<<20 {
						var k int
						k, err = conn.Write(more)
						total += k
					}
					sent <- total
				}()
				a, err := postTo(t, "http://server/", DialOptions{Dial: n.DialContext})
				if name == "body" {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, errMalformed)
				}
				require.LessOrEqual(t, len(a.Text), maxRefusal)
				require.Less(t, <-sent, 1<<20)
				l.Close()
			})
		})
	}
}

func TestPost_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		l, err := n.Listen("server:80")
		require.NoError(t, err)
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}
		}()
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		begin := time.Now()
		_, err = Post(ctx, "http://server", http.Header{}, DialOptions{Dial: n.DialContext})
		require.Equal(t, time.Second, time.Since(begin))
		require.True(t, errors.Is(err, enough) || errors.Is(err, context.DeadlineExceeded), err)
		synctest.Wait()
		require.Zero(t, n.Conns())

		_, err = postTo(t, "http://nobody", DialOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, enough }})
		require.ErrorIs(t, err, enough)
	})
}
