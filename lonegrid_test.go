package grid

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// loneHost is the one node of a lone grid.
const loneHost = "http://node0:9000"

// rawHostFor makes up a host that loneHost dials, or is dialled by.
func rawHostFor(t testing.TB, rawDials bool) string {
	t.Helper()
	for port := range 1000 {
		if raw := fmt.Sprintf("http://raw:%d", 9000+port); dialOrder(raw, loneHost) == rawDials {
			return raw
		}
	}
	require.Fail(t, "no such host")
	return ""
}

// newLoneGrid starts one node in memory, and returns the name of a second host,
// which the test plays itself. edit may be nil. Where rawDials is false the
// node keeps dialling; see listenLone. prepare is that of testGrid.
func newLoneGrid(t testing.TB, n *faultconn.Network, rawDials bool, edit func(o *ManagerOptions), prepare ...func(n *node)) (g *testGrid, raw string) {
	t.Helper()
	raw = rawHostFor(t, rawDials)
	g = &testGrid{t: t, net: n, hosts: []string{loneHost}, edit: func(_ int, o *ManagerOptions) {
		o.Hosts = []string{loneHost, raw}
		if edit != nil {
			edit(o)
		}
	}}
	g.guests = !rawDials // listenMemory looks at the sockets
	for _, f := range prepare {
		g.prepare = f
	}
	g.startAll()
	return g, raw
}

// dialLone connects to the node of a lone grid, as the host raw.
func (g *testGrid) dialLone(raw string, c rawConfig) *rawPeer {
	g.t.Helper()
	c.Host, c.Token, c.Dial = raw, testToken, g.net.Dialer(hostAddr(raw))
	return dialRawConfig(g.t, loneHost, c)
}

// listenLone lets the node of a lone grid, made on n afterwards, dial a
// scripted peer.
func listenLone(t testing.TB, n *faultconn.Network, c rawConfig) *rawServer {
	t.Helper()
	return acceptRaw(t, listenMemory(t, n, rawHostFor(t, false)), c)
}

func listenMemory(t testing.TB, n *faultconn.Network, host string) net.Listener {
	t.Helper()
	l, err := n.Listen(hostAddr(host))
	require.NoError(t, err)
	t.Cleanup(func() {
		l.Close()
		if !t.Failed() {
			require.Zero(t, n.Conns(), "sockets are left")
		}
	})
	return l
}

// waitState waits until a connection has one of the states, in a bubble.
func waitState(t testing.TB, c *Connection, states ...State) {
	t.Helper()
	for {
		c.state.mu.Lock()
		now := c.state.state
		if c.state.changed == nil {
			c.state.changed = make(chan struct{})
		}
		changed := c.state.changed
		c.state.mu.Unlock()
		for _, s := range states {
			if now == s {
				return
			}
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			require.Fail(t, "state never came", "is %v", now)
		}
	}
}

// logBook keeps the lines of a log.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

// newLogBook returns a logger, from level info, and what it writes to.
func newLogBook() (*slog.Logger, *logBook) {
	b := new(logBook)
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func (b *logBook) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, string(bytes.TrimSpace(line)))
	return len(line), nil
}

// about returns the lines so far that contain all of parts.
func (b *logBook) about(parts ...string) (lines []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
next:
	for _, line := range b.lines {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// requireWorks makes a call from every node to every other.
func (g *testGrid) requireWorks() {
	g.t.Helper()
	for i, a := range g.nodes {
		for j, b := range g.nodes {
			if i == j || a == nil || b == nil {
				continue
			}
			text := fmt.Sprintf("%d to %d", i, j)
			got, err := g.conn(i, j).SingleRequest(context.Background(), testEcho, []byte(text))
			require.NoError(g.t, err, text)
			require.Equal(g.t, text, string(got))
			PutByteBuffer(got)
		}
	}
}
