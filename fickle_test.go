package grid

import (
	"errors"
	"strings"
	"sync/atomic"

	"github.com/tinylib/msgp/msgp"
)

// fickle is a payload that fails where its text says so, and that knows how
// often it was recycled. Its decoder is careless: it leaves fields alone that
// the input does not name.
type fickle struct {
	Text  string
	Extra string
	times *atomic.Int64 // Recycle was called; nil if nobody counts
}

// What a fickle may have for a text.
const (
	marshalError   = "marshal error"
	marshalPanic   = "marshal panic"
	unmarshalError = "unmarshal error"
	unmarshalPanic = "unmarshal panic"
)

var errFickle = errors.New("fickle")

func newFickle() *fickle { return new(fickle) }

func (f *fickle) MarshalMsg(b []byte) ([]byte, error) {
	switch f.Text {
	case marshalError:
		return nil, errFickle
	case marshalPanic:
		panic(errFickle)
	}
	text := f.Text
	if f.Extra != "" {
		text += "\n" + f.Extra
	}
	return msgp.AppendString(b, text), nil
}

func (f *fickle) UnmarshalMsg(b []byte) ([]byte, error) {
	text, o, err := msgp.ReadStringBytes(b)
	if err != nil {
		return b, err
	}
	extra, ok := "", false
	f.Text, extra, ok = strings.Cut(text, "\n")
	if ok {
		f.Extra = extra
	}
	switch f.Text {
	case unmarshalError:
		return b, errFickle
	case unmarshalPanic:
		panic(errFickle)
	}
	return o, nil
}

func (f *fickle) Msgsize() int {
	return msgp.StringPrefixSize + len(f.Text) + 1 + len(f.Extra)
}

// counted is a fickle that recycles itself.
type counted struct{ fickle }

// newCounted returns a counted, and how often it was recycled.
func newCounted(text string) (*counted, *atomic.Int64) {
	times := new(atomic.Int64)
	return &counted{fickle{Text: text, times: times}}, times
}

func (c *counted) Recycle() {
	if c.times != nil {
		c.times.Add(1)
	}
}
