package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
)

// hosts is the size of the cluster.
const hosts = 5

const token = "chaos"

// Short, so that what is mute is soon noticed.
const (
	pingInterval     = 500 * time.Millisecond
	writeTimeout     = time.Second
	handshakeTimeout = time.Second
)

// cluster is the managers, on a fabric that fails. It owns both.
type cluster struct {
	fabric fabric
	model  *model
	names  []string // base URLs
	nodes  [hosts]*node
	links  [hosts][hosts]sync.Mutex // held by a lasting fault
	down   sync.Mutex               // held while a host is
}

// node is a host: a name, under which one manager after the other runs.
type node struct {
	cluster *cluster
	index   int
	life    atomic.Pointer[life] // the last one

	mu     sync.Mutex // guards what follows, and makes start and stop take turns
	server *http.Server
	served chan error
}

// life is a manager from its start to its end.
type life struct {
	*grid.Manager
	over chan struct{} // closed before it is
}

func startCluster(f fabric, m *model) (*cluster, error) {
	c := &cluster{fabric: f, model: m}
	for i := range hosts {
		c.names = append(c.names, f.name(i))
	}
	for i := range hosts {
		c.nodes[i] = &node{cluster: c, index: i}
		if err := c.nodes[i].start(); err != nil {
			c.stop()
			return nil, err
		}
	}
	return c, nil
}

// stop ends all nodes.
func (c *cluster) stop() {
	for _, n := range c.nodes {
		if n != nil {
			n.stop(0)
		}
	}
}

// conn is the connection from one node to another, of the manager that runs now,
// or ran last.
func (c *cluster) conn(from, to int) *grid.Connection {
	return c.nodes[from].life.Load().Connection(c.names[to])
}

func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.cluster
	ready := make(chan struct{}) // with all handlers
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:  c.names[n.index],
		Hosts:  c.names,
		AuthFn: func() string { return token },
		AuthToken: func(t string) error {
			if t != token {
				return errors.New("wrong token")
			}
			return nil
		},
		Dialer:             c.fabric.dial(n.index),
		BlockConnect:       ready,
		Logger:             slog.New(slog.DiscardHandler),
		PingInterval:       pingInterval,
		StreamPingInterval: pingInterval,
		WriteTimeout:       writeTimeout,
		HandshakeTimeout:   handshakeTimeout,
	})
	if err != nil {
		return err
	}
	if err := (&server{model: c.model, names: c.names, host: n.index}).register(m); err != nil {
		m.Close()
		return err
	}
	l, err := c.fabric.listen(n.index)
	if err != nil {
		m.Close()
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	n.server = &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	n.served = make(chan error, 1)
	go func() { n.served <- n.server.Serve(l) }()
	n.life.Store(&life{m, make(chan struct{})})
	close(ready)
	return nil
}

// stop ends the node, if it runs: at once, or gracefully within a time.
func (n *node) stop(grace time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server == nil {
		return
	}
	m := n.life.Load()
	if grace > 0 {
		drained := &n.cluster.model.nodes[n.index].drained
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		drained.Store(time.Now().Add(grace).UnixNano())
		_ = m.Shutdown(ctx) // fails if it takes longer, which it may
		drained.Store(time.Now().UnixNano())
		cancel()
	}
	n.server.Close()
	<-n.served
	n.server = nil
	close(m.over)
	m.Close()
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
