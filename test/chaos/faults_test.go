package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/clockstep"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/monotime"
)

// inject runs a schedule. All faults are over when it returns.
func (c *cluster) inject(faults []fault, trace *trace) {
	began := time.Now()
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range faults {
		time.Sleep(time.Until(began.Add(f.at)))
		trace.add(f)
		all.Go(func() { c.suffer(f) })
	}
}

// suffer makes one fault happen, and ends it.
func (c *cluster) suffer(f fault) {
	n, m := c.fabric, c.model
	if f.lasts() {
		// The end of one must not be that of the next, however late it is.
		link := &c.links[min(f.a, f.b)][max(f.a, f.b)]
		link.Lock()
		defer link.Unlock()
	}
	switch f.kind {
	case cut:
		c.cut(f.a, f.b)
	case halfOpen:
		n.halfOpen(f.a, f.b)
	case loss:
		losses := &m.links[f.a][f.b].losses
		n.stall(f.a, f.b, true)
		losses.Add(1)
		burst := c.burst(f.a, f.b)
		time.Sleep(f.life)
		losses.Add(1)
		c.cut(f.a, f.b)
		n.stall(f.a, f.b, false)
		burst.Wait()
	case partition:
		n.partition(f.a, f.b)
		time.Sleep(f.life)
		n.heal(f.a, f.b)
	case split:
		c.split(f.side, n.partition)
		time.Sleep(f.life)
		c.split(f.side, n.heal)
	case stall:
		n.stall(f.a, f.b, true)
		time.Sleep(f.life)
		n.stall(f.a, f.b, false)
	case slow:
		n.rate(f.a, f.b, f.much)
		time.Sleep(f.life)
		n.rate(f.a, f.b, 0)
	case late:
		n.delay(f.a, f.b, time.Duration(f.much)*time.Millisecond)
		time.Sleep(f.life)
		n.delay(f.a, f.b, 0)
	case corrupt:
		corrupted := &m.links[f.a][f.b].corrupted
		corrupted.Store(monotime.Now().Add(f.life))
		n.corrupt(f.a, f.b, faultconn.Corruption{OneIn: f.much, Seed: f.seed, Skip: handshakeBytes})
		time.Sleep(f.life)
		n.corrupt(f.a, f.b, faultconn.Corruption{})
		corrupted.Store(monotime.Now())
	case remove:
		a, b := c.nodes[f.a].life.Load(), c.names[f.b]
		gone := a.Connection(b)
		if a.RemoveHost(b) == nil { // else it is being restarted, and forgets it anyway
			if err := gone.WaitForConnect(context.Background()); !errors.Is(err, grid.ErrDisconnected) {
				m.violation("%s was removed, and its connection says %v", b, err)
			}
		}
		time.Sleep(f.life)
		if err := a.AddHost(b); err != nil && !errors.Is(err, grid.ErrDisconnected) {
			m.violation("adding %s: %v", b, err)
		}
	case restart:
		c.restart(f)
	case limit:
		c.nodes[f.a].limits.Store(drawLimits(rand.New(rand.NewPCG(f.seed, 0))))
		c.restart(f)
	case block:
		end := c.nodes[f.a].hooks.begin(callback(f.much), false)
		time.Sleep(f.life)
		end()
	case panics:
		panicked := &m.nodes[f.a].panicked[f.much]
		panicked.Store(monotime.Now().Add(f.life))
		end := c.nodes[f.a].hooks.begin(callback(f.much), true)
		time.Sleep(f.life)
		end()
		panicked.Store(monotime.Now())
	case move:
		c.move(f)
	case unregister:
		c.unregister(f)
	case step:
		clockstep.By(steps[f.much])
		time.Sleep(f.life)
		clockstep.By(-steps[f.much])
	}
}

// move lets the address of a host lead to another one, to which the others then come when they
// dial it.
func (c *cluster) move(f fault) {
	moved := &c.nodes[f.a].moved
	moved.Store(&f.b)
	for peer := range hosts {
		if peer != f.a {
			c.cut(f.a, peer)
		}
	}
	time.Sleep(f.life)
	moved.Store(nil)
}

// unregister takes a handler from a host that runs, and gives it back.
func (c *cluster) unregister(f fault) {
	c.down.Lock()
	defer c.down.Unlock()
	id, route := grid.HandlerID(1+f.much%handlers), f.much/handlers
	s, life := c.server(f.a), c.nodes[f.a].life.Load()
	a := &c.model.nodes[f.a].absences[route][id]
	a.possible.Add(1)
	if !life.Unregister(id, s.parts(route)...) {
		c.model.violation("host %d had no handler %d under %q", f.a, id, routes[route])
	}
	a.certain.Add(1)
	time.Sleep(f.life)
	a.certain.Add(1)
	if err := s.add(life.Manager, id, route); err != nil {
		c.model.violation("giving host %d handler %d under %q back: %v", f.a, id, routes[route], err)
	}
	a.possible.Add(1)
}

// handshakeBytes is more than the handshake of a connection takes, in either direction. It has no
// checksum: a bit of it that is flipped can be a different capability.
const handshakeBytes = 2 << 10

// burst makes requests that are more than a link takes which nobody reads, so that some of them are
// queued.
func (c *cluster) burst(from, to int) *sync.WaitGroup {
	all := new(sync.WaitGroup)
	for i := range 16 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), longEnough)
			defer cancel()
			_ = c.request(ctx, from, to, i<<10)
		})
	}
	return all
}

// deafen makes all connections of a host half-open, one end or the other. Its peers, or it, have
// nothing but silence to notice it by.
func (c *cluster) deafen(host int) {
	for peer := range hosts {
		switch {
		case peer == host:
		case c.conn(host, peer).Stats().Dials:
			c.fabric.halfOpen(peer, host)
		default:
			c.fabric.halfOpen(host, peer)
		}
	}
}

// cut cuts a link, and counts it if there was one.
func (c *cluster) cut(a, b int) {
	if c.conn(a, b).State() == grid.StateConnected || c.conn(b, a).State() == grid.StateConnected {
		c.model.tally.cuts.Add(1)
	}
	c.fabric.cut(a, b)
}

// split calls f for every link between the two sides.
func (c *cluster) split(side []int, f func(a, b int)) {
	for _, a := range side {
		for b := range hosts {
			if !slices.Contains(side, b) {
				f(a, b)
			}
		}
	}
}

// restart stops a host and starts it again under its name.
func (c *cluster) restart(f fault) {
	c.down.Lock()
	defer c.down.Unlock()
	n := c.nodes[f.a]
	n.stop(time.Duration(f.much) * grace)
	time.Sleep(f.life)
	n.start()
	c.model.tally.restarts.Add(1)
}

// trace is the last faults.
type trace struct {
	mu   sync.Mutex
	last []fault
}

const traced = 40

func (t *trace) add(f fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.last) == traced {
		t.last = slices.Delete(t.last, 0, 1)
	}
	t.last = append(t.last, f)
}

func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s strings.Builder
	for _, f := range t.last {
		fmt.Fprintln(&s, f)
	}
	return s.String()
}
