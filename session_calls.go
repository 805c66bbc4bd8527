package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/limit"
)

// Single requests and streams that are made here. Those that are served here come in by
// session_opener.go.

// mux1Base is what is added to the numbers of calls and streams towards a peer of version 1. Such a
// peer answers what comes late of its own stream N by a disconnect that speaks of ours of that
// number. It counts from 1, so no number of its own is one of these.
const mux1Base = 1 << 62

// nextMuxID is the number of a new call or stream.
func (s *session) nextMuxID() uint64 {
	id := s.conn.lastMux.Add(1)
	if s.caps == 0 {
		id += mux1Base
	}
	return id
}

// single makes a single request and waits for its answer.
func (s *session) single(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte) ([]byte, error) {
	if err := contextError(ctx); err != nil {
		return nil, err
	}
	deadline, hasDeadline := ctx.Deadline()
	ms, err := remainingMS(deadline, defaultDeadline)
	if err != nil {
		return nil, cmp.Or(contextError(ctx), err)
	}
	c, err := s.calls.add(s.nextMuxID(), !hasDeadline)
	if err != nil {
		return nil, err
	}
	m := message{MuxID: c.id, DeadlineMS: ms, Handler: id, Op: opRequest, Flags: flagEOF}
	m.setPayload(payload)
	if s.caps&capMetadata != 0 {
		m.setMetadata(metadata)
	}
	m.setSubroute(sub)
	// A server of version 1 gives no reason where the deadline has passed, so it has to be known
	// here, by the monotonic clock. Towards others nobody asks for the time.
	var due time.Time
	if !s.caps.wide() {
		due = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	if err := s.sender.sendRequest(ctx, c, &m); err != nil {
		return s.calls.abandon(c, err)
	}
	answer, err := s.calls.wait(ctx, c)
	if isDropped(err) && !due.IsZero() {
		if left := time.Until(due); left <= deadlineSlack {
			err = awaitDeadline(ctx, left)
		}
	}
	return answer, err
}

// isDropped reports whether err is that of a request which the peer has dropped without a reason.
func isDropped(err error) bool {
	e, ok := err.(*disconnectError)
	return ok && e.reason == errDropped
}

// openStream opens a stream and waits until the peer has taken it on.
func (s *session) openStream(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte, seen *observed, c capacities) (*muxClient, error) {
	if err := contextError(ctx); err != nil {
		return nil, err
	}
	m := newMuxClient(ctx, s, s.nextMuxID(), id, c, s.caps, time.Now())
	m.sendSize = s.terms.sendSize
	m.in.maxBytes, m.in.maxMessage = s.opts.MaxStreamBytes, s.opts.MaxMessageSize
	m.closing = s.conn.managerEnds
	m.seen, m.callbacks = seen, s.conn.callbacks
	if s.caps&capMetadata == 0 {
		metadata = nil
	}
	if c.early && s.caps.bothCapacities() && len(payload) <= wholeSize && !(c.known && c.in == 0) {
		m.startEarly(&s.told, newToldKey(id, sub))
	}
	if !s.streams.add(m.id, m) {
		return nil, s.endError()
	}
	if err := m.connect(payload, metadata, sub, c.known && c.in == 0); err != nil {
		return nil, err
	}
	return m, nil
}

// callTable is the single requests of a session that wait for their answer.
//
// Who takes a call out of the table, and nobody else, answers it: so an answer that comes late
// finds nothing, and a call can be reused as soon as its answer has been received. Calls are kept
// by session, not in a global pool, because their channels must not outlive a testing/synctest
// bubble.
type callTable struct {
	mu   sync.Mutex
	m    map[uint64]*call
	free []*call
	idle limit.Idle
	err  error // set by close
	tick uint64
	life uint64 // ticks in the default deadline
}

// call is a single request that waits.
type call struct {
	id       uint64
	answered chan answer // of capacity 1
	// expires is the tick at which the table gives up on it; 0 where the caller's context has a
	// deadline.
	expires uint64
	// parts is what has arrived of the answer: guarded by the table while the call is in it, then
	// of who took it out.
	parts *assembly
}

type answer struct {
	payload arrived
	err     error
}

// maxFreeCalls bounds what a burst of calls leaves behind.
const maxFreeCalls = 256

// init sets the length of a tick, by which expire counts. So are deadlines, since asking for the
// time costs as much as the rest of an add.
func (t *callTable) init(period time.Duration) {
	t.m = make(map[uint64]*call)
	t.life = uint64((defaultDeadline+period-1)/period) + 1 // the first may be short
}

// add adds a call. expires says that it has the default deadline.
func (t *callTable) add(id uint64, expires bool) (*call, error) {
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

// remove takes a call out of the table, for the caller to answer; nil if it does not wait any more.
func (t *callTable) remove(id uint64) *call {
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

// answer answers a call. It reports whether that still waits.
func (t *callTable) answer(id uint64, a answer) bool {
	c := t.remove(id)
	if c != nil {
		c.answer(a)
	}
	return c != nil
}

// receive takes in an answer, or a fragment of one. known reports whether its call still waits.
// That a limit was reached is logged by host, before the caller hears of it; err ends the
// session.
func (t *callTable) receive(p parcel, host callHost) (known bool, err error) {
	if p.Flags&flagMore != 0 {
		return t.extend(p, host)
	}
	c := t.remove(p.MuxID)
	if c == nil {
		return false, nil
	}
	// An error stands for all that came before it.
	if err := p.payloadErr(); err != nil {
		c.answer(answer{err: err})
		return true, nil
	}
	if c.parts == nil {
		// Its caller has waited for it, so it does not wait here.
		c.answer(answer{payload: arrived{buf: p.own()}})
		return true, nil
	}
	payload, _, err := p.addTo(&c.parts)
	switch {
	case errors.Is(err, ErrOverloaded):
		host.overload(err)
		c.answer(answer{err: answerDropped(err)})
		return true, nil
	case err != nil:
		c.answer(answer{err: host.disconnected(err)}) // as all others will hear
		return true, err
	}
	c.answer(answer{payload: payload})
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
	c := t.m[p.MuxID]
	if c == nil {
		return false, nil
	}
	_, _, err = p.addTo(&c.parts)
	return true, err
}

// answerDropped is err, of a limit, for a call whose handler has run.
func answerDropped(err error) error { return fmt.Errorf("%w; the answer was dropped", err) }

// waits reports whether a call is in the table.
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

// untilIdle returns nil if no call waits, else what is closed when that may have changed.
func (t *callTable) untilIdle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) == 0 {
		return nil
	}
	return t.idle.Wait()
}

// wait waits for the answer to a call, which was sent.
func (t *callTable) wait(ctx context.Context, c *call) ([]byte, error) {
	if ctx.Done() == nil {
		return t.result(c, <-c.answered)
	}
	select {
	case a := <-c.answered:
		return t.result(c, a)
	case <-ctx.Done():
		return t.abandon(c, doneError(ctx))
	}
}

// result ends a call that was answered.
func (t *callTable) result(c *call, a answer) ([]byte, error) {
	t.mu.Lock()
	if len(t.free) < maxFreeCalls {
		t.free = append(t.free, c)
	}
	if len(t.m) == 0 {
		t.idle.Notify()
	}
	t.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	return a.payload.join(), nil
}

// abandon ends a call that is no longer waited for, because of err. If it is being answered just
// then, that answer counts.
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

// expire gives up on the calls with the default deadline that have passed it, and on those whose
// answer has been coming for longer than timeout.
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
