package gridtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
)

// node is a host of the grid, under whose name one manager runs after the other.
type node struct {
	g     *Grid
	index int
	life  atomic.Pointer[life] // nil while it is stopped; changed by who has the turn

	// turn is held by who starts or stops the node. It is no mutex because that may last, as
	// Shutdown does, and for a bubble's clock who waits for a mutex is busy.
	turn chan struct{}
}

// life is a node from its start to its end. It is never changed.
type life struct {
	manager *grid.Manager
	server  *http.Server
	served  chan struct{} // closed when the server takes nothing any more
	began   time.Time
}

func newNode(g *Grid, index int) *node {
	return &node{g: g, index: index, turn: make(chan struct{}, 1)}
}

// Start starts node i, which does nothing if it runs. It does not wait until the node is connected;
// [Grid.WaitConnected] does.
func (g *Grid) Start(i int) {
	g.t.Helper()
	ready := make(chan struct{})
	close(ready)
	if g.start(i, ready) {
		g.started(i)
	}
}

// start starts a node that dials nobody until ready is closed. It reports false if the node runs.
func (g *Grid) start(i int, ready <-chan struct{}) bool {
	g.t.Helper()
	is, err := g.node(i).start(ready)
	if err != nil {
		g.t.Fatalf("gridtest: start of node %d: %v", i, err)
	}
	return is
}

// started has a node do what it does once it has been started.
func (g *Grid) started(i int) {
	g.t.Helper()
	if err := g.node(i).started(); err != nil {
		g.t.Fatalf("gridtest: start of node %d: %v", i, err)
	}
}

// Stop ends node i like a crash: its sockets are closed at once, calls and streams end with
// [grid.ErrDisconnected] on all nodes, and nobody can connect to it until [Grid.Start]. It returns
// when the other nodes have noticed, but for those that are partitioned from it silently. It does
// nothing if the node is stopped, and ends a [Grid.Shutdown] that waits.
func (g *Grid) Stop(i int) {
	g.t.Helper()
	n := g.node(i)
	links := g.linksTo(i)
	n.stop()
	waitGone(links)
}

// Restart is [Grid.Stop] followed by [Grid.Start]: the node has a new manager, with the handlers of
// [WithHandlers].
func (g *Grid) Restart(i int) {
	g.t.Helper()
	g.Stop(i)
	g.Start(i)
}

// Shutdown ends node i gracefully, as [grid.Manager.Shutdown] does: it takes nothing new, and what
// is under way may finish until ctx ends. It returns the error of ctx if that ended first, and nil
// if the node is stopped. The node runs until then.
func (g *Grid) Shutdown(ctx context.Context, i int) error {
	g.t.Helper()
	n := g.node(i)
	links := g.linksTo(i)
	err := n.shutdown(ctx)
	waitGone(links)
	return err
}

func (n *node) start(ready <-chan struct{}) (started bool, err error) {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	switch {
	case n.g.ctx.Err() != nil:
		return false, errors.New("the grid is closed")
	case n.life.Load() != nil:
		return false, nil
	}
	l, err := n.begin(ready)
	if err != nil {
		return false, err
	}
	n.life.Store(l)
	return true, nil
}

// begin makes a life. Functions of the test's that it calls may end the goroutine.
func (n *node) begin(ready <-chan struct{}) (*life, error) {
	// Or others would be asked to dial a node that does not listen yet.
	listens := make(chan struct{})
	o, err := n.managerOptions(listens, ready)
	if err != nil {
		return nil, err
	}
	l := &life{began: time.Now(), served: make(chan struct{})}
	if l.manager, err = grid.NewManager(context.Background(), o); err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			l.manager.Close()
		}
	}()
	mux := http.NewServeMux()
	mux.Handle(cmp.Or(o.RoutePath, grid.RoutePath), l.manager.Handler())
	for _, mount := range n.g.opts.routes {
		mount(n.index, mux)
	}
	l.server = &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(n.g.log, slog.LevelWarn)}
	for _, edit := range n.g.opts.servers {
		edit(n.index, l.server)
	}
	listener, err := n.g.net.listen(n.index)
	if err != nil {
		return nil, err
	}
	if l.server.TLSConfig != nil {
		listener = tls.NewListener(listener, l.server.TLSConfig)
	}
	go func() {
		defer close(l.served)
		_ = l.server.Serve(listener) // ends with the node
	}()
	done = true
	close(listens)
	return l, nil
}

// managerOptions are those of the test. Dials wait for each of gates to be closed.
func (n *node) managerOptions(gates ...<-chan struct{}) (o grid.ManagerOptions, err error) {
	g := n.g
	o = grid.ManagerOptions{
		Local:  g.hosts[n.index],
		Hosts:  g.Hosts(),
		AuthFn: func() string { return g.token },
		AuthToken: func(token string) error {
			if token != g.token {
				return errors.New("the token is not that of this grid")
			}
			return nil
		},
		Dialer: g.net.dialer(n.index),
		Logger: slog.New(g.log),
	}
	made, checked := codeOf(o.AuthFn), codeOf(o.AuthToken)
	for _, edit := range g.opts.edits {
		edit(n.index, &o)
	}
	if o.SharedSecret != nil || o.Insecure {
		if codeOf(o.AuthFn) == made {
			o.AuthFn = nil
		}
		if codeOf(o.AuthToken) == checked {
			o.AuthToken = nil
		}
	}
	o.Register = n.register(o.Register)
	if o.Local != g.hosts[n.index] {
		return o, fmt.Errorf("WithOptions: Local is %q, must stay %q", o.Local, g.hosts[n.index])
	}
	dial := o.Dialer
	if dial == nil {
		dial = g.net.dialer(n.index)
	}
	o.Dialer = gated(dial, gates...)
	return o, nil
}

// codeOf tells functions apart that are written at different places.
func codeOf(f any) uintptr { return reflect.ValueOf(f).Pointer() }

// register is first, which may be nil, and then the functions of WithHandlers.
func (n *node) register(first func(*grid.Manager) error) func(*grid.Manager) error {
	return func(m *grid.Manager) error {
		if first != nil {
			if err := first(m); err != nil {
				return err
			}
		}
		for _, register := range n.g.opts.handlers {
			if err := register(n.index, m); err != nil {
				return fmt.Errorf("WithHandlers: %w", err)
			}
		}
		return nil
	}
}

// started calls the functions of WithStart, if the node runs.
func (n *node) started() error {
	l := n.life.Load()
	for _, start := range n.g.opts.starts {
		if l == nil {
			break
		}
		if err := start(n.index, l.manager); err != nil {
			return fmt.Errorf("WithStart: %w", err)
		}
	}
	return nil
}

func (n *node) shutdown(ctx context.Context) (err error) {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	if l := n.life.Load(); l != nil {
		err = l.manager.Shutdown(ctx)
		n.endLife()
	}
	return err
}

func (n *node) stop() {
	if l := n.life.Load(); l != nil {
		l.manager.Close() // at once, also if it is Shutdown's turn
	}
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	n.endLife()
}

// endLife is called by who has the turn.
func (n *node) endLife() {
	l := n.life.Swap(nil)
	if l == nil {
		return
	}
	_ = l.server.Close() // what it has not closed, the manager has
	<-l.served
	l.manager.Close()
}
