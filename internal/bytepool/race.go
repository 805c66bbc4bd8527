//go:build race

package bytepool

import (
	"crypto/rand"
	"sync"
	"unsafe"
)

// Strict reports whether the pool checks its users. It does under the race detector only.
const Strict = true

const (
	// poison fills what is put back, in blocks. As a constant it lies where the race detector does
	// not look, so that only buffers cost its time.
	poison    = poison256 + poison256 + poison256 + poison256 + poison256 + poison256 + poison256 + poison256
	poison256 = poison32 + poison32 + poison32 + poison32 + poison32 + poison32 + poison32 + poison32
	poison32  = "\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb"

	// keep bounds the free buffers of a class. Older ones leave the pool for the garbage collector,
	// those above 256 KiB at once.
	keep = 64

	shardBits = 8
)

// gone begins a buffer that has left the pool, so that another put of it is seen without keeping
// it. Nobody else knows it, nor sends it.
var gone = rand.Text()

// Whatever two goroutines synchronize on hides their races from the detector. So there is no lock
// or counter for all: what is free is in channels, which order only those who use the same place in
// them, and the rest is in many shards.
var (
	free   [smallClasses]chan []byte // oldest first, so that a late write is caught
	shards [1 << shardBits]struct {
		sync.Mutex
		taken map[*byte]bool // true: in use, false: free
		out   int            // how many are in use
	}
)

func init() {
	for i := range free {
		free[i] = make(chan []byte, keep)
	}
	for i := range shards {
		shards[i].taken = make(map[*byte]bool)
	}
}

func get(class int) []byte {
	var b []byte
	if class < smallClasses {
		select {
		case b = <-free[class]:
			if !poisoned(b) {
				forget(b)
				panicWritten()
			}
		default:
		}
	}
	if b == nil {
		b = make([]byte, classSize(class))
	}
	p := unsafe.SliceData(b)
	s := &shards[shardOf(p)]
	s.Lock()
	defer s.Unlock()
	s.taken[p] = true
	s.out++
	return b[:0]
}

func put(class int, b []byte) {
	size := classSize(class)
	b = b[:size:size]
	takeBack(b)
	if string(b[:len(gone)]) == gone {
		forget(b)
		panicTwice()
	}
	for rest := b; len(rest) > 0; {
		rest = rest[copy(rest, poison):]
	}
	if class >= smallClasses {
		leave(b)
		return
	}
	for written := false; ; {
		select {
		case free[class] <- b:
			if written {
				panicWritten()
			}
			return
		default:
		}
		select {
		case old := <-free[class]:
			written = written || !poisoned(old)
			leave(old)
		default: // somebody else has made room
		}
	}
}

// takeBack makes b free. Of two who put it back at the same time one panics.
func takeBack(b []byte) {
	p := unsafe.SliceData(b)
	s := &shards[shardOf(p)]
	s.Lock()
	defer s.Unlock()
	taken, known := s.taken[p]
	if known && !taken {
		panicTwice()
	}
	if taken {
		s.out--
	}
	s.taken[p] = false
}

// leave marks b, which is free, as gone and forgets it.
func leave(b []byte) {
	copy(b, gone)
	forget(b)
}

func forget(b []byte) {
	p := unsafe.SliceData(b)
	s := &shards[shardOf(p)]
	s.Lock()
	defer s.Unlock()
	delete(s.taken, p)
}

func poisoned(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(poison))
		if string(b[:n]) != poison[:n] {
			return false
		}
		b = b[n:]
	}
	return true
}

func shardOf(p *byte) uint32 {
	return uint32(uintptr(unsafe.Pointer(p))>>minBits) * 0x9E3779B1 >> (32 - shardBits)
}

func panicTwice()   { panic("bytepool: buffer put back twice") }
func panicWritten() { panic("bytepool: buffer written to after it was put back") }

// Out is the number of buffers that were taken and not put back. It is counted only where [Strict]
// is true. Buffers above [MaxCap] are not counted.
func Out() int {
	out := 0
	for i := range shards {
		s := &shards[i]
		s.Lock()
		defer s.Unlock() // of all at the end, as buffers come and go
		out += s.out
	}
	return out
}
