package grid

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
)

// callTable is the single requests of a session that wait for their answer.
//
// Who takes a call out of the table, and nobody else, answers it: so an answer that comes late
// finds nothing, and a call can be reused as soon as its answer has been received. Calls are kept
// by session, not in a global pool, because their channels must not outlive a testing/synctest
// bubble.
type callTable struct {
	mu sync.Mutex
	// slots has each call at its number, modulo the length, which is a power of two, and more than
	// twice as many as there are calls. A number whose slot is taken is not used.
	slots  []*call
	n      int
	waking int // callers that were woken by deliver, and do not run yet
	free   []*call
	idle   limit.Idle
	err    error // set by close
	clocks [maxClocks]*callClock
}

// call is a single request that waits.
type call struct {
	id       uint64
	answered chan struct{} // of capacity 1: the answer is there
	answer   answer
	woken    bool // counts in waking
	// clock, if not nil, is what ends the call when it has waited for timeout; else the caller's
	// context does. expires is 0 until its first tick.
	clock   *callClock
	timeout time.Duration
	expires monotime.Time
	// parts is what has arrived of the answer: guarded by the table while the call is in it, then
	// of who took it out.
	parts *assembly
}

type answer struct {
	payload arrived
	err     error
}

const (
	// maxFreeCalls bounds what a burst of calls leaves behind, and firstSlots what a first call does.
	maxFreeCalls = 256
	firstSlots   = 16
)

// add adds a call, whose number is one that next returns. A timeout of 0 is none.
func (t *callTable) add(next func() uint64, timeout time.Duration) (*call, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil, t.err
	}
	if 2*(t.n+1) >= len(t.slots) {
		t.grow()
	}
	id := next()
	for *t.slot(id) != nil {
		id = next()
	}
	var c *call
	if n := len(t.free); n > 0 {
		c, t.free = t.free[n-1], t.free[:n-1]
	} else {
		c = &call{answered: make(chan struct{}, 1)}
	}
	c.id = id
	c.clock = nil
	c.parts = nil
	if timeout > 0 {
		t.clock(timeout).add(c, timeout)
	}
	*t.slot(id) = c
	t.n++
	return c, nil
}

func (t *callTable) slot(id uint64) **call { return &t.slots[id&uint64(len(t.slots)-1)] }

// grow doubles the slots. Calls that had one each still have.
func (t *callTable) grow() {
	old := t.slots
	t.slots = make([]*call, max(firstSlots, 2*len(old)))
	for _, c := range old {
		if c != nil {
			*t.slot(c.id) = c
		}
	}
}

// get returns the call with a number; nil if it does not wait.
func (t *callTable) get(id uint64) *call {
	if t.n == 0 {
		return nil
	}
	if c := *t.slot(id); c != nil && c.id == id {
		return c
	}
	return nil
}

// take takes c out of the table.
func (t *callTable) take(c *call) {
	*t.slot(c.id) = nil
	t.n--
	if c.clock != nil {
		c.clock.calls--
	}
}

// remove takes a call out of the table, for the caller to answer; nil if it does not wait any more.
func (t *callTable) remove(id uint64) *call {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.get(id)
	if c != nil {
		t.take(c)
	}
	return c
}

// each calls f with each call, which it may take.
func (t *callTable) each(f func(c *call)) {
	if t.n == 0 {
		return
	}
	for _, c := range t.slots {
		if c != nil {
			f(c)
		}
	}
}

// end answers a call that was taken out of the table.
func (c *call) end(a answer) {
	c.dropParts()
	c.answer = a
	c.answered <- struct{}{}
}

// answered is calls that a frame has brought the answers of, and that were taken out of the table.
// Their callers are woken together: those that call again then share a batch.
type answered struct {
	table *callTable // set once
	calls []*call
}

// maxAnswered bounds for how many others an answer waits.
const maxAnswered = 64

func (d *answered) add(c *call, a answer) {
	c.dropParts()
	c.answer = a
	if d.calls = append(d.calls, c); len(d.calls) == maxAnswered {
		d.deliver()
	}
}

// deliver wakes the callers.
func (d *answered) deliver() {
	if len(d.calls) == 0 {
		return
	}
	d.table.wakes(d.calls)
	for i, c := range d.calls {
		d.calls[i] = nil
		c.answered <- struct{}{}
	}
	d.calls = d.calls[:0]
}

// wakes notes that the callers of some calls are woken.
func (t *callTable) wakes(calls []*call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waking += len(calls)
	for _, c := range calls {
		c.woken = true
	}
}

// isWaking reports whether callers have been woken that do not run yet.
func (t *callTable) isWaking() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waking > 0
}

func (c *call) dropParts() {
	c.parts.abandon()
	c.parts = nil
}

// answer answers a call. It reports whether that still waits.
func (t *callTable) answer(id uint64, a answer) bool {
	c := t.remove(id)
	if c != nil {
		c.end(a)
	}
	return c != nil
}

// receive takes in an answer, or a fragment of one. Whoever is answered by it is in done. known
// reports whether its call still waits. That a limit was reached is logged by host, before the
// caller hears of it; err ends the session.
func (t *callTable) receive(p parcel, host callHost, done *answered) (known bool, err error) {
	if p.Flags&flagMore != 0 {
		return t.extend(p, host)
	}
	c := t.remove(p.MuxID)
	if c == nil {
		return false, nil
	}
	// An error stands for all that came before it.
	if err := p.payloadErr(); err != nil {
		done.add(c, answer{err: err})
		return true, nil
	}
	if c.parts == nil {
		// Its caller has waited for it, so it does not wait here.
		done.add(c, answer{payload: arrived{buf: p.own()}})
		return true, nil
	}
	payload, _, err := p.addTo(&c.parts)
	switch {
	case errors.Is(err, ErrOverloaded):
		host.overload(err)
		done.add(c, answer{err: answerDropped(err)})
		return true, nil
	case err != nil:
		done.add(c, answer{err: host.disconnected(err)}) // as all others will hear
		return true, err
	}
	done.add(c, answer{payload: payload})
	return true, nil
}

// extend takes in a fragment that is not the last.
func (t *callTable) extend(p parcel, host limitLogger) (known bool, err error) {
	known, err = t.keep(p)
	if errors.Is(err, ErrOverloaded) {
		host.overload(err)
		t.answer(p.MuxID, answer{err: answerDropped(err)})
		return true, nil
	}
	return known, err
}

// keep adds a fragment to those of its call, if that still waits.
func (t *callTable) keep(p parcel) (known bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.get(p.MuxID)
	if c == nil {
		return false, nil
	}
	_, _, err = p.addTo(&c.parts)
	return true, err
}

// answerDropped is err, of a limit, for a call whose handler has run.
func answerDropped(err error) error { return fmt.Errorf("%w%s", err, droppedText) }

// droppedText is how its text ends.
const droppedText = "; the answer was dropped"

// waits reports whether a call is in the table.
func (t *callTable) waits(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.get(id) != nil
}

func (t *callTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// untilIdle returns nil if no call waits, else what is closed when that may have changed.
func (t *callTable) untilIdle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		return nil
	}
	return t.idle.Wait()
}

// wait waits for the answer to a call, which was sent. gaveUp says that ctx has ended first.
func (t *callTable) wait(ctx context.Context, c *call) (answer []byte, gaveUp bool, err error) {
	if ctx.Done() != nil {
		select {
		case <-c.answered:
		case <-ctx.Done():
			return t.abandon(c, doneError(ctx))
		}
	} else {
		<-c.answered
	}
	answer, err = t.result(c)
	return answer, false, err
}

// result ends a call that was answered.
func (t *callTable) result(c *call) ([]byte, error) {
	a := c.answer
	c.answer = answer{} // nothing here must hold it
	t.mu.Lock()
	if c.woken {
		c.woken = false
		t.waking--
	}
	if len(t.free) < maxFreeCalls {
		t.free = append(t.free, c)
	}
	if t.n == 0 {
		t.idle.Notify()
	}
	t.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	return a.payload.join(), nil
}

// abandon ends a call that is no longer waited for, because of reason. If it is being answered just
// then, that answer counts, and it was not given up.
func (t *callTable) abandon(c *call, reason error) (_ []byte, gaveUp bool, err error) {
	t.mu.Lock()
	gaveUp = t.get(c.id) == c
	if gaveUp {
		t.take(c)
		c.dropParts()
	}
	t.mu.Unlock()
	if gaveUp {
		c.answer = answer{err: reason}
	} else {
		<-c.answered
	}
	b, err := t.result(c)
	return b, gaveUp, err
}

// expire gives up on the calls whose answer has been coming for longer than timeout, and on what a
// burst of calls has left behind.
func (t *callTable) expire(now time.Time, timeout time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.each(func(c *call) {
		if c.parts.isLate(now, timeout) {
			t.take(c)
			c.end(answer{err: lateMessageError(timeout)})
		}
	})
	t.shrink()
}

// shrink halves the slots while few are taken, since all are gone through at each tick, unless two
// calls would have the same one then.
func (t *callTable) shrink() {
	for len(t.slots) > maxFreeCalls && len(t.slots) >= 8*(t.n+1) {
		half := len(t.slots) / 2
		low, high := t.slots[:half], t.slots[half:]
		for i := range high {
			if low[i] != nil && high[i] != nil {
				return
			}
		}
		t.slots = slices.Clone(low)
		for i, c := range high {
			if c != nil {
				t.slots[i] = c
			}
		}
	}
}

// close fails all calls, and those to come, with err.
func (t *callTable) close(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	t.each(func(c *call) {
		t.take(c)
		c.end(answer{err: err})
	})
	t.free, t.slots = nil, nil
	for _, c := range t.clocks {
		if c != nil {
			c.timer.Stop()
		}
	}
}
