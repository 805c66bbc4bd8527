package grid

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/limit"
)

const (
	// maxCapacity is the largest capacity that a stream may be registered with, in messages.
	maxCapacity = 1 << 16
	// messageCost is what a message takes besides its bytes, roughly: its place in the queue, and
	// what the smallest buffer is too large.
	messageCost = 168
	// firstQueue is the most messages that a stream has room for from the first one on.
	firstQueue = 16
	// firstHeld is the same for those that are held.
	firstHeld = 4
)

// inbox is the receiving end of a stream: the messages that have arrived and wait for their
// consumer, how the stream ends, and the credits that the sender holds.
//
// One goroutine, the session's reader, receives; one at a time consumes; any may end it. Nothing in
// it blocks but the consumer, which waits on signal.
type inbox struct {
	// Set once.
	signal     chan struct{} // holds a token when the consumer should look
	maxBytes   int           // that may wait, if there is more than one message; 0 for no limit
	maxMessage int           // the size of a message

	mu    sync.Mutex
	queue []arrived
	head  int       // of queue
	last  bool      // what has arrived was the last: it said so itself
	ended bool      // nothing arrives any more
	err   error     // how it ended; nil is well
	parts *assembly // what has arrived of the next message

	bytes  int           // that wait, or are held
	budget *limit.Budget // that they were taken of; nil once they do not count any more
	held   []heldMessage
	holder holder // who holds them
	// Those that are held are decoded: times is the decodedCost of each, and decoded what all of
	// them count besides their sizes.
	times, decoded int

	window credit.Window
}

// heldMessage is a message that has been passed to the holder.
type heldMessage struct {
	size    int32 // -1 once it does not count any more
	decoded int   // what it counts besides
}

// init sets how many messages the sender may send at first.
func (b *inbox) init(capacity int, wide bool) {
	b.signal = make(chan struct{}, 1)
	b.window.Init(capacity, capacity, wide)
}

// initEarly is init where the sender may not have been told the capacity yet, and goes by one of a
// handler before this, which is at most before.
func (b *inbox) initEarly(capacity, before int) {
	b.signal = make(chan struct{}, 1)
	b.window.InitEarly(capacity, before)
}

// initUntold is init where the sender has wide credits, and does not tell how many at first. They
// may be anything, and the window begins as the smallest: the owner of a larger one would wait for
// messages that may not be sent.
func (b *inbox) initUntold() {
	b.signal = make(chan struct{}, 1)
	b.window.Init(1, maxCapacity, true)
}

// uncounted is more messages than a stream may ever have waiting.
const uncounted = 1 << 30

// initUncounted is init where the sender, of version 1, goes by a capacity of its own that is not
// known here, and may be larger than any here: what waits is bounded by its bytes alone.
func (b *inbox) initUncounted() {
	b.signal = make(chan struct{}, 1)
	b.window.Init(1, uncounted, false)
}

// initV1 is init for a sender of version 1, whose handler has the capacity that is registered here:
// or a larger one, if this is the largest that can be.
func (b *inbox) initV1(capacity int) {
	if capacity == maxCapacity {
		b.initUncounted()
	} else {
		b.init(capacity, false)
	}
}

// begin sets what init was not told yet: how many messages the sender, which has wide credits, may
// send at first. It has sent none.
func (b *inbox) begin(capacity int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.window.Init(capacity, capacity, true)
}

// isFull reports whether the sender must wait for the consumer.
func (b *inbox) isFull() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || !b.window.Spent() {
		return false
	}
	b.recountLocked()
	return b.bytes > 0
}

// receive takes in a message, or a fragment of one. failure ends the stream: the sender had no
// credit, or too much waits. err ends the session.
func (b *inbox) receive(p parcel) (failure, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, nil
	}
	if b.parts == nil {
		if err := b.checkLocked(); err != nil {
			return err, nil
		}
	}
	if err := b.roomLocked(len(p.Payload)); err != nil {
		return err, nil
	}
	msg, whole, err := p.addTo(&b.parts)
	switch {
	case errors.Is(err, ErrOverloaded):
		return err, nil
	case err != nil || !whole:
		return nil, err
	}
	// With the message, not with the end, which its receiver calls in a moment: whoever is faster
	// must not return a credit that nobody will use.
	b.last = p.Flags&flagEOF != 0
	return b.pushLocked(msg), nil
}

// roomLocked fails if size bytes more are too many to wait. Where nothing waits they never are.
func (b *inbox) roomLocked(size int) error {
	if b.maxBytes == 0 {
		return nil
	}
	n, most := int64(size), int64(b.maxBytes) // sums that might overflow an int
	if b.parts != nil {
		n += int64(b.parts.size)
	}
	if int64(b.bytes)+n > most {
		b.recountLocked()
	}
	if n += int64(b.bytes); n > most && b.bytes > 0 {
		return overloadedf("MaxStreamBytes", "%d bytes would wait in a stream, MaxStreamBytes is %d", n, b.maxBytes)
	}
	return nil
}

// recount finds out which of the messages that are held have been taken.
func (b *inbox) recount() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recountLocked()
}

func (b *inbox) recountLocked() {
	if len(b.held) == 0 || b.holder == nil {
		return
	}
	for i := range max(len(b.held)-b.holder.holds(), 0) {
		b.releasedLocked(&b.held[i]) // handedOn will find it counted
	}
}

// holder is a consumer that passes messages on.
type holder interface {
	// holds is how many messages it has that were not taken. It is called with the inbox's lock
	// held.
	holds() int
}

// pushLocked adds a message, for which the sender has a credit, and which is the inbox's from then
// on.
func (b *inbox) pushLocked(msg arrived) error {
	// With what is around it, a message of just the limit fits.
	if exceeded := msg.budget.Grow(msg.size(), messageCost, messageCost); exceeded != nil {
		msg.drop()
		return bytesError(exceeded)
	}
	b.bytes += msg.size() + messageCost
	b.budget, msg.budget = msg.budget, nil // counted here from now on
	if b.queue == nil {
		b.queue = make([]arrived, 0, min(max(b.window.Size(), 1), firstQueue))
	}
	if b.head > 0 && len(b.queue) == cap(b.queue) {
		n := copy(b.queue, b.queue[b.head:])
		clear(b.queue[n:])
		b.queue, b.head = b.queue[:n], 0
	}
	b.queue = append(b.queue, msg)
	b.window.Arrived(msg.size(), len(b.queue)-b.head)
	b.signalLocked()
	return nil
}

// isAmid reports whether a message has arrived in part.
func (b *inbox) isAmid() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.parts != nil
}

// isLate reports whether a message has been coming for longer than it may.
func (b *inbox) isLate(now time.Time, timeout time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.parts.isLate(now, timeout)
}

func (b *inbox) checkLocked() error {
	if b.window.Spent() {
		return fmt.Errorf("%w: message without a credit, window is %d", ErrFlowControl, b.window.Size())
	}
	return nil
}

// end says that nothing follows: what waits is still delivered, then err. Only the first end
// counts.
func (b *inbox) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		b.ended, b.err = true, err
		b.abandonLocked()
		b.signalLocked()
	}
}

func (b *inbox) abandonLocked() {
	b.parts.abandon()
	b.parts = nil
}

// discharge takes what waits, or is held, out of the host's budget: nothing follows it, and nobody
// may come for it.
func (b *inbox) discharge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.budget.Put(b.bytes + b.decoded)
	b.budget = nil
}

// drop ends the inbox at once: what waits is thrown away. What is held is in the hands of its
// holder, and goes on counting.
func (b *inbox) drop(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waited := b.head < len(b.queue)
	for _, msg := range b.queue[b.head:] {
		msg.drop()
	}
	b.queue, b.head = nil, 0
	kept := 0
	for _, h := range b.held {
		if h.size >= 0 {
			kept += int(h.size) + messageCost
		}
	}
	b.budget.Put(b.bytes - kept)
	b.bytes = kept
	b.abandonLocked()
	// A clean end that lost messages would be a lie.
	if !b.ended || b.err == nil && waited {
		b.ended, b.err = true, err
	}
	b.signalLocked()
}

// take returns the next message, which is the caller's, and how many credits are due to the sender
// for it. With ok false there is none now: the caller waits on signal, unless ended says that there
// will be none, for the reason err.
func (b *inbox) take() (msg arrived, grant int, ok, ended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if msg, ok, ended, err = b.nextLocked(); ok {
		b.takenLocked(msg.size())
		grant = b.grantLocked(true)
	}
	return msg, grant, ok, ended, err
}

// await waits until the consumer should look. It reports false if done, which may be nil, was
// closed first.
func (b *inbox) await(done <-chan struct{}) bool {
	if done == nil {
		<-b.signal
		return true
	}
	select {
	case <-b.signal:
		return true
	case <-done:
		return false
	}
}

// setHolder says who calls hold, and the decodedCost of what it then has.
func (b *inbox) setHolder(h holder, times int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holder, b.times = h, times
}

// hold is take for a consumer that has to pass the message on first: it counts as taken, and its
// credit is due, when that calls handedOn. An error without ended is that of a limit: the message
// was dropped, and the stream is to end.
func (b *inbox) hold() (msg arrived, ok, ended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if msg, ok, ended, err = b.nextLocked(); !ok {
		return msg, ok, ended, err
	}
	size := msg.size()
	n := decodedSize(size, b.times)
	if exceeded := b.budget.Grow(size+messageCost, n, 0); exceeded != nil {
		msg.drop()
		b.takenLocked(size)
		return arrived{}, false, false, bytesError(exceeded)
	}
	b.decoded += n
	if b.held == nil {
		b.held = make([]heldMessage, 0, firstHeld)
	}
	b.held = append(b.held, heldMessage{int32(size), n})
	return msg, true, false, nil
}

// holdMore has the message that was held last count for n bytes, if it does not yet. The error is
// that of a limit: the stream is to end.
func (b *inbox) holdMore(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := &b.held[len(b.held)-1]
	has := int(last.size) + last.decoded
	if n <= has || b.budget == nil {
		return nil
	}
	if exceeded := b.budget.Grow(has+messageCost, n-has, 0); exceeded != nil {
		return bytesError(exceeded)
	}
	last.decoded += n - has
	b.decoded += n - has
	return nil
}

// releasedLocked is takenLocked for a message that was held, the first time.
func (b *inbox) releasedLocked(h *heldMessage) {
	if h.size < 0 {
		return
	}
	b.takenLocked(int(h.size))
	b.decoded -= h.decoded
	b.budget.Put(h.decoded)
	h.size = -1
}

// takenLocked says that a message of that size waits no more.
func (b *inbox) takenLocked(size int) {
	b.bytes -= size + messageCost
	b.budget.Put(size + messageCost)
}

// handedOn says that n messages which were held are taken, and returns how many credits are due for
// them. keepsUp is what the caller knows of the consumer.
func (b *inbox) handedOn(n int, keepsUp bool) (grant int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range n {
		b.releasedLocked(&b.held[0])
		b.held = slices.Delete(b.held, 0, 1)
		grant += b.grantLocked(keepsUp)
	}
	return grant
}

func (b *inbox) nextLocked() (msg arrived, ok, ended bool, err error) {
	if b.head == len(b.queue) {
		if b.ended {
			b.signalLocked() // for whoever else may wait
		}
		return arrived{}, false, b.ended, b.err
	}
	msg = b.queue[b.head]
	b.queue[b.head] = arrived{}
	b.head++
	if b.head == len(b.queue) {
		b.queue, b.head = b.queue[:0], 0
	}
	return msg, true, false, nil
}

// grantLocked accounts for a message that was taken.
func (b *inbox) grantLocked(keepsUp bool) int {
	if b.last || b.ended {
		return 0
	}
	keepsUp = keepsUp && b.head == len(b.queue)
	return b.window.Taken(keepsUp, keepsUp && b.mayGrowLocked())
}

// mayGrowLocked reports whether a window that has grown would fit into what may wait, with one
// message of any size besides: else it is the larger window that ends the stream.
func (b *inbox) mayGrowLocked() bool {
	grown, largest := b.window.Grown(messageCost), int64(b.maxMessage+messageCost)
	return (b.maxBytes == 0 || grown+largest <= int64(b.maxBytes)) && b.budget.Spare(grown, largest)
}

// poke gives the consumer a token.
func (b *inbox) poke() {
	b.mu.Lock()
	b.signalLocked()
	b.mu.Unlock()
}

func (b *inbox) signalLocked() {
	select {
	case b.signal <- struct{}{}:
	default:
	}
}
