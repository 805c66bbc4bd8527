package faultconn

import (
	"bytes"
	"sync"
	"time"
)

// faults are those of one direction of a link.
type faults struct {
	silent  bool          // nothing arrives, nor that the sender has closed
	rate    int           // bytes per second that arrive, 0 for no limit
	delay   time.Duration // until what is sent arrives
	corrupt Corruption
}

// flow is one direction of a pipe: what an end has been sent and has not read. The pipe's lock
// guards it.
type flow struct {
	faults
	flips   flipper
	buf     bytes.Buffer
	arrived int       // bytes at the front of buf that have arrived
	parcels []parcel  // the rest of it, in order
	free    time.Time // when the rate lets the next piece go
	wake    deadline  // wakes the reader for whichever of them is next
}

// parcel is bytes that are on their way.
type parcel struct {
	size int
	at   time.Time // when they arrive
}

// send puts b on its way. There must be room for it.
func (f *flow) send(b []byte) {
	f.buf.Write(b)
	all := f.buf.Bytes()
	f.flips.flip(all[len(all)-len(b):])
	at := f.arrival()
	switch last := len(f.parcels) - 1; {
	case at.IsZero():
		f.arrived += len(b)
	case last >= 0 && f.parcels[last].at.Equal(at):
		f.parcels[last].size += len(b)
	default:
		f.parcels = append(f.parcels, parcel{len(b), at})
	}
}

// arrival is when something arrives that is sent now, never before what was sent earlier; zero if
// at once.
func (f *flow) arrival() time.Time {
	if f.delay == 0 && len(f.parcels) == 0 {
		return time.Time{}
	}
	at := time.Now().Add(f.delay)
	if n := len(f.parcels); n > 0 && f.parcels[n-1].at.After(at) {
		at = f.parcels[n-1].at
	}
	return at
}

// last is arrival for what nothing follows: it is never zero.
func (f *flow) last() time.Time {
	if at := f.arrival(); !at.IsZero() {
		return at
	}
	return time.Now()
}

// readable is how many bytes may be read now. If there are none, c is woken when that changes by
// time alone.
func (f *flow) readable(c *sync.Cond) int {
	if f.silent {
		return 0
	}
	for {
		f.arrive()
		var at time.Time
		switch {
		case f.arrived == 0 && len(f.parcels) == 0:
			return 0
		case f.arrived == 0:
			at = f.parcels[0].at
		case f.rate == 0:
			return f.arrived
		case time.Now().Before(f.free):
			at = f.free
		default:
			return min(f.arrived, max(1, f.rate/100))
		}
		if f.wake.set(c, at); !f.wake.passed {
			return 0
		}
	}
}

// arrive takes in the parcels whose time has come.
func (f *flow) arrive() {
	for len(f.parcels) > 0 && time.Until(f.parcels[0].at) <= 0 {
		f.arrived += f.parcels[0].size
		f.parcels = f.parcels[1:]
	}
}

// read reads what readable has allowed.
func (f *flow) read(b []byte) int {
	n, _ := f.buf.Read(b) // fails only when empty
	f.arrived -= n
	if f.rate > 0 {
		f.free = time.Now().Add(time.Duration(n) * time.Second / time.Duration(f.rate))
	}
	return n
}

// drop forgets what was not read; nobody will.
func (f *flow) drop() {
	f.buf, f.arrived, f.parcels = bytes.Buffer{}, 0, nil
	f.wake.stop()
}
