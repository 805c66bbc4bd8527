package grid

import (
	"bytes"
	"fmt"
	"sync/atomic"
)

// fuzzFlow is one direction of a stream: what its sender was told to send, and how far both of its
// ends have come.
type fuzzFlow struct {
	s         *fuzzStream
	direction int
	sizes     []int
	asBytes   bool // one of its ends is a reader or a writer: messages may be taken apart

	sent   atomic.Int32 // how many of sizes its sender is done with, or has at hand
	unsent [maxFuzzSends]atomic.Bool

	// The receiver's: the message that is next, how much came of it, and how many came.
	next, offset, taken int
}

// maxFuzzSends is more than a program has room for.
const maxFuzzSends = 600

// text is message n.
func (f *fuzzFlow) text(n int) []byte {
	b := make([]byte, f.sizes[n])
	copy(b, fmt.Sprint(n, f.direction, f.s.i))
	if len(b) > 2 {
		b[len(b)-1] = byte(n)
	}
	return b
}

// skip goes on to the next message that was sent, in part at least.
func (f *fuzzFlow) skip() {
	for f.next < len(f.sizes) {
		isEmpty := f.sizes[f.next] == 0 && f.next < int(f.sent.Load()) // of which nothing comes
		if !f.unsent[f.next].Load() && !(f.asBytes && (isEmpty || f.offset > 0 && f.offset == f.sizes[f.next])) {
			return
		}
		f.next, f.offset = f.next+1, 0
	}
}

// arrive takes in what has come.
func (f *fuzzFlow) arrive(b []byte) {
	f.taken++
	if !f.asBytes {
		f.skip()
		if f.next >= len(f.sizes) || !bytes.Equal(b, f.text(f.next)) {
			f.s.r.t.Errorf("stream %d: message %d of direction %d is %.20q of %d bytes", f.s.i, f.next, f.direction, b, len(b))
		}
		f.next++
		return
	}
	for len(b) > 0 {
		f.skip()
		if f.next >= len(f.sizes) {
			f.s.r.t.Errorf("stream %d: %d bytes of direction %d that nobody has sent", f.s.i, len(b), f.direction)
			return
		}
		n := min(len(b), f.sizes[f.next]-f.offset)
		if !bytes.Equal(b[:n], f.text(f.next)[f.offset:f.offset+n]) {
			f.s.r.t.Errorf("stream %d: byte %d of message %d of direction %d is not its own", f.s.i, f.offset, f.next, f.direction)
		}
		f.offset += n
		b = b[n:]
	}
}

// came reports whether all has come that was sent of the first n messages.
func (f *fuzzFlow) came(n int) bool {
	f.skip()
	return f.next >= n
}

// isComplete reports whether all has come that was sent.
func (f *fuzzFlow) isComplete() bool { return f.came(int(f.sent.Load())) }

// countSent is how many messages were sent.
func (f *fuzzFlow) countSent() (n int) {
	for i := range f.sent.Load() {
		if !f.unsent[i].Load() {
			n++
		}
	}
	return n
}
