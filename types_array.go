package grid

import (
	"fmt"
	"slices"
	"sync"

	"github.com/tinylib/msgp/msgp"
)

// ArrayOf makes payloads of type [Array] for one T, and reuses those that were recycled. It may be
// used concurrently and must not be copied.
type ArrayOf[T RoundTripper] struct {
	newFn func() T
	pool  sync.Pool
}

// NewArrayOf returns a maker of arrays of T. newFn makes an element to decode into, for T a pointer
// one that is not nil; it may be called concurrently. NewArrayOf panics if newFn is nil.
func NewArrayOf[T RoundTripper](newFn func() T) *ArrayOf[T] {
	if newFn == nil {
		panic("grid: NewArrayOf: newFn is nil")
	}
	return &ArrayOf[T]{newFn: newFn}
}

// New returns an Array without a value. The caller owns it; [Array.Recycle] is optional.
func (p *ArrayOf[T]) New() *Array[T] {
	a, _ := p.pool.Get().(*Array[T])
	if a == nil {
		a = &Array[T]{of: p}
	}
	return a
}

// NewWith returns an Array of val, as [Array.Set] does.
func (p *ArrayOf[T]) NewWith(val []T) *Array[T] {
	a := p.New()
	a.Set(val)
	return a
}

// Array is a []T as a payload. Array without a value (nil) and an empty one are kept apart on the
// wire. T must encode to at least one byte, so NoPayload will not do, and an element must be
// something that T can encode: a nil pointer is fine for the types of this package, and panics with
// generated code.
//
// Make it with [ArrayOf]; the zero value encodes, but cannot be decoded into. Reading and encoding
// may go on concurrently, nothing else may.
type Array[T RoundTripper] struct {
	of  *ArrayOf[T]
	val []T
	// spare is an empty slice to fill next, nil while val uses it.
	spare []T
}

// Append adds v to the array, which takes over each element, and returns a.
func (a *Array[T]) Append(v ...T) *Array[T] {
	if a.val == nil && len(v) > 0 {
		a.val, a.spare = a.spare, nil
	}
	a.val = append(a.val, v...)
	return a
}

// Set replaces the value by val, which may be nil. It takes over val and its elements, see
// [Array.Recycle], each of which must be in it only once. What was in the array before is dropped
// and not recycled.
func (a *Array[T]) Set(val []T) {
	// What lies between the length and the capacity stays the caller's.
	a.val = slices.Clip(val)
}

// Value returns the slice, nil if there is none. It and the elements stay the array's: neither is
// valid after Recycle, nor the slice after UnmarshalMsg.
func (a *Array[T]) Value() []T {
	if a == nil {
		return nil
	}
	return a.val
}

// MarshalMsg appends a to b and returns the result; it keeps neither. The error is that of an
// element, wrapped.
func (a *Array[T]) MarshalMsg(b []byte) ([]byte, error) {
	val := a.Value()
	if val == nil {
		return msgp.AppendNil(b), nil
	}
	o := msgp.Require(b, a.Msgsize())
	o = msgp.AppendArrayHeader(o, uint32(len(val)))
	for i, v := range val {
		var err error
		if o, err = v.MarshalMsg(o); err != nil {
			return b, fmt.Errorf("grid: encoding Array: element %d of %d: %w", i, len(val), err)
		}
	}
	return o, nil
}

// UnmarshalMsg replaces the value by new elements from what b starts with, and returns the rest of
// b. Elements that were there before are dropped and not recycled. After an error a has no value.
func (a *Array[T]) UnmarshalMsg(b []byte) ([]byte, error) {
	a.reset()
	if msgp.IsNil(b) {
		return b[1:], nil
	}
	if a.of == nil {
		return b, fmt.Errorf("grid: decoding Array: %T was not made by ArrayOf", a)
	}
	n, o, err := msgp.ReadArrayHeaderBytes(b)
	if err == nil {
		err = checkCount(n, 1, o)
	}
	if err != nil {
		return b, fmt.Errorf("grid: decoding Array: %w", err)
	}
	val := a.spare
	a.spare = nil
	if val == nil {
		val = make([]T, 0, min(n, maxReserved))
	}
	for i := range n {
		v := a.of.newFn()
		val = append(val, v)
		if o, err = v.UnmarshalMsg(o); err != nil {
			// Nobody has seen these elements.
			recycleAll(val)
			return b, fmt.Errorf("grid: decoding Array: element %d of %d: %w", i, n, err)
		}
	}
	a.val = val
	return o, nil
}

// Msgsize is the largest number of bytes that a encodes to, provided that the elements know theirs.
func (a *Array[T]) Msgsize() int {
	val := a.Value()
	if val == nil {
		return msgp.NilSize
	}
	n := msgp.ArrayHeaderSize
	for _, v := range val {
		n += v.Msgsize()
	}
	return n
}

// Recycle ends the life of a, of its slice, which is cleared, and of those elements that are a
// [Recycler]. Other elements stay valid. Recycling nil does nothing.
func (a *Array[T]) Recycle() {
	if a == nil {
		return
	}
	recycleAll(a.val)
	a.reset()
	if a.of != nil {
		a.of.pool.Put(a)
	}
}

// reset takes the value out of a, keeping its memory unless that is large.
func (a *Array[T]) reset() {
	if a.val != nil && cap(a.val) <= maxKept {
		clear(a.val)
		a.spare = a.val[:0]
	}
	a.val = nil
}

// recycleAll recycles those elements that can be.
func recycleAll[T any](list []T) {
	for _, v := range list {
		if r, ok := any(v).(Recycler); ok {
			r.Recycle()
		}
	}
}
