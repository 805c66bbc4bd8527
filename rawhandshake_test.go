package grid

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
	"github.com/zeebo/xxh3"
)

// rawConnect is the payload of Connect. Caps is left out when 0.
type rawConnect struct {
	ID    []byte
	Host  string
	Time  time.Time
	Token string
	Caps  uint64
}

func (c rawConnect) encode() []byte {
	keys := uint32(4)
	if c.Caps != 0 {
		keys++
	}
	b := msgp.AppendMapHeader(nil, keys)
	b = msgp.AppendBytes(msgp.AppendString(b, "ID"), c.ID)
	b = msgp.AppendString(msgp.AppendString(b, "Host"), c.Host)
	b = msgp.AppendTime(msgp.AppendString(b, "Time"), c.Time)
	b = msgp.AppendString(msgp.AppendString(b, "Token"), c.Token)
	return appendRawCaps(b, c.Caps)
}

func decodeRawConnect(b []byte) (c rawConnect, _ error) {
	r := &rawReader{b: b}
	r.fields(func(key string) bool {
		switch key {
		case "ID":
			c.ID = r.bytes()
		case "Host":
			c.Host = readRaw(r, msgp.ReadStringBytes)
		case "Time":
			c.Time = readRaw(r, msgp.ReadTimeBytes)
		case "Token":
			c.Token = readRaw(r, msgp.ReadStringBytes)
		case "Caps":
			c.Caps = readRaw(r, msgp.ReadUint64Bytes)
		default:
			return false
		}
		return true
	})
	return c, r.end()
}

// rawConnectResponse is the payload of ConnectResponse. Caps is left out when 0.
type rawConnectResponse struct {
	ID       []byte
	Accepted bool
	Reason   string
	Caps     uint64
}

func (r rawConnectResponse) encode() []byte {
	keys := uint32(3)
	if r.Caps != 0 {
		keys++
	}
	b := msgp.AppendMapHeader(nil, keys)
	b = msgp.AppendBytes(msgp.AppendString(b, "ID"), r.ID)
	b = msgp.AppendBool(msgp.AppendString(b, "Accepted"), r.Accepted)
	b = msgp.AppendString(msgp.AppendString(b, "RejectedReason"), r.Reason)
	return appendRawCaps(b, r.Caps)
}

func decodeRawConnectResponse(b []byte) (c rawConnectResponse, _ error) {
	r := &rawReader{b: b}
	r.fields(func(key string) bool {
		switch key {
		case "ID":
			c.ID = r.bytes()
		case "Accepted":
			c.Accepted = readRaw(r, msgp.ReadBoolBytes)
		case "RejectedReason":
			c.Reason = readRaw(r, msgp.ReadStringBytes)
		case "Caps":
			c.Caps = readRaw(r, msgp.ReadUint64Bytes)
		default:
			return false
		}
		return true
	})
	return c, r.end()
}

func appendRawCaps(b []byte, bits uint64) []byte {
	if bits == 0 {
		return b
	}
	return msgp.AppendUint64(msgp.AppendString(b, "Caps"), bits)
}

// rawPong is the answer to a connection ping.
func rawPong(ping rawMsg) (rawMsg, error) {
	var sent time.Time
	r := &rawReader{b: ping.Payload}
	r.fields(func(key string) bool {
		if key == "t" {
			sent = readRaw(r, msgp.ReadTimeBytes)
		}
		return key == "t"
	})
	b := msgp.AppendMapHeader(nil, 3)
	b = msgp.AppendBool(msgp.AppendString(b, "nf"), false)
	b = msgp.AppendNil(msgp.AppendString(b, "e"))
	b = msgp.AppendTime(msgp.AppendString(b, "t"), sent)
	return rawMsg{Op: rawOpPong, Seq: ping.Seq, DeadlineMS: ping.DeadlineMS, Payload: b}, r.end()
}

// rawPing is a connection ping, with the deadline that version 1 peers put on it.
func rawPing(now time.Time) rawMsg {
	b := msgp.AppendString(msgp.AppendMapHeader(nil, 1), "t")
	return rawMsg{Op: rawOpPing, DeadlineMS: 10_000, Payload: msgp.AppendTime(b, now)}
}

// dialOrder says whether host local dials host remote.
func dialOrder(local, remote string) bool {
	mine, theirs := xxh3.HashString(local+remote), xxh3.HashString(remote+local)
	return mine < theirs || mine == theirs && local < remote
}

// hostPair makes up the names of two hosts, for a network in memory, of which
// the raw one dials, or does not.
func hostPair(t testing.TB, rawDials bool) (local, raw string) {
	t.Helper()
	local = "http://local:9000"
	for port := range 1000 {
		raw = fmt.Sprintf("http://raw:%d", 9000+port)
		if dialOrder(raw, local) == rawDials {
			return local, raw
		}
	}
	require.Fail(t, "no such pair")
	return "", ""
}
