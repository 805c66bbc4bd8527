package grid

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/wsconn"
)

// wireVector is a message that a version 1 peer has encoded.
type wireVector struct {
	Name, What, Hex string
	Fields          *struct {
		MuxID      uint64  `json:"mux_id"`
		Seq        uint32  `json:"seq"`
		DeadlineMS uint32  `json:"deadline_ms"`
		Handler    uint8   `json:"handler"`
		Op         uint8   `json:"op"`
		OpName     string  `json:"op_name"`
		Flags      uint8   `json:"flags"`
		Payload    *string `json:"payload_hex"`
		Subroute   string  `json:"subroute"`
	}
}

func loadVectors(t testing.TB) map[string]wireVector {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	require.NoError(t, err)
	var list []wireVector
	require.NoError(t, json.Unmarshal(b, &list))
	require.Equal(t, 44, len(list), "all of them must be tested")
	vectors := make(map[string]wireVector, len(list))
	for _, v := range list {
		vectors[v.Name] = v
	}
	return vectors
}

// message is the vector's in our terms; ok is false if it is none, or merged.
func (v wireVector) message(t testing.TB) (m message, ok bool) {
	f := v.Fields
	if f == nil || op(f.Op) == opMerged {
		return m, false
	}
	m = message{
		MuxID: f.MuxID, Seq: f.Seq, DeadlineMS: f.DeadlineMS,
		Handler: HandlerID(f.Handler), Op: op(f.Op), Flags: flags(f.Flags),
	}
	if f.Payload != nil {
		m.Payload = rawpeer.Unhex(t, *f.Payload)
	}
	if f.Subroute != "" {
		sub := newSubHandlerID(m.Handler, f.Subroute)
		m.Sub = &sub
	}
	return m, true
}

// parseFrame decodes a websocket message, merged or not, as a session does.
func parseFrame(b []byte) ([]message, error) { return parseFrameWith(message{}, b) }

// parseFrameWith is parseFrame into copies of a message.
func parseFrameWith(into message, b []byte) (msgs []message, _ error) {
	m := into
	rest, err := m.parse(b)
	if err != nil || m.Op != opMerged {
		return []message{m}, err
	}
	return msgs, eachMerged(m.Seq, rest, func(b []byte) error {
		m := into
		if _, err := m.parse(b); err != nil {
			return err
		}
		if m.Op == opMerged {
			return fmt.Errorf("merged inside merged")
		}
		msgs = append(msgs, m)
		return nil
	})
}

// frameOf is what a queue makes of messages that were sent together.
func frameOf(t testing.TB, crc flags, msgs ...message) []byte {
	t.Helper()
	var q outQueue
	q.init(crc, pendingLimit)
	for i := range msgs {
		require.NoError(t, q.post(&msgs[i], nil))
	}
	_, b := q.swap()
	defer b.release()
	return append([]byte(nil), b.frame(false)[wsconn.HeaderRoom:]...)
}

func TestMsg_IsEncodedAndDecodedAsVersion1Does(t *testing.T) {
	tested := 0
	for name, v := range loadVectors(t) {
		m, ok := v.message(t)
		if !ok {
			continue
		}
		tested++
		wire := rawpeer.Unhex(t, v.Hex)
		require.Equal(t, v.Fields.OpName, m.Op.String())
		require.Equal(t, wire, m.appendTo(nil), name)
		require.Equal(t, append([]byte("before"), wire...), m.appendTo([]byte("before")), "%s: the checksum is of this message alone", name)
		require.Equal(t, len(wire), m.size(), name)
		require.Equal(t, wire, frameOf(t, 0, m), "%s: a message alone is not merged", name)

		got, err := parseFrame(wire)
		require.NoError(t, err, name)
		require.Equal(t, []message{m}, got, name)
	}
	require.Equal(t, 31, tested)
}

func TestMsg_MergedIsEncodedAndDecodedAsVersion1Does(t *testing.T) {
	vectors := loadVectors(t)
	var pair []message
	for _, name := range []string{"request_crc", "response_crc"} {
		m, ok := vectors[name].message(t)
		require.True(t, ok)
		pair = append(pair, m)
	}
	wire := rawpeer.Unhex(t, vectors["merged"].Hex)
	require.Equal(t, wire, frameOf(t, 0, pair...))
	got, err := parseFrame(wire)
	require.NoError(t, err)
	require.Equal(t, pair, got)

	for i := range pair {
		pair[i].Flags &^= flagCRC
	}
	require.Equal(t, wire, frameOf(t, flagCRC, pair...), "the queue sets the flag, not on the envelope")
}

func TestMsg_MergedOfAnyCount(t *testing.T) {
	m := message{MuxID: 1, Op: opResponse, Flags: flagEOF | flagSubroute, Payload: []byte("x"), Sub: new(subHandlerID)}
	for _, n := range []int{2, 3, 127, 128, 255, 256, 3000} {
		msgs := make([]message, n)
		raw := make([]rawpeer.Msg, n)
		for i := range msgs {
			msgs[i], raw[i] = m, rawOf(m)
			msgs[i].Seq, raw[i].Seq = uint32(i), uint32(i)
		}
		frame := frameOf(t, 0, msgs...)
		require.Equal(t, rawpeer.EncodeMerged(raw...), frame)
		got, err := parseFrame(frame)
		require.NoError(t, err)
		require.Equal(t, msgs, got)
	}
	// Nobody sends these, but they mean something.
	got, err := parseFrame(rawpeer.EncodeMerged())
	require.NoError(t, err)
	require.Empty(t, got)
	got, err = parseFrame(rawpeer.EncodeMerged(rawOf(m)))
	require.NoError(t, err)
	require.Equal(t, []message{m}, got)
}

func rawOf(m message) rawpeer.Msg {
	r := rawpeer.Msg{
		MuxID: m.MuxID, Seq: m.Seq, DeadlineMS: m.DeadlineMS,
		Handler: uint8(m.Handler), Op: uint8(m.Op), Flags: uint8(m.Flags), Payload: m.Payload,
		Metadata: m.Metadata,
	}
	if m.Sub != nil {
		r.Subroute = m.Sub[:]
	}
	return r
}

func TestMsg_PayloadsOfTheProtocolAreEncodedAsVersion1Does(t *testing.T) {
	vectors := loadVectors(t)
	var id [16]byte
	for i := range id {
		id[i] = byte(i + 1)
	}
	at := time.Unix(1700000000, 123456789)
	cancelled := "context canceled"
	const host = "http://127.0.0.1:9001"

	payload := func(name string) []byte {
		m, ok := vectors[name].message(t)
		if !ok {
			return rawpeer.Unhex(t, vectors[name].Hex)
		}
		return m.Payload
	}
	for _, name := range []string{"connect", "connect_req_payload"} {
		requireCodec(t, payload(name), &connectReq{ID: id, Host: host, Time: at, Token: "secret-token"}, new(connectReq))
	}
	requireCodec(t, payload("connect_response_ok"), &connectResp{ID: id, Accepted: true}, new(connectResp))
	requireCodec(t, payload("connect_response_no"), &connectResp{ID: id, RejectedReason: "unknown incoming host: x"}, new(connectResp))
	requireCodec(t, payload("mux_connect_error"), &muxConnectError{Error: "Invalid Handler for type: 9"}, new(muxConnectError))
	requireCodec(t, payload("ping_conn"), &pingMsg{T: at}, new(pingMsg))
	requireCodec(t, payload("pong_conn"), &pongMsg{T: at}, new(pongMsg))
	requireCodec(t, payload("pong_mux_notfound"), &pongMsg{NotFound: true, T: at}, new(pongMsg))
	requireCodec(t, payload("pong_mux_err"), &pongMsg{Err: &cancelled, T: at}, new(pongMsg))
}

type codec interface {
	msgp.Marshaler
	msgp.Unmarshaler
	msgp.Sizer
}

// requireCodec checks both directions, and that no truncation is taken for the whole.
func requireCodec(t *testing.T, wire []byte, value, empty codec) {
	t.Helper()
	b, err := value.MarshalMsg(nil)
	require.NoError(t, err)
	require.Equal(t, wire, b)
	require.GreaterOrEqual(t, value.Msgsize(), len(b))
	for n := range wire {
		_, err := empty.UnmarshalMsg(wire[:n:n])
		require.Error(t, err, "%T of %d bytes", value, n)
	}
	rest, err := empty.UnmarshalMsg(wire)
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Equal(t, value, empty)
}

func TestHandshake_CapsAreNamedOnlyWhereThereAreAny(t *testing.T) {
	now := time.Unix(1, 0)
	for _, bits := range []caps{0, 1, 7, math.MaxUint64} {
		raw := rawpeer.Connect{ID: make([]byte, 16), Host: "h", Time: now, Token: "t", Caps: uint64(bits)}
		requireCodec(t, raw.Encode(), &connectReq{Host: "h", Time: now, Token: "t", Caps: bits}, new(connectReq))
		answer := rawpeer.ConnectResponse{ID: make([]byte, 16), Accepted: true, Caps: uint64(bits)}
		requireCodec(t, answer.Encode(), &connectResp{Accepted: true, Caps: bits}, new(connectResp))
	}
}

func TestMsg_SubrouteIDIsThatOfVersion1(t *testing.T) {
	vectors := loadVectors(t)
	id := func(name string) subHandlerID { return subHandlerID(rawpeer.Unhex(t, vectors[name].Hex)) }
	require.Equal(t, id("subroute_id"), newSubHandlerID(9, "asubroute"))
	require.Equal(t, id("subroute_id"), newSubHandlerID(0, "asubroute").withHandler(9))
	require.Equal(t, id("subroute_id_joined"), newSubHandlerID(0, joinSubroutes("subroute", "1")))
	require.Equal(t, id("subroute_id_joined"), new(Connection).Subroute("subroute").Subroute("1").hash)
}

func TestHandshake_WhoDialsIsDecidedAsVersion1Does(t *testing.T) {
	require.True(t, shouldDial("b", "a"))
	require.False(t, shouldDial("a", "b"))
	require.True(t, shouldDial("http://127.0.0.1:9001", "http://127.0.0.1:9002"))
	require.False(t, shouldDial("http://127.0.0.1:9002", "http://127.0.0.1:9001"))
	require.True(t, shouldDial("https://node1:9000", "https://node2:9000"))
	require.False(t, shouldDial("https://node2:9000", "https://node1:9000"))
}

var edges = []uint64{
	0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536,
	math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64,
}

func TestMsg_SizeIsTheEncodedLength(t *testing.T) {
	check := func(m message) {
		if m.Flags&flagSubroute != 0 {
			m.Sub = new(subHandlerID)
		}
		b := m.appendTo(nil)
		require.Equal(t, rawOf(m).Encode(), b)
		require.Len(t, b, m.size())
		require.LessOrEqual(t, m.size(), m.Msgsize()+len(subHandlerID{})+checksumSize, "the bound that a batch reserves")
		got, err := parseFrame(b)
		require.NoError(t, err)
		if len(m.Payload) == 0 {
			m.Payload = nil
		}
		require.Equal(t, m, got[0])
	}
	for _, v := range edges {
		check(message{MuxID: v, Op: opPing})
		check(message{Seq: uint32(v), Op: opPing})
		check(message{DeadlineMS: uint32(v), Op: opPing})
		check(message{Handler: HandlerID(v), Op: opPing})
		check(message{Op: op(v)})
		check(message{MuxID: v, Seq: uint32(v), DeadlineMS: uint32(v), Handler: HandlerID(v), Op: opRequest, Flags: 0xff &^ flagPayloadIsZero})
		if v <= 65536 {
			for _, f := range []flags{0, flagCRC, flagSubroute, flagCRC | flagSubroute, flagEOF} {
				check(message{MuxID: v, Op: opRequest, Flags: f, Payload: make([]byte, v)})
			}
		}
	}
}

// integerFields are the first six elements of a message.
var integerFields = []struct {
	name string
	bits int
	get  func(m *message) uint64
}{
	{"MuxID", 64, func(m *message) uint64 { return m.MuxID }},
	{"Seq", 32, func(m *message) uint64 { return uint64(m.Seq) }},
	{"DeadlineMS", 32, func(m *message) uint64 { return uint64(m.DeadlineMS) }},
	{"Handler", 8, func(m *message) uint64 { return uint64(m.Handler) }},
	{"Op", 8, func(m *message) uint64 { return uint64(m.Op) }},
	{"Flags", 8, func(m *message) uint64 { return uint64(m.Flags) }},
}

// withField is a message whose field i is encoded as given.
func withField(i int, encoded []byte) []byte {
	b := []byte{0x97}
	for j := range integerFields {
		if i == j {
			b = append(b, encoded...)
		} else {
			b = append(b, 2)
		}
	}
	return append(b, 0xc4, 1, 'p')
}

func TestMsg_EveryLegalWidthIsAccepted(t *testing.T) {
	for i, f := range integerFields {
		for _, v := range edges {
			if f.name == "Flags" {
				v &^= uint64(flagCRC | flagSubroute) // which announce something
			}
			for _, encoded := range rawpeer.EveryWidth(v) {
				got, err := parseFrame(withField(i, encoded))
				if v > math.MaxUint64>>(64-f.bits) {
					require.ErrorIs(t, err, ErrProtocol, "%s %x", f.name, encoded)
					require.ErrorContains(t, err, f.name)
					continue
				}
				require.NoError(t, err, "%s %x", f.name, encoded)
				require.Equal(t, v, f.get(&got[0]), "%s %x", f.name, encoded)
				require.Equal(t, "p", string(got[0].Payload))
			}
		}
		for _, wrong := range []string{"ff", "d0ff", "d1ffff", "d2ffffffff", "d3ffffffffffffffff", "c0", "a1", "ca00000000", "c3"} {
			_, err := parseFrame(withField(i, rawpeer.Unhex(t, wrong)))
			require.ErrorIs(t, err, ErrProtocol)
			require.ErrorContains(t, err, f.name)
		}
	}
	for _, head := range []string{"97", "dc0007", "dd00000007"} {
		for _, bin := range []string{"c402", "c50002", "c600000002"} {
			got, err := parseFrame(rawpeer.Unhex(t, head+"010203040506"+bin+"7071"))
			require.NoError(t, err)
			require.Equal(t, message{MuxID: 1, Seq: 2, DeadlineMS: 3, Handler: 4, Op: 5, Flags: 6, Payload: []byte("pq")}, got[0])
			got, err = parseFrame(rawpeer.Unhex(t, "97000100001100"+"c400"+bin[:len(bin)-2]+"10"+"97"+"010203040506"+"c50006707172737475"))
			require.NoError(t, err)
			require.Equal(t, "pqrstu", string(got[0].Payload))
		}
	}
}
