package grid

import (
	"fmt"
	"math"
	"time"
)

// What the two sides of a link tell each other of their options in the handshake, so that options
// that differ cost a message, and not the link or a stream (section 3).

// told is what a host has told of its options. What is 0 it has not told: a peer of version 1 tells
// nothing.
type told struct {
	maxSize      uint64 // MaxMessageSize
	streamPingMS uint64 // StreamPingInterval
	maxPings     uint64 // MaxPings
}

// tell is what this side tells of its options.
func (o *ManagerOptions) tell() told {
	return told{uint64(o.MaxMessageSize), uint64(o.StreamPingInterval.Milliseconds()), uint64(o.MaxPings)}
}

// terms are what holds for a session, given what both sides have told.
type terms struct {
	sendSize   sizeLimit     // of what is sent; what is received goes by MaxMessageSize
	streamPing time.Duration // in place of StreamPingInterval
	pings      int           // how many may be sent in a second
}

// termsWith is what o and what the host peer has told come to.
func (o *ManagerOptions) termsWith(peer string, t told) terms {
	a := terms{sizeLimit{bytes: o.MaxMessageSize}, o.StreamPingInterval, math.MaxInt}
	if t.maxSize != 0 && t.maxSize < uint64(o.MaxMessageSize) {
		a.sendSize = sizeLimit{int(t.maxSize), peer}
	}
	if t.streamPingMS != 0 {
		told := time.Duration(min(t.streamPingMS, uint64(maxInterval.Milliseconds()))) * time.Millisecond
		a.streamPing = commonInterval(o.StreamPingInterval, told)
	}
	if t.maxPings != 0 {
		a.pings = int(max(min(t.maxPings, math.MaxInt32), minMaxPings))
	}
	return a
}

// leastImposed is the least interval that one host can impose on the other: so none has the other
// ping without end.
const leastImposed = time.Second

// commonInterval is the lesser of two intervals, but not below leastImposed where one of them is
// not. It is the same on both sides.
func commonInterval(a, b time.Duration) time.Duration {
	lesser, greater := min(a, b), max(a, b)
	return max(lesser, min(greater, leastImposed))
}

// sizeLimit is the largest payload that may be sent.
type sizeLimit struct {
	bytes int
	host  string // whose limit it is; empty for that of this side
}

// check returns ErrMessageTooLarge for a payload of more bytes.
func (l sizeLimit) check(size int) error {
	switch {
	case size <= l.bytes:
		return nil
	case l.host == "":
		return tooLargeError(size, l.bytes)
	}
	return fmt.Errorf("%w: payload of %d bytes, MaxMessageSize of %s is %d bytes", ErrMessageTooLarge, size, l.host, l.bytes)
}

// of is l for an error that goes to another host, where the limit of this side has to be named too.
func (l sizeLimit) of(local string) sizeLimit {
	if l.host == "" {
		l.host = local
	}
	return l
}
