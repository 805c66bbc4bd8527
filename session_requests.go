package grid

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Single requests as a session serves them, and the answers to its own.

// singleTask runs the handler of a single request.
type singleTask struct {
	s        *session
	id       uint64
	handler  HandlerID
	entry    *singleEntry
	payload  arrived
	deadline time.Time // zero for none
	lateFrom int64     // Unix nanoseconds
	seen     *observed // nil if nobody wants to know
	metadata []byte
}

// singleTasks holds no channels or timers, so it may be shared by all.
var singleTasks = sync.Pool{New: func() any { return new(singleTask) }}

func (s *session) onRequest(m *message) error {
	if s.isContinued(m) {
		return s.continueOpening(m)
	}
	if err := s.checkOpening(m); err != nil {
		return err
	}
	h := s.conn.handlers.lookup(m.Handler, m.Sub)
	if h.single == nil {
		s.refuse(m, s.opts.noHandlerText("request", m, h.stream != nil))
		return nil
	}
	return s.open(m, h, &s.conn.handlerSlots)
}

// startRequest queues a request that is complete, and has a slot.
func (s *session) startRequest(m *message, h handler, payload arrived, deadline time.Time) {
	t := singleTasks.Get().(*singleTask)
	*t = singleTask{s: s, id: m.MuxID, handler: m.Handler, entry: h.single, payload: payload, deadline: deadline}
	if !deadline.IsZero() {
		t.lateFrom = lateAfter(s.now, deadline).UnixNano()
	}
	if t.seen = s.observe(payload.size()); t.seen != nil {
		t.metadata = bytes.Clone(m.Metadata)
	}
	s.tasks = append(s.tasks, t)
}

// late implements task.
func (t *singleTask) late(now int64) bool {
	return !t.deadline.IsZero() && t.lateFrom < now && now < t.deadline.UnixNano()
}

// run implements task.
func (t *singleTask) run() {
	s := t.s
	// The slot is held until the answer is queued: who waits for room needs one
	// too.
	m := message{MuxID: t.id, Op: opResponse, Flags: flagEOF, slot: &s.conn.handlerSlots}
	payload, kept := t.payload.claim()
	var resp []byte
	result := errHandlerExited // stays if the handler ends its goroutine
	expired := s.passed(t.deadline)
	defer func() {
		result = handlerResult(recover(), result, t.entry.label, s.logger(), &t.entry.panics)
		kept.release()
		buf := resp
		resp = nil // nothing here must hold what respond gives back
		var outcome error
		switch {
		case result != nil:
			outcome = result
			m.setError(result.Error())
			buf = nil // ignored, and not ours
		case len(buf) > s.opts.MaxMessageSize:
			outcome = fmt.Errorf("grid: handler's response: %w", tooLargeError(len(buf), s.opts.MaxMessageSize))
			m.setError(outcome.Error())
			PutByteBuffer(buf)
			buf = nil
		default:
			m.setPayload(buf)
		}
		size, err := len(buf), error(context.DeadlineExceeded)
		if expired || s.passed(t.deadline) {
			PutByteBuffer(buf)
		} else {
			err = s.respond(&m, buf, t.deadline)
		}
		if outcome = cmp.Or(outcome, err); outcome == nil {
			t.seen.sent(size)
		}
		t.seen.end(outcome)
		*t = singleTask{}
		singleTasks.Put(t)
		m.freeSlot() // where nothing was sent
	}()
	if expired {
		// Nobody waits any more: under overload, work for them is at the cost of
		// those who do.
		PutByteBuffer(payload)
		result = nil
		return
	}
	if t.entry.fn != nil && t.seen == nil {
		resp, result = t.entry.fn(payload)
		return
	}
	ctx, cancel := t.context()
	defer cancel()
	info := CallInfo{Handler: t.handler, Subroute: t.entry.subroute, PayloadBytes: len(payload)}
	ctx, err := s.beginServe(ctx, t.seen, &info, t.metadata)
	switch {
	case err != nil:
		PutByteBuffer(payload)
		result = NewRemoteErr(err)
	case t.entry.fn != nil:
		resp, result = t.entry.fn(payload)
	default:
		resp, result = t.entry.contextFn(ctx, payload)
	}
}

// context is that of the handler. It ends with the session.
func (t *singleTask) context() (context.Context, context.CancelFunc) {
	ctx, cancel := t.s.ctx, context.CancelFunc(nil)
	if t.deadline.IsZero() {
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithDeadline(ctx, t.deadline)
	}
	return &handlerContext{Context: ctx, caller: &t.s.conn.caller, subroute: t.entry.subroute}, cancel
}

// respond sends the answer to a single request, and frees its slot. While it waits
// for room it counts towards what is kept for the host; if that is too much, an error
// takes its place. buf, the buffer of the answer, is given back. After the deadline
// nobody waits for it, and it is not sent.
//
// It returns why the answer has not been sent, or not all of it; nil once it is queued.
func (s *session) respond(m *message, buf []byte, deadline time.Time) (dropped error) {
	defer func() { PutByteBuffer(buf) }()
	if !s.fragmented(m) {
		if full, err := s.out.trySend(m, nil); !full {
			return err
		}
	}
	kept := charge{&s.conn.kept, len(m.Payload)}
	if err := kept.budget.take(kept.bytes); err != nil {
		s.overload(err)
		kept.bytes = 0
		dropped = answerDropped(err)
		e := muxConnectError{Error: dropped.Error()}
		m.Op, m.Flags = opMuxConnectError, flagEOF
		m.Payload, _ = e.MarshalMsg(nil)
		PutByteBuffer(buf)
		buf = nil // before the wait, which may be long
	}
	err := s.sendAnswer(*m, deadline)
	kept.release()
	if err == nil {
		m.slot = nil
	} else if err == errSendCancelled {
		err = context.DeadlineExceeded
	}
	return cmp.Or(dropped, err)
}

// answerDropped is err, of a limit, for a call whose handler has run.
func answerDropped(err error) error { return fmt.Errorf("%w; the answer was dropped", err) }

func (s *session) onResponse(m *message) error {
	if m.Flags&flagMore != 0 {
		err := s.calls.extend(m.MuxID, func(parts **assembly) error {
			_, _, err := s.gather(parts, m)
			return err
		})
		if errors.Is(err, ErrOverloaded) {
			s.overload(err)
			s.calls.answer(m.MuxID, answer{err: answerDropped(err)})
			return nil
		}
		return err
	}
	c := s.calls.take(m.MuxID)
	if c == nil {
		if c, ok := s.streams.get(m.MuxID); ok {
			c.fail(protocolErrorf("%v to a stream", m.Op))
		}
		return nil
	}
	// An error stands for all that came before it.
	if err := m.payloadErr(); err != nil {
		c.answer(answer{err: err})
		return nil
	}
	if c.parts == nil {
		// Its caller has waited for it, so it does not wait here.
		c.answer(answer{payload: arrived{buf: ownedPayload(m)}})
		return nil
	}
	payload, _, err := s.gather(&c.parts, m)
	switch {
	case errors.Is(err, ErrOverloaded):
		s.overload(err)
		c.answer(answer{err: answerDropped(err)})
		return nil
	case err != nil:
		c.answer(answer{err: disconnected(err)}) // as all others will hear
		return err
	}
	c.answer(answer{payload: payload})
	return nil
}
