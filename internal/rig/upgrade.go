package rig

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing/synctest"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// Upgrade asks the node of a lone grid for a websocket with any headers.
func (g *Grid) Upgrade(header http.Header, compress bool) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{NetDialContext: g.Net.Dialer("stranger:1"), EnableCompression: compress}
	return d.DialContext(context.Background(), strings.Replace(LoneHost, "http", "ws", 1)+grid.RoutePath, header)
}

// RequireRefused makes sure that an upgrade is answered with an error, and that the answer is
// complete.
func (g *Grid) RequireRefused(header http.Header, status int) string {
	g.T.Helper()
	_, resp, err := g.Upgrade(header, false)
	require.ErrorIs(g.T, err, websocket.ErrBadHandshake)
	require.Equal(g.T, status, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(g.T, err)
	return string(body)
}

// RequireUpgraded makes sure that an upgrade is let in.
func (g *Grid) RequireUpgraded(header http.Header) {
	g.T.Helper()
	ws, _, err := g.Upgrade(header, false)
	require.NoError(g.T, err)
	require.NoError(g.T, ws.Close())
	synctest.Wait()
}

// Bearer is the header with a token.
func Bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
