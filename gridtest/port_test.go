package gridtest

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNode_PortOfAStoppedOneIsKept(t *testing.T) {
	g := New(t, 2, TCP(), WithHandlers(register))
	addr := strings.TrimPrefix(g.Host(1), "http://")
	g.Stop(1)
	_, err := net.Listen("tcp", addr)
	require.Error(t, err)

	// Somebody who is not of the grid finds nobody there.
	c, err := net.Dial("tcp", addr)
	if err == nil {
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorContains(t, err, "reset")

	g.Start(1)
	g.WaitConnected()
	requireReach(t, g, everyone)
	requireNothingLeft(t, g)
}

func TestGrid_HostsOutsideOfItAreDialledOverTCP(t *testing.T) {
	g := New(t, 1, TCP())
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	resp, err := g.Client(0).Get(server.URL)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
}
