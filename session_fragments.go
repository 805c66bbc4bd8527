package grid

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/limit"
)

// Large payloads travel in fragments (protocol section 8), so that they hold up nothing behind
// them. The reader collects the fragments; whoever the payload is for joins them, so that the
// reader does not copy all of it at one time.

const (
	// wholeSize is the largest payload, in bytes, that is sent in one message to a peer that has
	// fragments.
	wholeSize = 64 << 10
	// fragmentSize is the size of the fragments of a larger one. Two of them make a batch of 128
	// KiB, with what is around them.
	fragmentSize = wholeSize - 256
	// retainSize is the smallest fragment for which the whole frame that it came in is kept; a
	// smaller one is copied out of it.
	retainSize = fragmentSize / 2
)

// frame is the buffer that a websocket message was read into. It outlives its dispatch where
// fragments in it are kept. The last holder gives it back.
type frame struct {
	buf []byte
	// shared counts the holders, once there are any but the reader. It is made by the first, so
	// that a frame which nobody keeps costs nothing.
	shared *sharedFrame
}

type sharedFrame struct {
	buf  []byte
	refs atomic.Int32
}

// retain adds a holder. Only the reader calls it.
func (f *frame) retain() *sharedFrame {
	if f.shared == nil {
		f.shared = &sharedFrame{buf: f.buf}
		f.shared.refs.Store(1) // the reader's
	}
	f.shared.refs.Add(1)
	return f.shared
}

// release is the reader's end with the frame.
func (f *frame) release() {
	if f.shared != nil {
		f.shared.release()
	} else {
		bytepool.Put(f.buf)
	}
	*f = frame{}
}

func (f *sharedFrame) release() {
	if f.refs.Add(-1) == 0 {
		bytepool.Put(f.buf)
	}
}

// parcel is a message with a payload, or a fragment of one, as the reader hands it on: it points
// into the frame, and is of no use after its dispatch. Whoever the payload is for keeps it by
// addTo, under a lock of its own.
type parcel struct {
	*message
	*intake
}

// intake is what it takes to keep a payload: the reader's, and good for one frame.
type intake struct {
	frame   frame         // that is being dispatched
	now     time.Time     // when it had been read
	maxSize int           // of a whole payload; set once
	budget  *limit.Budget // that payloads are taken of; set once
}

// addTo keeps the payload. It returns it, or, where *parts has the fragments that came before, all
// of them; whole is false while more is to come. ErrOverloaded ends the call or stream that the
// parcel is for; any other error ends the session.
func (p parcel) addTo(parts **assembly) (payload arrived, whole bool, err error) {
	more := p.Flags&flagMore != 0
	before := 0
	if *parts != nil {
		before = (*parts).size
	}
	if len(p.Payload) > p.maxSize-before { // the sum might overflow
		return arrived{}, false, fmt.Errorf("%v for mux %d: %w", p.Op, p.MuxID, tooLargeError(before+len(p.Payload), p.maxSize))
	}
	if exceeded := p.budget.Grow(before, len(p.Payload), 0); exceeded != nil {
		return arrived{}, false, bytesError(exceeded)
	}
	if *parts == nil {
		if !more {
			return arrived{buf: p.own(), budget: p.budget}, true, nil
		}
		*parts = &assembly{budget: p.budget, began: p.now}
	}
	(*parts).add(p)
	if more {
		return arrived{}, false, nil
	}
	payload = arrived{parts: *parts, budget: p.budget}
	*parts = nil
	return payload, true, nil
}

// whole returns the payload of a parcel that is not in fragments.
func (p parcel) whole() (arrived, error) {
	var none *assembly
	payload, _, err := p.addTo(&none)
	return payload, err
}

// own copies the payload out of the frame.
func (p parcel) own() []byte {
	if len(p.Payload) == 0 {
		return p.Payload
	}
	return append(bytepool.Get(len(p.Payload)), p.Payload...)
}

// bytesError says that more would be kept than may be.
func bytesError(e *limit.Exceeded) error {
	if e.Pool > 0 {
		return overloadedf(e.Option, "%d bytes would be kept for this host, whose share of %s, %d, is now %d", e.Would, e.Option, e.Pool, e.Limit)
	}
	return overloadedf(e.Option, "%d bytes would be kept for this host, %s is %d", e.Would, e.Option, e.Limit)
}

// arrived is a payload on its way to the application: in one buffer of its own, or in pieces. The
// zero value is a nil payload. Whoever has it gives back, by join, claim or drop, what it takes of
// the host's budget.
type arrived struct {
	buf    []byte
	parts  *assembly
	budget *limit.Budget // that the payload was taken of; nil for none
	// decoded is what was taken besides its size.
	decoded int
}

// counts is how many bytes were taken of the budget.
func (a arrived) counts() int { return a.size() + a.decoded }

// decodes counts times its size more for the payload, for what it is decoded to, and so many bytes
// that are kept beside it. Alone that is never too much.
func (a *arrived) decodes(times, beside int) error {
	n := min(decodedSize(a.size(), times), math.MaxInt-a.size()-beside) + beside
	if exceeded := a.budget.Grow(a.size(), n, 0); exceeded != nil {
		return bytesError(exceeded)
	}
	a.decoded = n
	return nil
}

// decodedSize is times size, or where that is too much for an int beside size, as much as there can
// be.
func decodedSize(size, times int) int {
	return int(min(int64(size)*int64(times), int64(math.MaxInt-size)))
}

// size is the payload's length.
func (a arrived) size() int {
	if a.parts != nil {
		return a.parts.size
	}
	return len(a.buf)
}

// join returns the payload in one buffer, which is the caller's. It is called once.
func (a arrived) join() []byte {
	a.budget.Put(a.counts())
	if a.parts != nil {
		return a.parts.join()
	}
	return a.buf
}

// claim is join for a payload that goes on counting, until the charge is released.
func (a arrived) claim() ([]byte, limit.Charge) {
	c := limit.Charge{Budget: a.budget, Bytes: a.counts()}
	a.budget = nil
	return a.join(), c
}

// drop gives the payload's buffers back, in place of join.
func (a arrived) drop() {
	a.budget.Put(a.counts())
	if a.parts != nil {
		a.parts.drop()
	}
	bytepool.Put(a.buf)
}

// assembly collects the fragments of one payload.
type assembly struct {
	pieces []piece
	size   int
	began  time.Time
	budget *limit.Budget // what it is taken of, until it is complete
}

// piece is a fragment, in a frame or in a buffer of its own.
type piece struct {
	b     []byte
	frame *sharedFrame // nil: b is a buffer of bytepool
}

// add keeps a fragment: in its frame, if it makes up a good part of that. Else it is copied, to
// where the last one was copied while there is room: what an assembly takes must not depend on how
// its fragments come.
func (a *assembly) add(p parcel) {
	n := len(p.Payload)
	if n == 0 {
		return
	}
	a.size += n
	if n >= retainSize && n >= cap(p.frame.buf)/3 {
		a.pieces = append(a.pieces, piece{p.Payload, p.frame.retain()})
		return
	}
	if len(a.pieces) > 0 {
		last := &a.pieces[len(a.pieces)-1]
		if last.frame == nil && cap(last.b)-len(last.b) >= n {
			last.b = append(last.b, p.Payload...)
			return
		}
	}
	room := max(n, min(a.size, fragmentSize))
	a.pieces = append(a.pieces, piece{b: append(bytepool.Get(room), p.Payload...)})
}

func (a *assembly) join() []byte {
	b := bytepool.Get(a.size)
	for _, p := range a.pieces {
		b = append(b, p.b...)
	}
	a.drop()
	return b
}

func (a *assembly) drop() {
	for _, p := range a.pieces {
		if p.frame != nil {
			p.frame.release()
		} else {
			bytepool.Put(p.b)
		}
	}
	a.pieces, a.size = nil, 0
}

// abandon drops a payload that will not be completed.
func (a *assembly) abandon() {
	if a != nil {
		a.budget.Put(a.size)
		a.drop()
	}
}

// isLate reports whether a payload has been coming for longer than it may.
func (a *assembly) isLate(now time.Time, timeout time.Duration) bool {
	return a != nil && now.Sub(a.began) > timeout
}

func lateMessageError(timeout time.Duration) error {
	return protocolErrorf("a message was not complete within %v, which is MessageTimeout", timeout)
}
