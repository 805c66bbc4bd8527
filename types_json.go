package grid

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/tinylib/msgp/msgp"
)

// jsonSizeGuess is the number of bytes that [JSON.Msgsize] expects of a value.
const jsonSizeGuess = 512

// JSONPool makes payloads of type [JSON] for one T, and reuses those that were recycled. It may be
// used concurrently and must not be copied.
type JSONPool[T any] struct {
	pool sync.Pool
}

// NewJSONPool returns a pool of JSON payloads of T. One for each T, in a package level variable, is
// what most programs need.
func NewJSONPool[T any]() *JSONPool[T] { return new(JSONPool[T]) }

// NewJSON returns a JSON without a value. The caller owns it; [JSON.Recycle] is optional.
func (p *JSONPool[T]) NewJSON() *JSON[T] {
	j, _ := p.pool.Get().(*JSON[T])
	if j == nil {
		j = &JSON[T]{pool: p}
	}
	return j
}

// NewJSONWith returns a JSON of v, which may be nil. v stays the caller's, who must not change it
// before it is encoded.
func (p *JSONPool[T]) NewJSONWith(v *T) *JSON[T] {
	j := p.NewJSON()
	j.value = v
	return j
}

// JSON is any type that encoding/json knows as a payload, in the form that a [json.Encoder] gives
// it. JSON without a value (nil) is kept apart from JSON of a value. It is convenient rather than
// fast: types with generated msgp code take a fraction of the time and of the space.
//
// How much memory a peer can make of a text is up to T, and not bounded: {} and a comma become an
// element of a slice, with its zero fields and the room in which the slice grows, {"":""} becomes a
// map of 336 bytes. A []struct of 32 bytes takes 13 to 21 times its text, one of 128 bytes 53 to 85
// times, a []map[string]string 45 times, any 67 times. So does generated code, which reads an
// element from a single byte: a []struct takes as many times its payload as an element has bytes, a
// []map[string]string 115 times. What bounds it: ManagerOptions.MaxMessageSize and MaxHandlers, a
// //msgp:limit above types with generated code, a [json.RawMessage] for what need not be looked at,
// and an UnmarshalJSON that looks at its text before it makes room.
//
// Make it with a [JSONPool]; the zero value works and is not recycled. Reading and encoding may go
// on concurrently, nothing else may.
type JSON[T any] struct {
	pool  *JSONPool[T]
	value *T
}

// Value returns the value, nil if there is none. Each decoding makes a new one, so the result stays
// valid when j is decoded again or recycled.
func (j *JSON[T]) Value() *T {
	if j == nil {
		return nil
	}
	return j.value
}

// ValueOrZero returns a copy of the value, or the zero value of T if there is none.
func (j *JSON[T]) ValueOrZero() T {
	if v := j.Value(); v != nil {
		return *v
	}
	var zero T
	return zero
}

// Set replaces the value by v, which may be nil. v stays the caller's, who must not change it
// before it is encoded.
func (j *JSON[T]) Set(v *T) { j.value = v }

// MarshalMsg appends j to b and returns the result; it keeps neither. The error is that of
// encoding/json, wrapped.
func (j *JSON[T]) MarshalMsg(b []byte) ([]byte, error) {
	v := j.Value()
	if v == nil {
		return msgp.AppendNil(b), nil
	}
	w := bufferWriter{GetByteBufferCap(jsonSizeGuess)}
	defer w.release()
	if err := json.NewEncoder(&w).Encode(v); err != nil {
		return b, fmt.Errorf("grid: encoding JSON of %T: %w", v, err)
	}
	return msgp.AppendBytes(b, w.b), nil
}

// UnmarshalMsg replaces the value by a new one from what b starts with, and returns the rest of b.
// It copies what it keeps. Anything but a single JSON value is an error, after which j has no
// value.
func (j *JSON[T]) UnmarshalMsg(b []byte) ([]byte, error) {
	j.value = nil
	if msgp.IsNil(b) {
		return b[1:], nil
	}
	text, o, err := readBin(b)
	if err != nil {
		return b, fmt.Errorf("grid: decoding JSON: %w", err)
	}
	v := new(T)
	if err := json.Unmarshal(text, v); err != nil {
		return b, fmt.Errorf("grid: decoding JSON of %T: %w", v, err)
	}
	j.value = v
	return o, nil
}

// Msgsize is a guess, because the true number is known only when j has been encoded.
func (j *JSON[T]) Msgsize() int {
	if j.Value() == nil {
		return msgp.NilSize
	}
	return msgp.BytesPrefixSize + jsonSizeGuess
}

// Recycle ends the life of j, not that of its value. Recycling nil does nothing.
func (j *JSON[T]) Recycle() {
	if j == nil {
		return
	}
	j.value = nil
	if j.pool != nil {
		j.pool.pool.Put(j)
	}
}

// bufferWriter appends to a buffer of the byte pool.
type bufferWriter struct{ b []byte }

func (w *bufferWriter) Write(p []byte) (int, error) {
	w.b = append(bytepool.Grow(w.b, len(p)), p...)
	return len(p), nil
}

func (w *bufferWriter) release() { PutByteBuffer(w.b) }
