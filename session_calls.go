package grid

import (
	"context"
	"sync"
	"time"
)

// callTable is the single requests of a session that wait for their answer.
//
// Who takes a call out of the table, and nobody else, answers it: so an answer
// that comes late finds nothing, and a call can be reused as soon as its
// answer has been received. Calls are kept by session, not in a global pool,
// because their channels must not outlive a testing/synctest bubble.
type callTable struct {
	mu   sync.Mutex
	m    map[uint64]*call
	free []*call
	idle idleSignal
	err  error // set by close
	tick uint64
	life uint64 // ticks in the default deadline
}

// call is a single request that waits.
type call struct {
	id       uint64
	answered chan answer // of capacity 1
	// expires is the tick at which the table gives up on it; 0 where the
	// caller's context has a deadline.
	expires uint64
	// parts is what has arrived of the answer: guarded by the table while the call
	// is in it, then of who took it out.
	parts *assembly
}

type answer struct {
	payload arrived
	err     error
}

// maxFreeCalls bounds what a burst of calls leaves behind.
const maxFreeCalls = 256

// init sets the length of a tick, by which expire counts. So are deadlines, since
// asking for the time costs as much as the rest of an open.
func (t *callTable) init(period time.Duration) {
	t.m = make(map[uint64]*call)
	t.life = uint64((defaultDeadline+period-1)/period) + 1 // the first may be short
}

// open adds a call. expires says that it has the default deadline.
func (t *callTable) open(id uint64, expires bool) (*call, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil, t.err
	}
	var c *call
	if n := len(t.free); n > 0 {
		c, t.free = t.free[n-1], t.free[:n-1]
	} else {
		c = &call{answered: make(chan answer, 1)}
	}
	c.id = id
	c.expires = 0
	c.parts = nil
	if expires {
		c.expires = t.tick + t.life
	}
	t.m[id] = c
	return c, nil
}

// take takes a call out of the table, for the caller to answer; nil if it does
// not wait any more.
func (t *callTable) take(id uint64) *call {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.m[id]
	delete(t.m, id)
	return c
}

// answer answers a call that was taken out of the table.
func (c *call) answer(a answer) {
	c.dropParts()
	c.answered <- a
}

func (c *call) dropParts() {
	c.parts.abandon()
	c.parts = nil
}

// answer answers a call, if it still waits.
func (t *callTable) answer(id uint64, a answer) bool {
	c := t.take(id)
	if c != nil {
		c.answer(a)
	}
	return c != nil
}

// extend calls f with what has arrived of an answer, if the call still waits.
func (t *callTable) extend(id uint64, f func(parts **assembly) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.m[id]; c != nil {
		return f(&c.parts)
	}
	return nil
}

// waits tells whether a call is in the table.
func (t *callTable) waits(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id] != nil
}

func (t *callTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

// busy returns nil if no call waits, else what is closed when that may have
// changed.
func (t *callTable) busy() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) == 0 {
		return nil
	}
	return t.idle.wait()
}

// result ends a call that was answered.
func (t *callTable) result(c *call, a answer) ([]byte, error) {
	t.mu.Lock()
	if len(t.free) < maxFreeCalls {
		t.free = append(t.free, c)
	}
	if len(t.m) == 0 {
		t.idle.notify()
	}
	t.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	return a.payload.take(), nil
}

// abandon ends a call that is no longer waited for, because of err. If it is
// being answered just then, that answer counts.
func (t *callTable) abandon(c *call, err error) ([]byte, error) {
	t.mu.Lock()
	if t.m[c.id] == c {
		delete(t.m, c.id)
		c.dropParts()
		t.mu.Unlock()
		return t.result(c, answer{err: err})
	}
	t.mu.Unlock()
	return t.result(c, <-c.answered)
}

// expire gives up on the calls with the default deadline that have passed it, and on
// those whose answer has been coming for longer than timeout.
func (t *callTable) expire(tick uint64, now time.Time, timeout time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tick = tick
	for id, c := range t.m {
		switch {
		case c.expires != 0 && t.tick >= c.expires:
			delete(t.m, id)
			c.answer(answer{err: context.DeadlineExceeded})
		case c.parts.isLate(now, timeout):
			delete(t.m, id)
			c.answer(answer{err: lateMessageError(timeout)})
		}
	}
}

// close fails all calls, and those to come, with err.
func (t *callTable) close(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	for id, c := range t.m {
		delete(t.m, id)
		c.answer(answer{err: err})
	}
	t.free = nil
}
