package gridtest

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/gridrpc/grid"
)

// Grid is a cluster of nodes in one process, each of which runs or is stopped. It is made by [New]
// and ends with the test. All methods may be called concurrently.
type Grid struct {
	// Set once.
	t       testing.TB
	opts    options
	net     network
	token   string // so that no other grid is taken for this one
	testLog testLog
	log     slog.Handler
	hosts   []string
	nodes   []*node
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc

	mu     sync.Mutex    // not held while anything waits
	broken map[pair]bool // links that are partitioned
}

// pair is two nodes, the lower first.
type pair struct{ a, b int }

func pairOf(a, b int) pair { return pair{min(a, b), max(a, b)} }

// New makes a grid of n nodes, at least 1, and returns when all of them are connected to each
// other. It must be called on the goroutine of the test, and ends the test if anything fails. The
// grid is closed by t.Cleanup, after the cleanups that the test has registered later.
func New(t testing.TB, n int, opts ...Option) *Grid {
	t.Helper()
	if n < 1 {
		t.Fatalf("gridtest: New: a grid of %d nodes, must be at least 1", n)
	}
	g := &Grid{
		t:       t,
		token:   rand.Text(),
		testLog: testLog{t: t},
		log:     slog.DiscardHandler,
		broken:  make(map[pair]bool),
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	for _, o := range opts {
		o(&g.opts)
	}
	if g.opts.log {
		g.log = g.testLog.handler()
	}
	var err error
	if g.net, g.hosts, err = newNetwork(n, &g.opts); err != nil {
		t.Fatalf("gridtest: New: %v", err)
	}
	t.Cleanup(g.Close)
	for i := range n {
		g.nodes = append(g.nodes, newNode(g, i))
	}
	for _, i := range g.opts.stopped {
		g.node(i)
	}
	ready := make(chan struct{}) // all listen
	var started []int
	for i := range n {
		if !g.opts.allStopped && !slices.Contains(g.opts.stopped, i) && g.start(i, ready) {
			started = append(started, i)
		}
	}
	close(ready)
	for _, i := range started {
		g.started(i)
	}
	g.WaitConnected()
	return g
}

// Len returns the number of nodes, those that are stopped included.
func (g *Grid) Len() int { return len(g.nodes) }

// Host returns the base URL of node i.
func (g *Grid) Host(i int) string {
	g.t.Helper()
	g.node(i)
	return g.hosts[i]
}

// Hosts returns the base URLs of all nodes. The slice is the caller's.
func (g *Grid) Hosts() []string { return slices.Clone(g.hosts) }

// Manager returns the manager of node i, nil while it is stopped. It is the grid's, and another one
// after each start. What is registered with it directly is gone then; see [WithHandlers].
func (g *Grid) Manager(i int) *grid.Manager {
	g.t.Helper()
	if l := g.node(i).life.Load(); l != nil {
		return l.manager
	}
	return nil
}

// Conn returns the connection of one node to another, which is that of its present manager: nil,
// like that of a node to itself without LocalCalls, while node from is stopped. Calls on nil return
// [grid.ErrDisconnected].
func (g *Grid) Conn(from, to int) *grid.Connection {
	g.t.Helper()
	host := g.Host(to)
	if m := g.Manager(from); m != nil {
		return m.Connection(host)
	}
	return nil
}

// Client returns an HTTP client whose requests come from node i: to [Grid.Host] of a node, for the
// routes of [WithRoutes]. They go over the links of the node, which need not run, and fail with
// them. Its timeouts may be set; connections are not kept.
func (g *Grid) Client(i int) *http.Client {
	g.t.Helper()
	g.node(i)
	return &http.Client{Transport: &http.Transport{DialContext: g.untilClosed(g.net.dialer(i)), DisableKeepAlives: true}}
}

// untilClosed is dial for an HTTP client, which goes on dialling when the request has ended.
func (g *Grid) untilClosed(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(g.ctx, cancel)()
		return dial(ctx, network, addr)
	}
}

// Close stops all nodes at once, for good. It need not be called, and may be more than once.
func (g *Grid) Close() {
	g.cancel()
	for _, n := range g.nodes {
		n.stop()
	}
	g.net.close()
	g.testLog.close()
}

// node returns one, or ends the test.
func (g *Grid) node(i int) *node {
	g.t.Helper()
	if i < 0 || i >= len(g.nodes) {
		g.t.Fatalf("gridtest: there is no node %d, the last of them is %d", i, len(g.nodes)-1)
	}
	return g.nodes[i]
}
