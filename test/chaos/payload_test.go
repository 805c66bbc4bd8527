package chaos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// note is what every payload says: which call and which message of it this is, and with the first
// one, what the handler is to do.
type note struct {
	call     uint64
	index    uint32 // of the message in its direction
	answer   bool   // from the handler
	from, to uint8  // the caller, and whom it calls
	route    uint8  // index into routes

	// How the handler behaves.
	end    ending
	pause  uint8  // milliseconds, before a single answer or each message
	inputs uint32 // messages that the handler is sent
	count  uint32 // messages that it reads or sends before it ends
	size   uint32 // of each answer
	traits traits
}

// traits are what else a call is like.
type traits uint8

const (
	// isTagged has its number as metadata.
	isTagged traits = 1 << iota
	// waitsForEnd has the handler wait for the end of its context, which the caller will make.
	waitsForEnd
	// endsShort has a client that may end the input before all was sent.
	endsShort
	// toMany is made to several hosts: the call that one has to do with is behind this one by as
	// much as its number.
	toMany
	// toAny is made to one after the other of them, of which one runs it at most.
	toAny
)

// tag is the metadata of a call, nil for none.
func (n note) tag() map[string]string {
	if n.traits&isTagged == 0 {
		return nil
	}
	return map[string]string{"call": strconv.FormatUint(n.call, 10)}
}

// ending is how a handler ends.
type ending uint8

const (
	endsWell ending = iota
	endsInError
	endsInPanic
)

const (
	noteSize = 8 + 4 + 1 + 1 + 1 + 1 + 1 + 1 + 4 + 4 + 4 + 1
	// minPayload is the size of the smallest payload: a note and its checksum.
	minPayload = noteSize + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode makes a payload of size bytes at least, in a buffer of the pool.
func (n note) encode(size int) []byte {
	size = max(size, minPayload)
	b := grid.GetByteBufferCap(size)[:size]
	le := binary.LittleEndian
	le.PutUint64(b, n.call)
	le.PutUint32(b[8:], n.index)
	b[12] = 0
	if n.answer {
		b[12] = 1
	}
	b[13], b[14], b[15], b[16], b[17] = n.from, n.to, n.route, byte(n.end), n.pause
	le.PutUint32(b[18:], n.inputs)
	le.PutUint32(b[22:], n.count)
	le.PutUint32(b[26:], n.size)
	b[30] = byte(n.traits)
	// No two payloads are filled alike.
	fill := n.call*0x9e3779b97f4a7c15 + uint64(n.index)<<1 + uint64(b[12])
	rest := b[noteSize : size-4]
	for ; len(rest) >= 8; rest = rest[8:] {
		le.PutUint64(rest, fill)
		fill = fill*0x5851f42d4c957f2d + 1
	}
	for i := range rest {
		rest[i] = byte(fill >> (8 * i))
	}
	le.PutUint32(b[size-4:], crc32.Checksum(b[:size-4], castagnoli))
	return b
}

// decode reads a payload, which stays the caller's.
func decode(b []byte) (n note, err error) {
	if len(b) < minPayload {
		return n, fmt.Errorf("payload of %d bytes", len(b))
	}
	le := binary.LittleEndian
	end := len(b) - 4
	if le.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return n, errors.New("payload with a wrong checksum")
	}
	return note{
		call:   le.Uint64(b),
		index:  le.Uint32(b[8:]),
		answer: b[12] == 1,
		from:   b[13],
		to:     b[14],
		route:  b[15],
		end:    ending(b[16]),
		pause:  b[17],
		inputs: le.Uint32(b[18:]),
		count:  le.Uint32(b[22:]),
		size:   le.Uint32(b[26:]),
		traits: traits(b[30]),
	}, nil
}

// follows checks that b is message number index of a direction of n's call.
func (n note) follows(b []byte, answer bool, index int) error {
	got, err := decode(b)
	switch {
	case err != nil:
		return err
	case got.call != n.call:
		return fmt.Errorf("message of call %d", got.call)
	case got.answer != answer:
		return errors.New("message of the other direction")
	case int(got.index) != index:
		return fmt.Errorf("message %d in place of %d", got.index, index)
	case answer && len(b) != max(int(n.size), minPayload):
		return fmt.Errorf("message of %d bytes in place of %d", len(b), n.size)
	}
	return nil
}

// message is message number index of one direction of n's call.
func (n note) message(answer bool, index int) []byte {
	n.answer, n.index = answer, uint32(index)
	return n.encode(int(n.size))
}

// failure is the text with which the handler of a call fails.
func failure(call uint64) string { return fmt.Sprintf("call %d fails as it should", call) }

// handlerError is that error, which wraps errPlanned.
type handlerError struct{ call uint64 }

func (e handlerError) Error() string { return failure(e.call) }
func (e handlerError) Unwrap() error { return errPlanned }

var errPlanned = errors.New("as it should")

// plannedCode is its code.
const plannedCode = "planned"

func TestNote_PayloadsThatAreNotTheirOwnAreNoticed(t *testing.T) {
	n := note{call: 7, from: 1, to: 2, size: 100}
	b := n.message(true, 3)
	require.NoError(t, n.follows(b, true, 3))
	require.Error(t, n.follows(b, false, 3))
	require.Error(t, n.follows(b, true, 2))
	require.Error(t, note{call: 8, size: 100}.follows(b, true, 3))
	require.Error(t, note{call: 7, size: 101}.follows(b, true, 3))
	require.Error(t, n.follows(b[:60], true, 3))
	for i := range b {
		b[i] ^= 4
		require.Error(t, n.follows(b, true, 3), "byte %d", i)
		b[i] ^= 4
	}
}
