package grid

import (
	"errors"
	"sync"

	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/wsconn"
)

const (
	// largeLimit bounds, in bytes, the fragments of large payloads that wait for a session's
	// writer; MaxQueuedBytes does it for everything else.
	largeLimit = 2 * wholeSize
	// postedLimit bounds what may be queued without waiting: answers that the reader owes. Ten
	// thousand refusals, or pongs, at once are honest; a peer that makes us owe more than this, and
	// does not read it, is misbehaving.
	postedLimit = 4 << 20
	// offeredLimit is how much of that may be there where something is queued that is not owed.
	offeredLimit = postedLimit / 4
	// urgentLimit is the same for connection pings and pongs.
	urgentLimit = 4 << 10
	// pendingLimit is the default of MaxQueuedBytes, and the largest buffer that a batch starts
	// with.
	pendingLimit = 256 << 10
	// aheadShare is what share of its room a stream may fill that has waited for a turn.
	aheadShare = 32
	// firstBuffer is what a session that was idle starts its batch with.
	firstBuffer = 1 << 10
	// headRoom is what a batch begins with: room for the head of a merged message, and for that of
	// the frame.
	headRoom = wsconn.HeaderRoom + mergedHeaderMax
	// maxBatch is the largest batch of several messages, whatever the limits allow to wait: every
	// peer reads so much, whatever its MaxMessageSize.
	maxBatch = frameOverhead
	// lonely is after how many messages in a row that were alone in their batches another is taken
	// to be alone as well.
	lonely = 16
)

var (
	// errSendCancelled is returned by outQueue.send when done ended the wait.
	errSendCancelled = errors.New("grid: send cancelled")
	errFlooded       = errors.New("peer makes us answer more than it reads")
)

// outQueue collects encoded messages for a session's writer. Messages are encoded straight into the
// batch that goes out next, under a lock that is never held while waiting, so the order of sequence
// numbers is the order on the wire.
//
// Any number of goroutines may send and post; one swaps. It ends with close.
type outQueue struct {
	// Set once.
	crc flags // flagCRC, or 0

	wake chan struct{} // holds a token when an idle writer should look

	mu     sync.Mutex
	full   []batch // that go before batch, and take no more; it is not empty then
	batch  batch
	urgent batch      // connection pings and pongs overtake the rest
	posted int        // bytes of messages that were posted
	hint   int        // size of the last batch
	idle   bool       // the writer waits on wake, and no token is in it; nobody writes for it
	lone   int        // batches of one message in a row, while nothing else came; see trySendLone
	heard  int64      // frames that had arrived when a stream's message was last alone
	poked  bool       // the writer has something other than batches to look after
	small  room       // for all that is sent but the next
	large  room       // for the parts of large payloads; see sendFragments
	number uint64     // of batch, one more with each swap
	empty  limit.Idle // of everything being written
	err    error      // set by close
	// refused is why no call or stream may be begun any more, nil while it may.
	refused error
}

// sequence numbers what one side sends on a mux. The queue's lock guards it.
type sequence struct {
	next  uint32
	ended bool // by a disconnect, which takes no number: nothing may follow it
	// The room that is left of what came with a turn, for messages that follow in the same batch,
	// and the number of that. Where hundreds of streams wait for room, each would be woken for
	// every single message otherwise.
	ahead int
	batch uint64
}

// batch is messages in the form that they have inside a merged one, behind room for the head of
// that.
type batch struct {
	buf   []byte
	count uint32

	small, large, posted int // bytes, by what they are counted as
}

// init sets how many bytes of messages that are not large may wait. A sender that finds more than
// that waits; a single larger message is taken when no other one waits.
func (q *outQueue) init(crc flags, limit int) {
	q.crc = crc
	q.small.limit, q.large.limit = limit, largeLimit
	q.wake = make(chan struct{}, 1)
	q.hint = firstBuffer
}

// send queues m, waiting for room until done is closed or the queue is. The message takes its
// number from seq, if that is given; if that has ended it fails as if done were closed. m.Payload
// stays the caller's. After an error nothing was queued.
func (q *outQueue) send(done <-chan struct{}, m *message, seq *sequence) error {
	if full, err := q.trySend(m, seq); !full {
		return err
	}
	t := turn{size: m.Msgsize(), late: monotime.Never}
	if seq != nil {
		t.ahead = q.small.limit / aheadShare
	}
	if err := q.await(&q.small, &t, done); err != nil {
		return err
	}
	return q.sendInTurn(&t, m, seq)
}

// trySend is send without the wait. full says that there was no room.
func (q *outQueue) trySend(m *message, seq *sequence) (full bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.trySendLocked(m, seq)
}

func (q *outQueue) trySendLocked(m *message, seq *sequence) (full bool, err error) {
	if q.err != nil {
		return false, q.err
	}
	if size := m.Msgsize(); q.small.waits() || !q.small.fits(size) {
		if seq == nil || seq.batch != q.number || seq.ahead < size {
			return true, nil
		}
		seq.ahead -= size
		q.small.ahead -= size
	}
	return false, q.sendLocked(&q.small, m, seq)
}

// trySendLone is trySend for a message that may be the only one for a while, as one of a single
// caller is: where the last ones were, and the writer has nothing to do, it returns a batch of the
// message alone. Whoever gets that is the writer until it has called endLone.
//
// A caller waits for its answer before it sends again. A stream need not: more of it is expected to
// follow at once unless something has arrived since. heard is how many frames have.
func (q *outQueue) trySendLone(m *message, seq *sequence, heard int64) (lone batch, full bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.idle || q.lone < lonely || seq != nil && q.heard == heard {
		full, err = q.trySendLocked(m, seq)
		return batch{}, full, err
	}
	q.idle = false // so nobody wakes the writer
	if full, err = q.trySendLocked(m, seq); err != nil || full {
		q.idle = true
		return batch{}, full, err
	}
	if seq != nil {
		q.heard = heard
	}
	lone = q.batch
	q.batch = batch{}
	q.small.taken -= lone.small
	return lone, false, nil
}

// endLone ends the turn of one who was the writer. rest says that the writer is to look after what
// that has left.
func (q *outQueue) endLone(rest bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.idle = true
	if rest || q.batch.count > 0 || q.urgent.count > 0 || q.poked || q.err != nil {
		q.poked, q.lone = q.poked || rest, 0
		q.wakeLocked()
		return
	}
	q.empty.Notify()
}

// await waits until t is granted, which must be ended by sendInTurn or by endTurn then, or done is
// closed, or the queue is.
func (q *outQueue) await(r *room, t *turn, done <-chan struct{}) error {
	q.mu.Lock()
	if q.err != nil {
		defer q.mu.Unlock()
		return q.err
	}
	r.enter(t)
	q.mu.Unlock()
	select {
	case <-t.granted:
		return nil
	case <-done:
		q.endTurn(t)
		return errSendCancelled
	}
}

// size is how many bytes wait, and how many senders for room.
func (q *outQueue) size() (bytes, senders int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	bytes = len(q.batch.buf) + len(q.urgent.buf)
	for _, b := range q.full {
		bytes += len(b.buf)
	}
	return bytes, q.small.waiting() + q.large.waiting()
}

// largeSent is how many bytes of large payloads have been sent, or are about to be.
func (q *outQueue) largeSent() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.large.sent
}

// sendInTurn queues m in the room that its sender has waited for.
func (q *outQueue) sendInTurn(t *turn, m *message, seq *sequence) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	t.room.leave(t)
	if q.err != nil {
		return q.err
	}
	err := q.sendLocked(t.room, m, seq)
	if t.ahead > 0 && err == nil {
		t.room.ahead += t.ahead
		seq.ahead, seq.batch = t.ahead, q.number
	}
	t.room.grant()
	return err
}

// refuseOpenings has what would begin a call or a stream fail with err from now on, unless it does
// already. So what is queued after it is behind the last of them.
func (q *outQueue) refuseOpenings(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refused == nil {
		q.refused = err
	}
}

// endTurn ends a turn for which nothing is sent.
func (q *outQueue) endTurn(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t.room.leave(t)
	t.room.grant()
}

func (q *outQueue) sendLocked(r *room, m *message, seq *sequence) error {
	if q.refused != nil && m.begins() {
		return q.refused
	}
	m.Flags |= q.crc
	n, ok := q.addLocked(m, seq)
	if !ok {
		return errSendCancelled
	}
	r.taken += n
	if r == &q.large {
		q.batch.large += n
	} else {
		q.batch.small += n
	}
	return nil
}

// post queues m without ever waiting; m is dropped if seq has ended. It fails when the queue is
// closed, or holds as much already as may be posted; the session must end then.
func (q *outQueue) post(m *message, seq *sequence) error {
	m.Flags |= q.crc
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return q.err
	}
	if q.posted > postedLimit {
		return errFlooded
	}
	n, _ := q.addLocked(m, seq)
	q.posted += n
	q.batch.posted += n
	return nil
}

// offer is post for what may be left unsaid: m is dropped where much has been posted already, and
// the queue goes on.
func (q *outQueue) offer(m *message) {
	m.Flags |= q.crc
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil && q.posted <= offeredLimit {
		n, _ := q.addLocked(m, nil)
		q.posted += n
		q.batch.posted += n
	}
}

// postUrgent queues a connection ping or pong in front of everything else. It never waits, and
// fails like post.
func (q *outQueue) postUrgent(m *message) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return q.err
	}
	if len(q.urgent.buf) > urgentLimit {
		return errFlooded
	}
	q.urgent.add(m, firstBuffer)
	q.wakeLocked()
	return nil
}

// addLocked adds m, which takes n bytes, to the batch. It reports whether it might: nothing may
// follow the end of seq.
func (q *outQueue) addLocked(m *message, seq *sequence) (n int, ok bool) {
	switch {
	case seq == nil:
	case seq.ended:
		return 0, false
	case m.Op == opDisconnectServerMux || m.Op == opDisconnectClientMux:
		seq.ended = true
	default:
		m.Seq = seq.next
		seq.next++
	}
	m.freeSlot()
	if q.batch.count > 0 && len(q.batch.buf)+roomFor(m) > maxBatch {
		q.full = append(q.full, q.batch)
		q.batch = batch{}
	}
	before := len(q.batch.buf)
	q.batch.add(m, q.hint)
	q.wakeLocked()
	return len(q.batch.buf) - before, true
}

func (q *outQueue) wakeLocked() {
	if q.idle {
		q.idle = false
		q.wake <- struct{}{}
	}
}

// poke makes the next wait return, even if nothing is queued.
func (q *outQueue) poke() {
	q.mu.Lock()
	q.poked = true
	q.wakeLocked()
	q.mu.Unlock()
}

// wait blocks until there may be something to swap, and returns the error of close once that was
// called. full says that no more will join it.
func (q *outQueue) wait() (full bool, err error) {
	q.mu.Lock()
	if q.err == nil && q.batch.count == 0 && q.urgent.count == 0 && !q.poked {
		q.idle = true
		q.empty.Notify()
		q.mu.Unlock()
		<-q.wake
		q.mu.Lock()
	}
	defer q.mu.Unlock()
	q.poked = false
	return q.small.stuck() || q.large.stuck(), q.err
}

// untilIdle returns nil if everything has been written, or the queue is closed, else what is closed
// when that may have changed.
func (q *outQueue) untilIdle() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.idle || q.err != nil {
		return nil
	}
	return q.empty.Wait()
}

// swap hands over what is queued, up to a batch of it. Those that it returns are the caller's, who
// must call release with each.
func (q *outQueue) swap() (urgent, normal batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	urgent, q.urgent = q.urgent, batch{}
	if len(q.full) > 0 {
		normal, q.full[0] = q.full[0], batch{}
		q.full = q.full[1:]
	} else {
		normal, q.batch = q.batch, batch{}
	}
	if normal.count > 1 || len(q.full) > 0 {
		q.lone = 0
	} else if normal.count == 1 {
		q.lone++
	}
	if normal.count > 0 {
		q.hint = min(max(len(normal.buf), firstBuffer), pendingLimit)
	}
	q.number++
	q.small.ahead = 0
	q.posted -= normal.posted
	q.small.taken -= normal.small
	q.large.taken -= normal.large
	q.small.grant()
	q.large.grant()
	return urgent, normal
}

// close ends the queue: what it holds is dropped, senders that wait and all that come later get
// err. Only the first call has an effect.
func (q *outQueue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return
	}
	q.err = err
	q.empty.Notify()
	for _, b := range q.full {
		b.release()
	}
	q.full = nil
	q.batch.release()
	q.urgent.release()
	q.small.wakeAll()
	q.large.wakeAll()
	q.wakeLocked()
}

// add appends m. hint is the capacity to start with.
func (b *batch) add(m *message, hint int) {
	need := roomFor(m)
	if b.buf == nil {
		b.buf = bytepool.Get(max(hint, headRoom+need))[:headRoom]
	}
	b.buf = bytepool.Grow(b.buf, need)
	b.buf = msgp.AppendBytesHeader(b.buf, uint32(m.size()))
	b.buf = m.appendTo(b.buf)
	b.count++
}

// roomFor is more than what m takes in a batch, so that nothing is reallocated outside of the pool.
func roomFor(m *message) int {
	return m.Msgsize() + len(subHandlerID{}) + len(m.Metadata) + checksumSize + 2*msgp.BytesPrefixSize
}

// frame is the websocket message that carries the batch (section 6), behind room for the header of
// its own: the grid message itself where there is only one. checksum says that it ends with one
// (section 8).
func (b *batch) frame(checksum bool) []byte {
	start := headRoom
	if b.count == 1 {
		_, m, _ := msgp.ReadBytesHeader(b.buf[headRoom:])
		start = len(b.buf) - len(m)
	} else {
		var room [64]byte // what the encoder asks for, though it takes at most mergedHeaderMax
		head := message{Op: opMerged, Seq: b.count}
		h := head.appendTo(room[:0])
		start -= len(h)
		copy(b.buf[start:], h)
	}
	if checksum {
		b.buf = appendChecksum(b.buf, start) // there is room: see roomFor
	}
	return b.buf[start-wsconn.HeaderRoom:]
}

// release gives the batch's buffer back.
func (b *batch) release() {
	bytepool.Put(b.buf)
	*b = batch{}
}
