package grid

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/tinylib/msgp/msgp"
)

// What the payload types share. None of the read functions allocates on the word of a header, and
// none returns a string that shares memory with its input.

const (
	leadStr32 = 0xdb
	leadBin32 = 0xc6
)

// checkCount refuses a header that claims more entries than the rest of the input can hold, at
// least each bytes to an entry.
func checkCount(n uint32, each int, rest []byte) error {
	if uint64(n)*uint64(each) > uint64(len(rest)) {
		return msgp.ErrShortBytes
	}
	return nil
}

// checkLength refuses a string or bin that claims more bytes than there are. msgp does so as well,
// but where int has 32 bits it takes a claim of 2 GiB for a negative number and panics.
func checkLength(b []byte) error {
	if len(b) >= 5 && (b[0] == leadStr32 || b[0] == leadBin32) {
		return checkCount(binary.BigEndian.Uint32(b[1:]), 1, b[5:])
	}
	return nil
}

// readBin reads a bin. v is part of b.
func readBin(b []byte) (v, o []byte, err error) {
	n, o, err := msgp.ReadBytesHeader(b)
	if err != nil {
		return nil, b, err
	}
	if err := checkCount(n, 1, o); err != nil {
		return nil, b, err
	}
	return o[:n], o[n:], nil
}

// readKey reads a map's key, which may be a string or, as everywhere in msgp, a bin.
func readKey(b []byte) (string, []byte, error) {
	if err := checkLength(b); err != nil {
		return "", b, err
	}
	v, o, err := msgp.ReadMapKeyZC(b)
	return string(v), o, err
}

func readString(b []byte) (string, []byte, error) {
	if err := checkLength(b); err != nil {
		return "", b, err
	}
	return msgp.ReadStringBytes(b)
}

// readStrings reads an array of strings. The result is never nil without an error.
func readStrings(b []byte) ([]string, []byte, error) {
	n, o, err := msgp.ReadArrayHeaderBytes(b)
	if err == nil {
		err = checkCount(n, 1, o)
	}
	if err != nil {
		return nil, b, err
	}
	list := make([]string, 0, min(n, maxReserved))
	for i := range n {
		var s string
		if s, o, err = readString(o); err != nil {
			return nil, b, fmt.Errorf("entry %d of %d: %w", i, n, err)
		}
		list = append(list, s)
	}
	return list, o, nil
}

// unmarshalMap replaces what m holds by the map that b starts with, and returns the rest of b.
// After an error m is empty.
func unmarshalMap[M ~map[string]V, V any](m *M, b []byte, readValue func([]byte) (V, []byte, error)) ([]byte, error) {
	if msgp.IsNil(b) {
		*m = nil
		return b[1:], nil
	}
	emptyMap(m)
	n, o, err := msgp.ReadMapHeaderBytes(b)
	if err == nil {
		err = checkCount(n, 2, o)
	}
	if err != nil {
		return b, err
	}
	if *m == nil {
		*m = make(M, min(n, maxReserved))
	}
	for i := range n {
		var key string
		if key, o, err = readKey(o); err != nil {
			emptyMap(m)
			return b, fmt.Errorf("key %d of %d: %w", i, n, err)
		}
		var v V
		if v, o, err = readValue(o); err != nil {
			emptyMap(m)
			// The peer chose the key, so an error shows no more than its start.
			return b, fmt.Errorf("value of %.64q: %w", key, err)
		}
		(*m)[key] = v
	}
	return o, nil
}

// emptyMap empties m, keeping its memory unless that is large.
func emptyMap[M ~map[string]V, V any](m *M) {
	if len(*m) > maxKept {
		*m = nil
		return
	}
	clear(*m)
}

// newMap returns an empty map that is not nil, from pool where it has one.
func newMap[M ~map[string]V, V any](pool *sync.Pool) *M {
	m, _ := pool.Get().(*M)
	if m == nil {
		m = new(M)
	}
	if *m == nil {
		*m = make(M)
	}
	return m
}

func recycleMap[M ~map[string]V, V any](pool *sync.Pool, m *M) {
	if m == nil {
		return
	}
	emptyMap(m)
	pool.Put(m)
}
