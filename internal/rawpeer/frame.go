// Package rawpeer is a peer for tests that speaks the protocol of grid by itself: in frames that
// the test makes, right or wrong, and in both roles. It shares nothing with package grid, so a
// fault in one of the two does not hide.
package rawpeer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/tinylib/msgp/msgp"
	"github.com/zeebo/xxh3"
)

// Ops, flags and capabilities.
const (
	OpConnect             = 1
	OpConnectResponse     = 2
	OpPing                = 3
	OpPong                = 4
	OpConnectMux          = 5
	OpMuxConnectError     = 6
	OpDisconnectClientMux = 7
	OpDisconnectServerMux = 8
	OpMuxClientMsg        = 9
	OpMuxServerMsg        = 10
	OpUnblockSrvMux       = 11
	OpUnblockClMux        = 12
	OpAckMux              = 13
	OpRequest             = 14
	OpResponse            = 15
	OpDisconnect          = 16
	OpMerged              = 17

	FlagCRC           = 1
	FlagEOF           = 2
	FlagStateless     = 4
	FlagDetails       = 4 // with CapErrors
	FlagPayloadIsErr  = 8
	FlagPayloadIsZero = 16
	FlagSubroute      = 32
	FlagMore          = 64
	FlagMetadata      = 128

	CapWideCredits    = 1
	CapFragments      = 2
	CapDrain          = 4
	CapMetadata       = 8
	CapBothCapacities = 16
	CapFrameChecksum  = 32
	CapConfirmedPings = 64
	CapCancel         = 128
	CapErrors         = 256
)

// OpNames are those of the protocol.
var OpNames = map[uint8]string{
	OpConnect: "Connect", OpConnectResponse: "ConnectResponse", OpPing: "Ping", OpPong: "Pong",
	OpConnectMux: "ConnectMux", OpMuxConnectError: "MuxConnectError",
	OpDisconnectClientMux: "DisconnectClientMux", OpDisconnectServerMux: "DisconnectServerMux",
	OpMuxClientMsg: "MuxClientMsg", OpMuxServerMsg: "MuxServerMsg", OpUnblockSrvMux: "UnblockSrvMux",
	OpUnblockClMux: "UnblockClMux", OpAckMux: "AckMux", OpRequest: "Request", OpResponse: "Response",
	OpDisconnect: "Disconnect", OpMerged: "Merged",
}

// OpName is for people.
func OpName(op uint8) string {
	if name, ok := OpNames[op]; ok {
		return name
	}
	return fmt.Sprintf("op %d", op)
}

// Msg is one message as it stands on the wire.
type Msg struct {
	MuxID           uint64
	Seq, DeadlineMS uint32
	Handler         uint8
	Op              uint8
	Flags           uint8
	Payload         []byte // decoded: nil if of length 0 and not FlagPayloadIsZero
	Subroute        []byte // the 32 bytes that follow if FlagSubroute is set
	Metadata        []byte // the bin that follows if FlagMetadata is set; nil where nothing follows
}

// Encode takes the flags as they are: it adds what they announce and no flag of its own. The length
// of Subroute is not checked.
func (m Msg) Encode() []byte {
	b := msgp.AppendArrayHeader(nil, 7)
	b = msgp.AppendUint64(b, m.MuxID)
	b = msgp.AppendUint32(b, m.Seq)
	b = msgp.AppendUint32(b, m.DeadlineMS)
	b = msgp.AppendUint8(b, m.Handler)
	b = msgp.AppendUint8(b, m.Op)
	b = msgp.AppendUint8(b, m.Flags)
	b = msgp.AppendBytes(b, m.Payload)
	if m.Flags&FlagSubroute != 0 {
		b = append(b, m.Subroute...)
	}
	if m.Metadata != nil {
		b = msgp.AppendBytes(b, m.Metadata)
	}
	if m.Flags&FlagCRC != 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(xxh3.Hash(b)))
	}
	return b
}

// String is a dump for people.
func (m Msg) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s mux=%d seq=%d", OpName(m.Op), m.MuxID, m.Seq)
	if m.DeadlineMS != 0 {
		fmt.Fprintf(&b, " deadline=%dms", m.DeadlineMS)
	}
	if m.Handler != 0 {
		fmt.Fprintf(&b, " handler=%d", m.Handler)
	}
	var set []string
	for i, name := range []string{"CRC", "EOF", "STATELESS", "ERR", "ZERO", "SUB", "MORE", "META"} {
		if m.Flags&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	fmt.Fprintf(&b, " flags=%v", set)
	if len(m.Payload) > 0 {
		fmt.Fprintf(&b, " payload=%d:%q", len(m.Payload), m.Payload[:min(len(m.Payload), 80)])
	}
	if m.Subroute != nil {
		fmt.Fprintf(&b, " subroute=%x", m.Subroute)
	}
	return b.String()
}

// Reader reads one value after the other; after an error it reads zeros.
type Reader struct {
	Bytes []byte
	Err   error
}

// Read reads one value.
func Read[T any](r *Reader, read func([]byte) (T, []byte, error)) (v T) {
	defer func() {
		if p := recover(); p != nil { // msgp's, for lengths of 2 GiB and more where int has 32 bits
			r.Err = fmt.Errorf("undecodable: %v", p)
		}
	}()
	if r.Err == nil {
		v, r.Bytes, r.Err = read(r.Bytes)
	}
	return v
}

// Bin reads a binary value, which is not copied.
func (r *Reader) Bin() []byte {
	return Read(r, func(b []byte) ([]byte, []byte, error) { return msgp.ReadBytesBytes(b, nil) })
}

// Array reads a message without what follows its array.
func (r *Reader) Array() (m Msg) {
	if n := Read(r, msgp.ReadArrayHeaderBytes); r.Err == nil && n != 7 {
		r.Err = fmt.Errorf("array of %d", n)
	}
	m.MuxID = Read(r, msgp.ReadUint64Bytes)
	m.Seq = Read(r, msgp.ReadUint32Bytes)
	m.DeadlineMS = Read(r, msgp.ReadUint32Bytes)
	m.Handler = Read(r, msgp.ReadUint8Bytes)
	m.Op = Read(r, msgp.ReadUint8Bytes)
	m.Flags = Read(r, msgp.ReadUint8Bytes)
	if m.Payload = r.Bin(); len(m.Payload) == 0 {
		m.Payload = nil
		if m.Flags&FlagPayloadIsZero != 0 {
			m.Payload = []byte{}
		}
	}
	return m
}

// fields reads a map. field reads the value of a key that it knows, or returns false.
func (r *Reader) fields(field func(key string) bool) {
	for range Read(r, msgp.ReadMapHeaderBytes) {
		key := Read(r, msgp.ReadStringBytes)
		if r.Err == nil && !field(key) {
			r.Bytes, r.Err = msgp.Skip(r.Bytes)
		}
		if r.Err != nil {
			return
		}
	}
}

// End is the error of all reads, or that something is left.
func (r *Reader) End() error {
	if r.Err == nil && len(r.Bytes) > 0 {
		return fmt.Errorf("%d bytes too many", len(r.Bytes))
	}
	return r.Err
}

// Decode decodes one unmerged message and checks its checksum.
func Decode(b []byte) (Msg, error) {
	return DecodeWith(CapMetadata, b)
}

// DecodeWith decodes like Decode what is sent between peers with caps.
func DecodeWith(caps uint32, b []byte) (Msg, error) {
	r := &Reader{Bytes: b}
	m := r.Array()
	if m.Flags&FlagSubroute != 0 {
		m.Subroute = r.take(32)
	}
	if m.Flags&FlagMetadata != 0 && caps&CapMetadata != 0 {
		if m.Metadata = append([]byte{}, r.Bin()...); r.Err == nil && len(m.Metadata) > 2048 {
			r.Err = fmt.Errorf("metadata of %d bytes", len(m.Metadata))
		}
	}
	if m.Flags&FlagCRC != 0 {
		sum := uint32(xxh3.Hash(b[:len(b)-len(r.Bytes)]))
		if got := r.take(4); r.Err == nil && binary.LittleEndian.Uint32(got) != sum {
			return m, fmt.Errorf("checksum %x, should be %08x little endian", got, sum)
		}
	}
	return m, r.End()
}

func (r *Reader) take(n int) []byte {
	return Read(r, func(b []byte) (_, rest []byte, _ error) {
		if len(b) < n {
			return nil, b, fmt.Errorf("%d bytes where %d should be", len(b), n)
		}
		return b[:n], b[n:], nil
	})
}

// WithChecksum returns a frame with its checksum behind it.
func WithChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(b), uint32(xxh3.Hash(b)))
}

// CheckFrame returns a frame without its checksum, which it checks.
func CheckFrame(b []byte) ([]byte, error) {
	n := len(b) - 4
	if n < 0 || !bytes.Equal(WithChecksum(b[:n]), b) {
		return b, fmt.Errorf("wrong checksum of a frame of %d bytes", len(b))
	}
	return b[:n], nil
}

// EncodeMerged puts messages into one merged message.
func EncodeMerged(msgs ...Msg) []byte {
	b := Msg{Op: OpMerged, Seq: uint32(len(msgs))}.Encode()
	for _, m := range msgs {
		b = msgp.AppendBytes(b, m.Encode())
	}
	return b
}

// DecodeMerged returns the messages of one websocket message, merged or alone.
func DecodeMerged(b []byte) (msgs []Msg, _ error) {
	r := &Reader{Bytes: b}
	head := r.Array()
	if r.Err == nil && head.Op != OpMerged {
		m, err := Decode(b)
		return []Msg{m}, err
	}
	for i := range head.Seq {
		one := r.Bin()
		if r.Err != nil {
			return nil, fmt.Errorf("merged message %d of %d: %w", i+1, head.Seq, r.Err)
		}
		m, err := Decode(one)
		if err == nil && m.Op == OpMerged {
			err = errors.New("merged itself")
		}
		if err != nil {
			return nil, fmt.Errorf("merged message %d of %d: %w", i+1, head.Seq, err)
		}
		msgs = append(msgs, m)
	}
	return msgs, r.End()
}

// SubrouteID is the value of Msg.Subroute for a joined subroute.
func SubrouteID(handler uint8, route string) []byte {
	id := sha256.Sum256([]byte(route))
	id[0], id[1] = handler, 0
	return id[:]
}
