package grid

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/bytepool"
)

// Large payloads travel in fragments (protocol section 8), so that they hold up
// nothing behind them. The reader collects the fragments; whoever the payload is
// for joins them, so that the reader does not copy all of it at one time.

const (
	// wholeSize is the largest payload, in bytes, that is sent in one message to
	// a peer that has fragments.
	wholeSize = 64 << 10
	// fragmentSize is the size of the fragments of a larger one. Two of them make
	// a batch of 128 KiB, with what is around them.
	fragmentSize = wholeSize - 256
	// retainSize is the smallest fragment for which the whole frame that it came
	// in is kept; a smaller one is copied out of it.
	retainSize = fragmentSize / 2
)

// frame is a read buffer that outlives its dispatch, because fragments in it
// have been kept. The last holder gives it back.
type frame struct {
	buf  []byte
	refs atomic.Int32
}

func (f *frame) release() {
	if f.refs.Add(-1) == 0 {
		bytepool.Put(f.buf)
	}
}

// arrived is a payload on its way to the application: in one buffer of its own,
// or in pieces. The zero value is a nil payload. Whoever has it gives back, by take,
// claim or drop, what it takes of the host's budget.
type arrived struct {
	buf    []byte
	parts  *assembly
	budget *budget // that the payload was taken of; nil for none
}

// size is the payload's length.
func (a arrived) size() int {
	if a.parts != nil {
		return a.parts.size
	}
	return len(a.buf)
}

// take returns the payload in one buffer, which is the caller's. It is called
// once.
func (a arrived) take() []byte {
	a.budget.put(a.size())
	if a.parts != nil {
		return a.parts.join()
	}
	return a.buf
}

// claim is take for a payload that goes on counting, until the charge is released.
func (a arrived) claim() ([]byte, charge) {
	c := charge{a.budget, a.size()}
	a.budget = nil
	return a.take(), c
}

// drop gives the payload's buffers back, in place of take.
func (a arrived) drop() {
	a.budget.put(a.size())
	if a.parts != nil {
		a.parts.drop()
	}
	bytepool.Put(a.buf)
}

// assembly collects the fragments of one payload.
type assembly struct {
	pieces []piece
	size   int
	began  time.Time
	budget *budget // what it is taken of, until it is complete
}

// abandon drops a payload that will not be completed.
func (a *assembly) abandon() {
	if a != nil {
		a.budget.put(a.size)
		a.drop()
	}
}

// isLate tells whether a payload has been coming for longer than it may.
func (a *assembly) isLate(now time.Time, timeout time.Duration) bool {
	return a != nil && now.Sub(a.began) > timeout
}

// piece is a fragment, in a frame or in a buffer of its own.
type piece struct {
	b     []byte
	frame *frame // nil: b is a buffer of bytepool
}

func (p piece) drop() {
	if p.frame != nil {
		p.frame.release()
	} else {
		bytepool.Put(p.b)
	}
}

func (a *assembly) join() []byte {
	b := bytepool.Get(a.size)
	for _, p := range a.pieces {
		b = append(b, p.b...)
	}
	a.drop()
	return b
}

func (a *assembly) drop() {
	for _, p := range a.pieces {
		p.drop()
	}
	a.pieces, a.size = nil, 0
}

// keep adds the payload of m, which the session has just read, to a. It keeps the
// frame if the payload makes up a good part of that. Else it copies the payload, to
// where the last one was copied while there is room: what an assembly takes must
// not depend on how its fragments come.
func (s *session) keep(a *assembly, m *message) {
	if len(m.Payload) == 0 {
		return
	}
	a.size += len(m.Payload)
	if n := len(m.Payload); n >= retainSize && n >= cap(s.reading)/5 {
		a.pieces = append(a.pieces, piece{m.Payload, s.retain()})
		return
	}
	if n := len(a.pieces); n > 0 {
		last := &a.pieces[n-1]
		if last.frame == nil && cap(last.b)-len(last.b) >= len(m.Payload) {
			last.b = append(last.b, m.Payload...)
			return
		}
	}
	room := max(len(m.Payload), min(a.size, fragmentSize))
	a.pieces = append(a.pieces, piece{b: append(bytepool.Get(room), m.Payload...)})
}

// retain keeps the frame that is being dispatched. Only the reader calls it.
func (s *session) retain() *frame {
	if s.kept == nil {
		s.kept = &frame{buf: s.reading}
		s.kept.refs.Store(1) // the reader's
	}
	s.kept.refs.Add(1)
	return s.kept
}

// gather puts together what may come in fragments. It returns the payload of m,
// or, where *parts has the fragments that came before, of all of them; ok is
// false while more is to come. ErrOverloaded, which the caller logs, ends the call or
// stream that m is for; any other error ends the session. Its callers hold locks.
func (s *session) gather(parts **assembly, m *message) (a arrived, ok bool, err error) {
	more := m.Flags&flagMore != 0
	before := 0
	if *parts != nil {
		before = (*parts).size
	}
	if size := before + len(m.Payload); size > s.opts.MaxMessageSize {
		return arrived{}, false, fmt.Errorf("%v for mux %d: %w", m.Op, m.MuxID, tooLargeError(size, s.opts.MaxMessageSize))
	}
	budget := &s.conn.kept
	if err := budget.take(len(m.Payload)); err != nil {
		return arrived{}, false, err
	}
	switch {
	case *parts == nil && !more:
		return arrived{buf: ownedPayload(m), budget: budget}, true, nil
	case *parts == nil:
		*parts = &assembly{budget: budget, began: s.now}
	}
	s.keep(*parts, m)
	if more {
		return arrived{}, false, nil
	}
	a = arrived{parts: *parts, budget: budget}
	*parts = nil
	return a, true, nil
}

// gatherer is the session as a stream sees it that takes in a message.
type gatherer interface {
	gather(parts **assembly, m *message) (a arrived, ok bool, err error)
	// overload logs that a limit was reached.
	overload(err error)
}

// gatherInto takes a message, or a fragment of one, into the inbox of its stream,
// which it fails where the sender had no credit, or too much waits. The error ends
// the session.
func gatherInto(g gatherer, in *inbox, m *message, fail func(error)) error {
	failure, err := in.gather(g, m)
	if failure != nil {
		if errors.Is(failure, ErrOverloaded) {
			g.overload(failure)
		}
		fail(failure)
	}
	return err
}

// checkMore checks a message whose payload goes on.
func (s *session) checkMore(m *message) error {
	if s.caps&capFragments == 0 {
		m.Flags &^= flagMore // means nothing to such a peer
		return nil
	}
	switch m.Op {
	case opRequest, opResponse, opConnectMux, opMuxClientMsg, opMuxServerMsg:
	default:
		return protocolErrorf("%v in fragments", m.Op)
	}
	if len(m.Payload) == 0 || m.Flags&(flagPayloadIsErr|flagEOF) != 0 {
		return protocolErrorf("%v for mux %d: bad fragment of %d bytes, flags %#x", m.Op, m.MuxID, len(m.Payload), uint8(m.Flags))
	}
	return nil
}

// opening is a Request or ConnectMux whose payload has begun to arrive. It has a
// slot.
type opening struct {
	id       uint64
	op       op
	handler  HandlerID
	found    handler
	deadline time.Time // zero for none
	began    time.Time
	metadata []byte
	slot     *slots
	seq      uint32       // of the last fragment; the reader's own
	heard    atomic.Int64 // Unix nanoseconds: when a fragment last came

	mu    sync.Mutex // guards what follows
	parts *assembly
	gone  bool // given up
}

// gather takes in a fragment, unless the opening was given up.
func (o *opening) gather(s *session, m *message) (a arrived, whole bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone {
		return arrived{}, false, nil
	}
	return s.gather(&o.parts, m)
}

func (o *opening) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = true
	o.parts.abandon()
	o.parts = nil
}

// isContinued tells whether m belongs to an opening: only a first fragment names
// a handler.
func (s *session) isContinued(m *message) bool {
	return m.Handler == 0 && s.caps&capFragments != 0
}

// checkOpening checks that m, a first fragment or a whole, does not come amid
// another opening of its mux.
func (s *session) checkOpening(m *message) error {
	if !s.hasOpenings {
		return nil
	}
	s.hasOpenings = s.openings.size() > 0
	if _, ok := s.openings.get(m.MuxID); ok {
		return protocolErrorf("%v: mux %d opened twice", m.Op, m.MuxID)
	}
	return nil
}

// beginOpening takes up the first fragment of an opening, for which a slot was
// taken.
func (s *session) beginOpening(m *message, h handler, slot *slots) error {
	s.hasOpenings = true
	o := &opening{id: m.MuxID, op: m.Op, handler: m.Handler, found: h, deadline: s.deadline(m), began: s.now, slot: slot, seq: m.Seq}
	if len(s.opts.ServeInterceptors) > 0 {
		o.metadata = bytes.Clone(m.Metadata)
	}
	o.heard.Store(s.now.UnixNano())
	_, _, err := o.gather(s, m)
	if err != nil || !s.openings.add(o.id, o) {
		o.drop()
		slot.release()
	}
	return s.refuseOverload(m, err)
}

// continueOpening takes up a further fragment. Those of an opening that was
// refused, or given up, are dropped.
func (s *session) continueOpening(m *message) error {
	o, ok := s.openings.get(m.MuxID)
	if !ok {
		return nil
	}
	if o.op != m.Op {
		return protocolErrorf("%v for mux %d amid a %v", m.Op, m.MuxID, o.op)
	}
	if m.Op == opConnectMux {
		if o.seq++; o.seq != m.Seq {
			s.giveUp(o.id)
			s.refuse(m, fmt.Sprintf("%v: %v has number %d, expected %d", ErrIncorrectSequence, m.Op, m.Seq, o.seq))
			return nil
		}
	}
	o.heard.Store(s.now.UnixNano())
	payload, whole, err := o.gather(s, m)
	if err != nil {
		s.giveUp(o.id)
		return s.refuseOverload(m, err)
	}
	if !whole {
		return nil
	}
	if _, ok := s.openings.take(o.id); !ok {
		payload.drop() // given up just now, and its slot with it
		return nil
	}
	m.Handler, m.Metadata = o.handler, o.metadata
	s.startOpened(m, o.found, payload, o.deadline)
	return nil
}

// refuseOverload refuses m if err is that of a limit. It returns any other error.
func (s *session) refuseOverload(m *message, err error) error {
	if errors.Is(err, ErrOverloaded) {
		s.overload(err)
		s.refuse(m, err.Error())
		return nil
	}
	return err
}

// giveUp drops an opening that will not be completed. It tells whether there was
// one.
func (s *session) giveUp(id uint64) bool {
	o, ok := s.openings.take(id)
	if ok {
		o.drop()
		o.slot.release()
	}
	return ok
}

// tick gives the opening up when its deadline has passed, or when it takes longer
// than a message may, or when nothing has come of it for as long as a stream's client
// may be silent.
func (o *opening) tick(s *session, now, progress time.Time) {
	silent := now.Sub(later(time.Unix(0, o.heard.Load()), progress)) > 4*s.opts.StreamPingInterval
	late := now.Sub(o.began) > s.opts.MessageTimeout
	switch {
	case !o.deadline.IsZero() && now.After(o.deadline):
		s.giveUp(o.id) // the client knows
	case late && s.giveUp(o.id):
		s.refuse(&message{MuxID: o.id, Op: o.op}, lateMessageError(s.opts.MessageTimeout).Error())
	case silent && s.giveUp(o.id):
		s.refuse(&message{MuxID: o.id, Op: o.op}, "grid: gave up waiting for the rest of the payload")
	}
}

func lateMessageError(timeout time.Duration) error {
	return protocolErrorf("a message was not complete within %v, which is MessageTimeout", timeout)
}

// deadline is when that of m is, by this host's clock; zero for none.
func (s *session) deadline(m *message) time.Time {
	if m.DeadlineMS == 0 {
		return time.Time{}
	}
	return s.now.Add(time.Duration(m.DeadlineMS) * time.Millisecond)
}

// sendFragments sends m in fragments, each when there is room for it. deadline is that of a
// request, an opening or an answer, if it has one. wanted, if not nil, is asked between
// them whether to go on. started tells whether any was sent.
//
// Fragments have room of their own, so that neither kind of message starves the other.
// Of several payloads the one that is soonest at its end goes first: so the short ones
// are not held up by the long. Those that come later count all that was sent before them
// as well: so no more overtakes a payload, whatever comes, than twice its size, for it
// has at least every other fragment when as much as its size has.
func (s *session) sendFragments(done <-chan struct{}, m *message, seq *sequence, deadline time.Time, wanted func() bool) (started bool, err error) {
	began := s.out.largePassed()
	rest, flags, slot := m.Payload, m.Flags, m.slot
	m.Flags = flags&(flagSubroute|flagMetadata) | flagMore
	m.slot = nil // taken up by the last one
	for ; ; started = true {
		rank := began + int64(len(rest))
		n := min(len(rest), fragmentSize)
		m.Payload, rest = rest[:n], rest[n:]
		if len(rest) == 0 {
			m.Flags, m.slot = flags&^(flagSubroute|flagMetadata), slot
		}
		t := turn{size: m.Msgsize(), rank: rank}
		if !started {
			t.late = lateAfter(time.Now(), deadline)
		}
		if err := s.out.await(&s.out.large, &t, done); err != nil {
			return started, err
		}
		if !started && m.setDeadline(deadline) != nil {
			s.out.pass(&t)
			return false, errSendCancelled
		}
		err := s.out.sendInTurn(&t, m, seq)
		switch {
		case err != nil:
			return started, err
		case len(rest) == 0:
			return true, nil
		case wanted != nil && !wanted():
			return true, errSendCancelled
		}
		// Only the first names what is called.
		m.Handler, m.DeadlineMS, m.Sub, m.Metadata = 0, 0, nil, nil
		m.Flags = flagMore
	}
}
