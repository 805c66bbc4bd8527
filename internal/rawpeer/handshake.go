package rawpeer

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
	"github.com/zeebo/xxh3"
)

// Told is what a host tells of its options. What is zero is left out.
type Told struct {
	MaxSize    uint64 // the largest payload
	StreamPing uint64 // in milliseconds
	MaxPings   uint64 // in a second
}

func (t *Told) fields() []toldField {
	return []toldField{{"MaxSize", &t.MaxSize}, {"StreamPing", &t.StreamPing}, {"MaxPings", &t.MaxPings}}
}

type toldField struct {
	key   string
	value *uint64
}

func (t Told) keys() (n uint32) {
	for _, f := range t.fields() {
		if *f.value != 0 {
			n++
		}
	}
	return n
}

func (t Told) append(b []byte) []byte {
	for _, f := range t.fields() {
		if *f.value != 0 {
			b = msgp.AppendUint64(msgp.AppendString(b, f.key), *f.value)
		}
	}
	return b
}

func (t *Told) read(r *Reader, key string) bool {
	for _, f := range t.fields() {
		if f.key == key {
			*f.value = Read(r, msgp.ReadUint64Bytes)
			return true
		}
	}
	return false
}

// Connect is the payload of Connect. Caps, To and what is Told are left out when they are zero, as
// version 1 does.
type Connect struct {
	ID    []byte
	Host  string
	Time  time.Time
	Token string
	Caps  uint64
	To    string
	Told
}

// Encode makes the payload.
func (c Connect) Encode() []byte {
	keys := 4 + c.keys()
	if c.Caps != 0 {
		keys++
	}
	if c.To != "" {
		keys++
	}
	b := msgp.AppendMapHeader(nil, keys)
	b = msgp.AppendBytes(msgp.AppendString(b, "ID"), c.ID)
	b = msgp.AppendString(msgp.AppendString(b, "Host"), c.Host)
	b = msgp.AppendTime(msgp.AppendString(b, "Time"), c.Time)
	b = msgp.AppendString(msgp.AppendString(b, "Token"), c.Token)
	if b = appendCaps(b, c.Caps); c.To != "" {
		b = msgp.AppendString(msgp.AppendString(b, "To"), c.To)
	}
	return c.append(b)
}

// DecodeConnect reads it.
func DecodeConnect(b []byte) (c Connect, _ error) {
	r := &Reader{Bytes: b}
	r.fields(func(key string) bool {
		switch key {
		case "ID":
			c.ID = r.Bin()
		case "Host":
			c.Host = Read(r, msgp.ReadStringBytes)
		case "Time":
			c.Time = Read(r, msgp.ReadTimeBytes)
		case "Token":
			c.Token = Read(r, msgp.ReadStringBytes)
		case "Caps":
			c.Caps = Read(r, msgp.ReadUint64Bytes)
		case "To":
			c.To = Read(r, msgp.ReadStringBytes)
		default:
			return c.read(r, key)
		}
		return true
	})
	return c, r.End()
}

// ConnectResponse is the payload of ConnectResponse. Caps, Host, Proof and what is Told are left
// out when they are zero, as version 1 does.
type ConnectResponse struct {
	ID       []byte
	Accepted bool
	Reason   string
	Caps     uint64
	Host     string
	Proof    []byte
	Told
}

// Encode makes the payload.
func (r ConnectResponse) Encode() []byte {
	keys := 3 + r.keys()
	if r.Caps != 0 {
		keys++
	}
	if r.Host != "" {
		keys++
	}
	if r.Proof != nil {
		keys++
	}
	b := msgp.AppendMapHeader(nil, keys)
	b = msgp.AppendBytes(msgp.AppendString(b, "ID"), r.ID)
	b = msgp.AppendBool(msgp.AppendString(b, "Accepted"), r.Accepted)
	b = msgp.AppendString(msgp.AppendString(b, "RejectedReason"), r.Reason)
	if b = appendCaps(b, r.Caps); r.Host != "" {
		b = msgp.AppendString(msgp.AppendString(b, "Host"), r.Host)
	}
	if r.Proof != nil {
		b = msgp.AppendBytes(msgp.AppendString(b, "Proof"), r.Proof)
	}
	return r.append(b)
}

// DecodeConnectResponse reads it.
func DecodeConnectResponse(b []byte) (c ConnectResponse, _ error) {
	r := &Reader{Bytes: b}
	r.fields(func(key string) bool {
		switch key {
		case "ID":
			c.ID = r.Bin()
		case "Accepted":
			c.Accepted = Read(r, msgp.ReadBoolBytes)
		case "RejectedReason":
			c.Reason = Read(r, msgp.ReadStringBytes)
		case "Caps":
			c.Caps = Read(r, msgp.ReadUint64Bytes)
		case "Host":
			c.Host = Read(r, msgp.ReadStringBytes)
		case "Proof":
			c.Proof = r.Bin()
		default:
			return c.read(r, key)
		}
		return true
	})
	return c, r.End()
}

func appendCaps(b []byte, bits uint64) []byte {
	if bits == 0 {
		return b
	}
	return msgp.AppendUint64(msgp.AppendString(b, "Caps"), bits)
}

// Pong is the answer to a connection ping.
func Pong(ping Msg) (Msg, error) {
	sent, _, err := readPing(ping)
	b := msgp.AppendMapHeader(nil, 3)
	b = msgp.AppendBool(msgp.AppendString(b, "nf"), false)
	b = msgp.AppendNil(msgp.AppendString(b, "e"))
	b = msgp.AppendTime(msgp.AppendString(b, "t"), sent)
	return Msg{Op: OpPong, Seq: ping.Seq, DeadlineMS: ping.DeadlineMS, Payload: b}, err
}

func readPing(ping Msg) (sent time.Time, rtt uint64, err error) {
	r := &Reader{Bytes: ping.Payload}
	r.fields(func(key string) bool {
		switch key {
		case "t":
			sent = Read(r, msgp.ReadTimeBytes)
		case "rtt":
			rtt = Read(r, msgp.ReadUint64Bytes)
		default:
			return false
		}
		return true
	})
	return sent, rtt, r.End()
}

// Ping is a connection ping, with the deadline that version 1 peers put on it.
func Ping(now time.Time) Msg {
	b := msgp.AppendString(msgp.AppendMapHeader(nil, 1), "t")
	return Msg{Op: OpPing, DeadlineMS: 10_000, Payload: msgp.AppendTime(b, now)}
}

// ConfirmingPing is one that says how long the last one took to be answered.
func ConfirmingPing(now time.Time, rtt time.Duration) Msg {
	return PingWith(now, msgp.AppendInt64(nil, int64(rtt)))
}

// PingWith is a connection ping with a value, already encoded, for how long the last one took.
func PingWith(now time.Time, rtt []byte) Msg {
	b := msgp.AppendTime(msgp.AppendString(msgp.AppendMapHeader(nil, 2), "t"), now)
	return Msg{Op: OpPing, DeadlineMS: 10_000, Payload: append(msgp.AppendString(b, "rtt"), rtt...)}
}

// PingRTT is what a connection ping says of how long the last one took; 0 for nothing.
func PingRTT(ping Msg) (time.Duration, error) {
	_, rtt, err := readPing(ping)
	return time.Duration(rtt), err
}

// DialOrder reports whether host local dials host remote.
func DialOrder(local, remote string) bool {
	mine, theirs := xxh3.HashString(local+remote), xxh3.HashString(remote+local)
	return mine < theirs || mine == theirs && local < remote
}

// HostPair makes up the names of two hosts, for a network in memory, of which the raw one dials, or
// does not.
func HostPair(t testing.TB, rawDials bool) (local, raw string) {
	t.Helper()
	local = "http://local:9000"
	for port := range 1000 {
		raw = fmt.Sprintf("http://raw:%d", 9000+port)
		if DialOrder(raw, local) == rawDials {
			return local, raw
		}
	}
	require.Fail(t, "no such pair")
	return "", ""
}
