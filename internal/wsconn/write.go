package wsconn

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math/rand/v2"
)

// HeaderRoom is how many bytes there must be in front of a message that is written, for the header
// of its frame.
const HeaderRoom = 14

const (
	opBinary = 0x2
	opPong   = 0xa

	finBit  = 0x80
	maskBit = 0x80
)

// errWriter is what the websocket library gets that would write by itself: it has nothing to say
// that the end of the connection does not.
var errWriter = errors.New("not the writer")

// WriteMessage writes what follows the first [HeaderRoom] bytes of b as one binary message. b stays
// the caller's, but what is in it is lost. It begins with what [Conn.TryWriteMessage] has left.
func (c *Conn) WriteMessage(b []byte) error { return c.writeFrame(opBinary, b) }

// TryWriteMessage is WriteMessage without a wait, on connections where that is possible. Where it
// returns false b must be left alone until [Conn.WriteRest] has returned, or WriteMessage has.
func (c *Conn) TryWriteMessage(b []byte) (done bool) {
	c.inWrite.Store(true)
	c.rest = c.frame(opBinary, b)
	c.rest = c.rest[c.link.tryWrite(c.rest):]
	if len(c.rest) > 0 {
		return false
	}
	c.inWrite.Store(false)
	return true
}

// CanTry reports whether TryWriteMessage may write anything.
func (c *Conn) CanTry() bool { return c.link.try != nil }

// WriteRest writes what TryWriteMessage has left, if anything.
func (c *Conn) WriteRest() error {
	if len(c.rest) == 0 {
		return nil
	}
	c.inWrite.Store(true)
	defer c.inWrite.Store(false)
	_, err := c.link.write(c.rest)
	c.rest = nil
	return err
}

// WritePong answers a websocket ping, if one waits. Only the writer calls it.
func (c *Conn) WritePong() error {
	p := c.pong.Swap(nil)
	if p == nil {
		return nil
	}
	return c.writeFrame(opPong, append(make([]byte, HeaderRoom), *p...))
}

// writeFrame writes what follows the first HeaderRoom bytes of b as one frame.
func (c *Conn) writeFrame(op byte, b []byte) error {
	if err := c.WriteRest(); err != nil {
		return err
	}
	c.inWrite.Store(true)
	defer c.inWrite.Store(false)
	_, err := c.link.write(c.frame(op, b))
	return err
}

// frame makes a frame (RFC 6455, section 5.2) of what follows the first HeaderRoom bytes of b, in
// place.
func (c *Conn) frame(op byte, b []byte) []byte {
	payload := b[HeaderRoom:]
	var room [HeaderRoom]byte
	h := append(room[:0], finBit|op)
	switch n := len(payload); {
	case n < 126:
		h = append(h, byte(n))
	case n < 1<<16:
		h = binary.BigEndian.AppendUint16(append(h, 126), uint16(n))
	default:
		h = binary.BigEndian.AppendUint64(append(h, 127), uint64(n))
	}
	if c.masks {
		h[1] |= maskBit
		key := rand.Uint32()
		h = binary.LittleEndian.AppendUint32(h, key)
		mask(payload, key)
	}
	return b[HeaderRoom-copy(b[HeaderRoom-len(h):], h):]
}

// maskStep is how many bytes are masked at once.
const maskStep = 1 << 10

// mask masks b by a key, in the order of its bytes from the lowest.
func mask(b []byte, key uint32) {
	var pattern [maskStep]byte
	n := min(len(b), maskStep)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(pattern[i:], uint64(key)<<32|uint64(key))
	}
	for len(b) > 0 {
		b = b[subtle.XORBytes(b, b, pattern[:]):]
	}
}
