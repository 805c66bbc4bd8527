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
// Decoding refuses what would take more memory than 32 times the payload, and 256 KiB. Elements are
// counted as far as this package knows their types: of a [JSON], or of one with generated code, the
// pointer to it. Maps of a few letters and empty arrays alone can take so much: an MSS of one entry
// takes 352 bytes, be it of 3 bytes on the wire, an empty one 64. Never refused are 750 of them,
// MSS of 12 bytes or more each, on average, and Bytes.
//
// Make it with [ArrayOf]; the zero value encodes, but cannot be decoded into. Reading and encoding
// may go on concurrently, nothing else may.
type Array[T RoundTripper] struct {
	of *ArrayOf[T]
	// list is the value. One that is empty and has a capacity is none, but what to fill next: an
	// empty value has no capacity. As an element of another array it is small that way.
	list []T
}

// Append adds v to the array, which takes over each element, and returns a.
func (a *Array[T]) Append(v ...T) *Array[T] {
	a.list = append(a.list, v...)
	return a
}

// Set replaces the value by val, which may be nil. It takes over val and its elements, see
// [Array.Recycle], each of which must be in it only once. What was in the array before is dropped
// and not recycled.
func (a *Array[T]) Set(val []T) {
	// What lies between the length and the capacity stays the caller's.
	a.list = slices.Clip(val)
}

// Value returns the slice, nil if there is none. It and the elements stay the array's: neither is
// valid after Recycle, nor the slice after UnmarshalMsg.
func (a *Array[T]) Value() []T {
	if a == nil || len(a.list) == 0 && cap(a.list) > 0 {
		return nil
	}
	return a.list
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
	return a.unmarshalElement(b, allowanceFor(b))
}

func (a *Array[T]) unmarshalElement(b []byte, left *allowance) ([]byte, error) {
	a.reset()
	o, err := a.unmarshal(b, left)
	if err != nil {
		return b, fmt.Errorf("grid: decoding Array: %w", err)
	}
	return o, nil
}

// unmarshal is [Array.UnmarshalMsg] of an array without a value.
func (a *Array[T]) unmarshal(b []byte, left *allowance) ([]byte, error) {
	list := a.list
	a.list = nil
	if err := left.take(sizeOfNew[Array[T]]()); err != nil {
		return b, err
	}
	if msgp.IsNil(b) {
		return b[1:], nil
	}
	if a.of == nil {
		return b, fmt.Errorf("%T was not made by ArrayOf", a)
	}
	n, o, err := msgp.ReadArrayHeaderBytes(b)
	if err == nil {
		err = checkCount(n, 1, o)
	}
	if err != nil {
		return b, err
	}
	if uint64(cap(list)) > 2*uint64(n) {
		list = nil // what is kept of a large array is not for a small one
	}
	for i := range n {
		v := a.of.newFn()
		list = append(extend(list, int(n)), v)
		if o, err = unmarshalElement(v, o, left); err != nil {
			// Nobody has seen these elements.
			recycleAll(list)
			return b, fmt.Errorf("element %d of %d: %w", i, n, err)
		}
	}
	if err := left.take((cap(list) - len(list)) * sizeOf[T]()); err != nil {
		recycleAll(list)
		return b, err
	}
	if n == 0 {
		list = []T{}
	}
	a.list = list
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
	recycleAll(a.list)
	a.reset()
	if a.of != nil {
		a.of.pool.Put(a)
	}
}

// reset takes the value out of a, keeping its memory unless that is large.
func (a *Array[T]) reset() {
	if c := cap(a.list); c == 0 || c > maxKept {
		a.list = nil
		return
	}
	clear(a.list)
	a.list = a.list[:0]
}

// recycleAll recycles those elements that can be.
func recycleAll[T any](list []T) {
	for _, v := range list {
		if r, ok := any(v).(Recycler); ok {
			r.Recycle()
		}
	}
}

// unmarshalElement decodes v from what b starts with, and returns the rest of b.
func unmarshalElement[T RoundTripper](v T, b []byte, left *allowance) ([]byte, error) {
	if err := left.take(sizeOf[T]()); err != nil {
		return b, err
	}
	if e, ok := any(v).(arrayElement); ok {
		return e.unmarshalElement(b, left)
	}
	return v.UnmarshalMsg(b)
}
