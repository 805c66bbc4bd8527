package grid

import (
	"errors"
	"fmt"

	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/credit"
)

// What the two ends of a stream have in common: how they send, how they end, and credits and
// payloads as they travel.

// frameSender is what the two ends of a stream need of the session that carries them: to queue a
// message with the next number of seq. Messages go by value, so that none has to be allocated.
type frameSender interface {
	// send waits for room until done is closed or the session has ended. The slot of m is freed
	// unless it fails.
	send(done <-chan struct{}, m message, seq *sequence) error
	// trySend is send without the wait, for a message that is not sent in fragments. full says that
	// there was no room.
	trySend(m message, seq *sequence) (full bool, err error)
	// post never waits. What it can't queue ends the session.
	post(m message, seq *sequence)
}

// limitLogger is what logs that a limit was reached.
type limitLogger interface{ overload(err error) }

// callHost is the session as a call sees it, on either side.
type callHost interface {
	limitLogger
	// disconnected is ErrDisconnected with the name of the remote host, for a reason.
	disconnected(reason error) error
	// drains is what [Draining] returns.
	drains() <-chan struct{}
}

// capacities are what one side knows of a handler's.
type capacities struct {
	out, in int
	known   bool
	// early says that the caller does not wait for the ack, where an earlier one has told enough.
	early bool
	// options are those of the call, and name is for its errors.
	options callOptions
	name    callName
}

// ending says what goes with the end of a stream besides its error.
type ending uint8

const (
	// dropWaiting throws away what has arrived and was not consumed.
	dropWaiting ending = 1 << iota
	// tellPeer sends the other end a disconnect.
	tellPeer
	// tellReason sends it with the error's text.
	tellReason
	// asIs keeps the error as it is, which is the application's own.
	asIs
)

// creditBuffer has room for an encoded number of credits, so that none has to be allocated: what is
// sent has been copied when it is queued.
type creditBuffer [5]byte

// creditPayload is the payload of a message that returns n credits.
func creditPayload(buf *creditBuffer, n int) []byte {
	if n == 1 {
		return nil
	}
	return appendCredits(buf[:0], n)
}

// appendCredits encodes a number of credits.
func appendCredits(b []byte, n int) []byte { return msgp.AppendUint(b, uint(n)) }

// parseCredits reads a number of credits.
func parseCredits(b []byte) (int, error) {
	n, rest, err := msgp.ReadUint64Bytes(b)
	if err != nil || len(rest) > 0 || n > maxCapacity {
		return 0, protocolErrorf("bad number of credits %x", b[:min(len(b), 16)])
	}
	return int(n), nil
}

// ackBuffer has room for the two numbers of an ack.
type ackBuffer [2 * len(creditBuffer{})]byte

// appendCapacities encodes what an ack tells: how many messages the client may send at first, and
// how many the handler.
func appendCapacities(b []byte, in, out int) []byte { return appendCredits(appendCredits(b, in), out) }

// parseCapacities reads what appendCapacities has encoded.
func parseCapacities(b []byte) (in, out int, err error) {
	if in, b, err = readCapacity(b, "InCapacity", 0); err != nil {
		return 0, 0, err
	}
	if out, b, err = readCapacity(b, "OutCapacity", 1); err != nil {
		return 0, 0, err
	}
	if len(b) > 0 {
		return 0, 0, protocolErrorf("%v with %d bytes behind both capacities", opAckMux, len(b))
	}
	return in, out, nil
}

// readCapacity reads the capacity of that name, which is least or more.
func readCapacity(b []byte, name string, least uint64) (n int, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, protocolErrorf("%v without %s", opAckMux, name)
	}
	v, rest, err := msgp.ReadUint64Bytes(b)
	switch {
	case err != nil:
		return 0, nil, protocolErrorf("%v with a bad %s: %x", opAckMux, name, b[:min(len(b), 16)])
	case v < least || v > maxCapacity:
		return 0, nil, protocolErrorf("%v with %s %d, not %d to %d", opAckMux, name, v, least, maxCapacity)
	}
	return int(v), rest, nil
}

// addCredits takes in the credits that msg returns.
func addCredits(c *credit.Credits, msg *message, wide bool) error {
	n := 1
	if wide && len(msg.Payload) > 0 {
		var err error
		if n, err = parseCredits(msg.Payload); err != nil {
			return err
		}
	}
	if err := c.Add(n); err != nil {
		return fmt.Errorf("%w: %v returns more credits than the stream has", ErrFlowControl, msg.Op)
	}
	return nil
}

// notNil makes nil empty: a stream message is never sent with a nil payload (section 5).
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// receive takes a message, or a fragment of one, into the inbox of its stream, which it fails where
// the sender had no credit, or too much waits. The error ends the session.
func receive(in *inbox, p parcel, host limitLogger, fail func(error)) error {
	failure, err := in.receive(p)
	if failure != nil {
		if errors.Is(failure, ErrOverloaded) {
			host.overload(failure)
		}
		fail(failure)
	}
	return err
}
