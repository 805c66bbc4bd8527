package gridraft

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"

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

// encodeAnswer returns an answer in a buffer that is the caller's: the text of the error, empty for
// none, and the response, as with raft.NetworkTransport.
func encodeAnswer(r raft.RPCResponse) ([]byte, error) {
	e := getEncoder()
	defer e.put()
	text := ""
	if r.Error != nil {
		text = r.Error.Error()
	}
	b, err := e.encode(text)
	if err != nil {
		return nil, err
	}
	answer := append(grid.GetByteBuffer(), b...)
	if b, err = e.encode(r.Response); err != nil {
		grid.PutByteBuffer(answer)
		return nil, err
	}
	return append(answer, b...), nil
}

var decoders = sync.Pool{New: func() any { return codec.NewDecoderBytes([]byte{}, handle) }}

// decode decodes b, of which nothing is kept, into values. What is left over is an error.
func decode(b []byte, values ...any) error {
	d := decoders.Get().(*codec.Decoder)
	defer decoders.Put(d)
	if b == nil {
		b = []byte{} // else it would be the message before
	}
	d.ResetBytes(b)
	for _, v := range values {
		if err := d.Decode(v); err != nil {
			return fmt.Errorf("gridraft: decode: %w", err)
		}
	}
	if n := d.NumBytesRead(); n != len(b) {
		return fmt.Errorf("gridraft: decode: %d bytes too many", len(b)-n)
	}
	return nil
}

// decodeAnswer decodes an answer into resp, and returns the error that is in it.
func decodeAnswer(b []byte, resp any) error {
	var text string
	if err := decode(b, &text, resp); err != nil {
		return err
	}
	if text != "" {
		return grid.NewRemoteErrString(text)
	}
	return nil
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
	max  int // bytes of a request
}

// next decodes the next request into v. It returns io.EOF where there is none.
func (p *partReader) next(v any) error {
	msg, rest, more, err := p.part()
	if err != nil {
		return err
	}
	if !more {
		err := decode(rest, v)
		grid.PutByteBuffer(msg)
		return err
	}
	r := &joinedParts{from: p, msg: msg, rest: rest, more: true, left: p.max - len(rest)}
	br := bufio.NewReader(r) // the decoder asks for single bytes
	err = codec.NewDecoder(br, handle).Decode(v)
	switch {
	case r.err != nil && r.err != io.EOF:
		return r.err // rather than what the decoder makes of it
	case err != nil:
		return fmt.Errorf("gridraft: decode: %w", err)
	}
	if n, err := io.Copy(io.Discard, br); err != nil {
		return err
	} else if n > 0 {
		return fmt.Errorf("gridraft: decode: %d bytes too many", n)
	}
	return nil
}

// part returns a message, what is of the request in it, and whether there is more.
func (p *partReader) part() (msg, part []byte, more bool, err error) {
	if msg, err = p.recv(); err != nil {
		return nil, nil, false, err
	}
	last := len(msg) - 1
	if last < 0 || msg[last] > morePart || (last == 0 && msg[last] == morePart) {
		return nil, nil, false, errBadPart
	}
	if last > p.max {
		return nil, nil, false, ErrRequestTooLarge
	}
	return msg, msg[:last], msg[last] == morePart, nil
}

// joinedParts reads a request that came in several messages, as they arrive.
type joinedParts struct {
	from      *partReader
	msg, rest []byte // the message, and what is to be read of it
	more      bool
	left      int // bytes that there may still be
	err       error
}

func (j *joinedParts) Read(b []byte) (int, error) {
	for len(j.rest) == 0 {
		if err := j.advance(); err != nil {
			return 0, err
		}
	}
	n := copy(b, j.rest)
	j.rest = j.rest[n:]
	return n, nil
}

// advance goes on to the next message.
func (j *joinedParts) advance() error {
	if j.err != nil {
		return j.err
	}
	grid.PutByteBuffer(j.msg)
	j.msg = nil
	if !j.more {
		j.err = io.EOF
		return j.err
	}
	j.msg, j.rest, j.more, j.err = j.from.part()
	if j.err == io.EOF {
		j.err = io.ErrUnexpectedEOF
	}
	if j.left -= len(j.rest); j.left < 0 && j.err == nil {
		j.err = ErrRequestTooLarge
	}
	return j.err
}
