package grid

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/workers"
)

// opener is the part of a session that takes on what the peer asks for, requests and streams alike,
// or refuses it: finds the handler, takes a slot, waits for the rest of a payload in fragments, and
// has a worker run the handler. It runs on the reader, but for giving up.
type opener struct {
	s *session // set once

	requests, streams admission
	openings          muxTable[*opening] // what arrives in fragments, and is not complete
	// hasOpenings is false if there are certainly none.
	hasOpenings bool
	ackBuf      ackBuffer
}

// admission is what differs between a request and a stream that the peer asks for, once it is known
// that it may come in: what it takes a slot of, and what makes the task that runs its handler.
type admission struct {
	slots *limit.Slots
	task  func(p parcel, h handler, payload arrived, deadline time.Time) workers.Task
}

func (o *opener) init(s *session) {
	o.s = s
	o.requests = admission{&s.conn.taken.handlers, o.requestTask}
	o.streams = admission{&s.conn.taken.streams, o.streamTask}
	o.openings.init()
}

// close gives up what is not complete.
func (o *opener) close() {
	for _, pending := range o.openings.close() {
		o.giveUp(pending.id)
	}
}

// open takes on the Request or ConnectMux p, or refuses it. It returns the task that runs the
// handler; nil where it has refused, or where more is to come. An error ends the session.
func (o *opener) open(p parcel) (workers.Task, error) {
	if p.Handler == 0 && o.s.caps&capFragments != 0 {
		return o.resume(p) // only a first fragment names a handler
	}
	if err := o.checkUnopened(p.message); err != nil {
		return nil, err
	}
	as := &o.requests
	if p.Op == opConnectMux {
		as = &o.streams
		if old, ok := o.s.served.get(p.MuxID); ok {
			old.fail(protocolErrorf("mux %d opened twice", p.MuxID))
			return nil, nil
		}
		if p.Seq != 0 {
			o.refuseSequence(p.message, 0)
			return nil, nil
		}
	}
	if p.Sub != nil {
		// What says which handler runs is the subroute's ID; the field is not compared with it.
		p.Handler = HandlerID(p.Sub[0])
	}
	h := o.s.conn.handlers.lookup(p.Handler, p.Sub)
	if !h.serves(p.Op) {
		o.refuse(p.message, o.s.opts.noHandlerText(p.message, h))
		return nil, nil
	}
	if err := o.admit(h, as.slots); err != nil {
		if errors.Is(err, errShuttingDown) && o.s.caps&capDrain == 0 {
			o.drop(p.message)
		} else {
			o.refuse(p.message, err.Error())
		}
		return nil, nil
	}
	if p.Flags&flagMore != 0 {
		if full := h.calls().isFull(); full != nil { // rather than take in the rest, for which it is early
			return nil, o.turnAway(as, p, h, o.callsFull(h, full))
		}
		return nil, o.collect(p, h, as)
	}
	payload, err := p.whole()
	if err != nil {
		return nil, o.turnAway(as, p, h, err)
	}
	return o.begin(as, p, h, payload, p.deadline(p.now))
}

// begin makes the task of an opening that is complete, and has a slot, or refuses it. Only now does
// it count as a call of its handler, so that none can be kept from others by what never comes.
func (o *opener) begin(as *admission, p parcel, h handler, payload arrived, deadline time.Time) (workers.Task, error) {
	err := payload.decodes(h.decodes(), o.keptMetadata(p.message, h))
	if err == nil {
		err = o.count(h)
	}
	if err != nil {
		payload.drop()
		return nil, o.turnAway(as, p, h, err)
	}
	return as.task(p, h, payload, deadline), nil
}

// keptMetadata is how many bytes the metadata of an opening takes while its handler runs: those for
// a handler that can ask for it, and for interceptors a map of it as well.
func (o *opener) keptMetadata(m *message, h handler) int {
	switch {
	case len(o.s.opts.ServeInterceptors) > 0:
		return (1 + decodedCost[*MSS]()) * len(m.Metadata)
	case h.wantsMetadata():
		return len(m.Metadata)
	}
	return 0
}

// count counts a call of a handler, or says why it may not run.
func (o *opener) count(h handler) error {
	if full := h.calls().begin(o.s.conn.taken); full != nil {
		return o.callsFull(h, full)
	}
	return nil
}

func (o *opener) callsFull(h handler, full *callsFull) error {
	most := h.calls().max
	if full.running < int64(most) {
		return overloadedf("MaxRunning", "handler %s refused: %d calls of it are running for this host, its share of MaxRunning, %d, is now %d", h.label(), full.running, most, full.share)
	}
	return overloadedf("MaxRunning", "handler %s refused: %d calls of it are running, the limit of its MaxRunning", h.label(), full.running)
}

// turnAway refuses an opening that has a slot, and has not begun, if err is that of a limit. It
// returns any other error.
func (o *opener) turnAway(as *admission, p parcel, h handler, err error) error {
	h.calls().refused.Add(1)
	as.slots.Release()
	return o.refuseOverload(p.message, err)
}

// streamTask makes the serving end of a stream that is complete, and has a slot. It returns nil if
// the session has ended.
func (o *opener) streamTask(p parcel, h handler, payload arrived, deadline time.Time) workers.Task {
	s := o.s
	deadline, timesOut := h.stream.calls.deadline(deadline, 0)
	c := newMuxServer(s, p.message, h.stream, payload, deadline, s.caps, &s.conn.caller, s.terms.sendSize.of(s.conn.local), p.now)
	c.slot, c.taken, c.timesOut = &s.conn.taken.streams, s.conn.taken, timesOut
	c.in.maxBytes, c.in.maxMessage = s.opts.MaxStreamBytes, s.opts.MaxMessageSize
	if len(s.opts.ServeInterceptors) > 0 {
		c.seen = new(observed)
		s.conn.observe(c.seen, p.now, payload.size())
	}
	if !s.served.add(c.id, c) {
		c.cancel(s.endError())
		payload.drop()
		h.calls().end(s.conn.taken, false)
		c.slot.Release()
		return nil
	}
	s.sender.post(message{MuxID: c.id, Op: opAckMux, Payload: c.ackPayload(&o.ackBuf)}, &c.sendSeq)
	return c
}

// admit takes a slot for a handler, or says why there is none.
func (o *opener) admit(h handler, slots *limit.Slots) error {
	s := o.s
	if err := s.conn.taken.endings.checkServed(s.opts, h.label()); err != nil {
		return o.atLimit(h, err)
	}
	if full, exceeded := slots.Acquire(); full != nil {
		return o.atLimit(h, slotsError(h.label(), full.Kind(), exceeded))
	}
	// In this order, so that a shutdown sees the slot or the handler the shutdown.
	if s.conn.refuses.Load() {
		slots.Release()
		return fmt.Errorf("grid: %w", errShuttingDown)
	}
	return nil
}

// atLimit takes in that err, of a limit, refuses a call.
func (o *opener) atLimit(h handler, err error) error {
	h.calls().refused.Add(1)
	o.s.overload(err)
	return err
}

// slotsError says that more handlers of a kind would run than may.
func slotsError(label, kind string, e *limit.Exceeded) error {
	limit := "the limit of " + e.Option
	if e.Pool > 0 {
		limit = fmt.Sprintf("its share of %s, %d, is now %d", e.Option, e.Pool, e.Limit)
	}
	return overloadedf(e.Option, "handler %s refused: %d %s are running for this host, %s", label, e.Would-1, kind, limit)
}

// refuse answers a request or an open with an error. The handler, the deadline and EOF are
// repeated, as version 1 does; a subroute's flag must not be, since its bytes are not.
func (o *opener) refuse(m *message, text string) {
	o.s.conn.stats.refused.Add(1)
	e := muxConnectError{Error: clipText(text)}
	payload, _ := e.MarshalMsg(make([]byte, 0, e.Msgsize()))
	o.s.sender.post(message{
		MuxID: m.MuxID, DeadlineMS: m.DeadlineMS, Handler: m.Handler,
		Op: opMuxConnectError, Flags: m.Flags & flagEOF, Payload: payload,
	}, nil)
}

// drop ends a request or an open without a reason. To a peer that does not know drain that is a
// lost link, upon which it turns to another host or tries again, while a refusal would be an
// answer.
func (o *opener) drop(m *message) {
	o.s.conn.stats.refused.Add(1)
	o.s.sender.post(message{MuxID: m.MuxID, Op: opDisconnectClientMux}, nil)
}

func (o *opener) refuseSequence(m *message, want uint32) {
	o.refuse(m, fmt.Sprintf("%v: %v has number %d, expected %d", ErrIncorrectSequence, m.Op, m.Seq, want))
}

// refuseOverload refuses m if err is that of a limit. It returns any other error.
func (o *opener) refuseOverload(m *message, err error) error {
	if errors.Is(err, ErrOverloaded) {
		o.s.overload(err)
		o.refuse(m, err.Error())
		return nil
	}
	return err
}

// How the text begins that says that there is no such handler. A peer tells by it that nothing has
// run (protocol section 8).
const (
	noRequestHandler = "grid: no request handler with ID "
	noStreamHandler  = "grid: no stream handler with ID "
)

// noHandlerText says that there is no handler for m, where h is of the other kind, if any.
func (o *ManagerOptions) noHandlerText(m *message, h handler) string {
	text := noRequestHandler
	if m.Op == opConnectMux {
		text = noStreamHandler
	}
	text += o.handlerText(m.Handler, "")
	if m.Sub != nil {
		text += " under that subroute"
	}
	if h.single != nil || h.stream != nil {
		text += ", only one of the other kind"
	}
	return text
}

// opening is a Request or ConnectMux whose payload has begun to arrive. It has a slot.
type opening struct {
	id       uint64
	op       op
	handler  HandlerID
	found    handler
	deadline time.Time // zero for none
	began    time.Time
	metadata []byte
	as       *admission
	seq      uint32         // of the last fragment; the reader's own
	heard    monotime.Stamp // when a fragment last came

	mu     sync.Mutex // guards what follows
	parts  *assembly
	charge limit.Charge // for the metadata
	gone   bool         // given up
}

// add takes in a fragment, unless the opening was given up.
func (g *opening) add(p parcel) (payload arrived, whole bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		return arrived{}, false, nil
	}
	return p.addTo(&g.parts)
}

// drop gives up what has arrived, and what will.
func (g *opening) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	g.parts.abandon()
	g.parts = nil
	g.dischargeLocked()
}

// keep keeps the metadata, which counts until the opening is complete or given up.
func (g *opening) keep(metadata []byte, budget *limit.Budget) error {
	if exceeded := budget.Take(len(metadata)); exceeded != nil {
		return bytesError(exceeded)
	}
	g.metadata, g.charge = bytes.Clone(metadata), limit.Charge{Budget: budget, Bytes: len(metadata)}
	return nil
}

// discharge has the metadata not count any more, for who counts it in its place.
func (g *opening) discharge() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dischargeLocked()
}

func (g *opening) dischargeLocked() {
	g.charge.Release()
	g.charge = limit.Charge{}
}

// release frees the slot of an opening that will not be one.
func (g *opening) release() { g.as.slots.Release() }

// checkUnopened checks that m, a first fragment or a whole, does not come amid another opening of
// its mux.
func (o *opener) checkUnopened(m *message) error {
	if !o.hasOpenings {
		return nil
	}
	o.hasOpenings = o.openings.size() > 0
	if _, ok := o.openings.get(m.MuxID); ok {
		return protocolErrorf("%v: mux %d opened twice", m.Op, m.MuxID)
	}
	return nil
}

// collect takes up the first fragment of an opening, for which a slot was taken.
func (o *opener) collect(p parcel, h handler, as *admission) error {
	o.hasOpenings = true
	pending := &opening{
		id: p.MuxID, op: p.Op, handler: p.Handler, found: h, deadline: p.deadline(p.now),
		began: p.now, as: as, seq: p.Seq,
	}
	pending.heard.Store(monotime.Of(p.now))
	_, _, err := pending.add(p)
	if err == nil && o.keptMetadata(p.message, h) > 0 {
		err = pending.keep(p.Metadata, p.budget)
	}
	if err != nil {
		pending.drop()
		return o.turnAway(as, p, h, err)
	}
	if !o.openings.add(pending.id, pending) {
		pending.drop()
		pending.release()
	}
	return nil
}

// resume takes up a further fragment. Those of an opening that was refused, or given up, are
// dropped.
func (o *opener) resume(p parcel) (workers.Task, error) {
	pending, ok := o.openings.get(p.MuxID)
	if !ok {
		return nil, nil
	}
	if pending.op != p.Op {
		return nil, protocolErrorf("%v for mux %d amid a %v", p.Op, p.MuxID, pending.op)
	}
	if p.Op == opConnectMux {
		if pending.seq++; pending.seq != p.Seq {
			o.giveUp(pending.id)
			o.refuseSequence(p.message, pending.seq)
			return nil, nil
		}
	}
	pending.heard.Store(monotime.Of(p.now))
	payload, whole, err := pending.add(p)
	if err != nil {
		if o.giveUp(pending.id) {
			pending.found.calls().refused.Add(1)
		}
		return nil, o.refuseOverload(p.message, err)
	}
	if !whole {
		return nil, nil
	}
	if _, ok := o.openings.remove(pending.id); !ok {
		payload.drop() // given up just now, and its slot with it
		return nil, nil
	}
	p.Handler, p.Metadata = pending.handler, pending.metadata
	pending.discharge()
	return o.begin(pending.as, p, pending.found, payload, pending.deadline)
}

// giveUp drops an opening that will not be completed. It reports whether there was one.
func (o *opener) giveUp(id uint64) bool {
	pending, ok := o.openings.remove(id)
	if ok {
		pending.drop()
		pending.release()
	}
	return ok
}

// tick gives up the openings whose deadline has passed, that take longer than a message may, or of
// which nothing has come for as long as a stream's client may be silent. progress is when a large
// message last moved.
func (o *opener) tick(now, progress time.Time) {
	opts := o.s.opts
	for _, pending := range o.openings.all(nil) {
		silent := monotime.Of(now).Sub(max(pending.heard.Load(), monotime.Of(progress))) > 4*o.s.terms.streamPing
		late := now.Sub(pending.began) > opts.MessageTimeout
		switch {
		case !pending.deadline.IsZero() && now.After(pending.deadline):
			o.giveUp(pending.id) // the client knows
		case late && o.giveUp(pending.id):
			o.refuse(&message{MuxID: pending.id, Op: pending.op}, lateMessageError(opts.MessageTimeout).Error())
		case silent && o.giveUp(pending.id):
			o.refuse(&message{MuxID: pending.id, Op: pending.op}, "grid: gave up waiting for the rest of the payload")
		}
	}
}
