package grid

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/errlog"
)

// StateChange is a step of a connection from one [State] to another.
type StateChange struct {
	// Host is the base URL of the remote host.
	Host     string
	From, To State
	// Err is why the connection was lost, could not be made, or was closed for good; nil otherwise.
	Err error
	// Time is when it happened, by this host's clock.
	Time time.Time
}

// String says what happened, such as "http://node2:9000: connecting, now connected".
func (c StateChange) String() string {
	s := fmt.Sprintf("%s: %v, now %v", c.Host, c.From, c.To)
	if c.Err != nil {
		s += ": " + c.Err.Error()
	}
	return s
}

// stateHook passes changes on to a function of the application's, one after the other and on a
// goroutine of its own: they happen under locks. Its methods may be called on nil.
type stateHook struct {
	// Set once.
	f      func(StateChange)
	log    *slog.Logger
	panics errlog.Log

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	queue   []StateChange
	closed  bool
}

func newStateHook(f func(StateChange), log *slog.Logger) *stateHook {
	h := &stateHook{f: f, log: log}
	h.changed.L = &h.mu
	return h
}

// tell does not wait.
func (h *stateHook) tell(c StateChange) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.queue = append(h.queue, c)
		h.changed.Signal()
	}
}

// close makes run return when it has passed on what there is.
func (h *stateHook) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.changed.Signal()
}

// run passes on what there is until the hook is closed.
func (h *stateHook) run() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		for len(h.queue) == 0 {
			if h.closed {
				return
			}
			h.changed.Wait()
		}
		changes := h.queue
		h.queue = nil
		h.mu.Unlock()
		for _, c := range changes {
			h.call(c)
		}
		h.mu.Lock()
	}
}

func (h *stateHook) call(c StateChange) {
	defer func() {
		if p := recover(); p != nil {
			h.panics.Panicked(h.log, "grid: OnStateChange panicked", p)
		}
	}()
	h.f(c)
}
