package grid

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"github.com/tinylib/msgp/msgp"
	"github.com/zeebo/xxh3"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/wellformed"
)

//go:generate go -C tools tool msgp -unexported -file ../msg.go -o ../msg_gen.go -tests=false -io=false

//msgp:tuple message
//msgp:ignore subHandlerID
//msgp:replace HandlerID with:uint8
//msgp:replace op with:uint8
//msgp:replace flags with:uint8
//msgp:replace caps with:uint64

// message is one grid message. Its payload is never owned: on the way out it is copied into the
// batch, on the way in it points into the read buffer.
type message struct {
	MuxID      uint64
	Seq        uint32
	DeadlineMS uint32
	Handler    HandlerID
	Op         op
	Flags      flags
	Payload    []byte `msg:",zerocopy"`

	// Sub follows the message where flagSubroute is set.
	Sub *subHandlerID `msg:"-"`

	// Metadata follows it, where flagMetadata is set and knowsMetadata: the peer speaks that
	// extension.
	Metadata      []byte `msg:"-"`
	knowsMetadata bool   `msg:"-"`

	// slot, if set, is freed when the message is queued: who gets it may ask for the next handler.
	slot *limit.Slots `msg:"-"`
}

// begins reports whether the message asks for a call or a stream: the first fragment, or the whole.
func (m *message) begins() bool {
	return (m.Op == opRequest || m.Op == opConnectMux) && m.Handler != 0
}

// freeSlot frees the slot that the message holds, if any.
func (m *message) freeSlot() {
	if m.slot != nil {
		m.slot.Release()
		m.slot = nil
	}
}

// connectReq is the payload of Connect (section 3).
type connectReq struct {
	ID    [16]byte
	Host  string
	Time  time.Time
	Token string
	Caps  caps   `msg:",omitempty"`
	To    string `msg:",omitempty"` // the host that is wanted

	// What the dialler tells of its options; see told.
	MaxSize    uint64 `msg:",omitempty"`
	StreamPing uint64 `msg:",omitempty"`
	MaxPings   uint64 `msg:",omitempty"`
}

// connectResp is the payload of ConnectResponse (section 3).
type connectResp struct {
	ID             [16]byte
	Accepted       bool
	RejectedReason string
	Caps           caps   `msg:",omitempty"`
	Host           string `msg:",omitempty"`
	Proof          []byte `msg:",omitempty"` // that the acceptor knows the secret

	// What the acceptor tells of its options; see told.
	MaxSize    uint64 `msg:",omitempty"`
	StreamPing uint64 `msg:",omitempty"`
	MaxPings   uint64 `msg:",omitempty"`
}

// muxConnectError is the payload of MuxConnectError (section 4).
type muxConnectError struct {
	Error string
}

// pingMsg is the payload of a connection's Ping (section 7).
type pingMsg struct {
	T time.Time `msg:"t"`
	// RTT, if not 0, is how long the sender's last ping took to be answered, in nanoseconds. Only
	// where confirmed pings are in use (section 8).
	RTT uint64 `msg:"rtt,omitempty"`
}

// pongMsg is the payload of Pong (section 7).
type pongMsg struct {
	NotFound bool      `msg:"nf"`
	Err      *string   `msg:"e"`
	T        time.Time `msg:"t"`
}

const (
	checksumSize = 4
	// mergedHeaderMax is the most that the head of a merged message takes.
	mergedHeaderMax = 14
)

// subHandlerID is a handler under a subroute, as it follows a message on the wire (section 2).
type subHandlerID [32]byte

func newSubHandlerID(id HandlerID, subroute string) subHandlerID {
	return subHandlerID(sha256.Sum256([]byte(subroute))).withHandler(id)
}

func (s subHandlerID) withHandler(id HandlerID) subHandlerID {
	s[0], s[1] = byte(id), 0
	return s
}

// joinSubroutes is how several parts make one subroute (section 2).
func joinSubroutes(parts ...string) string { return strings.Join(parts, "/") }

// isOversized reports whether the payload is larger than may be, where limit is that of the
// application's. Error texts, and what grid itself sends, do not count by that one.
func (m *message) isOversized(limit int) bool {
	if m.Flags&flagPayloadIsErr != 0 {
		limit = max(limit, 2*maxErrorText)
	}
	switch m.Op {
	case opMuxConnectError, opPing, opPong, opAckMux, opUnblockSrvMux, opUnblockClMux, opDisconnect:
		limit = max(limit, 2*maxErrorText)
	}
	return len(m.Payload) > limit
}

// setPayload sets the payload and the flag that tells empty from nil.
func (m *message) setPayload(b []byte) {
	m.Payload = b
	if b != nil && len(b) == 0 {
		m.Flags |= flagPayloadIsZero
	}
}

// maxErrorText is how much of an error's text travels, in bytes.
const maxErrorText = 64 << 10

// setError makes the text of an error the payload.
func (m *message) setError(text string) {
	m.Flags |= flagPayloadIsErr
	m.Payload = []byte(clipText(text))
}

// clipText shortens an error's text to what travels.
func clipText(text string) string { return clip.To(text, maxErrorText) }

// setRemoteErr makes an error of a handler the payload, with its details where the peer takes them.
func (m *message) setRemoteErr(r *RemoteErr, caps caps) {
	if r.more == nil || caps&capErrors == 0 {
		m.setError(r.text)
		return
	}
	m.Flags |= flagPayloadIsErr | flagDetails
	m.Payload = r.encode()
}

// payloadErr is the error of a handler that the message carries, as a *RemoteErr, or ErrProtocol if
// it can't be read; nil if it carries none. It is for the caller, but the end of a stream may wait for
// that, and is not counted: so no more of it is taken than we send.
func (m *message) payloadErr() error {
	switch {
	case m.Flags&flagPayloadIsErr == 0:
		return nil
	case m.Flags&flagDetails != 0:
		return decodeRemoteErr(m.Payload)
	}
	text := string(m.Payload[:min(len(m.Payload), maxErrorText+1)]) // copied: the buffer is reused
	return NewRemoteErrString(clipText(text))
}

// reason is why the remote has given a call or stream up, or nil. It is kept for as long as that
// is, which may be long, so no more than the beginning is.
func (m *message) reason() error {
	if m.Flags&flagPayloadIsErr == 0 {
		return nil
	}
	return refusal(clip.Bytes(m.Payload))
}

// clientReason is reason for one of a stream's client, which refuses nothing: it is a RemoteErr
// whatever its text, so that no handler takes it for a limit of this host.
func (m *message) clientReason() error {
	if m.Flags&flagPayloadIsErr == 0 {
		return nil
	}
	return NewRemoteErrString(clip.Bytes(m.Payload))
}

// setRefusal makes m, an answer, one that says which limit refuses the call.
func (m *message) setRefusal(err error) {
	e := muxConnectError{Error: clip.Text(err.Error())}
	m.Op, m.Flags = opMuxConnectError, flagEOF
	m.Payload, _ = e.MarshalMsg(nil)
}

// setSubroute makes sub, which may be nil, follow the message.
func (m *message) setSubroute(sub *subHandlerID) {
	if sub != nil {
		m.Sub = sub
		m.Flags |= flagSubroute
	}
}

// setMetadata makes b, which may be nil, follow the message.
func (m *message) setMetadata(b []byte) {
	if b != nil {
		m.Metadata = b
		m.Flags |= flagMetadata
	}
}

// size is the exact length of the encoded message.
func (m *message) size() int {
	n := 1 + uintSize(m.MuxID) + uintSize(uint64(m.Seq)) + uintSize(uint64(m.DeadlineMS)) +
		uintSize(uint64(m.Handler)) + uintSize(uint64(m.Op)) + uintSize(uint64(m.Flags)) +
		binHeaderSize(len(m.Payload)) + len(m.Payload)
	if m.Flags&flagSubroute != 0 {
		n += len(m.Sub)
	}
	if m.Metadata != nil {
		n += binHeaderSize(len(m.Metadata)) + len(m.Metadata)
	}
	if m.Flags&flagCRC != 0 {
		n += checksumSize
	}
	return n
}

// appendTo encodes the message with what follows it.
func (m *message) appendTo(b []byte) []byte {
	start := len(b)
	b, _ = m.MarshalMsg(b) // cannot fail: integers and bytes only
	if m.Flags&flagSubroute != 0 {
		b = append(b, m.Sub[:]...)
	}
	if m.Metadata != nil {
		b = msgp.AppendBytes(b, m.Metadata)
	}
	if m.Flags&flagCRC != 0 {
		b = appendChecksum(b, start)
	}
	return b
}

// appendChecksum appends the checksum of what b has from start on.
func appendChecksum(b []byte, start int) []byte {
	return binary.LittleEndian.AppendUint32(b, uint32(xxh3.Hash(b[start:])))
}

// checkFrame returns a frame without its checksum, which it checks.
func checkFrame(b []byte) ([]byte, error) {
	n := len(b) - checksumSize
	if n < 0 {
		return nil, protocolErrorf("frame of %d bytes ends inside its checksum", len(b))
	}
	if got, want := binary.LittleEndian.Uint32(b[n:]), uint32(xxh3.Hash(b[:n])); got != want {
		return nil, protocolErrorf("frame of %d bytes has checksum %08x, should be %08x", len(b), got, want)
	}
	return b[:n], nil
}

// parse decodes the message that b holds, checking its checksum. Payload and Sub point into b. For
// a merged message it returns the bytes that follow; any other must fill b.
func (m *message) parse(b []byte) (rest []byte, err error) {
	defer guard(&err)
	rest, err = m.UnmarshalMsg(b)
	if err != nil {
		return nil, protocolErrorf("undecodable message of %d bytes: %v", len(b), err)
	}
	m.Sub = nil
	if m.Flags&flagSubroute != 0 {
		if len(rest) < len(m.Sub) {
			return nil, protocolErrorf("%v for mux %d ends inside its subroute", m.Op, m.MuxID)
		}
		m.Sub, rest = (*subHandlerID)(rest), rest[len(m.Sub):]
	}
	m.Metadata = nil
	if m.Flags&flagMetadata != 0 && m.knowsMetadata {
		if m.Metadata, rest, err = readBin(rest); err != nil || len(m.Metadata) > maxMetadata {
			return nil, protocolErrorf("%v for mux %d: bad metadata of %d bytes: %v", m.Op, m.MuxID, len(m.Metadata), err)
		}
	}
	if m.Op == opMerged {
		return rest, nil
	}
	if m.Flags&flagCRC != 0 {
		if len(rest) < checksumSize {
			return nil, protocolErrorf("%v for mux %d ends inside its checksum", m.Op, m.MuxID)
		}
		got, want := binary.LittleEndian.Uint32(rest), uint32(xxh3.Hash(b[:len(b)-len(rest)]))
		if got != want {
			return nil, protocolErrorf("%v for mux %d has checksum %08x, should be %08x", m.Op, m.MuxID, got, want)
		}
		rest = rest[checksumSize:]
	}
	if len(rest) > 0 {
		return nil, protocolErrorf("%v for mux %d is followed by %d stray bytes", m.Op, m.MuxID, len(rest))
	}
	if len(m.Payload) == 0 {
		m.Payload = nil
		if m.Flags&flagPayloadIsZero != 0 {
			m.Payload = []byte{}
		}
	}
	return nil, nil
}

// guard makes a panic of the decoder an error: on 32-bit machines it has one for lengths of 2 GiB
// and more.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = protocolErrorf("undecodable message: %v", p)
	}
}

// maxOwnNesting is far more than what this protocol nests, or will.
const maxOwnNesting = 32

// unmarshal decodes a payload of the protocol's own by f.
func unmarshal(f func(b []byte) ([]byte, error), b []byte) error {
	if err := wellformed.Check(b, maxOwnNesting); err != nil {
		return err
	}
	_, err := f(b)
	return err
}

// eachMerged calls f with each of the count messages of a merged one (section 6), given the bytes
// that follow its head.
func eachMerged(count uint32, rest []byte, f func(b []byte) error) error {
	for i := range count {
		b, after, err := readBin(rest)
		if err != nil {
			return protocolErrorf("merged message %d of %d: %v", i+1, count, err)
		}
		if err = f(b); err != nil {
			return err
		}
		rest = after
	}
	if len(rest) > 0 {
		return protocolErrorf("merged message of %d is followed by %d stray bytes", count, len(rest))
	}
	return nil
}

func uintSize(v uint64) int {
	switch {
	case v < 1<<7:
		return 1
	case v < 1<<8:
		return 2
	case v < 1<<16:
		return 3
	case v < 1<<32:
		return 5
	}
	return 9
}

func binHeaderSize(n int) int {
	switch {
	case n < 1<<8:
		return 2
	case n < 1<<16:
		return 3
	}
	return msgp.BytesPrefixSize
}
