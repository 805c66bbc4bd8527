package chaos

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
	"github.com/gridrpc/grid/internal/monotime"
)

// hosts is the size of the cluster.
const hosts = 5

// Short, so that what is mute is soon noticed.
const (
	pingInterval     = 500 * time.Millisecond
	writeTimeout     = time.Second
	handshakeTimeout = time.Second
)

// cluster is the managers, on a fabric that fails. It owns both.
type cluster struct {
	fabric   fabric
	model    *model
	names    []string // base URLs
	grid     *gridtest.Grid
	nodes    [hosts]*node
	links    [hosts][hosts]sync.Mutex // held by a lasting fault
	down     sync.Mutex               // held while a host is
	stopping sync.WaitGroup
}

// node is a host: a name, under which one manager after the other runs.
type node struct {
	cluster *cluster
	index   int
	life    atomic.Pointer[life] // the last one
	hooks   hooks
	limits  atomic.Pointer[limits] // of the next one; nil for those of all
	moved   atomic.Pointer[int]    // the host that has its address; nil for itself
}

// life is a manager from its start to its end.
type life struct {
	*grid.Manager
	over chan struct{} // closed before it is
}

// startCluster starts all nodes.
func startCluster(t testing.TB, f fabric, m *model) *cluster {
	c := &cluster{fabric: f, model: m}
	for i := range hosts {
		c.names = append(c.names, f.name(i))
		c.nodes[i] = &node{cluster: c, index: i}
	}
	c.grid = gridtest.New(t, hosts,
		gridtest.WithNetwork(network{c}),
		gridtest.WithHosts(func(i int, _ string) string { return c.names[i] }),
		gridtest.WithOptions(func(i int, o *grid.ManagerOptions) {
			o.PingInterval, o.StreamPingInterval = pingInterval, pingInterval
			o.WriteTimeout, o.HandshakeTimeout = writeTimeout, handshakeTimeout
			c.nodes[i].limits.Load().options(o)
			c.nodes[i].hooks.options(i, o)
		}),
		gridtest.WithHandlers(func(i int, m *grid.Manager) error {
			err := c.server(i).register(m)
			c.nodes[i].life.Store(&life{m, make(chan struct{})})
			return err
		}))
	return c
}

// network is the fabric to gridtest.
type network struct{ c *cluster }

func (n network) host(addr string) int { return slices.Index(n.c.names, "http://"+addr) }

func (n network) Listen(addr string) (net.Listener, error) { return n.c.fabric.listen(n.host(addr)) }

func (n network) Dialer(from string) func(context.Context, string, string) (net.Conn, error) {
	dial := n.c.fabric.dial(n.host(from))
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if by := n.c.nodes[n.host(addr)].moved.Load(); by != nil && *by != n.host(from) {
			addr = strings.TrimPrefix(n.c.names[*by], "http://")
		}
		return dial(ctx, network, addr)
	}
}

func (n network) Cut(a, b string)       { n.c.fabric.cut(n.host(a), n.host(b)) }
func (n network) Partition(a, b string) { n.c.fabric.partition(n.host(a), n.host(b)) }
func (n network) Heal(a, b string)      { n.c.fabric.heal(n.host(a), n.host(b)) }
func (n network) Conns() int            { return n.c.fabric.open() }

// server is the handlers of a node.
func (c *cluster) server(host int) *server {
	return &server{model: c.model, names: c.names, host: host}
}

// stop ends all nodes.
func (c *cluster) stop() {
	c.stopping.Wait()
	for _, n := range c.nodes {
		close(n.life.Load().over)
	}
	c.grid.Close()
}

// conn is the connection from one node to another, of the manager that runs now, or ran last.
func (c *cluster) conn(from, to int) *grid.Connection {
	return c.nodes[from].life.Load().Connection(c.names[to])
}

func (n *node) start() { n.cluster.grid.Start(n.index) }

// stop ends the node: at once, or gracefully within a time.
func (n *node) stop(grace time.Duration) {
	m := n.life.Load()
	if grace > 0 {
		drained := &n.cluster.model.nodes[n.index].drained
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		drained.Store(monotime.Now().Add(grace))
		_ = m.Shutdown(ctx) // fails if it takes longer, which it may
		drained.Store(monotime.Now())
		cancel()
	}
	close(m.over)
	// Who is behind a fault notices late, for which nobody waits here.
	n.cluster.stopping.Go(func() { n.cluster.grid.Stop(n.index) })
	for n.cluster.grid.Manager(n.index) != nil {
		time.Sleep(time.Millisecond)
	}
}

// requireWorks checks that every node can call every other within the time.
func (c *cluster) requireWorks(within time.Duration) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		// By a clock that is late where the machine has no time for the test.
		for range within / clockStep {
			sleep(ctx, clockStep)
		}
		cancel(errGaveUp)
	}()
	c.eachPair(func(from, to int) {
		for {
			err := c.ping(ctx, from, to)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				st := c.conn(from, to).Stats()
				c.model.violation("%d can't call %d %v after all was healed: %v; %v, dials: %t, last error: %s",
					from, to, time.Since(began).Round(time.Millisecond), err, st.State, st.Dials, st.LastError)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	c.model.tally.slowest.Store(max(c.model.tally.slowest.Load(), int64(time.Since(began))))
}

const clockStep = 100 * time.Millisecond

// ping makes one call.
func (c *cluster) ping(ctx context.Context, from, to int) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return c.request(ctx, from, to, 0)
}

// eachPair calls f for every ordered pair of hosts, for all at the same time.
func (c *cluster) eachPair(f func(from, to int)) {
	var all sync.WaitGroup
	for from := range hosts {
		for to := range hosts {
			if from != to {
				all.Go(func() { f(from, to) })
			}
		}
	}
	all.Wait()
}

// busy says what is still under way; nothing where nobody calls any more.
func (c *cluster) busy() (what []string) {
	for from := range hosts {
		for to := range hosts {
			if from == to {
				continue
			}
			st := c.conn(from, to).Stats()
			if st.Calls+st.Streams+st.Handlers+st.StreamsServed > 0 {
				what = append(what, fmt.Sprintf("%d and %d: %d calls, %d streams, %d handlers, %d streams served",
					from, to, st.Calls, st.Streams, st.Handlers, st.StreamsServed))
			}
		}
	}
	return what
}
