package grid

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// liveness is what a session knows of its peer's being alive (section 7). All
// of it is looked after by tick, for the session, its calls and its streams.
type liveness struct {
	messages atomic.Int64 // websocket messages that have arrived
	sent     atomic.Int64 // likewise, that were written

	mu       sync.Mutex    // guards what follows
	rtt      time.Duration // of the last pong, and its averages
	rttMean  time.Duration
	rttDev   time.Duration
	pinged   time.Time         // when the last ping was queued
	ponged   time.Time         // when the last pong arrived
	progress time.Time         // when a message in the middle of its transfer last moved
	writing  time.Time         // when the writer last moved, or had nothing to do
	reading  transfer          // at the last tick
	sending  transfer          // likewise
	probes   []chan<- struct{} // to be closed by the next pong
}

// transfer is how far the messages of one direction have come.
type transfer struct {
	bytes    int64
	message  int64     // how many came before
	underway bool      // in the middle of that message
	began    time.Time // when that was first seen
}

// follow dates the message under way, given how far things were before.
func (t *transfer) follow(before transfer, now time.Time) {
	t.began = now
	if before.underway && before.message == t.message {
		t.began = before.began
	}
}

// largeSince tells whether one message has been on its way since before, and
// has moved.
func (t transfer) largeSince(before transfer) bool {
	return t.underway && before.underway && t.message == before.message && t.bytes != before.bytes
}

func (l *liveness) init(now time.Time) {
	l.pinged, l.ponged, l.progress, l.writing = now, now, now, now
}

// pong takes in the answer to a ping.
func (l *liveness) pong(now time.Time, p *pongMsg) {
	l.mu.Lock()
	if rtt := now.Sub(p.T); rtt >= 0 && rtt < time.Hour {
		if l.rtt = rtt; l.rttMean == 0 {
			l.rttMean, l.rttDev = rtt, rtt/2
		} else {
			l.rttDev += ((rtt - l.rttMean).Abs() - l.rttDev) / 4
			l.rttMean += (rtt - l.rttMean) / 8
		}
	}
	l.ponged = now
	for _, c := range l.probes {
		close(c)
	}
	l.probes = nil
	l.mu.Unlock()
}

// roundTrip is that of the last ping, its average, and the average of its distance from
// that.
func (l *liveness) roundTrip() (last, mean, deviation time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rtt, l.rttMean, l.rttDev
}

// addProbe lets c be closed by the next pong. It tells whether a ping is needed for
// that: many may probe at once, whose pings must not flood a peer that is slow.
func (l *liveness) addProbe(c chan<- struct{}) (ping bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probes = append(l.probes, c)
	return len(l.probes) == 1
}

func (l *liveness) removeProbe(c chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.probes, c); i >= 0 {
		l.probes = slices.Delete(l.probes, i, i+1)
	}
}

// probe tells whether the peer answers a ping within the time given. On a busy
// link the answer may take longer; then anything that arrives is a sign of life.
func (s *session) probe(within time.Duration) bool {
	before, _ := s.ws.Reading()
	answered := make(chan struct{})
	if s.live.addProbe(answered) {
		s.sendPing(time.Now())
	}
	defer s.live.removeProbe(answered)
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case <-answered:
		return true
	case <-s.done:
		return false
	case <-timeout.C:
		now, _ := s.ws.Reading()
		return now != before
	}
}

var errNoPong = errors.New("no pong for two ping intervals")

// look takes stock. It tells whether to ping and when a large message last moved,
// or why the session must end.
// Deadlines are met a period early rather than late.
func (l *liveness) look(s *session, now time.Time) (ping bool, progress time.Time, err error) {
	reading, sending := transfer{message: l.messages.Load()}, transfer{message: l.sent.Load()}
	reading.bytes, reading.underway = s.ws.Reading()
	sending.bytes, sending.underway = s.ws.Writing()
	l.mu.Lock()
	defer l.mu.Unlock()
	// While a large message is on its way, in either direction, no pong can
	// get through, and none is needed. Small ones do not stand for a pong.
	if reading.largeSince(l.reading) || sending.largeSince(l.sending) {
		l.progress = now
	}
	reading.follow(l.reading, now)
	if !sending.underway || sending.bytes != l.sending.bytes {
		l.writing = now
	}
	l.reading, l.sending = reading, sending

	if reading.underway && now.Sub(reading.began) > s.opts.MessageTimeout {
		return false, now, lateMessageError(s.opts.MessageTimeout)
	}
	if now.Sub(l.writing) >= s.opts.WriteTimeout {
		return false, now, fmt.Errorf("the peer has read nothing for %v", s.opts.WriteTimeout)
	}
	if now.Sub(later(l.ponged, l.progress)) >= 2*s.opts.PingInterval-s.period {
		return false, now, errNoPong
	}
	if ping = now.Sub(l.pinged) >= s.opts.PingInterval-s.period; ping {
		l.pinged = now
	}
	return ping, l.progress, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// tickPeriod is how often a session looks after its timeouts.
func tickPeriod(o *ManagerOptions) time.Duration {
	return min(min(o.PingInterval, o.StreamPingInterval, o.WriteTimeout)/8, time.Second)
}

// tick looks after everything that the session waits for. It blocks on nothing
// but short locks, and rearms itself.
func (s *session) tick() {
	now := time.Now()
	ping, progress, err := s.live.look(s, now)
	if err != nil {
		s.close(err)
		return
	}
	if ping {
		s.sendPing(now)
	}
	s.clock.Store(now.UnixNano())
	s.calls.expire(uint64(now.Sub(s.began)/s.period), now, s.opts.MessageTimeout)
	for _, m := range s.streams.all(nil) {
		if m.in.isLate(now, s.opts.MessageTimeout) {
			m.fail(lateMessageError(s.opts.MessageTimeout))
		}
		m.tick(now, progress, s.opts.StreamPingInterval, s.period)
	}
	for _, m := range s.served.all(nil) {
		if m.in.isLate(now, s.opts.MessageTimeout) {
			m.fail(lateMessageError(s.opts.MessageTimeout))
		}
		m.in.recount()
		m.tick(now, progress, s.opts.StreamPingInterval)
	}
	for _, o := range s.openings.all(nil) {
		o.tick(s, now, progress)
	}
	s.workers.trim()

	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	select {
	case <-s.done:
	default:
		s.ticker.Reset(s.period)
	}
}

func (s *session) sendPing(now time.Time) {
	p := pingMsg{T: now}
	payload, _ := p.MarshalMsg(make([]byte, 0, p.Msgsize()))
	m := message{Op: opPing, DeadlineMS: uint32(s.opts.PingInterval.Milliseconds()), Payload: payload}
	if err := s.out.postUrgent(&m); err != nil {
		s.closeAsync(err)
	}
}
