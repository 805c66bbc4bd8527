package grid

import (
	"cmp"
	"context"
	"time"
)

// Single requests and streams that are made here. Those that are served here come in by
// session_opener.go.

// mux1Base is what is added to the numbers of calls and streams towards a peer of version 1. Such a
// peer answers what comes late of its own stream N by a disconnect that speaks of ours of that
// number. It counts from 1, so no number of its own is one of these.
const mux1Base = 1 << 62

// nextMuxID is the number of a new call or stream.
func (s *session) nextMuxID() uint64 { return s.conn.lastMux.Add(1) + s.muxBase }

// single makes a single request and waits for its answer. timeout, if not 0, is the longest that it
// may take, whatever the deadline of ctx; that is RequestTimeout where ctx has none.
func (s *session) single(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte, timeout time.Duration) ([]byte, error) {
	if err := contextError(ctx); err != nil {
		return nil, err
	}
	var ms uint32
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, cmp.Or(contextError(ctx), context.DeadlineExceeded)
		}
		if timeout == 0 || left <= timeout {
			ms, timeout = milliseconds(left), 0
		}
	} else if timeout == 0 {
		timeout = s.opts.RequestTimeout
	}
	if timeout != 0 {
		ms = milliseconds(timeout)
	}
	c, err := s.calls.add(s.nextMuxID, timeout)
	if err != nil {
		return nil, unsent(err)
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
	if err := s.sender.sendRequest(ctx, c, &m, timeout); err != nil {
		answer, _, err := s.calls.abandon(c, err)
		return answer, unsent(err)
	}
	answer, gaveUp, err := s.calls.wait(ctx, c)
	if gaveUp {
		s.cancelRequest(ctx, m.MuxID)
	}
	if isDropped(err) && !due.IsZero() {
		if left := time.Until(due); left <= deadlineSlack {
			err = awaitDeadline(ctx, left)
		}
	}
	return answer, err
}

// cancelRequest tells the peer, if it knows what that means, that ctx has ended, and nobody waits for
// the answer to a request any more. Of the deadline the peer knows by itself.
func (s *session) cancelRequest(ctx context.Context, id uint64) {
	if s.caps&capCancel == 0 {
		return
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return
	}
	s.sender.out.offer(&message{MuxID: id, Op: opDisconnectServerMux})
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
	m.openingTime, m.name = c.options.timeout, c.name
	if !s.streams.add(m.id, m) {
		return nil, unsent(s.endError())
	}
	if err := m.connect(payload, metadata, sub, c.known && c.in == 0); err != nil {
		return nil, err
	}
	return m, nil
}
