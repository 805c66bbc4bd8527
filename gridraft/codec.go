package gridraft

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
)

// handle configures the codec, which is that of raft.NetworkTransport. It is never changed.
var handle = new(codec.MsgpackHandle)

// encoder makes messages. A buffer of it is only valid until it is put back.
type encoder struct {
	enc *codec.Encoder
	buf []byte
	out []byte // of the value that is being encoded
}

// maxKept is the largest buffer that is kept for another message.
const maxKept = 1 << 20

var encoders = sync.Pool{New: func() any {
	e := &encoder{buf: make([]byte, 0, 1<<10)}
	e.enc = codec.NewEncoderBytes(&e.out, handle)
	return e
}}

// getEncoder returns one that is to be put back.
func getEncoder() *encoder { return encoders.Get().(*encoder) }

func (e *encoder) put() {
	if cap(e.buf) <= maxKept {
		encoders.Put(e)
	}
}

// encode returns the encoding of v, with room for one byte more in its buffer.
func (e *encoder) encode(v any) ([]byte, error) {
	e.out = e.buf[:0]
	e.enc.ResetBytes(&e.out)
	if err := e.enc.Encode(v); err != nil {
		return nil, fmt.Errorf("gridraft: encode: %w", err)
	}
	e.buf = append(e.out, 0)
	e.out = nil
	return e.buf[:len(e.buf)-1], nil
}

// encodeMessage returns the encoding of v in a buffer that is the caller's.
func encodeMessage(v any) ([]byte, error) {
	e := getEncoder()
	defer e.put()
	b, err := e.encode(v)
	if err != nil {
		return nil, err
	}
	return append(grid.GetByteBuffer(), b...), nil
}

var decoders = sync.Pool{New: func() any { return codec.NewDecoderBytes([]byte{}, handle) }}

// decode decodes b, of which nothing is kept, into v. What is left over is an error.
func decode(b []byte, v any) error {
	d := decoders.Get().(*codec.Decoder)
	defer decoders.Put(d)
	if b == nil {
		b = []byte{} // else it would be the message before
	}
	if _, ok := v.(*raft.AppendEntriesRequest); ok {
		if err := checkEntries(b); err != nil {
			return err
		}
	}
	d.ResetBytes(b)
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("gridraft: decode: %w", err)
	}
	if n := d.NumBytesRead(); n != len(b) {
		return fmt.Errorf("gridraft: decode: %d bytes too many", len(b)-n)
	}
	return nil
}

// decodeMessage is decode that owns b.
func decodeMessage(b []byte, v any) error {
	defer grid.PutByteBuffer(b)
	return decode(b, v)
}

// A message of a pipeline ends with a byte that says whether the request goes on in the next.
const (
	lastPart = 0
	morePart = 1
)

// sendParts sends b, behind which there is room for a byte in its buffer, by messages of no more
// than size bytes and that byte.
func sendParts(send func([]byte) error, b []byte, size int) error {
	b = b[:len(b)+1]
	for len(b)-1 > size {
		next := b[size]
		b[size] = morePart
		if err := send(b[:size+1]); err != nil {
			return err
		}
		b[size] = next
		b = b[size:]
	}
	b[len(b)-1] = lastPart
	return send(b)
}

var errBadPart = errors.New("gridraft: message of a pipeline is not a part of a request")

// partReader receives requests.
type partReader struct {
	recv func() ([]byte, error)
	max  int // bytes of a request, and of all in parts that a host has sent

	host *hostParts
	held int // bytes of the present request that count towards those of its host
}

// release has the present request not count any more.
func (p *partReader) release() {
	p.host.add(-p.held)
	p.held = 0
}

// next decodes the next request into v. It returns io.EOF where there is none. The request counts
// until the next call, or release.
func (p *partReader) next(v any) error {
	p.release()
	whole, more, err := p.part(nil)
	for more && err == nil {
		if whole, more, err = p.part(whole); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil {
		return err
	}
	return decodeMessage(whole, v)
}

// part adds a message to what there is of a request, and reports whether there is more.
func (p *partReader) part(before []byte) (b []byte, more bool, err error) {
	msg, err := p.recv()
	if err != nil {
		return nil, false, err
	}
	last := len(msg) - 1
	switch {
	case last < 0 || msg[last] > morePart || last == 0 && msg[last] == morePart:
		return nil, false, errBadPart
	case len(before)+last > p.max:
		return nil, false, ErrRequestTooLarge
	}
	more = msg[last] == morePart
	if more || before != nil {
		p.held += last
		if all := p.host.add(last); all > int64(p.max) {
			return nil, false, fmt.Errorf("%w: those of this host would take %d bytes, MaxRequestSize is %d", ErrRequestTooLarge, all, p.max)
		}
	}
	if before == nil {
		return msg[:last], more, nil
	}
	before = append(before, msg[:last]...)
	grid.PutByteBuffer(msg)
	return before, more, nil
}

// hostParts is how many bytes of requests in parts a host has sent that have not been answered.
type hostParts struct {
	bytes     atomic.Int64
	pipelines int // the transport's lock guards it
}

func (h *hostParts) add(n int) (all int64) { return h.bytes.Add(int64(n)) }

// beginPipeline returns the parts of a host, which endPipeline is to be called with.
func (t *Transport) beginPipeline(host string) *hostParts {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.parts[host]
	if h == nil {
		h = new(hostParts)
		t.parts[host] = h
	}
	h.pipelines++
	return h
}

func (t *Transport) endPipeline(host string, h *hostParts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.pipelines--; h.pipelines == 0 {
		delete(t.parts, host)
	}
}

// maxEntries is how many entries raft sends in a request at most.
const maxEntries = 1024

// checkEntries refuses a request with more entries than raft sends, before it is decoded: an entry
// of one byte becomes a raft.Log.
func checkEntries(b []byte) error {
	fields, b, err := msgp.ReadMapHeaderBytes(b)
	for ; err == nil && fields > 0; fields-- {
		var key []byte
		if key, b, err = readKey(b); err != nil {
			break
		}
		if string(key) == "Entries" && msgp.NextType(b) != msgp.NilType {
			n, _, err := msgp.ReadArrayHeaderBytes(b)
			if err != nil {
				return fmt.Errorf("gridraft: decode: entries: %w", err)
			}
			if n > maxEntries {
				return fmt.Errorf("gridraft: request with %d entries, raft sends %d at most", n, maxEntries)
			}
		}
		b, err = msgp.Skip(b)
	}
	if err != nil {
		return fmt.Errorf("gridraft: decode: %w", err)
	}
	return nil
}

// readKey reads the name of a field, which may have either form.
func readKey(b []byte) (key, rest []byte, err error) {
	if msgp.NextType(b) == msgp.BinType {
		return msgp.ReadBytesZC(b)
	}
	return msgp.ReadStringZC(b)
}
