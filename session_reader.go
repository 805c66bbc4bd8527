package grid

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// dispatchFrame handles the grid message, or the merged ones, of a websocket
// message. None of what it calls blocks. An error ends the session.
func (s *session) dispatchFrame(b []byte) error {
	m := message{knowsMetadata: s.caps&capMetadata != 0}
	rest, err := m.parse(b)
	if err != nil {
		return err
	}
	if m.Op != opMerged {
		s.messagesIn.Add(1)
		return s.dispatch(&m)
	}
	if m.Flags&flagMore != 0 && s.caps&capFragments != 0 {
		return protocolErrorf("%v in fragments", m.Op)
	}
	n := int64(0)
	defer func() { s.messagesIn.Add(n) }()
	return eachMerged(m.Seq, rest, func(b []byte) error {
		if _, err := m.parse(b); err != nil {
			return err
		}
		n++
		if m.Op == opMerged {
			return protocolErrorf("merged message inside a merged one")
		}
		return s.dispatch(&m)
	})
}

// dispatch handles one message. m and its payload are the read buffer's.
func (s *session) dispatch(m *message) error {
	if m.isOversized(s.opts.MaxMessageSize) {
		return fmt.Errorf("%v for mux %d: %w", m.Op, m.MuxID, tooLargeError(len(m.Payload), s.opts.MaxMessageSize))
	}
	if m.Flags&flagMore != 0 {
		if err := s.checkMore(m); err != nil {
			return err
		}
	}
	switch m.Op {
	case opRequest:
		return s.onRequest(m)
	case opResponse:
		return s.onResponse(m)
	case opConnectMux:
		return s.onConnectMux(m)
	case opMuxConnectError:
		return s.onMuxConnectError(m)
	case opMuxClientMsg:
		return s.onMuxClientMsg(m)
	case opUnblockSrvMux:
		s.toServer(m, (*muxServer).onUnblock)
	case opDisconnectServerMux:
		if !s.toServer(m, (*muxServer).onDisconnect) {
			s.giveUp(m.MuxID)
		}
	case opAckMux:
		s.onClientMsg(m, (*muxClient).onAck)
	case opMuxServerMsg:
		return s.onMuxServerMsg(m)
	case opUnblockClMux:
		s.toClient(m, (*muxClient).onUnblock)
	case opDisconnectClientMux:
		s.onDisconnectClientMux(m)
	case opPing:
		return s.onPing(m)
	case opPong:
		return s.onPong(m)
	case opDisconnect:
		return s.onDisconnect(m)
	case opConnect, opConnectResponse:
		return protocolErrorf("%v after the handshake", m.Op)
	default:
		s.onUnknown(m)
	}
	return nil
}

// onDisconnect takes in that the peer is shutting down (section 8), or has nothing
// more to say.
func (s *session) onDisconnect(m *message) error {
	if s.caps&capDrain == 0 || m.MuxID != 0 {
		return errPeerClosed
	}
	s.conn.leave(s)
	return nil
}

var errPeerClosed = errors.New("the peer has closed the connection")

func (s *session) onConnectMux(m *message) error {
	if s.isContinued(m) {
		return s.continueOpening(m)
	}
	if err := s.checkOpening(m); err != nil {
		return err
	}
	if old, ok := s.served.get(m.MuxID); ok {
		old.fail(protocolErrorf("mux %d opened twice", m.MuxID))
		return nil
	}
	if m.Seq != 0 {
		s.refuse(m, fmt.Sprintf("%v: %v has number %d, expected 0", ErrIncorrectSequence, m.Op, m.Seq))
		return nil
	}
	h := s.conn.handlers.lookup(m.Handler, m.Sub)
	if h.stream == nil {
		s.refuse(m, s.opts.noHandlerText("stream", m, h.single != nil))
		return nil
	}
	return s.open(m, h, &s.conn.streamSlots)
}

// open takes on the request or stream that m asks for, which has a handler, or
// refuses it.
func (s *session) open(m *message, h handler, slot *slots) error {
	if err := s.admit(m, slot); err != nil {
		s.refuse(m, err.Error())
		return nil
	}
	if m.Flags&flagMore != 0 {
		return s.beginOpening(m, h, slot)
	}
	payload, err := s.payload(m)
	if err != nil {
		slot.release()
		return s.refuseOverload(m, err)
	}
	s.startOpened(m, h, payload, s.deadline(m))
	return nil
}

// payload is that of a message which is not in fragments.
func (s *session) payload(m *message) (arrived, error) {
	var none *assembly
	a, _, err := s.gather(&none, m)
	return a, err
}

// startOpened begins what m has asked for, once all of it has come.
func (s *session) startOpened(m *message, h handler, payload arrived, deadline time.Time) {
	if m.Op == opRequest {
		s.startRequest(m, h, payload, deadline)
	} else {
		s.startStream(m, h, payload, deadline)
	}
}

// startStream takes on a stream whose opening is complete, and has a slot.
func (s *session) startStream(m *message, h handler, payload arrived, deadline time.Time) {
	c := newMuxServer(s, m, h.stream, payload, deadline, s.wide(), &s.conn.caller, s.opts.MaxMessageSize, s.now)
	c.slot = &s.conn.streamSlots
	c.in.maxBytes = s.opts.MaxStreamBytes
	if c.seen = s.observe(payload.size()); c.seen != nil {
		c.metadata = bytes.Clone(m.Metadata)
	}
	if !s.served.add(c.id, c) {
		c.cancel(ErrDisconnected)
		payload.drop()
		c.slot.release()
		return // the session has ended
	}
	ack := message{MuxID: c.id, Op: opAckMux}
	if c.wide {
		ack.Payload = appendCredits(s.ackBuf[:0], c.inCredits())
	}
	s.post(ack, &c.sendSeq)
	s.tasks = append(s.tasks, c)
}

// refuse answers a request or an open with an error. The handler, the deadline
// and EOF are repeated, as version 1 does; a subroute's flag must not be, since
// its bytes are not.
func (s *session) refuse(m *message, text string) {
	s.conn.stats.refused.Add(1)
	e := muxConnectError{Error: clipText(text)}
	payload, _ := e.MarshalMsg(make([]byte, 0, e.Msgsize()))
	s.post(message{
		MuxID: m.MuxID, DeadlineMS: m.DeadlineMS, Handler: m.Handler,
		Op: opMuxConnectError, Flags: m.Flags & flagEOF, Payload: payload,
	}, nil)
}

func (o *ManagerOptions) noHandlerText(kind string, m *message, otherKind bool) string {
	text := fmt.Sprintf("grid: no %s handler with ID %s", kind, o.handlerText(m.Handler))
	if m.Sub != nil {
		text += " under that subroute"
	}
	if otherKind {
		text += ", only one of the other kind"
	}
	return text
}

// admit takes a slot for a handler, or says why there is none.
func (s *session) admit(m *message, slot *slots) error {
	if full := slot.acquire(); full != nil {
		err := overloadedf(full.option, "handler %s refused: %d %s are running for this host, the limit of %s", s.opts.handlerText(m.Handler), full.limit, full.what, full.option)
		s.overload(err)
		return err
	}
	// In this order, so that a shutdown sees the slot or the handler the shutdown.
	if s.conn.draining.Load() {
		slot.release()
		return fmt.Errorf("grid: %w", errShuttingDown)
	}
	return nil
}

func (s *session) onMuxConnectError(m *message) error {
	var e muxConnectError
	if err := unmarshal(e.UnmarshalMsg, m.Payload); err != nil {
		return protocolErrorf("%v for mux %d: %v", m.Op, m.MuxID, err)
	}
	reason := refusal(e.Error)
	if s.calls.answer(m.MuxID, answer{err: reason}) {
		return nil
	}
	s.toClient(m, func(c *muxClient, _ *message) { c.onConnectError(reason) })
	return nil
}

// toServer passes m to the stream that it belongs to, if that is still served.
func (s *session) toServer(m *message, f func(*muxServer, *message)) bool {
	c, ok := s.served.get(m.MuxID)
	if ok {
		c.heard.Store(s.now.UnixNano())
		f(c, m)
	}
	return ok
}

func (s *session) onMuxClientMsg(m *message) (err error) {
	known := s.toServer(m, func(c *muxServer, m *message) { err = c.onMessage(s, m) })
	if !known && m.Flags&flagEOF == 0 && s.lostServed.due(m.MuxID) {
		s.post(message{MuxID: m.MuxID, Op: opDisconnectClientMux}, nil)
	}
	return err
}

func (s *session) onMuxServerMsg(m *message) (err error) {
	s.onClientMsg(m, func(c *muxClient, m *message) { err = c.onMessage(s, m) })
	return err
}

// toClient passes m to the stream that it belongs to, if that is still open.
func (s *session) toClient(m *message, f func(*muxClient, *message)) bool {
	c, ok := s.streams.get(m.MuxID)
	if ok {
		c.heard.Store(s.now.UnixNano())
		f(c, m)
	}
	return ok
}

// onClientMsg passes m on like toClient; if the stream is not known, its
// handler must stop.
func (s *session) onClientMsg(m *message, f func(*muxClient, *message)) {
	if s.toClient(m, f) {
		return
	}
	if s.calls.waits(m.MuxID) {
		s.calls.answer(m.MuxID, answer{err: protocolErrorf("%v to a single request", m.Op)})
	}
	if m.Flags&flagEOF == 0 && s.lostStreams.due(m.MuxID) {
		s.post(message{MuxID: m.MuxID, Op: opDisconnectServerMux}, nil)
	}
}

func (s *session) onDisconnectClientMux(m *message) {
	if s.toClient(m, (*muxClient).onDisconnect) {
		return
	}
	err := error(ErrDisconnected)
	if reason := m.reason(); reason != nil {
		err = reason
	}
	s.calls.answer(m.MuxID, answer{err: err})
}

// answeredIDs counts how often a message for a mux that is not known was
// answered, for the last ones at least. A stream that ends in full flow is not
// answered for every message that was on its way.
type answeredIDs map[uint64]int

const (
	maxAnswers     = 4
	maxAnsweredIDs = 1024
)

// due tells whether an answer is due to one more message for id.
func (a *answeredIDs) due(id uint64) bool {
	n := (*a)[id]
	if n == maxAnswers {
		return false
	}
	if *a == nil || n == 0 && len(*a) == maxAnsweredIDs {
		*a = make(answeredIDs)
	}
	(*a)[id] = n + 1
	return true
}

func (s *session) onPing(m *message) error {
	if !s.pings.due(s.now.UnixNano()) {
		s.overload(overloadedf("MaxPings", "pings dropped: there were %d in a second, the limit of MaxPings", s.opts.MaxPings))
		if m.MuxID != 0 {
			s.toServer(m, (*muxServer).onUnansweredPing)
		}
		return nil
	}
	if m.MuxID != 0 {
		if !s.toServer(m, func(c *muxServer, m *message) { c.onPing(m, s.now) }) {
			s.post(pongFor(m, pongMsg{NotFound: true, T: s.now}), nil)
		}
		return nil
	}
	pong := pongMsg{T: s.now}
	var ping pingMsg
	if len(m.Payload) > 0 {
		if err := unmarshal(ping.UnmarshalMsg, m.Payload); err != nil {
			return protocolErrorf("%v: %v", m.Op, err)
		}
		pong.T = ping.T
	}
	answer := pongFor(m, pong)
	return s.out.postUrgent(&answer)
}

func (s *session) onPong(m *message) error {
	var p pongMsg
	if err := unmarshal(p.UnmarshalMsg, m.Payload); err != nil {
		return protocolErrorf("%v for mux %d: %v", m.Op, m.MuxID, err)
	}
	if m.MuxID == 0 {
		s.live.pong(s.now, &p)
		return nil
	}
	s.toClient(m, func(c *muxClient, _ *message) { c.onPong(&p) })
	return nil
}

// onUnknown logs an op that this version does not know, once for each host.
func (s *session) onUnknown(m *message) {
	word, bit := &s.conn.unknownOps[m.Op/64], uint64(1)<<(m.Op%64)
	if word.Or(bit)&bit == 0 {
		s.logger().Warn("grid: message with an unknown op dropped", "op", uint8(m.Op), "bytes", len(m.Payload))
	}
}
