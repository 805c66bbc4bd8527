package grid

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/workers"
	"github.com/gridrpc/grid/internal/wsconn"
)

// reader is the part of a session that reads, and hands each message to whom it is for. It is for
// one goroutine, but for its counters, and never blocks: see docs/design.md.
type reader struct {
	s *session // set once

	intake
	tasks []workers.Task // what the frame has asked for
	done  answered       // what it has answered
	pings limit.Rate     // those that are answered
	// Streams that are not known, and whose peer was told so.
	lostStreams, lostServed answeredIDs

	frames   atomic.Int64 // websocket messages that have arrived
	messages atomic.Int64 // messages in them
}

func (r *reader) init(s *session) {
	r.s = s
	r.done.table = &s.calls
	r.maxSize, r.budget = s.opts.MaxMessageSize, &s.conn.taken.bytes
	r.pings.Init(s.opts.MaxPings)
	s.ws.OnPing(func() bool {
		if !r.pings.Allow(s.clock.Load()) {
			return false
		}
		s.sender.out.poke()
		return true
	})
}

// run reads until the session ends, or must end for the reason that it returns.
func (r *reader) run() error {
	s := r.s
	for {
		b, err := s.ws.ReadMessage()
		if err != nil {
			return r.readError(err)
		}
		r.frame = frame{buf: b}
		select {
		case <-s.done:
			// What the socket still held is for calls that were told of the end.
			r.frame.release()
			return s.err
		default:
		}
		r.setNow(time.Now())
		r.frames.Add(1)
		if s.caps.frameChecksum() {
			b, err = checkFrame(b)
		}
		if err == nil {
			err = r.dispatchFrame(b)
		}
		r.frame.release()
		r.done.deliver()
		s.workers.Submit(r.tasks...)
		clear(r.tasks)
		r.tasks = r.tasks[:0]
		if err != nil {
			return err
		}
	}
}

func (r *reader) readError(err error) error {
	switch {
	case errors.Is(err, wsconn.ErrTooLarge):
		most := r.s.opts.MaxMessageSize
		return fmt.Errorf("%w: the peer sent more than %d bytes, MaxMessageSize is %d bytes", ErrMessageTooLarge, most+frameOverhead, most)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errPeerClosed
	}
	return onlyText(err) // it may be of a connection that the application's Dialer has made
}

// setNow is called for every frame.
func (r *reader) setNow(now time.Time) {
	r.now = now
	r.s.clock.Store(monotime.Of(now))
}

// dispatchFrame handles the grid message, or the merged ones, of a websocket message. None of what
// it calls blocks. An error ends the session.
func (r *reader) dispatchFrame(b []byte) error {
	m := message{knowsMetadata: r.s.caps&capMetadata != 0}
	rest, err := m.parse(b)
	if err != nil {
		return err
	}
	if m.Op != opMerged {
		r.messages.Add(1)
		return r.dispatch(&m)
	}
	if m.Flags&flagMore != 0 && r.s.caps&capFragments != 0 {
		return protocolErrorf("%v in fragments", m.Op)
	}
	n := int64(0)
	defer func() { r.messages.Add(n) }()
	return eachMerged(m.Seq, rest, func(b []byte) error {
		if _, err := m.parse(b); err != nil {
			return err
		}
		n++
		if m.Op == opMerged {
			return protocolErrorf("merged message inside a merged one")
		}
		return r.dispatch(&m)
	})
}

// dispatch handles one message. m and its payload are the read buffer's.
func (r *reader) dispatch(m *message) error {
	if most := r.s.opts.MaxMessageSize; m.isOversized(most) {
		return fmt.Errorf("%v for mux %d: %w", m.Op, m.MuxID, tooLargeError(len(m.Payload), most))
	}
	if m.Flags&flagMore != 0 {
		if err := r.checkMore(m); err != nil {
			return err
		}
	}
	if r.s.caps&capErrors == 0 {
		m.Flags &^= flagDetails // means nothing to such a peer
	}
	switch m.Op {
	case opRequest, opConnectMux:
		task, err := r.s.opener.open(r.parcel(m))
		if task != nil {
			r.tasks = append(r.tasks, task)
		}
		return err
	case opResponse:
		return r.onResponse(m)
	case opMuxConnectError:
		return r.onMuxConnectError(m)
	case opMuxClientMsg:
		return r.onMuxClientMsg(m)
	case opUnblockSrvMux:
		r.toServer(m, (*muxServer).onUnblock)
	case opDisconnectServerMux:
		if !r.toServer(m, (*muxServer).onDisconnect) && !r.s.opener.giveUp(m.MuxID) {
			r.s.cancelServed(m.MuxID)
		}
	case opAckMux:
		r.onClientMsg(m, (*muxClient).onAck)
	case opMuxServerMsg:
		return r.onMuxServerMsg(m)
	case opUnblockClMux:
		r.toClient(m, (*muxClient).onUnblock)
	case opDisconnectClientMux:
		r.onDisconnectClientMux(m)
	case opPing:
		return r.onPing(m)
	case opPong:
		return r.onPong(m)
	case opDisconnect:
		return r.onDisconnect(m)
	case opConnect, opConnectResponse:
		return protocolErrorf("%v after the handshake", m.Op)
	default:
		r.onUnknown(m)
	}
	return nil
}

// checkMore checks a message whose payload goes on.
func (r *reader) checkMore(m *message) error {
	if r.s.caps&capFragments == 0 {
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

// parcel is m for those who keep its payload.
func (r *reader) parcel(m *message) parcel {
	return parcel{m, &r.intake}
}

func (r *reader) onResponse(m *message) error {
	s := r.s
	known, err := s.calls.receive(r.parcel(m), s, &r.done)
	if !known && m.Flags&flagMore == 0 {
		if c, ok := s.streams.get(m.MuxID); ok {
			c.fail(protocolErrorf("%v to a stream", m.Op))
		}
	}
	return err
}

func (r *reader) onMuxConnectError(m *message) error {
	var e muxConnectError
	if err := unmarshal(e.UnmarshalMsg, m.Payload); err != nil {
		return protocolErrorf("%v for mux %d: %v", m.Op, m.MuxID, err)
	}
	reason := refusedCall(clip.Text(e.Error))
	if r.s.calls.answer(m.MuxID, answer{err: reason}) {
		return nil
	}
	r.toClient(m, func(c *muxClient, _ *message) { c.onConnectError(reason) })
	return nil
}

// toServer passes m to the stream that it belongs to. It reports whether that is still served.
func (r *reader) toServer(m *message, f func(*muxServer, *message)) bool {
	c, ok := r.s.served.get(m.MuxID)
	if ok {
		c.heard.Store(monotime.Of(r.now))
		f(c, m)
	}
	return ok
}

// toClient passes m to the stream that it belongs to. It reports whether that is still open.
func (r *reader) toClient(m *message, f func(*muxClient, *message)) bool {
	c, ok := r.s.streams.get(m.MuxID)
	if ok {
		c.heard.Store(monotime.Of(r.now))
		f(c, m)
	}
	return ok
}

func (r *reader) onMuxClientMsg(m *message) (err error) {
	known := r.toServer(m, func(c *muxServer, m *message) { err = c.onMessage(r.parcel(m)) })
	if !known && m.Flags&flagEOF == 0 && r.lostServed.due(m.MuxID) {
		r.s.sender.post(message{MuxID: m.MuxID, Op: opDisconnectClientMux}, nil)
	}
	return err
}

func (r *reader) onMuxServerMsg(m *message) (err error) {
	r.onClientMsg(m, func(c *muxClient, m *message) { err = c.onMessage(r.parcel(m)) })
	return err
}

// onClientMsg passes m on like toClient; if the stream is not known, its handler must stop.
func (r *reader) onClientMsg(m *message, f func(*muxClient, *message)) {
	if r.toClient(m, f) {
		return
	}
	if calls := &r.s.calls; calls.waits(m.MuxID) {
		calls.answer(m.MuxID, answer{err: protocolErrorf("%v to a single request", m.Op)})
	}
	if m.Flags&flagEOF == 0 && r.lostStreams.due(m.MuxID) {
		r.s.sender.post(message{MuxID: m.MuxID, Op: opDisconnectServerMux}, nil)
	}
}

func (r *reader) onDisconnectClientMux(m *message) {
	if r.toClient(m, (*muxClient).onDisconnect) {
		return
	}
	err := m.reason()
	if err == nil {
		err = r.s.disconnected(errDropped)
	}
	r.s.calls.answer(m.MuxID, answer{err: err})
}

// onDisconnect takes in that the peer is shutting down (section 8), or has nothing more to say.
func (r *reader) onDisconnect(m *message) error {
	if r.s.caps&capDrain == 0 || m.MuxID != 0 {
		return errPeerClosed
	}
	r.s.sender.out.refuseOpenings(r.s.disconnected(errPeerShuttingDown))
	r.s.conn.setAside(r.s)
	r.s.beginDraining()
	return nil
}

var (
	errPeerClosed = errors.New("the peer has closed the connection")
	errDropped    = errors.New("the remote dropped the request")
)

func (r *reader) onPing(m *message) error {
	s := r.s
	if !r.pings.Allow(monotime.Of(r.now)) {
		s.overload(overloadedf("MaxPings", "pings dropped: there were %d in a second, the limit of MaxPings", s.opts.MaxPings))
		if m.MuxID != 0 {
			r.toServer(m, (*muxServer).onUnansweredPing)
		}
		return nil
	}
	if m.MuxID != 0 {
		if !r.toServer(m, func(c *muxServer, m *message) { c.onPing(m, r.now) }) {
			s.sender.post(pongFor(m, pongMsg{NotFound: true, T: r.now}), nil)
		}
		return nil
	}
	pong := pongMsg{T: r.now}
	var ping pingMsg
	if len(m.Payload) > 0 {
		if err := unmarshal(ping.UnmarshalMsg, m.Payload); err != nil {
			return protocolErrorf("%v: %v", m.Op, err)
		}
		pong.T = ping.T
	}
	if ping.RTT != 0 && s.caps&capConfirmedPings != 0 {
		s.watch.confirm(r.now, ping.RTT)
	}
	answer := pongFor(m, pong)
	return s.sender.out.postUrgent(&answer)
}

func (r *reader) onPong(m *message) error {
	var p pongMsg
	if err := unmarshal(p.UnmarshalMsg, m.Payload); err != nil {
		return protocolErrorf("%v for mux %d: %v", m.Op, m.MuxID, err)
	}
	if m.MuxID == 0 {
		r.s.watch.pong(r.now, &p)
		return nil
	}
	if !r.s.pongOfDrain(m.MuxID) {
		r.toClient(m, func(c *muxClient, _ *message) { c.onPong(&p) })
	}
	return nil
}

// onUnknown logs an op that this version does not know, once for each host.
func (r *reader) onUnknown(m *message) {
	word, bit := &r.s.conn.unknownOps[m.Op/64], uint64(1)<<(m.Op%64)
	if word.Or(bit)&bit == 0 {
		r.s.logger().Warn("grid: message with an unknown op dropped", "op", uint8(m.Op), "bytes", len(m.Payload))
	}
}

// answeredIDs counts how often a message for a mux that is not known was answered, for the last
// ones at least. A stream that ends in full flow is not answered for every message that was on its
// way.
type answeredIDs map[uint64]int

const (
	maxAnswers     = 4
	maxAnsweredIDs = 1024
)

// due reports whether an answer is due to one more message for id.
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
