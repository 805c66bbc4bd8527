package grid

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/workers"
)

// Single requests that are served here. Those that are made here are in session_calls.go.

// singleTask runs the handler of a single request, and answers it.
type singleTask struct {
	workers.Queued
	s        *session
	id       uint64
	handler  HandlerID
	entry    *singleEntry
	payload  arrived
	deadline time.Time       // zero for none
	seen     *observed       // nil if nobody wants to know
	ctx      *requestContext // the handler's, or nil
	listed   bool            // in the session's table of those that can be cancelled
	metadata []byte
	charge   limit.Charge // for the payload, while the handler runs
	refused  error        // by a limit, once the payload was decoded
}

// hold has the request count for as many bytes, if it does not yet. It reports whether that is
// possible; else the request is refused.
func (t *singleTask) hold(n int) bool {
	if exceeded := t.charge.GrowTo(n); exceeded != nil {
		t.refused = bytesError(exceeded)
	}
	return t.refused == nil
}

// singleTasks holds no channels or timers, so it may be shared by all.
var singleTasks = sync.Pool{New: func() any { return new(singleTask) }}

// requestTask makes the task of a request that is complete, and has a slot.
func (o *opener) requestTask(p parcel, h handler, payload arrived, deadline time.Time) workers.Task {
	s := o.s
	t := singleTasks.Get().(*singleTask)
	t.s, t.id, t.handler, t.entry, t.payload = s, p.MuxID, p.Handler, h.single, payload
	t.deadline = deadline
	t.Limit(p.now, deadline)
	switch {
	case len(s.opts.ServeInterceptors) > 0:
		// In one piece with its context.
		served := new(struct {
			observed
			ctx requestContext
		})
		t.seen, t.ctx = &served.observed, &served.ctx
		s.conn.observe(t.seen, p.now, payload.size())
	case h.single.contextFn != nil:
		t.ctx = new(requestContext)
	default:
		return t
	}
	t.metadata = bytes.Clone(p.Metadata)
	own, _ := h.single.calls.deadline(deadline, 0)
	t.ctx.init(s, t.entry.subroute, own, t.metadata)
	if h.single.contextFn != nil && s.caps&capCancel != 0 {
		t.listed = s.cancellable.add(t.id, t.ctx)
	}
	return t
}

// cancelServed takes in that the client of a request has given up.
func (s *session) cancelServed(id uint64) {
	if ctx, ok := s.cancellable.get(id); ok {
		ctx.life.clientGone()
	}
}

// isGone reports whether the client is known to have given up.
func (t *singleTask) isGone() bool { return t.listed && t.ctx.life.isGone() }

// Refuse implements workers.Task: more requests have come in than can be answered in time.
func (t *singleTask) Refuse() {
	s := t.s
	err := overloadedf("MaxHandlers", "handler %s refused: it has waited for %v, and those before it for too long",
		t.entry.label, t.Waited().Round(time.Millisecond))
	s.overload(err)
	s.opener.refuse(&message{MuxID: t.id, Handler: t.handler, Flags: flagEOF, Op: opRequest}, err.Error())
	t.payload.drop()
	t.entry.calls.turnAway(s.conn.taken)
	t.free()
	s.conn.taken.handlers.Release()
}

// Run implements workers.Task.
func (t *singleTask) Run() {
	s := t.s
	// The slot is held until the answer is queued: who waits for room needs one too.
	m := message{MuxID: t.id, Op: opResponse, Flags: flagEOF, slot: &s.conn.taken.handlers}
	payload, charge := t.payload.claim()
	t.charge = charge
	var resp []byte
	result := errHandlerExited // stays if the handler ends its goroutine
	expired, gone := s.pastDeadline(t.deadline), t.isGone()
	// By itself: an interceptor may end the goroutine.
	defer func() {
		t.free()
		m.freeSlot() // where nothing was sent
	}()
	defer func() {
		result = handlerResult(recover(), result, t.entry.label, s.logger(), &t.entry.panics)
		t.charge.Release()
		if t.refused != nil {
			t.entry.calls.turnAway(s.conn.taken)
		} else {
			t.entry.calls.end(s.conn.taken, result != nil)
		}
		buf := resp
		resp = nil // nothing here must hold what sendResponse gives back
		var outcome error
		switch {
		case t.refused != nil:
			outcome = t.refused
			s.overload(outcome)
			s.conn.stats.refused.Add(1)
			m.setRefusal(outcome)
		case result != nil:
			outcome = result
			m.setRemoteErr(result, s.caps)
			buf = nil // ignored, and not ours
		case len(buf) > s.terms.sendSize.bytes:
			outcome = fmt.Errorf("grid: handler's response: %w", s.terms.sendSize.of(s.conn.local).check(len(buf)))
			m.setError(outcome.Error())
			PutByteBuffer(buf)
			buf = nil
		default:
			m.setPayload(buf)
		}
		size, err := len(buf), error(nil)
		switch {
		case expired || s.pastDeadline(t.deadline):
			err = context.DeadlineExceeded
			PutByteBuffer(buf)
		case t.isGone():
			err = context.Canceled
			PutByteBuffer(buf)
		default:
			err = s.sender.sendResponse(&m, buf, t)
		}
		if outcome = cmp.Or(outcome, err); outcome == nil {
			t.seen.sent(size)
		}
		t.seen.endServed(outcome)
	}()
	if expired || gone {
		// Nobody waits any more: under overload, work for them is at the cost of those who do.
		PutByteBuffer(payload)
		result = nil
		return
	}
	if t.entry.fn != nil && t.seen == nil {
		resp, result = t.entry.fn(t, payload)
		return
	}
	own := t.ctx
	defer func() { own.life.end(s.pastDeadline(own.life.deadline)) }()
	ctx, err := s.conn.beginServe(own, t.seen, CallInfo{Handler: t.handler, Subroute: t.entry.subroute, PayloadBytes: len(payload)}, t.metadata)
	switch {
	case err != nil:
		PutByteBuffer(payload)
		result = NewRemoteErr(err)
	case t.entry.fn != nil:
		resp, result = t.entry.fn(t, payload)
	default:
		resp, result = t.entry.contextFn(ctx, t, payload)
	}
}

// free lets another request have the task.
func (t *singleTask) free() {
	if t.listed {
		t.s.cancellable.remove(t.id)
		t.listed = false
	}
	t.s, t.entry, t.payload, t.seen, t.ctx, t.metadata = nil, nil, arrived{}, nil, nil, nil
	t.charge, t.refused = limit.Charge{}, nil
	singleTasks.Put(t)
}
