package grid

import (
	"errors"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/clip"
)

// Traffic is what has gone over a connection, or all of them, so far: from session to session, and
// never less than before.
type Traffic struct {
	// Bytes are those of the websockets, without TLS.
	BytesIn, BytesOut int64
	// Messages are those of the protocol, also where they travel together.
	MessagesIn, MessagesOut int64
	// Batches are websocket messages, in which they do.
	BatchesIn, BatchesOut int64
}

func (t *Traffic) add(o Traffic) {
	t.BytesIn += o.BytesIn
	t.BytesOut += o.BytesOut
	t.MessagesIn += o.MessagesIn
	t.MessagesOut += o.MessagesOut
	t.BatchesIn += o.BatchesIn
	t.BatchesOut += o.BatchesOut
}

// ConnectionStats is the state of a [Connection] at one moment. As JSON its fields have the names
// that they have here, times are those of RFC 3339, and durations nanoseconds; so it goes with
// expvar.Func.
type ConnectionStats struct {
	// HostName is the base URL of the remote host.
	HostName string
	State    State
	// Dials reports whether this side dials the other.
	Dials bool
	// LastConnect is when the last connection was made; zero for never.
	LastConnect time.Time
	// LastDisconnect is when the last one was lost or closed; zero for never.
	LastDisconnect time.Time
	// Reconnects is the number of connections made after the first.
	Reconnects int
	// Attempts is how often this side has begun to dial the other. Knocks is how often the side
	// that waits to be dialled has asked for that: the other where this side dials, else this one.
	Attempts, Knocks int64
	// LastError is why the last connection was lost or could not be made, or why the remote was
	// refused when it last tried; it stays when all is well again.
	LastError string
	// RoundTrip is that of the last ping of the present connection, of whichever side pings, as that
	// has measured it; zero before the first.
	// RoundTripMean and RoundTripDeviation are running averages, of it and of its distance from its
	// mean, which give the last eighth and quarter to the last one.
	RoundTrip, RoundTripMean, RoundTripDeviation time.Duration
	Traffic
	// Calls and Streams were started here and are under way.
	Calls, Streams int
	// Handlers are running here for the remote host, or have an answer that waits to be sent.
	Handlers int
	// StreamsServed are the streams among them.
	StreamsServed int
	// SlowConsumers are streams, of both directions, whose sender must wait because the consumer
	// here has not taken what came. Those that were opened here count only where the server tells
	// how far it may be ahead (protocol section 8, extension 16), or is of version 1.
	SlowConsumers int
	// KeptBytes are those of payloads that count towards MaxHostBytes.
	KeptBytes int64
	// QueuedBytes wait to be sent, and so do QueuedSenders, for room to.
	QueuedBytes, QueuedSenders int
	// Refused is how many calls and streams of the remote host were refused here, for whatever
	// reason but the handler's own.
	Refused int64
	// LimitsReached is how often limits for this host were reached here, by the name of the option;
	// nil for never.
	LimitsReached map[string]int64
}

// connectionCounters are kept from session to session.
type connectionCounters struct {
	refused          atomic.Int64
	attempts, knocks atomic.Int64

	mu          sync.Mutex // guards what follows
	connects    int
	last        time.Time
	lastLoss    time.Time
	lastError   string
	notAccepted bool    // the last error is ErrNotAccepted
	traffic     Traffic // of the sessions that have ended
	limits      map[string]int64
}

func (c *connectionCounters) connected(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connects++
	c.last = now
}

func (c *connectionCounters) lost(s *session) {
	t := s.traffic()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastLoss = time.Now()
	c.traffic.add(t)
}

func (c *connectionCounters) fault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastError = clip.Text(withoutHost(err).Error())
	c.notAccepted = errors.Is(err, ErrNotAccepted)
}

// lastFault is when the last connection was lost, zero for never, and the last error.
func (c *connectionCounters) lastFault() (lost time.Time, why string, notAccepted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastLoss, strings.TrimPrefix(c.lastError, ErrDisconnected.Error()+": "), c.notAccepted
}

func (c *connectionCounters) limitReached(option string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limits == nil {
		c.limits = make(map[string]int64)
	}
	c.limits[option]++
}

func (s *session) traffic() Traffic {
	t := Traffic{
		MessagesIn: s.reader.messages.Load(), MessagesOut: s.sender.sent.Load(),
		BatchesIn: s.reader.frames.Load(), BatchesOut: s.sender.written.Load(),
	}
	t.BytesIn, _ = s.ws.Reading()
	t.BytesOut, _ = s.ws.Writing()
	return t
}

// Stats returns the present statistics; their zero value for nil. It takes time in proportion to
// the streams that are open.
func (c *Connection) Stats() ConnectionStats {
	if c == nil {
		return ConnectionStats{}
	}
	// Under the lock with which they change, so that they are of one moment.
	c.mu.Lock()
	st := ConnectionStats{
		HostName:  c.remote,
		State:     c.state.get(),
		Dials:     c.dials,
		Handlers:  c.taken.handlers.InUse(),
		KeptBytes: c.taken.bytes.Used(),
		Refused:   c.stats.refused.Load(),
		Attempts:  c.stats.attempts.Load(),
		Knocks:    c.stats.knocks.Load(),
	}
	c.stats.mu.Lock()
	st.LastConnect = c.stats.last
	st.LastDisconnect = c.stats.lastLoss
	st.Reconnects = max(c.stats.connects-1, 0)
	st.LastError = c.stats.lastError
	st.Traffic = c.stats.traffic
	st.LimitsReached = maps.Clone(c.stats.limits)
	c.stats.mu.Unlock()
	sessions := c.sessionsLocked()
	for _, s := range sessions {
		st.Traffic.add(s.traffic()) // before it is counted among those that have ended
	}
	c.mu.Unlock()
	for _, s := range sessions {
		s.addStats(&st)
	}
	return st
}

func (s *session) addStats(st *ConnectionStats) {
	if st.RoundTrip == 0 {
		st.RoundTrip, st.RoundTripMean, st.RoundTripDeviation = s.watch.roundTrip()
	}
	st.Calls += s.calls.size()
	opened, served := s.streams.all(nil), s.served.all(nil)
	st.Streams += len(opened)
	st.StreamsServed += len(served)
	for _, m := range opened {
		if m.in.isFull() {
			st.SlowConsumers++
		}
	}
	for _, m := range served {
		if m.in.isFull() {
			st.SlowConsumers++
		}
	}
	bytes, senders := s.sender.out.size()
	st.QueuedBytes += bytes
	st.QueuedSenders += senders
}
