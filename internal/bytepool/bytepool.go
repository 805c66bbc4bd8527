// Package bytepool is a pool of byte buffers in size classes.
//
// Up to 256 KiB buffers come in powers of two, above that in steps of a quarter of one, up to
// [MaxCap]. Larger ones are allocated on demand and never kept. What is not used any more the
// garbage collector takes away, so that one huge message does not stay on the heap.
//
// Built with the race detector the pool is a strict one: it poisons what is put back, panics on a
// double put and on a write after a put, and counts what is out (see race.go).
package bytepool

import "math/bits"

const (
	minBits   = 7
	smallBits = 18 // above this, a class for each quarter
	maxBits   = 25

	// MinCap is the capacity of the smallest class in bytes. Smaller buffers that are put back are
	// dropped.
	MinCap = 1 << minBits
	// MaxCap is the capacity of the largest class in bytes.
	MaxCap = 1 << maxBits

	smallClasses = smallBits - minBits + 1
	classes      = smallClasses + 4*(maxBits-smallBits)
)

// Get returns a buffer of length 0 and a capacity of at least n bytes. The contents of its spare
// capacity are undefined. The caller owns it until it calls [Put], which it may leave out.
func Get(n int) []byte {
	if n > MaxCap {
		return make([]byte, 0, n)
	}
	return get(classFor(n))
}

// Put gives b back, whatever its length. The caller must not touch b, or any slice of the same
// array, afterwards. b need not stem from [Get]; one that is too small or too large for the pool is
// dropped.
func Put(b []byte) {
	c := cap(b)
	if c < MinCap || c >= 2*MaxCap {
		return
	}
	// The largest class that b can serve.
	class := classFor(min(c, MaxCap))
	if classSize(class) > c {
		class--
	}
	put(class, b)
}

// Grow returns a buffer with the contents of b and room for at least n more bytes, putting b back
// if it had to be replaced.
func Grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	grown := append(Get(max(len(b)+n, 2*cap(b))), b...)
	Put(b)
	return grown
}

// classFor is the index of the smallest class that holds n bytes.
func classFor(n int) int {
	if n <= MinCap {
		return 0
	}
	e := bits.Len(uint(n - 1)) // n is at most 1<<e, and more than half of that
	if e <= smallBits {
		return e - minBits
	}
	quarter := (n - 1 - 1<<(e-1)) >> (e - 3) // 0 to 3
	return smallClasses + 4*(e-1-smallBits) + quarter
}

// classSize is the capacity of a class.
func classSize(class int) int {
	if class < smallClasses {
		return MinCap << class
	}
	class -= smallClasses
	return (5 + class%4) << (smallBits - 2 + class/4)
}
