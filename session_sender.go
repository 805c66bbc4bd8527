package grid

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
)

// sender is the part of a session that sends: whole or in fragments, with a wait for room or
// without, and, on a goroutine of its own, from the queue to the websocket.
type sender struct {
	// Set once.
	s      *session
	canTry bool // senders may write

	out     outQueue
	rest    batch         // that writeLone has not written in whole; of who is the writer
	hungUp  atomic.Bool   // no more is written; see Manager.hangUp
	stopped chan struct{} // closed when run has returned

	written atomic.Int64 // websocket messages that were written
	sent    atomic.Int64 // messages in them
}

func (snd *sender) init(s *session) {
	snd.s = s
	snd.canTry = s.ws.CanTry()
	snd.stopped = make(chan struct{})
	crc := s.conn.crc
	if s.caps.frameChecksum() {
		crc = 0
	}
	snd.out.init(crc, s.opts.MaxQueuedBytes)
}

// run writes what is queued, until the queue is closed.
func (snd *sender) run() {
	defer close(snd.stopped)
	for {
		full, err := snd.out.wait()
		if err != nil {
			snd.rest.release()
			return
		}
		if !full {
			snd.yield()
		}
		urgent, normal := snd.out.swap()
		if !snd.hungUp.Load() {
			if err = snd.s.ws.WriteRest(); err == nil {
				snd.count(snd.rest)
				err = snd.s.ws.WritePong()
			}
		}
		snd.rest.release()
		for _, b := range [...]batch{urgent, normal} {
			if err == nil && b.count > 0 && !snd.hungUp.Load() {
				err = snd.s.ws.WriteMessage(b.frame(snd.s.caps.frameChecksum()))
				snd.count(b)
			}
			b.release()
		}
		// Closing the socket now would take back what the peer has not read yet.
		if err != nil && !snd.hungUp.Load() {
			snd.s.close(fmt.Errorf("write: %w", err))
			return
		}
	}
}

// maxYields is how often the writer yields to callers that were woken and do not run yet, and
// maxYielding for how long: on busy cores each yield may take as long as all others that want them.
const (
	maxYields   = 4
	maxYielding = time.Millisecond
)

// yield lets others that are about to send join the batch. So are callers that have been answered
// just now, as a rule.
func (snd *sender) yield() {
	runtime.Gosched()
	if !snd.s.calls.isWaking() {
		return
	}
	began := monotime.Now()
	for i := 0; i < maxYields && snd.s.calls.isWaking() && monotime.Now().Sub(began) < maxYielding; i++ {
		runtime.Gosched()
	}
}

// post queues a message without a wait; see frameSender.
func (snd *sender) post(m message, seq *sequence) {
	if err := snd.out.post(&m, seq); err != nil {
		snd.s.closeAsync(err)
	}
}

// sendPing pings the link.
func (snd *sender) sendPing(p pingMsg) {
	payload, _ := p.MarshalMsg(make([]byte, 0, p.Msgsize()))
	m := message{Op: opPing, DeadlineMS: uint32(snd.s.opts.PingInterval.Milliseconds()), Payload: payload}
	if err := snd.out.postUrgent(&m); err != nil {
		snd.s.closeAsync(err)
	}
}

// send queues a message of a stream, waiting for room; see frameSender.
func (snd *sender) send(done <-chan struct{}, m message, seq *sequence) error {
	if snd.isLarge(&m) {
		_, err := snd.sendFragments(done, &m, seq, time.Time{}, nil)
		return err
	}
	if full, err := snd.trySend(&m, seq); !full {
		return err
	}
	return snd.out.send(done, &m, seq)
}

// sendRequest queues a request, waiting for room until its deadline: that of ctx, or a timeout that
// is not 0.
func (snd *sender) sendRequest(ctx context.Context, c *call, m *message, timeout time.Duration) error {
	if full, err := snd.trySend(m, nil); !full {
		return err
	}
	if timeout != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	var started bool
	var err error
	if snd.isLarge(m) {
		// Not further than to an early answer, a refusal.
		started, err = snd.sendFragments(ctx.Done(), m, nil, deadline, func() bool { return len(c.answered) == 0 })
	} else {
		err = snd.sendInTime(ctx.Done(), m, nil, deadline)
	}
	if err == errSendCancelled {
		if started {
			snd.post(message{MuxID: c.id, Op: opDisconnectServerMux}, nil)
		}
		err = cmp.Or(contextError(ctx), context.DeadlineExceeded)
	}
	return err
}

// sendResponse sends the answer to a single request, and frees its slot. While it waits for room it
// counts towards what is kept for the host; if that is too much, an error takes its place. buf, the
// buffer of the answer, is given back. After the deadline, or once its client has given up, nobody
// waits for it, and no more of it is sent.
//
// It returns why the answer has not been sent, or not all of it; nil once it is queued.
func (snd *sender) sendResponse(m *message, buf []byte, t *singleTask) (dropped error) {
	defer func() { PutByteBuffer(buf) }()
	if full, err := snd.trySend(m, nil); !full {
		return err
	}
	charge := limit.Charge{Budget: &snd.s.conn.taken.bytes, Bytes: len(m.Payload)}
	if exceeded := charge.Budget.Take(charge.Bytes); exceeded != nil {
		err := bytesError(exceeded)
		snd.s.overload(err)
		charge.Bytes = 0
		dropped = answerDropped(err)
		m.setRefusal(dropped)
		PutByteBuffer(buf)
		buf = nil // before the wait, which may be long
	}
	err := snd.sendAnswer(*m, t)
	charge.Release()
	switch {
	case err == nil:
		m.slot = nil
	case err == errSendCancelled && t.isGone():
		err = context.Canceled
	case err == errSendCancelled:
		err = context.DeadlineExceeded
	}
	return cmp.Or(dropped, err)
}

// sendAnswer is send for what is of no use after the deadline of a request, if there is one, or once
// its client has given up: no more of it is sent then.
func (snd *sender) sendAnswer(m message, t *singleTask) error {
	var done <-chan struct{}
	if !t.deadline.IsZero() {
		ctx, cancel := context.WithDeadline(context.Background(), t.deadline)
		defer cancel()
		done = ctx.Done()
	}
	if snd.isLarge(&m) {
		_, err := snd.sendFragments(done, &m, nil, t.deadline, func() bool { return !t.isGone() })
		return err
	}
	return snd.sendInTime(done, &m, nil, t.deadline)
}

// trySend queues m if that takes neither fragments nor a wait. full says that it does.
func (snd *sender) trySend(m *message, seq *sequence) (full bool, err error) {
	if snd.isLarge(m) {
		return true, nil
	}
	if !snd.canTry {
		return snd.out.trySend(m, seq)
	}
	var heard int64
	if seq != nil { // else the reader's cache line is left alone
		heard = snd.s.reader.frames.Load()
	}
	lone, full, err := snd.out.trySendLone(m, seq, heard)
	if lone.count > 0 {
		snd.writeLone(lone)
	}
	return full, err
}

// writeLone writes a batch on the goroutine of its only sender, which saves the wake-up of the
// writer. It waits for nothing: what the socket does not take is the writer's.
func (snd *sender) writeLone(b batch) {
	switch {
	case snd.hungUp.Load():
		b.release()
	case snd.s.ws.TryWriteMessage(b.frame(snd.s.caps.frameChecksum())):
		snd.count(b)
		b.release()
	default:
		snd.rest = b
	}
	snd.out.endLone(snd.rest.count > 0)
}

// count counts a batch, if there is one, once it was written: so that what is under way has another
// number than what follows.
func (snd *sender) count(b batch) {
	if b.count > 0 {
		snd.written.Add(1)
		snd.sent.Add(int64(b.count))
	}
}

// sendInTime is send for what has a deadline, or may have one.
func (snd *sender) sendInTime(done <-chan struct{}, m *message, seq *sequence, deadline time.Time) error {
	if snd.isLarge(m) {
		_, err := snd.sendFragments(done, m, seq, deadline, nil)
		return err
	}
	if full, err := snd.out.trySend(m, seq); !full {
		return err
	}
	now := time.Now()
	deadline = pinned(now, deadline)
	t := turn{size: m.Msgsize(), late: lateAfter(now, deadline)}
	if err := snd.out.await(&snd.out.small, &t, done); err != nil {
		return err
	}
	if err := m.setDeadline(deadline); err != nil {
		snd.out.endTurn(&t)
		return errSendCancelled
	}
	return snd.out.sendInTurn(&t, m, seq)
}

// isLarge reports whether m is sent in fragments.
func (snd *sender) isLarge(m *message) bool {
	return len(m.Payload) > wholeSize && snd.s.caps&capFragments != 0
}

// sendFragments sends m in fragments, each when there is room for it. deadline is that of a
// request, an opening or an answer, if it has one. wanted, if not nil, is asked between them
// whether to go on. started reports whether any was sent.
//
// Fragments have room of their own, so that neither kind of message starves the other. Of several
// payloads the one that is soonest at its end goes first: so the short ones are not held up by the
// long. Those that come later count all that was sent before them as well: so no more overtakes a
// payload, whatever comes, than twice its size, for it has at least every other fragment when as
// much as its size has.
func (snd *sender) sendFragments(done <-chan struct{}, m *message, seq *sequence, deadline time.Time, wanted func() bool) (started bool, err error) {
	before := snd.out.largeSent()
	rest, flags, slot := m.Payload, m.Flags, m.slot
	m.Flags = flags&(flagSubroute|flagMetadata) | flagMore
	m.slot = nil // taken up by the last one
	for ; ; started = true {
		rank := before + int64(len(rest))
		n := min(len(rest), fragmentSize)
		m.Payload, rest = rest[:n], rest[n:]
		if len(rest) == 0 {
			m.Flags, m.slot = flags&^(flagSubroute|flagMetadata), slot
		}
		t := turn{size: m.Msgsize(), rank: rank, late: monotime.Never}
		if !started {
			now := time.Now()
			deadline = pinned(now, deadline)
			t.late = lateAfter(now, deadline)
		}
		if err := snd.out.await(&snd.out.large, &t, done); err != nil {
			return started, err
		}
		if !started && m.setDeadline(deadline) != nil {
			snd.out.endTurn(&t)
			return false, errSendCancelled
		}
		err := snd.out.sendInTurn(&t, m, seq)
		switch {
		case err != nil:
			return started, err
		case len(rest) == 0:
			return true, nil
		case wanted != nil && !wanted():
			return true, errSendCancelled
		}
		// Only the first names what is called.
		m.Handler, m.DeadlineMS, m.Sub, m.Metadata = 0, 0, nil, nil
		m.Flags = flagMore
	}
}
