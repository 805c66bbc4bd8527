// Package clip shortens texts that somebody else has had a part in, before they are kept, logged
// or made part of an error: a peer may send megabytes of them.
package clip

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

const (
	// Most is how much is kept of a text, in bytes.
	Most = 1 << 10
	// maxName is how much is kept of a name.
	maxName = 128

	mark = "..." // in the place of what is left out
)

// Text returns s, or where it is long its beginning, which does not keep the rest alive.
func Text(s string) string { return To(s, Most) }

// Bytes is Text of b, of which no more is copied.
func Bytes(b []byte) string { return Text(string(b[:min(len(b), Most+1)])) }

// To is Text for another length, which must be 3 bytes at least. It cuts between two characters.
func To(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return Prefix(s, most-len(mark)) + mark
}

// Prefix returns no more than most bytes of s, and nothing in the place of the rest. It cuts between
// two characters.
func Prefix(s string, most int) string {
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && most-n < utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// Error returns err, or where its text is long an error that has the beginning of that and nothing
// else. It returns nil for nil.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if text := err.Error(); len(text) > Most {
		return errors.New(Text(text))
	}
	return err
}

// Name quotes a name, or what is said to be one.
func Name(s string) string {
	if len(s) > maxName {
		return fmt.Sprintf("%q", s[:maxName]) + mark
	}
	return fmt.Sprintf("%q", s)
}
