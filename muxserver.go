package grid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/workers"
)

// serverHost is the session as the serving end of a stream sees it.
type serverHost interface {
	frameSender
	callHost
	// serverEnded takes the stream out of the session's table.
	serverEnded(m *muxServer)
	// submit runs t on a goroutine that is reused, with its stack.
	submit(t workers.Task)
	logger() *slog.Logger
	// beginServe tells interceptors of the stream; see Connection.
	beginServe(ctx context.Context, o *observed, info CallInfo, metadata []byte) (context.Context, error)
}

// muxServer is the serving end of a stream.
//
// The session's reader calls its on* methods, which never block. Its handler runs on a worker (Run),
// and receives and sends there (serverEnd); or another one hands on its input, and sends its output
// (streamPump). It ends when the handler has returned and everything it sent is out, or at once by
// abort.
type muxServer struct {
	workers.Queued
	// Set once.
	host      serverHost
	id        uint64
	handler   *streamEntry
	handlerID HandlerID
	caps      caps
	wide      bool // the peer has wide credits
	tellsBoth bool // the ack names both capacities
	hasInput  bool
	payload   arrived      // the handler's, once it runs
	charge    limit.Charge // for it, while the handler runs; the handler's own
	ctx       context.Context
	cancel    context.CancelCauseFunc
	deadline  time.Time // zero for none
	timesOut  bool      // the deadline is the handler's own
	sendSize  sizeLimit
	dead      chan struct{} // closed by abort
	returned  chan struct{} // closed when the handler has returned, with result

	in       inbox
	grantBuf creditBuffer   // of who hands on the input
	credits  credit.Credits // for what we send
	sendSeq  sequence
	result   *RemoteErr   // of the handler; published by returned
	seen     *observed    // nil if nobody wants to know
	metadata []byte       // as it came; nil for none
	slot     *limit.Slots // the handler's, until all is sent; for who sends the result
	taken    *hostLimits  // what the client's host takes up

	// The reader's own.
	recvSeq  uint32
	inputEOF bool

	heard monotime.Stamp // when the client last gave a sign

	mu      sync.Mutex // guards what follows
	aborted error
	told    bool        // the client gets the reason of it
	stop    func() bool // ends the watch on the deadline
}

// newMuxServer makes the serving end of the stream that open, a ConnectMux, asks for.
func newMuxServer(host serverHost, open *message, h *streamEntry, payload arrived, deadline time.Time, caps caps, caller *RemoteClient, sendSize sizeLimit, now time.Time) *muxServer {
	eof := open.Flags&flagEOF != 0
	m := &muxServer{
		host:      host,
		id:        open.MuxID,
		handler:   h,
		handlerID: open.Handler,
		caps:      caps,
		wide:      caps.wide(),
		tellsBoth: caps.bothCapacities(),
		hasInput:  h.inCapacity > 0 && !eof,
		inputEOF:  eof,
		payload:   payload,
		deadline:  deadline,
		sendSize:  sendSize,
		recvSeq:   open.Seq + 1,
		dead:      make(chan struct{}),
		returned:  make(chan struct{}),
	}
	limit := h.outCapacity
	switch {
	case m.tellsBoth:
		limit = maxCapacity
	case m.wide:
		limit = maxCapacity + credit.MaxWindow // the client does not know outCapacity
	}
	m.credits.Reset(h.outCapacity, limit)
	switch {
	case !m.hasInput:
	case m.tellsBoth:
		m.in.initEarly(m.inCredits(), h.before())
	case m.wide:
		m.in.init(m.inCredits(), true)
	default:
		m.in.initV1(m.inCredits())
	}
	m.heard.Store(monotime.Of(now))

	base, cancel := context.WithCancelCause(context.Background())
	m.cancel = cancel
	if !deadline.IsZero() {
		var release context.CancelFunc
		base, release = context.WithDeadline(base, m.deadline)
		m.cancel = func(cause error) { cancel(cause); release() }
	}
	m.metadata = bytes.Clone(open.Metadata)
	m.ctx = &handlerContext{
		Context: base, caller: caller, subroute: h.subroute, draining: host.drains(), metadata: m.metadata,
	}
	return m
}

// inCredits is how many messages the client may send at first.
func (m *muxServer) inCredits() int {
	if !m.hasInput {
		return 0
	}
	return m.handler.inCapacity
}

// ackPayload tells the client what it may have to know of the handler's capacities.
func (m *muxServer) ackPayload(buf *ackBuffer) []byte {
	switch {
	case m.tellsBoth:
		return appendCapacities(buf[:0], m.inCredits(), m.handler.outCapacity)
	case m.wide:
		return appendCredits(buf[:0], m.inCredits())
	}
	return nil
}

// Run implements workers.Task: it runs the handler.
func (m *muxServer) Run() {
	if !m.deadline.IsZero() {
		m.keepStop(context.AfterFunc(m.ctx, m.expired))
	}
	m.handler.serve(m)
}

// beginHandling returns what the handler is called with, unless an interceptor has refused the
// stream. Then, and however the handler ends, handled is called.
func (m *muxServer) beginHandling() (ctx context.Context, payload []byte, ok bool) {
	m.result = errHandlerExited // stays if the handler ends its goroutine
	payload, m.charge = m.payload.claim()
	m.payload = arrived{}
	ctx, err := m.host.beginServe(m.ctx, m.seen, CallInfo{
		Handler: m.handlerID, Subroute: m.handler.subroute, Stream: true, PayloadBytes: len(payload),
	}, m.metadata)
	if err != nil {
		PutByteBuffer(payload)
		m.result = NewRemoteErr(err)
		return nil, nil, false
	}
	return ctx, payload, true
}

// handled takes in that the handler has returned, or has panicked with what was recovered.
func (m *muxServer) handled(recovered any) {
	defer close(m.returned)
	m.charge.Release()
	m.result = handlerResult(recovered, m.result, m.handler.label, m.host.logger(), &m.handler.panics)
	m.handler.calls.end(m.taken, m.result != nil)
}

// hasReturned reports whether the handler has.
func (m *muxServer) hasReturned() bool {
	select {
	case <-m.returned:
		return true
	default:
		return false
	}
}

// hold has the payload count for as many bytes, if it does not yet. It reports whether that is
// possible; else the stream ends.
func (m *muxServer) hold(n int) bool {
	exceeded := m.charge.GrowTo(n)
	if exceeded != nil {
		m.refuse(bytesError(exceeded))
	}
	return exceeded == nil
}

// refuse ends the stream because of a limit.
func (m *muxServer) refuse(err error) {
	m.host.overload(err)
	m.fail(err)
}

// keepStop keeps stop for the end of the stream.
func (m *muxServer) keepStop(stop func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.aborted != nil {
		stop()
		return
	}
	m.stop = stop
}

// expired is called when the handler's context has ended, by the deadline or otherwise.
func (m *muxServer) expired() {
	if errors.Is(context.Cause(m.ctx), context.DeadlineExceeded) {
		m.abort(m.lateError(), tellReason)
	}
}

// lateError is with what the stream ends at its deadline.
func (m *muxServer) lateError() error {
	if !m.timesOut {
		return context.DeadlineExceeded
	}
	return fmt.Errorf("grid: handler %s: its Timeout of %v is over: %w", m.handler.label, m.handler.calls.timeout, context.DeadlineExceeded)
}

// abort ends the stream at once, the first time it is called: the handler's context first, then its
// input; what it sends is thrown away.
func (m *muxServer) abort(cause error, how ending) {
	m.mu.Lock()
	if m.aborted != nil {
		m.mu.Unlock()
		return
	}
	// Whoever sees that the stream is aborted sees that the context has ended.
	m.cancel(cause)
	m.aborted = cause
	m.told = how&tellReason != 0
	stop := m.stop
	m.mu.Unlock()

	// Before the stream is unknown, for which the peer gets an answer without a reason.
	if how&tellReason != 0 {
		msg := message{MuxID: m.id, Op: opDisconnectClientMux}
		msg.setError(withoutHost(cause).Error()) // the host is the one that is told
		m.host.post(msg, &m.sendSeq)
	}
	m.host.serverEnded(m)
	m.in.drop(cause)
	m.credits.Close(cause)
	close(m.dead)
	if stop != nil {
		stop()
	}
}

// abortCause is with what abort was called, nil if it was not.
func (m *muxServer) abortCause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.aborted
}

// isAborted reports whether abort was called.
func (m *muxServer) isAborted() bool { return m.abortCause() != nil }

// wasTold reports whether the client has been told, or is about to be, why the stream was aborted.
func (m *muxServer) wasTold() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told
}

// fail ends the stream because the peer broke a rule.
func (m *muxServer) fail(err error) { m.abort(err, tellReason) }

// send queues a message of the stream. It reports whether it could: else the stream has been
// aborted, and the message keeps its slot.
func (m *muxServer) send(msg message) (ok bool) {
	msg.MuxID = m.id
	return m.host.send(m.dead, msg, &m.sendSeq) == nil
}

// grant returns credits to the client, which one of version 1 gets one by one.
func (m *muxServer) grant(n int) {
	switch {
	case n == 0:
	case m.wide:
		m.send(message{Op: opUnblockClMux, Payload: creditPayload(&m.grantBuf, n)})
	default:
		for range n {
			m.send(message{Op: opUnblockClMux})
		}
	}
}

// freeSlot frees the handler's slot, if it did not go with the result.
func (m *muxServer) freeSlot() {
	if m.slot != nil {
		m.slot.Release()
	}
}

// handlerReturned ends the handler's context. Its deadline stays in force while what it has sent
// waits for the client.
func (m *muxServer) handlerReturned() {
	if m.deadline.IsZero() {
		m.cancel(nil)
		return
	}
	left := time.Until(m.deadline)
	if left <= 0 {
		m.abort(m.lateError(), tellReason)
		return
	}
	m.mu.Lock()
	stop := m.stop
	m.mu.Unlock()
	if stop != nil && stop() {
		m.keepStop(time.AfterFunc(left, func() { m.abort(m.lateError(), tellReason) }).Stop)
	}
	m.cancel(nil)
}

// dropInput throws away what has come, or will, for a handler that has returned, and gives back what
// the input counts. That is before the result is sent: with it the client may begin something else,
// which must find the room.
func (m *muxServer) dropInput() {
	m.in.drop(errHandlerReturned)
	m.in.discharge()
}

// sendResult sends the end of the stream. To a version 1 peer it spends a credit, and is followed
// by a disconnect, as it was with such a server; but not by a second one, which could overtake the
// first and its reason.
func (m *muxServer) sendResult() {
	if !m.wide {
		_ = m.credits.Reserve(context.Background())
	}
	if !m.isAborted() {
		msg := message{Op: opMuxServerMsg, Flags: flagEOF, slot: m.slot}
		if m.result != nil {
			msg.setRemoteErr(m.result, m.caps)
		}
		if m.send(msg) {
			m.slot = nil
		}
	}
	// The end of a stream that has ended: it only releases what it holds.
	m.abort(errStreamOver, 0)
	if !m.wide && !m.wasTold() {
		m.host.post(message{MuxID: m.id, Op: opDisconnectClientMux}, nil)
	}
}

// outcome is how the stream has ended, once the handler has returned.
func (m *muxServer) outcome() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.aborted != nil && m.aborted != errStreamOver:
		return m.aborted
	case m.result != nil:
		return m.result
	}
	return nil
}

var errStreamOver = errors.New("grid: stream is over")

// checkSeq reports whether a message that is numbered has the next number. It fails the stream
// where it has not.
func (m *muxServer) checkSeq(msg *message) bool {
	if msg.Seq != m.recvSeq {
		m.fail(fmt.Errorf("%w: %v has number %d, expected %d", ErrIncorrectSequence, msg.Op, msg.Seq, m.recvSeq))
		return false
	}
	m.recvSeq++
	return true
}

// onMessage returns an error that ends the session.
func (m *muxServer) onMessage(p parcel) error {
	msg := p.message
	if !m.checkSeq(msg) {
		return nil
	}
	eof := msg.Flags&flagEOF != 0
	if m.inputEOF {
		m.fail(protocolErrorf("%v after the end of the input", msg.Op))
		return nil
	}
	if eof && len(msg.Payload) == 0 && m.in.isAmid() {
		m.fail(protocolErrorf("%v with EOF alone amid a message", msg.Op))
		return nil
	}
	if !eof || len(msg.Payload) > 0 {
		if !m.hasInput && m.tellsBoth && m.handler.before() > 0 {
			return nil // sent before the ack, to a handler that was unregistered
		}
		m.seen.received(len(msg.Payload), msg.Flags&flagMore == 0)
		if err := receive(&m.in, p, m.host, m.fail); err != nil {
			return err
		}
	}
	if eof {
		m.inputEOF = true
		m.in.end(nil)
	}
	return nil
}

func (m *muxServer) onUnblock(msg *message) {
	if !m.checkSeq(msg) {
		return
	}
	if err := addCredits(&m.credits, msg, m.wide); err != nil {
		m.fail(err)
	}
}

func (m *muxServer) onPing(msg *message, now time.Time) {
	if !m.checkSeq(msg) {
		return
	}
	m.host.post(pongFor(msg, pongMsg{T: now}), nil)
}

// onUnansweredPing takes in a ping that is one of too many. It has a number all the same.
func (m *muxServer) onUnansweredPing(msg *message) { m.checkSeq(msg) }

func (m *muxServer) onDisconnect(msg *message) {
	cause := msg.clientReason()
	if cause == nil {
		cause = context.Canceled
		// The client's timer may be the first to see that the deadline has passed.
		if !m.deadline.IsZero() && !m.timesOut && time.Until(m.deadline) <= deadlineSlack {
			cause = context.DeadlineExceeded
		}
	}
	m.abort(cause, 0)
}

// tick aborts a stream whose client has fallen silent (section 7).
func (m *muxServer) tick(now, progress time.Time, interval time.Duration) {
	if !m.deadline.IsZero() && m.deadline.Sub(now) <= 4*interval {
		return
	}
	if monotime.Of(now).Sub(max(m.heard.Load(), monotime.Of(progress))) > 4*interval {
		m.abort(m.host.disconnected(errors.New("the client has not pinged its stream")), tellReason)
	}
}

// pongFor is the answer to a ping: it repeats the ping's number (section 5).
func pongFor(ping *message, p pongMsg) message {
	payload, _ := p.MarshalMsg(make([]byte, 0, p.Msgsize()))
	return message{MuxID: ping.MuxID, Op: opPong, Seq: ping.Seq, DeadlineMS: ping.DeadlineMS, Payload: payload}
}
