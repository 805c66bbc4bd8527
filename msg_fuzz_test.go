package grid

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
	"github.com/zeebo/xxh3"

	"github.com/gridrpc/grid/internal/rawpeer"
)

// FuzzMessage holds the decoder against the scripted peer's. The targets here add what that does
// not see: what is allocated, and encodings that no mutation of bytes comes upon.

// claimRoom is what decoding may allocate beside a few times its input. A claim that is believed
// asks for far more.
const claimRoom = 64 << 10

// requireNoClaims fails if f, which decodes n bytes, allocates on a claim.
func requireNoClaims(t *testing.T, n int, f func()) {
	t.Helper()
	limit := uint64(claimRoom + 64*n)
	var got uint64
	for range 3 { // others allocate as well
		before := allocatedBytes()
		f()
		if got = allocatedBytes() - before; got <= limit {
			return
		}
	}
	require.Failf(t, "allocated on a claim", "%d bytes for an input of %d", got, n)
}

// allocatedBytes does not stop the world, and lags behind with small objects. What is large enough
// for a claim it counts at once.
func allocatedBytes() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// FuzzParse parses a message that stands in a larger buffer, into one that was used before, as
// merged ones are.
func FuzzParse(f *testing.F) {
	for _, v := range loadVectors(f) {
		b := rawpeer.Unhex(f, v.Hex)
		f.Add(b, uint16(8*(len(b)-5))) // a bit in front of the checksum
	}
	for _, s := range []string{
		"\xdd\xff\xff\xff\xff", "\x97\x01\x02\x03\x04\x0f\x02\xc6\xff\xff\xff\xff", "\x97\x01\x02\x03\x04\x0f\x02\xc5\xff\xff",
		"\x97\x01\x02\x03\x04\x11\x20\xc4\x00", "\x98\x01\x02\x03\x04\x05\x00\xc4\x00\x01", "\x97\xff\x02\x03\x04\x05\x06\xc4\x00",
	} {
		f.Add([]byte(s), uint16(0))
	}
	for _, metadata := range []string{"", "\x81\xa1k\xa1v"} {
		m := rawpeer.Msg{MuxID: 1, Op: rawpeer.OpRequest, Flags: rawpeer.FlagCRC | rawpeer.FlagSubroute | rawpeer.FlagMetadata, Subroute: make([]byte, 32), Metadata: []byte(metadata)}
		f.Add(m.Encode(), uint16(400))
	}
	f.Fuzz(func(t *testing.T, data []byte, change uint16) {
		const around = "\xdb around \xdb"
		buf := append(append([]byte(around), data...), around...)
		b := buf[len(around) : len(around)+len(data)] // with room behind it that is not its own
		var m message
		var rest []byte
		var err error
		requireNoClaims(t, len(b), func() {
			m = message{MuxID: 9, Seq: 9, Op: opMerged, Flags: 0xff, Payload: []byte("old"), Sub: new(subHandlerID), Metadata: []byte("old"), knowsMetadata: true}
			rest, err = m.parse(b)
		})
		require.Equal(t, around+string(data)+around, string(buf), "the input was written to")
		raw, rawErr := rawpeer.Decode(data)
		if rawErr == nil && raw.Op != rawpeer.OpMerged {
			require.NoError(t, err)
		}
		if err != nil {
			require.ErrorIs(t, err, ErrProtocol)
			require.Nil(t, rest)
			return
		}
		if m.Op != opMerged {
			require.Empty(t, rest)
			require.NoError(t, rawErr)
			require.Equal(t, raw, rawOf(m))
		} else {
			require.True(t, bytes.HasSuffix(data, rest))
			require.LessOrEqual(t, len(rest), len(data))
		}
		require.Equal(t, m.Flags&flagSubroute != 0, m.Sub != nil)

		again := message{knowsMetadata: true}
		c := m
		if c.Op == opMerged {
			c.Flags &^= flagCRC // which it does not have, whatever it says
		}
		wire := c.appendTo(nil)
		require.Len(t, wire, c.size())
		require.LessOrEqual(t, len(wire), len(data)-len(rest), "not the shortest form")
		_, err = again.parse(wire)
		require.NoError(t, err)
		if c.Op == opMerged {
			c.Payload, again.Payload = nil, nil // says nothing
		}
		require.Equal(t, c, again)

		if m.Op != opMerged && m.Flags&flagCRC != 0 {
			bad := bytes.Clone(data)
			bad[int(change/8)%len(bad)] ^= 1 << (change % 8)
			_, err := (&message{knowsMetadata: true}).parse(bad)
			if err == nil { // unless that was the flag itself, or what makes it one
				_, err = rawpeer.Decode(bad)
				require.NoError(t, err, "a wrong checksum was accepted")
			}
		}
	})
}

// FuzzMessageFields encodes a message by itself, in any of the forms that MessagePack has for its
// values.
func FuzzMessageFields(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint64(3), uint64(4), uint64(14), uint64(3), []byte("payload"), []byte{}, uint32(0))
	f.Add(uint64(1<<63), uint64(1<<32-1), uint64(1<<32-1), uint64(255), uint64(255), uint64(0x7f), []byte{}, make([]byte, 32), uint32(0xffffffff))
	f.Add(uint64(1<<64-1), uint64(1<<32), uint64(0), uint64(256), uint64(1), uint64(0), []byte{}, []byte{}, uint32(0x55555555))
	f.Add(uint64(127), uint64(128), uint64(255), uint64(200), uint64(9), uint64(0x35), []byte{}, make([]byte, 32), uint32(0x12345678))
	f.Fuzz(func(t *testing.T, mux, seq, deadline, handler, op, flag uint64, payload, sub []byte, forms uint32) {
		fits := seq < 1<<32 && deadline < 1<<32 && handler < 256 && op < 256 && flag < 256
		b := appendArrayHead(nil, forms&3)
		for _, v := range []uint64{mux, seq, deadline, handler, op, flag} {
			forms >>= 3
			b = appendUintIn(b, v, forms&7)
		}
		forms >>= 3
		b = appendBinIn(b, payload, forms&3)
		m := rawpeer.Msg{
			MuxID: mux, Seq: uint32(seq), DeadlineMS: uint32(deadline), Handler: uint8(handler),
			Op: uint8(op), Flags: uint8(flag), Payload: payload,
		}
		if fits && m.Flags&rawpeer.FlagSubroute != 0 {
			m.Subroute = sub
			b = append(b, sub...)
			fits = len(sub) == 32
		}
		if fits && m.Flags&rawpeer.FlagCRC != 0 && m.Op != rawpeer.OpMerged {
			b = binary.LittleEndian.AppendUint32(b, uint32(xxh3.Hash(b)))
		}
		var got message
		rest, err := got.parse(b)
		if !fits && m.Flags&rawpeer.FlagSubroute != 0 && m.Op == rawpeer.OpMerged && err == nil {
			require.NotEmpty(t, rest) // of the subroute, where it is too long
			return
		}
		if !fits {
			require.ErrorIs(t, err, ErrProtocol)
			return
		}
		require.NoError(t, err)
		require.Empty(t, rest)
		if len(payload) == 0 || m.Op == rawpeer.OpMerged {
			m.Payload, got.Payload = nil, nil // see FuzzMessage
		}
		require.Equal(t, m, rawOf(got))
	})
}

func appendArrayHead(b []byte, form uint32) []byte {
	switch form {
	case 0:
		return append(b, 0xdc, 0, 7)
	case 1:
		return append(b, 0xdd, 0, 0, 0, 7)
	}
	return append(b, 0x97)
}

// appendUintIn encodes v in one of its forms, signed ones among them.
func appendUintIn(b []byte, v uint64, form uint32) []byte {
	switch {
	case form == 1 && v < 1<<8:
		return append(b, 0xcc, byte(v))
	case form == 2 && v < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(v))
	case form == 3 && v < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v))
	case form == 4:
		return binary.BigEndian.AppendUint64(append(b, 0xcf), v)
	case form == 5 && v < 1<<7:
		return append(b, 0xd0, byte(v))
	case form == 6 && v < 1<<31:
		return binary.BigEndian.AppendUint32(append(b, 0xd2), uint32(v))
	case form == 7 && v < 1<<63:
		return binary.BigEndian.AppendUint64(append(b, 0xd3), v)
	}
	return msgp.AppendUint64(b, v)
}

func appendBinIn(b, v []byte, form uint32) []byte {
	switch {
	case form == 1 && len(v) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xc5), uint16(len(v)))
	case form == 2:
		b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(len(v)))
	default:
		return msgp.AppendBytes(b, v)
	}
	return append(b, v...)
}

// FuzzGridPayloads decodes the payloads that grid itself sends.
func FuzzGridPayloads(f *testing.F) {
	now := time.Unix(1700000000, 123456789)
	text := "text"
	for _, c := range []codec{
		&connectReq{ID: [16]byte{1}, Host: fuzzHosts[0], Time: now, Token: testToken, Caps: ourCaps},
		&connectResp{RejectedReason: text}, &muxConnectError{text}, &pingMsg{T: now}, &pingMsg{T: now, RTT: 1 << 40}, &pongMsg{T: now}, &pongMsg{NotFound: true, Err: &text},
	} {
		b, err := c.MarshalMsg(nil)
		require.NoError(f, err)
		f.Add(b)
	}
	for _, s := range []string{
		"\x80", "\xc0", "\xdf\xff\xff\xff\xff", "\x81\xdb\xff\xff\xff\xff", "\x81\xa4Host\xdb\xff\xff\xff\xff", "\x81\xa2ID\xc6\xff\xff\xff\xff",
		"\x81\xa4Time\xc9\xff\xff\xff\xff\x05", "\x81\xa1x\xc6\xff\xff\xff\xff", "\x81\xa1x\xdd\xff\xff\xff\xff", "\x81\xa1t\xd7\xff\x00\x00\x00\x00\x00\x00\x00\x00",
		"\x82\xa1e\xa1a\xa1e\xc0", "\xce\x00\x01\x00\x00", "\x00\xce\x00\x01\x00\x00", "\x00\x00", "\x03\x04\x05", "\x40", "\x81\xa4Caps\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		f.Add([]byte(s))
	}
	f.Add(NewRemoteErrCode("code", fmt.Errorf("a: %w", errBusy)).encode())
	f.Add(rawpeer.ErrorDetails{Text: "x", Code: string(make([]byte, 100)), Wraps: make([]string, 20)}.Encode())
	for _, s := range []string{"\x82\xa5Error\xa0\xa5Wraps\xdd\xff\xff\xff\xff", "\x82\xa5Error\xa1x\xa5Wraps\x92\xa1y\xa1y", "\x82\xa5Error\xa1x\xa4Code\xa0"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, fresh := range []func() codec{
			func() codec { return new(connectReq) }, func() codec { return new(connectResp) }, func() codec { return new(muxConnectError) },
			func() codec { return new(pingMsg) }, func() codec { return new(pongMsg) },
		} {
			input := bytes.Clone(data)
			var c codec
			var err error
			requireNoClaims(t, len(data), func() {
				c = fresh()
				err = unmarshal(c.UnmarshalMsg, input)
			})
			require.Equal(t, data, input, "the input was written to")
			if err != nil {
				continue
			}
			clear(input)
			b, err := c.MarshalMsg(nil)
			require.NoError(t, err)
			require.LessOrEqual(t, len(b), c.Msgsize())
			again := fresh()
			require.NoError(t, unmarshal(again.UnmarshalMsg, b))
			b2, err := again.MarshalMsg(nil)
			require.NoError(t, err)
			require.Equal(t, b, b2, "%T", c)
		}
		var failure error
		requireNoClaims(t, len(data), func() { failure = decodeRemoteErr(data) })
		if r := new(RemoteErr); errors.As(failure, &r) {
			requireBoundedErr(t, r)
			if len(data) < maxErrorText/2 { // else the text gives way
				require.Equal(t, *r, *atCaller(t, r))
			}
			_, err := rawpeer.DecodeErrorDetails(data)
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, failure, ErrProtocol)
		}
		if n, err := parseCredits(data); err == nil {
			require.LessOrEqual(t, n, maxCapacity)
			got, err := parseCredits(appendCredits(nil, n))
			require.NoError(t, err)
			require.Equal(t, n, got)
		}
		if in, out, err := parseCapacities(data); err == nil {
			require.LessOrEqual(t, in, maxCapacity)
			require.LessOrEqual(t, out, maxCapacity)
			require.Positive(t, out)
			gotIn, gotOut, err := parseCapacities(appendCapacities(nil, in, out))
			require.NoError(t, err)
			require.Equal(t, [2]int{in, out}, [2]int{gotIn, gotOut})
		} else {
			require.ErrorIs(t, err, ErrProtocol)
			require.ErrorContains(t, err, "AckMux with")
		}
	})
}
