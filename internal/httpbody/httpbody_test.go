package httpbody_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/httpbody"
)

// A read of a body whose handler has returned does nothing to the connection, which is then the next
// request's.
func TestServe_ReadAfterTheHandlerLeavesTheConnectionAlone(t *testing.T) {
	late := make(chan error)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := r.Body
		_, _ = io.Copy(io.Discard, body)
		go func() {
			<-late
			_, err := body.Read(make([]byte, 1))
			late <- err
		}()
	})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		httpbody.Serve(h, w, r, time.Minute)
	}))
	s.Config.IdleTimeout = 500 * time.Millisecond
	s.Start()
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
	require.NoError(t, err)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	late <- nil
	require.Error(t, <-late)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = r.ReadByte()
	require.ErrorIs(t, err, io.EOF, "the idle connection is not ended")
}
