package grid

import (
	"cmp"
	"container/list"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/offload"
)

// StateChange is a step of a connection from one [State] to another. Of the changes that are told
// of one host each begins where the one before has ended; the first begins with
// [StateUnconnected], and so does one that follows [StateShutdown], when the host was added again.
type StateChange struct {
	// Host is the base URL of the remote host.
	Host     string
	From, To State
	// Err is why the connection was lost, could not be made, or was closed for good; nil otherwise.
	// Where Missed is not 0 it is the last such reason, also if To is StateConnected.
	Err error
	// Time is when it happened, by this host's clock.
	Time time.Time
	// Missed is how many changes were merged into this one, because ManagerOptions.OnStateChange
	// had not kept up. Where it is not 0 the connection may have been made and lost in between, so
	// whoever acts on connections that are lost must take it for one, whatever From and To are.
	Missed int
}

// String says what happened, such as "http://node2:9000: connecting, now connected".
func (c StateChange) String() string {
	s := fmt.Sprintf("%s: %v, now %v", c.Host, c.From, c.To)
	if c.Missed > 0 {
		s += fmt.Sprintf(" (changes missed: %d)", c.Missed)
	}
	if c.Err != nil {
		s += ": " + c.Err.Error()
	}
	return s
}

// mergedWith is one change in the place of two, of which next is the later.
func (c StateChange) mergedWith(next StateChange) StateChange {
	next.From = c.From
	next.Err = cmp.Or(next.Err, c.Err)
	next.Missed += c.Missed + 1
	return next
}

// A peer that comes and goes makes changes faster than they can be told, and they must not add up.
const (
	// keptChanges is how many wait of one host. Those beyond are merged with the last.
	keptChanges = 16
	// keptOfRemoved is how many may wait of all hosts before those of a host that is removed are
	// merged into one, or dropped if nothing was told of it: else hosts that are added and removed
	// would add up.
	keptOfRemoved = 1024
)

// stateHook passes changes on to a function of the application's, one after the other and apart
// from who tells them: they happen under locks. Its methods may be called on nil.
type stateHook struct {
	// Set once.
	f      func(StateChange)
	log    *slog.Logger
	panics errlog.Log
	loop   offload.Loop

	mu      sync.Mutex                 // guards what follows
	queue   list.List                  // of the StateChanges that wait, the oldest first
	waiting map[string][]*list.Element // the same by host; of those that have any
	missed  int64                      // how many were merged into another, or dropped
	closed  bool
}

func newStateHook(g *offload.Group, f func(StateChange), log *slog.Logger) *stateHook {
	h := &stateHook{f: f, log: log, waiting: make(map[string][]*list.Element)}
	h.loop.Init(g, h.step)
	return h
}

// tell does not wait.
func (h *stateHook) tell(c StateChange) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	c.Err = clip.Error(c.Err)
	before := h.waiting[c.Host]
	kept := keptChanges
	if c.To == StateShutdown && h.queue.Len() >= keptOfRemoved {
		kept = 1
	}
	for len(before) >= kept {
		before, c = h.merge(before, c)
	}
	if kept == 1 && c.From == StateUnconnected { // nothing was told
		h.missed++
		delete(h.waiting, c.Host)
		return
	}
	// At the end, also where it was merged, so that the times are in order.
	h.waiting[c.Host] = append(before, h.queue.PushBack(c))
	h.loop.Wake()
}

func change(e *list.Element) StateChange { return e.Value.(StateChange) }

// merge takes the last of a host's changes out of the queue, and returns it merged with next.
func (h *stateHook) merge(waiting []*list.Element, next StateChange) ([]*list.Element, StateChange) {
	last := len(waiting) - 1
	h.missed++
	next = change(waiting[last]).mergedWith(next)
	h.queue.Remove(waiting[last])
	return waiting[:last], next
}

// take takes the oldest change out of the queue, which has one.
func (h *stateHook) take() StateChange {
	c := h.queue.Remove(h.queue.Front()).(StateChange)
	if rest := h.waiting[c.Host][1:]; len(rest) > 0 {
		h.waiting[c.Host] = rest
	} else {
		delete(h.waiting, c.Host)
	}
	return c
}

// missedChanges is how many were not told, or not by themselves.
func (h *stateHook) missedChanges() int64 {
	if h == nil {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.missed
}

// close makes it take no more. What there is is passed on.
func (h *stateHook) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
}

// step passes on the oldest change, if there is one.
func (h *stateHook) step() bool {
	h.mu.Lock()
	waits := h.queue.Len() > 0
	var c StateChange
	if waits {
		c = h.take()
	}
	h.mu.Unlock()
	if waits {
		h.call(c)
	}
	return waits
}

func (h *stateHook) call(c StateChange) {
	defer func() {
		if p := recover(); p != nil {
			h.panics.Panicked(h.log, "grid: OnStateChange panicked", p)
		}
	}()
	h.f(c)
}
