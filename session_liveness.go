package grid

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/wheel"
)

// watch is the part of a session that looks after what it waits for: by pings, whether the peer is
// alive (section 7), and by its tick, whether anything has taken too long.
type watch struct {
	// Set once.
	s        *session
	period   time.Duration // of the tick
	interval time.Duration // of the pings of the link
	due      time.Duration // after a ping of this side's, the next one
	spare    time.Duration // the same, after one by which the peer has confirmed the link

	// The tick's own.
	quiet    bool       // nothing was under way at the last one
	reading  transfer   // at the last one that looked
	sending  transfer   // likewise
	progress time.Time  // when a message in the middle of its transfer last moved
	writing  time.Time  // when the writer last moved, or had nothing to do
	pings    limit.Pace // those that are sent

	confirmed monotime.Stamp // when the peer last confirmed the link

	mu       sync.Mutex // guards what follows
	ticker   *wheel.Regular
	rtt      time.Duration // of the last ping that was answered, and its averages
	rttMean  time.Duration
	rttDev   time.Duration
	answered time.Duration     // by when the last ping was; 0 if it was not, or the peer pings
	pinged   time.Time         // when the last ping was queued; set by the tick alone
	ponged   time.Time         // when the last pong arrived
	asked    time.Time         // when the first ping since then was queued; zero for none
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

// largeSince reports whether one message has been on its way since before, and has moved.
func (t transfer) largeSince(before transfer) bool {
	return t.underway && before.underway && t.message == before.message && t.bytes != before.bytes
}

func (w *watch) init(s *session) {
	w.s = s
	w.period = s.conn.ticks.Period(tickPeriod(s.opts, s.terms.streamPing))
	w.pings.Init(s.terms.pings, w.period)
	w.interval = max(s.opts.PingInterval, 2*w.pings.Interval()) // the other half is for streams
	// A ping is sent a period early rather than late. One of the peer's is waited for until it can
	// be no longer, since both would go on pinging if this side were a little too quick.
	slack := w.period / tickSlack
	w.due = w.interval - w.period - slack
	w.spare = (w.interval-slack)/w.period*w.period + slack
	w.ponged, w.progress, w.writing = s.began, s.began, s.began
	// Of many links that were made at once, not all are pinged at once.
	w.pinged = s.began.Add(-time.Duration(s.conn.phase * float64(w.interval)))
	w.confirmed.Store(monotime.Of(s.began).Add(-w.spare)) // not yet
}

// start starts the tick, unless the session has ended.
func (w *watch) start() {
	s := w.s
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-s.done:
	default:
		_, phase := math.Modf(s.conn.phase * float64(w.interval/w.period))
		w.ticker = s.conn.ticks.Add(w.period, phase, w.tick)
	}
}

// stop stops the tick of a session that has ended.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ticker != nil {
		w.ticker.Stop()
	}
}

// pong takes in the answer to a ping.
func (w *watch) pong(now time.Time, p *pongMsg) {
	w.mu.Lock()
	// Not by the pong's time alone, which has no monotonic reading.
	if p.T.Equal(w.pinged) {
		rtt := now.Sub(w.pinged)
		w.tookLocked(rtt)
		w.answered = max(rtt, 1)
	}
	w.ponged, w.asked = now, time.Time{}
	for _, c := range w.probes {
		close(c)
	}
	w.probes = nil
	w.mu.Unlock()
}

// tookLocked takes in the time of a round trip.
func (w *watch) tookLocked(rtt time.Duration) {
	if w.rtt = rtt; w.rttMean == 0 {
		w.rttMean, w.rttDev = rtt, rtt/2
	} else {
		w.rttDev += ((rtt - w.rttMean).Abs() - w.rttDev) / 4
		w.rttMean += (rtt - w.rttMean) / 8
	}
}

// confirm takes in that a ping of the peer's, and our pong, took rtt nanoseconds, as it says. So the
// link works both ways, and for as long as it goes on to say so no ping of this side is needed.
//
// A ping that is under way is not answered by that, which may be from before the link broke.
func (w *watch) confirm(now time.Time, rtt uint64) {
	if rtt > uint64(max(now.Sub(w.s.began), 0)) {
		return // longer than there has been a link
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.s.conn.dials && !w.asked.IsZero() {
		return // the pings have crossed: one side must give way, and one go on
	}
	w.tookLocked(time.Duration(rtt))
	w.answered = 0
	w.confirmed.Store(monotime.Of(now))
}

// roundTrip is that of the last ping, its average, and the average of its distance from that.
func (w *watch) roundTrip() (last, mean, deviation time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rtt, w.rttMean, w.rttDev
}

// addProbe lets c be closed by the next pong. It reports whether a ping is needed for that: many
// may probe at once, whose pings must not flood a peer that is slow.
func (w *watch) addProbe(c chan<- struct{}) (ping bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probes = append(w.probes, c)
	return len(w.probes) == 1
}

func (w *watch) removeProbe(c chan<- struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.probes, c); i >= 0 {
		w.probes = slices.Delete(w.probes, i, i+1)
	}
}

// probe reports whether the peer answers a ping within the time given. On a busy link the answer
// may take longer; then anything that arrives is a sign of life.
func (w *watch) probe(within time.Duration) bool {
	s := w.s
	before, _ := s.ws.Reading()
	answered := make(chan struct{})
	if w.addProbe(answered) {
		s.sender.sendPing(pingMsg{T: time.Now()})
	}
	defer w.removeProbe(answered)
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

// isPingDue reports whether it is time for a ping. awaits says that one is not answered yet, so that
// the peer's do not replace the next.
func (w *watch) isPingDue(now time.Time, awaits bool) bool {
	return now.Sub(w.pinged) >= w.due && (awaits || monotime.Of(now).Sub(w.confirmed.Load()) >= w.spare)
}

// isStill reports whether there is nothing to look after: nothing was under way at the last look,
// nothing has moved since, and no ping is due. Whatever begins moves bytes, or waits for that.
func (w *watch) isStill(now time.Time) bool {
	if !w.quiet || w.isPingDue(now, false) {
		return false
	}
	if n, underway := w.s.ws.Reading(); underway || n != w.reading.bytes {
		return false
	}
	if n, underway := w.s.ws.Writing(); underway || n != w.sending.bytes {
		return false
	}
	w.writing = now
	return true
}

// look takes stock. It returns a ping to send, or nil, or why the session must end.
func (w *watch) look(now time.Time) (ping *pingMsg, err error) {
	s := w.s
	reading, sending := transfer{message: s.reader.frames.Load()}, transfer{message: s.sender.written.Load()}
	reading.bytes, reading.underway = s.ws.Reading()
	sending.bytes, sending.underway = s.ws.Writing()
	// While a large message is on its way, in either direction, no pong can get through, and none
	// is needed. Small ones do not stand for a pong.
	if reading.largeSince(w.reading) || sending.largeSince(w.sending) {
		w.progress = now
	}
	reading.follow(w.reading, now)
	if !sending.underway || sending.bytes != w.sending.bytes {
		w.writing = now
	}
	w.reading, w.sending = reading, sending

	if reading.underway && now.Sub(reading.began) > s.opts.MessageTimeout {
		return nil, lateMessageError(s.opts.MessageTimeout)
	}
	if now.Sub(w.writing) >= s.opts.WriteTimeout {
		return nil, fmt.Errorf("the peer has read nothing for %v", s.opts.WriteTimeout)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// The peer has two intervals to answer, from the ping on.
	if !w.asked.IsZero() && now.Sub(later(w.asked, w.progress)) >= 2*s.opts.PingInterval {
		return nil, errNoPong
	}
	if w.isPingDue(now, !w.asked.IsZero()) && w.pings.Allow(monotime.Of(now)) {
		ping = &pingMsg{T: now}
		if s.caps&capConfirmedPings != 0 {
			ping.RTT = uint64(w.answered)
		}
		w.pinged, w.answered = now, 0
		if w.asked.IsZero() {
			w.asked = now
		}
	}
	w.quiet = w.asked.IsZero() && !reading.underway && !sending.underway
	return ping, nil
}

// tickSlack is the part of a period by which a tick may come early, since the one before was late.
const tickSlack = 16

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// tickPeriod is how often a session looks after its timeouts.
func tickPeriod(o *ManagerOptions, streamPing time.Duration) time.Duration {
	return min(min(o.PingInterval, streamPing, o.WriteTimeout)/8, time.Second)
}

// tick looks after everything that the session waits for. It blocks on nothing but short locks,
// since those of other links wait for it. Most links are idle most of the time, so it is quick
// where nothing has happened.
func (w *watch) tick() {
	s, now := w.s, time.Now()
	s.clock.Store(monotime.Of(now))
	s.calls.expire(now, s.opts.MessageTimeout)
	if w.isStill(now) {
		return
	}
	ping, err := w.look(now)
	if err != nil {
		s.closeAsync(err)
		return
	}
	if ping != nil {
		s.sender.sendPing(*ping)
	}
	streams := s.streams.all(nil)
	for _, m := range streams {
		if m.in.isLate(now, s.opts.MessageTimeout) {
			m.fail(lateMessageError(s.opts.MessageTimeout))
		}
		m.tick(now, w.progress, s.terms.streamPing, w.period, &w.pings)
	}
	served := s.served.all(nil)
	for _, m := range served {
		if m.in.isLate(now, s.opts.MessageTimeout) {
			m.fail(lateMessageError(s.opts.MessageTimeout))
		}
		m.in.recount()
		m.tick(now, w.progress, s.terms.streamPing)
	}
	s.opener.tick(now, w.progress)
	idle := s.workers.Trim()
	w.quiet = w.quiet && len(streams)+len(served)+s.opener.openings.size()+idle == 0
}
