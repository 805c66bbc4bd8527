package rig

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// LoneHost is the one node of a lone grid.
const LoneHost = "http://node0:9000"

// PeerHost makes up a host that LoneHost dials, or is dialled by.
func PeerHost(t testing.TB, rawDials bool) string {
	t.Helper()
	return peerOf(t, LoneHost, rawDials)
}

// peerOf is PeerHost for any host.
func peerOf(t testing.TB, local string, rawDials bool) string {
	t.Helper()
	scheme, _, _ := strings.Cut(local, "://")
	for port := range 1000 {
		if raw := fmt.Sprintf("%s://raw:%d", scheme, 9000+port); rawpeer.DialOrder(raw, local) == rawDials {
			return raw
		}
	}
	require.Fail(t, "no such host")
	return ""
}

// DialLone connects to the node of a lone grid, as the host raw.
func (g *Grid) DialLone(raw string, c rawpeer.Config) *rawpeer.Peer {
	g.T.Helper()
	c.Host, c.Dial = raw, g.Net.Dialer(HostAddr(raw))
	if c.Key == nil {
		c.Token = Token
	}
	return rawpeer.DialConfig(g.T, LoneHost, c)
}

// ListenLone lets the node of a lone grid, made on n afterwards, dial a scripted peer.
func ListenLone(t testing.TB, n *faultconn.Network, c rawpeer.Config) *rawpeer.Server {
	t.Helper()
	return rawpeer.Serve(t, ListenMemory(t, n, PeerHost(t, false)), c)
}

// ListenMemory listens in the place of a host until the test ends, and sees to it that no socket is
// left then.
func ListenMemory(t testing.TB, n *faultconn.Network, host string) net.Listener {
	t.Helper()
	l, err := n.Listen(HostAddr(host))
	require.NoError(t, err)
	t.Cleanup(func() {
		l.Close()
		if !t.Failed() {
			require.Zero(t, n.Conns(), "sockets are left")
		}
	})
	return l
}

// NewLone starts one node in memory, and returns the name of a second host, which the test plays
// itself. edit may be nil. Where rawDials is false the node keeps dialling; see ListenLone. prepare
// is that of Setup.
func NewLone(t testing.TB, n *faultconn.Network, rawDials bool, edit func(o *grid.ManagerOptions), prepare ...func(n *Node)) (g *Grid, raw string) {
	t.Helper()
	raw = PeerHost(t, rawDials)
	// ListenMemory looks at the sockets where the node dials.
	s := Setup{Net: n, Hosts: []string{LoneHost}, Guests: !rawDials, Edit: func(_ int, o *grid.ManagerOptions) {
		o.Hosts = []string{LoneHost, raw}
		if edit != nil {
			edit(o)
		}
	}}
	for _, f := range prepare {
		s.Prepare = f
	}
	return s.Start(t), raw
}
