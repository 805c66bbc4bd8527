package grid

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/faultconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testEcho HandlerID = iota + 1
	testFail
	testStream
	testInput
	testTwoWay
	testBlock
	testEmpty
	testUnused
)

const testToken = "token"

// testOptions are for one of hosts, with a silent log.
func testOptions(local string, hosts []string) ManagerOptions {
	return ManagerOptions{
		Local:  local,
		Hosts:  hosts,
		AuthFn: func() string { return testToken },
		AuthToken: func(token string) error {
			if token != testToken {
				return errors.New("wrong token")
			}
			return nil
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// node is a manager with its HTTP server.
type node struct {
	*Manager
	host   string
	server *http.Server
}

// testGrid is a cluster in one process.
type testGrid struct {
	t     testing.TB
	net   *faultconn.Network // nil over TCP
	hosts []string
	addrs []net.Listener // over TCP, until a node listens
	nodes []*node
	edit  func(i int, o *ManagerOptions)
	// prepare, if set, may change the server of a node before it serves.
	prepare func(n *node)
	guests  bool // others use the network, and may have sockets left at the end
}

// newTestGrid starts n nodes over an in-memory network, for use in a synctest
// bubble. edit may change the options of each; it may be nil.
func newTestGrid(t testing.TB, n int, edit func(i int, o *ManagerOptions)) *testGrid {
	t.Helper()
	g := &testGrid{t: t, net: faultconn.NewNetwork(), edit: edit}
	for i := range n {
		g.hosts = append(g.hosts, fmt.Sprintf("http://node%d:9000", i))
	}
	g.startAll()
	return g
}

// newTCPGrid starts n nodes on loopback sockets.
func newTCPGrid(t testing.TB, n int, edit func(i int, o *ManagerOptions)) *testGrid {
	t.Helper()
	g := &testGrid{t: t, edit: edit}
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		g.addrs = append(g.addrs, l)
		g.hosts = append(g.hosts, "http://"+l.Addr().String())
	}
	g.startAll()
	return g
}

func (g *testGrid) startAll() {
	g.t.Helper()
	g.nodes = make([]*node, len(g.hosts))
	for i := range g.hosts {
		g.start(i)
	}
	g.t.Cleanup(g.stopAll)
	g.waitConnected()
}

func (g *testGrid) addr(i int) string { return hostAddr(g.hosts[i]) }

// hostAddr is the address of a host by its base URL.
func hostAddr(host string) string {
	_, addr, _ := strings.Cut(host, "://")
	return addr
}

// start starts node i, which must not be running.
func (g *testGrid) start(i int) *node {
	g.t.Helper()
	o := testOptions(g.hosts[i], g.hosts)
	var l net.Listener
	var err error
	if g.net != nil {
		o.Dialer = g.net.Dialer(g.addr(i))
		l, err = g.net.Listen(g.addr(i))
	} else if l = g.addrs[i]; l != nil {
		g.addrs[i] = nil
	} else {
		l, err = net.Listen("tcp", g.addr(i))
	}
	require.NoError(g.t, err)
	if g.edit != nil {
		g.edit(i, &o)
	}
	m, err := NewManager(context.Background(), o)
	require.NoError(g.t, err)
	registerTestHandlers(g.t, m)
	mux := http.NewServeMux()
	mux.Handle(m.opts.RoutePath, m.Handler())
	n := &node{Manager: m, host: g.hosts[i], server: &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}}
	if g.prepare != nil {
		g.prepare(n)
	}
	if n.server.TLSConfig != nil {
		l = tls.NewListener(l, n.server.TLSConfig)
	}
	go n.server.Serve(l)
	g.nodes[i] = n
	return n
}

// stop stops node i, if it runs.
func (g *testGrid) stop(i int) {
	if n := g.nodes[i]; n != nil {
		n.server.Close()
		n.Close()
		g.nodes[i] = nil
	}
}

func (g *testGrid) stopAll() {
	for i := range g.nodes {
		g.stop(i)
	}
	if g.net != nil && !g.guests && !g.t.Failed() {
		require.Zero(g.t, g.net.Conns(), "sockets are left")
	}
}

// waitConnected waits until all running nodes are connected to each other.
func (g *testGrid) waitConnected() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, a := range g.nodes {
		for _, b := range g.nodes {
			if a != nil && b != nil && a != b {
				require.NoError(g.t, a.Connection(b.host).WaitForConnect(ctx), "%s to %s", a.host, b.host)
			}
		}
	}
}

// conn is the connection from node i to node j.
func (g *testGrid) conn(i, j int) *Connection { return g.nodes[i].Connection(g.hosts[j]) }

// cut cuts the link between two nodes, which then reconnect.
func (g *testGrid) cut(i, j int) { g.net.Cut(g.addr(i), g.addr(j)) }

// registerTestHandlers registers what most tests need.
func registerTestHandlers(t testing.TB, m *Manager) {
	t.Helper()
	require.NoError(t, m.RegisterSingleHandler(testEcho, func(b []byte) ([]byte, *RemoteErr) { return b, nil }))
	require.NoError(t, m.RegisterSingleHandler(testFail, func(b []byte) ([]byte, *RemoteErr) {
		return nil, NewRemoteErrString(string(b))
	}))
	// Answers with as many messages as the payload is long.
	require.NoError(t, m.RegisterStreamingHandler(testStream, StreamHandler{
		Handle: func(ctx context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
			for i := range payload {
				out <- append(GetByteBuffer(), byte(i))
			}
			PutByteBuffer(payload)
			return nil
		},
	}))
	// Echoes its input.
	require.NoError(t, m.RegisterStreamingHandler(testTwoWay, StreamHandler{
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
			for b := range in {
				out <- b
			}
			if ctx.Err() != nil {
				return NewRemoteErr(context.Cause(ctx))
			}
			return nil
		},
		OutCapacity: 1, InCapacity: 1,
	}))
	// Waits for its context.
	require.NoError(t, m.RegisterStreamingHandler(testBlock, StreamHandler{
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
			<-ctx.Done()
			return NewRemoteErr(context.Cause(ctx))
		},
		InCapacity: 1,
	}))
}

// The whole over real sockets: both directions, all shapes.
func TestTwoServersCallEachOther(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	for range 100 {
		b, err := g.conn(0, 1).SingleRequest(t.Context(), testEcho, []byte("hello"))
		require.NoError(t, err)
		require.Equal(t, "hello", string(b))
		PutByteBuffer(b)
	}
	_, err := g.conn(1, 0).SingleRequest(t.Context(), testFail, []byte("boom"))
	require.EqualError(t, err, "boom")
	_, err = g.conn(1, 0).SingleRequest(t.Context(), testUnused, []byte("boom"))
	require.True(t, IsRemoteErr(err))
	st, err := g.conn(0, 1).NewStream(t.Context(), testStream, make([]byte, 100))
	require.NoError(t, err)
	require.Nil(t, st.Requests)
	n := 0
	require.NoError(t, st.Results(func(b []byte) error { require.Equal(t, byte(n), b[0]); n++; PutByteBuffer(b); return nil }))
	require.Equal(t, 100, n)
	st, err = g.conn(0, 1).NewStream(t.Context(), testTwoWay, nil)
	require.NoError(t, err)
	go func() {
		for i := range 1000 {
			st.Requests <- append(GetByteBuffer(), fmt.Sprint(i)...)
		}
		close(st.Requests)
	}()
	n = 0
	require.NoError(t, st.Results(func(b []byte) error { require.Equal(t, fmt.Sprint(n), string(b)); n++; PutByteBuffer(b); return nil }))
	require.Equal(t, 1000, n)
	require.ErrorIs(t, st.Send(nil), io.EOF)
}
