package grid

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/tinylib/msgp/msgp"
	"github.com/zeebo/xxh3"
)

// The protocol written down a second time, for the scripted peer: it shares
// nothing with the package, so a fault in one of the two does not hide.

const (
	rawOpConnect             = 1
	rawOpConnectResponse     = 2
	rawOpPing                = 3
	rawOpPong                = 4
	rawOpConnectMux          = 5
	rawOpMuxConnectError     = 6
	rawOpDisconnectClientMux = 7
	rawOpDisconnectServerMux = 8
	rawOpMuxClientMsg        = 9
	rawOpMuxServerMsg        = 10
	rawOpUnblockSrvMux       = 11
	rawOpUnblockClMux        = 12
	rawOpAckMux              = 13
	rawOpRequest             = 14
	rawOpResponse            = 15
	rawOpDisconnect          = 16
	rawOpMerged              = 17

	rawFlagCRC           = 1
	rawFlagEOF           = 2
	rawFlagStateless     = 4
	rawFlagPayloadIsErr  = 8
	rawFlagPayloadIsZero = 16
	rawFlagSubroute      = 32
	rawFlagMore          = 64
	rawFlagMetadata      = 128

	rawCapWideCredits = 1
	rawCapFragments   = 2
	rawCapDrain       = 4
	rawCapMetadata    = 8
)

var rawOpNames = map[uint8]string{
	rawOpConnect: "Connect", rawOpConnectResponse: "ConnectResponse", rawOpPing: "Ping", rawOpPong: "Pong",
	rawOpConnectMux: "ConnectMux", rawOpMuxConnectError: "MuxConnectError",
	rawOpDisconnectClientMux: "DisconnectClientMux", rawOpDisconnectServerMux: "DisconnectServerMux",
	rawOpMuxClientMsg: "MuxClientMsg", rawOpMuxServerMsg: "MuxServerMsg", rawOpUnblockSrvMux: "UnblockSrvMux",
	rawOpUnblockClMux: "UnblockClMux", rawOpAckMux: "AckMux", rawOpRequest: "Request", rawOpResponse: "Response",
	rawOpDisconnect: "Disconnect", rawOpMerged: "Merged",
}

func rawOpName(op uint8) string {
	if name, ok := rawOpNames[op]; ok {
		return name
	}
	return fmt.Sprintf("op %d", op)
}

// rawMsg is one message as it stands on the wire.
type rawMsg struct {
	MuxID           uint64
	Seq, DeadlineMS uint32
	Handler         uint8
	Op              uint8
	Flags           uint8
	Payload         []byte // decoded: nil if of length 0 and not rawFlagPayloadIsZero
	Subroute        []byte // the 32 bytes that follow if rawFlagSubroute is set
	Metadata        []byte // the bin that follows if rawFlagMetadata is set; nil where nothing follows
}

// encode takes the flags as they are: it adds what they announce and no flag
// of its own. The length of Subroute is not checked.
func (m rawMsg) encode() []byte {
	b := msgp.AppendArrayHeader(nil, 7)
	b = msgp.AppendUint64(b, m.MuxID)
	b = msgp.AppendUint32(b, m.Seq)
	b = msgp.AppendUint32(b, m.DeadlineMS)
	b = msgp.AppendUint8(b, m.Handler)
	b = msgp.AppendUint8(b, m.Op)
	b = msgp.AppendUint8(b, m.Flags)
	b = msgp.AppendBytes(b, m.Payload)
	if m.Flags&rawFlagSubroute != 0 {
		b = append(b, m.Subroute...)
	}
	if m.Metadata != nil {
		b = msgp.AppendBytes(b, m.Metadata)
	}
	if m.Flags&rawFlagCRC != 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(xxh3.Hash(b)))
	}
	return b
}

// String is a dump for people.
func (m rawMsg) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s mux=%d seq=%d", rawOpName(m.Op), m.MuxID, m.Seq)
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

// rawReader reads one value after the other; after an error it reads zeros.
type rawReader struct {
	b   []byte
	err error
}

func readRaw[T any](r *rawReader, read func([]byte) (T, []byte, error)) (v T) {
	if r.err == nil {
		v, r.b, r.err = read(r.b)
	}
	return v
}

func (r *rawReader) bytes() []byte {
	return readRaw(r, func(b []byte) ([]byte, []byte, error) { return msgp.ReadBytesBytes(b, nil) })
}

// array reads a message without what follows its array.
func (r *rawReader) array() (m rawMsg) {
	if n := readRaw(r, msgp.ReadArrayHeaderBytes); r.err == nil && n != 7 {
		r.err = fmt.Errorf("array of %d", n)
	}
	m.MuxID = readRaw(r, msgp.ReadUint64Bytes)
	m.Seq = readRaw(r, msgp.ReadUint32Bytes)
	m.DeadlineMS = readRaw(r, msgp.ReadUint32Bytes)
	m.Handler = readRaw(r, msgp.ReadUint8Bytes)
	m.Op = readRaw(r, msgp.ReadUint8Bytes)
	m.Flags = readRaw(r, msgp.ReadUint8Bytes)
	if m.Payload = r.bytes(); len(m.Payload) == 0 {
		m.Payload = nil
		if m.Flags&rawFlagPayloadIsZero != 0 {
			m.Payload = []byte{}
		}
	}
	return m
}

// fields reads a map. field reads the value of a key that it knows, or returns
// false.
func (r *rawReader) fields(field func(key string) bool) {
	for range readRaw(r, msgp.ReadMapHeaderBytes) {
		key := readRaw(r, msgp.ReadStringBytes)
		if r.err == nil && !field(key) {
			r.b, r.err = msgp.Skip(r.b)
		}
		if r.err != nil {
			return
		}
	}
}

// end is the error of all reads, or that something is left.
func (r *rawReader) end() error {
	if r.err == nil && len(r.b) > 0 {
		return fmt.Errorf("%d bytes too many", len(r.b))
	}
	return r.err
}

// decodeRaw decodes one unmerged message and checks its checksum.
func decodeRaw(b []byte) (rawMsg, error) {
	return decodeRawWith(rawCapMetadata, b)
}

// decodeRawWith decodes like decodeRaw what is sent between peers with caps.
func decodeRawWith(caps uint32, b []byte) (rawMsg, error) {
	r := &rawReader{b: b}
	m := r.array()
	if m.Flags&rawFlagSubroute != 0 {
		m.Subroute = r.take(32)
	}
	if m.Flags&rawFlagMetadata != 0 && caps&rawCapMetadata != 0 {
		if m.Metadata = append([]byte{}, r.bytes()...); r.err == nil && len(m.Metadata) > 2048 {
			r.err = fmt.Errorf("metadata of %d bytes", len(m.Metadata))
		}
	}
	if m.Flags&rawFlagCRC != 0 {
		sum := uint32(xxh3.Hash(b[:len(b)-len(r.b)]))
		if got := r.take(4); r.err == nil && binary.LittleEndian.Uint32(got) != sum {
			return m, fmt.Errorf("checksum %x, should be %08x little endian", got, sum)
		}
	}
	return m, r.end()
}

func (r *rawReader) take(n int) []byte {
	return readRaw(r, func(b []byte) (_, rest []byte, _ error) {
		if len(b) < n {
			return nil, b, fmt.Errorf("%d bytes where %d should be", len(b), n)
		}
		return b[:n], b[n:], nil
	})
}

// encodeMerged puts messages into one merged message.
func encodeMerged(msgs ...rawMsg) []byte {
	b := rawMsg{Op: rawOpMerged, Seq: uint32(len(msgs))}.encode()
	for _, m := range msgs {
		b = msgp.AppendBytes(b, m.encode())
	}
	return b
}

// decodeMerged returns the messages of one websocket message, merged or alone.
func decodeMerged(b []byte) (msgs []rawMsg, _ error) {
	r := &rawReader{b: b}
	head := r.array()
	if r.err == nil && head.Op != rawOpMerged {
		m, err := decodeRaw(b)
		return []rawMsg{m}, err
	}
	for i := range head.Seq {
		one := r.bytes()
		if r.err != nil {
			return nil, fmt.Errorf("merged message %d of %d: %w", i+1, head.Seq, r.err)
		}
		m, err := decodeRaw(one)
		if err == nil && m.Op == rawOpMerged {
			err = errors.New("merged itself")
		}
		if err != nil {
			return nil, fmt.Errorf("merged message %d of %d: %w", i+1, head.Seq, err)
		}
		msgs = append(msgs, m)
	}
	return msgs, r.end()
}

// rawSubrouteID is the value of rawMsg.Subroute for a joined subroute.
func rawSubrouteID(handler uint8, route string) []byte {
	id := sha256.Sum256([]byte(route))
	id[0], id[1] = handler, 0
	return id[:]
}
