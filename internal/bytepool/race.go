//go:build race

package bytepool

import (
	"sync"
	"unsafe"
)

// Strict reports whether the pool checks its users. It does under the race
// detector only.
const Strict = true

const (
	poison = 0xDB
	// keep bounds the free buffers of a class; older ones leave the pool, and
	// with it the check, for the garbage collector. Those above 256 KiB leave it
	// at once.
	keep = 64
)

var strict struct {
	sync.Mutex
	free [classes][][]byte // oldest first, so that a late write is caught
	idle map[*byte]bool    // what is in free
	out  map[*byte]bool    // what was taken and not put back
}

func get(class int) []byte {
	s := &strict
	s.Lock()
	defer s.Unlock()
	size := classSize(class)
	var b []byte
	if q := s.free[class]; len(q) > 0 {
		b, s.free[class] = q[0], q[1:]
		delete(s.idle, unsafe.SliceData(b))
		for _, c := range b {
			if c != poison {
				panic("bytepool: buffer written to after it was put back")
			}
		}
		b = b[:0]
	} else {
		b = make([]byte, 0, size)
	}
	if s.out == nil {
		s.out = make(map[*byte]bool)
	}
	s.out[unsafe.SliceData(b)] = true
	return b
}

func put(class int, b []byte) {
	s := &strict
	s.Lock()
	defer s.Unlock()
	b = b[:classSize(class)]
	p := unsafe.SliceData(b)
	if s.idle[p] {
		panic("bytepool: buffer put back twice")
	}
	delete(s.out, p)
	for i := range b {
		b[i] = poison
	}
	if s.idle == nil {
		s.idle = make(map[*byte]bool)
	}
	if class >= smallClasses {
		return
	}
	if q := s.free[class]; len(q) == keep {
		delete(s.idle, unsafe.SliceData(q[0]))
		s.free[class] = q[1:]
	}
	s.idle[p] = true
	s.free[class] = append(s.free[class], b)
}

// Out is the number of buffers that were taken and not put back. It is counted
// only where [Strict] is true. Buffers above [MaxCap] are not counted.
func Out() int {
	strict.Lock()
	defer strict.Unlock()
	return len(strict.out)
}
