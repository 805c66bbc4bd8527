package grid

import (
	"fmt"
	"unsafe"
)

const (
	// memoryFactor and memoryExtra bound what an Array may take in memory: so many times the bytes
	// that it is decoded from, and so many bytes more. Only maps and arrays of a few bytes take
	// that much: a map of one entry 352 or more, however short it is, and nothing that is a Go map
	// takes less. With the second number 750 of them pass, so that most arrays of such are taken.
	memoryFactor = 32
	memoryExtra  = 256 << 10
)

// allowance is what an Array may still take in memory, with all that is in it, also in arrays in
// it. What the elements take is known of the types of this package; of others nothing is counted.
type allowance struct {
	bytes   int64
	payload int // the bytes that all of it is decoded from
}

func allowanceFor(payload []byte) *allowance {
	return &allowance{int64(len(payload))*memoryFactor + memoryExtra, len(payload)}
}

// take takes n bytes. It returns an error if there are not so many.
func (a *allowance) take(n int) error {
	a.bytes -= int64(n)
	if a.bytes < 0 {
		return fmt.Errorf("takes more than %d times the %d bytes of the payload, and %d KiB", memoryFactor, a.payload, memoryExtra>>10)
	}
	return nil
}

// arrayElement is a payload type of this package as an element of an Array.
type arrayElement interface {
	// unmarshalElement is UnmarshalMsg that takes the memory which it needs from left, and nothing
	// from pools that is much larger.
	unmarshalElement(b []byte, left *allowance) ([]byte, error)
}

// sizeOf is what a T takes where it lies.
func sizeOf[T any]() int {
	var v T
	return int(unsafe.Sizeof(v))
}

// sizeOfNew is what a T takes by itself, in the smallest classes of sizes.
func sizeOfNew[T any]() int { return (sizeOf[T]() + 7) &^ 7 }

// memoryHolder is a payload type of this package that knows what it takes in memory, without what
// its texts take.
type memoryHolder interface{ heldBytes() int }

// heldBytes is what v takes in memory, decoded from a payload of n bytes: about, and 0 if that is
// not known.
func heldBytes(v any, n int) int {
	h, ok := v.(memoryHolder)
	if _, isBytes := v.(*Bytes); !ok || isBytes { // no more than was sent
		return 0
	}
	return h.heldBytes() + 2*n // the texts take their bytes, rounded up to what memory comes in
}

func (m *MSS) heldBytes() int {
	if m == nil {
		return 0
	}
	return sizeOfNew[MSS]() + sizeOfMap(*m)
}

func (u *URLValues) heldBytes() int {
	if u == nil {
		return 0
	}
	n := sizeOfNew[URLValues]() + sizeOfMap(*u)
	for _, list := range *u {
		n += cap(list) * sizeOf[string]()
	}
	return n
}

func (b *Bytes) heldBytes() int {
	if b == nil {
		return 0
	}
	return sizeOfNew[Bytes]() + cap(*b)
}

func (a *Array[T]) heldBytes() int {
	if a == nil {
		return 0
	}
	n := sizeOfNew[Array[T]]() + cap(a.list)*sizeOf[T]()
	for _, v := range a.list {
		if h, ok := any(v).(memoryHolder); ok {
			n += h.heldBytes()
		}
	}
	return n
}
