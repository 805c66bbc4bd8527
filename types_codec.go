package grid

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/tinylib/msgp/msgp"
)

// What the payload types share. None of the read functions allocates on the word of a header, and
// none returns a string that shares memory with its input.

const (
	// maxReserved bounds the room made for entries on the word of a header. Beyond it room is made
	// as the entries arrive.
	maxReserved = 1024
	// maxKept is the number of entries above which a map or a slice is left to the garbage
	// collector instead of kept for reuse.
	maxKept = 1024

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
	list := []string{}
	for i := range n {
		var s string
		if s, o, err = readString(o); err != nil {
			return nil, b, fmt.Errorf("entry %d of %d: %w", i, n, err)
		}
		list = append(extend(list, int(n)), s)
	}
	return list, o, nil
}

// extend returns list with room for one entry more of the n that a header claims, all of which it
// is made for in the end, where append would make it larger. Its capacity is all of its memory.
func extend[T any](list []T, n int) []T {
	if len(list) < cap(list) {
		return list
	}
	return append(slices.Grow([]T(nil), min(n, max(2*len(list), maxReserved))), list...)
}
