package grid

import (
	"context"
	"fmt"
	"time"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/credit"
)

// What the tests of package grid_test see of the inside. Those of other packages see nothing of it.

// Session is one of a connection's.
type Session = session

// SessionOf returns the present one.
func SessionOf(c *Connection) *Session { return c.session.Load() }

// Sessions is how many there are, of which one at most is not on its way out.
func Sessions(c *Connection) int { return len(c.sessions()) }

// LastMux is the number of the last call or stream.
func LastMux(c *Connection) uint64 { return c.lastMux.Load() }

// Checksums reports whether messages have one.
func Checksums(c *Connection) bool { return c.crc == flagCRC }

// Caps are those that both sides have.
func (s *session) Caps() uint32 { return uint32(s.caps) }

// PeerID is that of the remote manager.
func (s *session) PeerID() string { return string(s.peerID[:]) }

// Fail ends a session.
func (s *session) Fail(err error) { s.close(err) }

// Ended reports whether it has ended.
func (s *session) Ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// MessagesRead is how many have arrived.
func (s *session) MessagesRead() int64 { return s.reader.frames.Load() }

// Probes is how many wait for a sign of life.
func (s *session) Probes() int {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	return len(s.watch.probes)
}

// Openings is how many have not arrived in whole.
func (s *session) Openings() int { return s.opener.openings.size() }

// Cancellable is how many requests that are served could be cancelled.
func (s *session) Cancellable() int { return s.cancellable.size() }

// SmallTaken is how much of the queue payloads have that are not in fragments.
func (s *session) SmallTaken() int {
	s.sender.out.mu.Lock()
	defer s.sender.out.mu.Unlock()
	return s.sender.out.small.taken
}

// QueueBounds says which part of the queue is beyond its limit.
func (s *session) QueueBounds() error {
	q := &s.sender.out
	q.mu.Lock()
	defer q.mu.Unlock()
	const oneMore = 64 << 10
	waiting := len(q.batch.buf)
	for _, b := range q.full {
		waiting += len(b.buf)
	}
	for _, part := range []struct {
		what        string
		size, limit int
	}{
		{"posted", q.posted, postedLimit + oneMore},
		{"urgent", len(q.urgent.buf), urgentLimit + firstBuffer},
		{"batches", waiting, postedLimit + s.opts.MaxQueuedBytes + largeLimit + oneMore},
		{"small", q.small.taken + q.small.promised + q.small.ahead, s.opts.MaxQueuedBytes + oneMore},
		{"large", q.large.taken + q.large.promised, largeLimit + oneMore},
	} {
		if part.size > part.limit {
			return fmt.Errorf("%d bytes of %s, limit %d", part.size, part.what, part.limit)
		}
	}
	return nil
}

// RunLate hands the handler of an ID a request whose deadline has passed a second ago, as if no
// worker had had the time.
func (s *session) RunLate(id HandlerID, payload []byte) {
	m := message{MuxID: 1, Handler: id, DeadlineMS: 1}
	if full, _ := s.conn.taken.handlers.Acquire(); full != nil {
		panic("no slot")
	}
	p := parcel{&m, &intake{now: time.Now()}}
	s.workers.Submit(s.opener.requestTask(p, s.conn.handlers.lookup(id, nil), arrived{buf: append(GetByteBuffer(), payload...)}, p.now.Add(-time.Second)))
}

// RefuseWaiting refuses a request to the handler of an ID that has waited for too long.
func (s *session) RefuseWaiting(id HandlerID, mux uint64, payload []byte) {
	m := message{MuxID: mux, Handler: id, DeadlineMS: 1000}
	if full, _ := s.conn.taken.handlers.Acquire(); full != nil {
		panic("no slot")
	}
	p := parcel{&m, &intake{now: time.Now()}}
	s.opener.requestTask(p, s.conn.handlers.lookup(id, nil), arrived{buf: append(GetByteBuffer(), payload...)}, p.now.Add(time.Second)).Refuse()
}

// PostOutOfSequence sends a message of a stream with a number that is not its turn.
func PostOutOfSequence(s *Stream) {
	s.mux.host.post(message{MuxID: s.mux.id, Op: opMuxClientMsg, Seq: 99}, nil)
}

// InboxLen is how many messages of a stream wait for its consumer.
func InboxLen(s *Stream) int {
	s.mux.in.mu.Lock()
	defer s.mux.in.mu.Unlock()
	return len(s.mux.in.queue)
}

// lateHost is a session to which something happens just before a message is queued.
type lateHost struct {
	*session
	before func()
}

func (h *lateHost) sendOpening(done <-chan struct{}, m message, seq *sequence, deadline time.Time) error {
	h.before()
	return h.session.sendOpening(done, m, seq, deadline)
}

// OpenLate opens a stream, and calls before just before the first message is queued.
func OpenLate(ctx context.Context, c *Connection, id HandlerID, payload []byte, before func()) error {
	s := c.session.Load()
	m := newMuxClient(ctx, &lateHost{s, before}, s.nextMuxID(), id, capacities{}, s.caps, time.Now())
	m.callbacks = s.conn.callbacks
	if !s.streams.add(m.id, m) {
		panic("the number is in use")
	}
	return m.connect(payload, nil, nil, false)
}

// Inbox is where the messages of a stream wait.
type Inbox struct{ b *inbox }

// NewInbox makes one, of a stream with input and wide credits.
func NewInbox(capacity int) Inbox { return Inbox{newInbox(capacity, true)} }

// Take takes a message, if there is one, and returns the credits for it.
func (b Inbox) Take() (credits int, ok bool) {
	_, credits, ok, _, _ = b.b.take()
	return credits, ok
}

// Push is what the reader does.
func (b Inbox) Push(msg []byte) error { return push(b.b, msg) }

// HandshakeLimit is how many may be under way.
func HandshakeLimit(m *Manager) int { return m.incoming.limit }

// EndDrain makes a manager forget that it shuts down.
func EndDrain(m *Manager) { m.draining.Store(false) }

// SelfLinks are the two ends of the connection of a host to itself.
func SelfLinks(m *Manager) [2]*Connection { return [2]*Connection{m.self.near, m.self.far} }

// PeerOf is the connection that arrivals from a host belong to.
func PeerOf(m *Manager, host string) *Connection { return m.peer(host) }

// HasSingle reports whether there is a handler for single requests, under a subroute if it is not
// empty.
func HasSingle(m *Manager, id HandlerID, subroute string) bool {
	var sub *subHandlerID
	if subroute != "" {
		s := newSubHandlerID(id, subroute)
		sub = &s
	}
	return m.handlers.lookup(id, sub).single != nil
}

// OpNames are indexed by op.
var OpNames = opNames

// Errors, and their makers.
var (
	ErrInterceptorPanicked = errInterceptorPanicked
	ErrClosed              = errClosed
)

// Refusal is a peer's, with its text.
func Refusal(text string) error { return refusal(text) }

// Disconnected has a host and a reason.
func Disconnected(host string, reason error) error { return disconnected(host, reason) }

// TooLarge is the error for a size beyond the limit.
func TooLarge(size, limit int) error { return tooLargeError(size, limit) }

// The limits that package rig knows too.
const (
	MinBackoff      = backoff.Min
	MaxBackoff      = backoff.Max
	StableLife      = stableLife
	ProbeTime       = probeTime
	HangUpTime      = hangUpTime
	DrainLook       = drainLook
	DefaultDeadline = time.Minute
	FrameOverhead   = frameOverhead
	PendingLimit    = pendingLimit
	WholeSize       = wholeSize
	FragmentSize    = fragmentSize
	RetainSize      = retainSize
	MaxErrorText    = maxErrorText
	MaxMetadata     = maxMetadata
	MaxCapacity     = maxCapacity
	MaxWindow       = credit.MaxWindow
	MaxWindowBytes  = credit.MaxWindowBytes
	MessageCost     = messageCost
	MaxInBuffer     = maxInBuffer
	MaxOutBuffer    = maxOutBuffer
	Mux1Base        = mux1Base
	AllCaps         = ourCaps &^ capFrameChecksum
)

// Decode is what typed handlers and calls do with a payload.
func Decode[T RoundTripper](v T, b []byte, nesting int) error { return decode(v, b, nesting) }
