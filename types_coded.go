package grid

import (
	"errors"
	"fmt"
	"sync"

	"github.com/tinylib/msgp/msgp"
)

// Codec makes payloads of type [Coded] for one T, and reuses those that were recycled. It may be
// used concurrently and must not be copied.
type Codec[T any] struct {
	// Set once.
	marshal   func(v *T) ([]byte, error)
	unmarshal func(v *T, b []byte) error

	pool sync.Pool
}

// CodecOf returns a Codec by which any T goes through typed handlers, in the encoding of two
// functions: that of protobuf, gob, or whatever the T comes with. One for each T, in a package level
// variable, is what most programs need.
//
//	var moments = grid.CodecOf((*time.Time).MarshalBinary, (*time.Time).UnmarshalBinary)
//	var at = grid.NewSingleHandler(1, moments.New, moments.New)
//
// marshal returns v as bytes, which are copied, and may be nil. unmarshal is given a new T to fill,
// and must not keep b. It has to bear whatever a peer sends, and bounds what that takes in memory,
// which counts as four times the bytes. Both may be called concurrently; an error or a panic of
// theirs is that of the call, or of the stream. CodecOf panics if one of them is nil.
func CodecOf[T any](marshal func(v *T) ([]byte, error), unmarshal func(v *T, b []byte) error) *Codec[T] {
	if marshal == nil || unmarshal == nil {
		panic("grid: CodecOf: a function is nil")
	}
	return &Codec[T]{marshal: marshal, unmarshal: unmarshal}
}

// New returns a Coded without a value. The caller owns it; [Coded.Recycle] is optional.
func (c *Codec[T]) New() *Coded[T] {
	p, _ := c.pool.Get().(*Coded[T])
	if p == nil {
		p = &Coded[T]{codec: c}
	}
	return p
}

// NewWith returns a Coded of v, which may be nil. v stays the caller's, who must not change it
// before it is encoded.
func (c *Codec[T]) NewWith(v *T) *Coded[T] {
	p := c.New()
	p.value = v
	return p
}

// Coded is a *T as a payload, in the encoding of a [Codec]. On the wire it is a MessagePack bin of
// that, or nil where there is no value, which is kept apart from a value in no bytes.
//
// Make it with a Codec; the zero value has none, and only encodes as no value. Reading and encoding
// may go on concurrently, nothing else may.
type Coded[T any] struct {
	codec *Codec[T]
	value *T
}

// Value returns the value, nil if there is none. Each decoding makes a new one, so the result stays
// valid when c is decoded again or recycled.
func (c *Coded[T]) Value() *T {
	if c == nil {
		return nil
	}
	return c.value
}

// Set replaces the value by v, which may be nil. v stays the caller's, who must not change it before
// it is encoded.
func (c *Coded[T]) Set(v *T) { c.value = v }

var errNoCodec = errors.New("grid: Coded that no Codec has made")

// MarshalMsg appends c to b and returns the result; it keeps neither. The error is that of the
// Codec, wrapped.
func (c *Coded[T]) MarshalMsg(b []byte) ([]byte, error) {
	v := c.Value()
	switch {
	case v == nil:
		return msgp.AppendNil(b), nil
	case c.codec == nil:
		return b, errNoCodec
	}
	text, err := c.codec.marshal(v)
	if err != nil {
		return b, fmt.Errorf("grid: encoding Coded of %T: %w", v, err)
	}
	return msgp.AppendBytes(b, text), nil
}

// UnmarshalMsg replaces the value by a new one from what b starts with, and returns the rest of b.
// After an error c has no value.
func (c *Coded[T]) UnmarshalMsg(b []byte) ([]byte, error) {
	c.value = nil
	if msgp.IsNil(b) {
		return b[1:], nil
	}
	if c.codec == nil {
		return b, errNoCodec
	}
	text, o, err := readBin(b)
	if err != nil {
		return b, fmt.Errorf("grid: decoding Coded: %w", err)
	}
	v := new(T)
	// Not beyond its end: what follows is another's.
	if err := c.codec.unmarshal(v, text[:len(text):len(text)]); err != nil {
		return b, fmt.Errorf("grid: decoding Coded of %T: %w", v, err)
	}
	c.value = v
	return o, nil
}

// Msgsize is a guess, because the true number is known only when c has been encoded.
func (c *Coded[T]) Msgsize() int {
	if c.Value() == nil {
		return msgp.NilSize
	}
	return msgp.BytesPrefixSize + codedSizeGuess
}

// codedSizeGuess is the number of bytes that [Coded.Msgsize] expects of a value.
const codedSizeGuess = 512

// Recycle ends the life of c, not that of its value. Recycling nil does nothing.
func (c *Coded[T]) Recycle() {
	if c == nil {
		return
	}
	c.value = nil
	if c.codec != nil {
		c.codec.pool.Put(c)
	}
}
