package grid

import (
	"fmt"
	"sync"
)

const (
	// maxCapacity is the largest capacity that a stream may be registered
	// with, in messages.
	maxCapacity = 1 << 16
	// A window grows up to this many messages, and this many bytes by the
	// largest message that the stream has seen.
	maxWindow      = 512
	maxWindowBytes = 1 << 20
	// firstQueue is the most messages that a stream has room for from the first
	// one on.
	firstQueue = 8
)

// inbox is the receiving end of a stream: the messages that have arrived and
// wait for their consumer, how the stream ends, and the credits that the sender
// holds.
//
// One goroutine, the session's reader, pushes; one at a time consumes; any may
// end it. Nothing in it blocks but the consumer, which waits on signal.
type inbox struct {
	wide   bool          // credits may be returned many at a time; set once
	signal chan struct{} // holds a token when the consumer should look; set once

	mu    sync.Mutex
	queue []arrived
	head  int   // of queue
	ended bool  // nothing arrives any more
	err   error // how it ended; nil is well

	credits int // held by the sender
	window  int // credits held by the sender, messages that wait, credits owed
	grown   int // how much of the window was added: it never falls below what it began with
	owed    int // messages taken whose credit was not returned
	run     int // messages taken since the window grew
	largest int // size of the largest message so far
}

// init sets how many messages the sender may send at first. known is false
// where only the sender knows that, and it may be anything.
func (b *inbox) init(capacity int, known, wide bool) {
	b.wide = wide
	b.signal = make(chan struct{}, 1)
	b.window, b.credits = capacity, capacity
	if !known {
		b.credits = maxCapacity
	}
}

// push adds a message, which is the inbox's from then on. It fails where the
// sender had no credit for it.
func (b *inbox) push(msg arrived) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		msg.drop()
		return nil
	}
	if err := b.checkLocked(); err != nil {
		msg.drop()
		return err
	}
	b.credits--
	if b.queue == nil {
		b.queue = make([]arrived, 0, min(max(b.window, 1), firstQueue))
	}
	if b.head > 0 && len(b.queue) == cap(b.queue) {
		n := copy(b.queue, b.queue[b.head:])
		clear(b.queue[n:])
		b.queue, b.head = b.queue[:n], 0
	}
	b.queue = append(b.queue, msg)
	b.window = max(b.window, len(b.queue)-b.head) // for a capacity that was not known
	b.largest = max(b.largest, msg.size())
	b.signalLocked()
	return nil
}

// check tells whether the sender may send a message, of which a part has arrived.
func (b *inbox) check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.checkLocked()
}

func (b *inbox) checkLocked() error {
	if b.credits == 0 && !b.ended {
		return fmt.Errorf("%w: message without a credit, window is %d", ErrFlowControl, b.window)
	}
	return nil
}

// end says that nothing follows: what waits is still delivered, then err. Only
// the first end counts.
func (b *inbox) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		b.ended, b.err = true, err
		b.signalLocked()
	}
}

// drop ends the inbox at once: what waits is thrown away.
func (b *inbox) drop(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waited := b.head < len(b.queue)
	for _, msg := range b.queue[b.head:] {
		msg.drop()
	}
	b.queue, b.head = nil, 0
	// A clean end that lost messages would be a lie.
	if !b.ended || b.err == nil && waited {
		b.ended, b.err = true, err
	}
	b.signalLocked()
}

// take returns the next message, which is the caller's, and how many credits
// are due to the sender for it. With ok false there is none now: the caller
// waits on signal, unless ended says that there will be none, for the reason
// err.
func (b *inbox) take() (msg arrived, grant int, ok, ended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if msg, ok, ended, err = b.nextLocked(); ok {
		grant = b.grantLocked(true)
	}
	return msg, grant, ok, ended, err
}

// hold is take for a consumer that has to pass the message on first: it counts
// as taken, and its credit is due, when that calls passed.
func (b *inbox) hold() (msg arrived, ok, ended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nextLocked()
}

// passed returns how many credits are due for n messages that were held. keepsUp is
// what the caller knows of the consumer.
func (b *inbox) passed(n int, keepsUp bool) (grant int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range n {
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
	switch {
	case b.ended:
		return 0
	case !b.wide:
		b.credits++
		return 1
	}
	b.run++
	if b.grown > 0 && b.window > maxWindowBytes/max(b.largest, 1) {
		b.grown--
		b.window-- // messages have become larger: this credit is not returned
	} else {
		b.owed++
	}
	// A consumer that has emptied the queue after a whole window keeps up, and
	// the sender may be waiting for it: more may be under way.
	if keepsUp && b.head == len(b.queue) && b.run >= b.window {
		wider := min(2*b.window, maxWindow)
		if wider > b.window && wider <= maxWindowBytes/max(b.largest, 1) {
			b.owed += wider - b.window
			b.grown += wider - b.window
			b.window = wider
		}
		b.run = 0
	}
	if 2*b.owed < b.window {
		return 0
	}
	n := b.owed
	b.owed = 0
	b.credits += n
	return n
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
