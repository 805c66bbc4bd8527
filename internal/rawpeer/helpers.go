package rawpeer

import (
	"encoding/hex"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

// Fragment is a first, or further, fragment of three bytes.
func Fragment[H ~uint8 | ~int](op uint8, id uint64, seq uint32, handler H) Msg {
	return Msg{MuxID: id, Seq: seq, Handler: uint8(handler), Op: op, Flags: FlagMore, Payload: []byte("abc")}
}

// Unhex reads what people have written down.
func Unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

// EveryWidth is all the legal encodings of v.
func EveryWidth(v uint64) (all [][]byte) {
	add := func(lead byte, bytes int, most uint64) {
		if v > most {
			return
		}
		b := []byte{lead}
		for i := bytes - 1; i >= 0; i-- {
			b = append(b, byte(v>>(8*i)))
		}
		all = append(all, b)
	}
	if v < 128 {
		all = append(all, []byte{byte(v)})
	}
	for i, lead := range []byte{0xcc, 0xcd, 0xce, 0xcf} { // uint8 to uint64
		add(lead, 1<<i, math.MaxUint64>>(64-8<<i))
	}
	for i, lead := range []byte{0xd0, 0xd1, 0xd2, 0xd3} { // int8 to int64
		add(lead, 1<<i, math.MaxInt64>>(64-8<<i))
	}
	return all
}

// Credits is the payload that returns so many.
func Credits(n int) []byte { return msgp.AppendUint64(nil, uint64(n)) }

// AckPayload is that of the ack between peers with caps, for a handler with these capacities. in is
// 0 for a stream without input.
func AckPayload(caps uint64, in, out int) []byte {
	switch {
	case caps&CapWideCredits == 0:
		return nil
	case caps&CapBothCapacities == 0:
		return Credits(in)
	}
	return append(Credits(in), Credits(out)...)
}
