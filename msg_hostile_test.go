package grid

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
)

func TestMsg_TruncatedAnywhereIsAnError(t *testing.T) {
	vectors := loadVectors(t)
	places := map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(vectors)) {
		if vectors[name].Fields == nil {
			continue
		}
		wire := rawpeer.Unhex(t, vectors[name].Hex)
		for n := range wire {
			_, err := parseFrame(wire[:n:n])
			require.ErrorIs(t, err, ErrProtocol, "%s, %d bytes", name, n)
			for _, place := range []string{
				fmt.Sprintf("undecodable message of %d bytes", n),
				"for mux 3 ends inside its subroute", "for mux 3 ends inside its checksum",
				"merged message 1 of 2", "merged message 2 of 2",
			} {
				if strings.Contains(err.Error(), place) {
					places[strings.ReplaceAll(place, fmt.Sprint(n), "n")]++
				}
			}
		}
	}
	require.Len(t, places, 5, "the errors say where: %v", places)
}

func TestMsg_FollowedByStrayBytesIsAnError(t *testing.T) {
	for name, v := range loadVectors(t) {
		if v.Fields == nil {
			continue
		}
		for _, stray := range []string{"\x00", "\xc0", "\xc4", strings.Repeat("\x97", 100)} {
			_, err := parseFrame(append(rawpeer.Unhex(t, v.Hex), stray...))
			require.ErrorIs(t, err, ErrProtocol, name)
			require.ErrorContains(t, err, fmt.Sprintf("followed by %d stray bytes", len(stray)), name)
		}
	}
}

func TestMsg_WithAnyBitChangedUnderAChecksumIsAnError(t *testing.T) {
	m := message{MuxID: 7, Seq: 3, Handler: 9, Op: opRequest, Flags: flagCRC | flagSubroute, Payload: []byte("payload"), Sub: new(subHandlerID)}
	wire := m.appendTo(nil)
	_, err := parseFrame(wire)
	require.NoError(t, err)
	for bit := range 8 * len(wire) {
		bad := bytes.Clone(wire)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := parseFrame(bad)
		require.ErrorIs(t, err, ErrProtocol, "bit %d", bit)
	}
	wire[len(wire)-1] ^= 0xff
	_, err = parseFrame(wire)
	require.ErrorContains(t, err, "Request for mux 7 has checksum")
	require.ErrorContains(t, err, "should be")
}

func TestMsg_OfAnotherLengthThanSevenIsAnError(t *testing.T) {
	for _, head := range []string{"\x90", "\x96", "\x98", "\x9f", "\xdc\x00\x08", "\xdd\x00\x00\x00\x06", "\xdd\xff\xff\xff\xff", "\xdc\xff\xff"} {
		_, err := parseFrame([]byte(head + "\x01\x02\x03\x04\x05\x06\xc4\x00\x00"))
		require.ErrorIs(t, err, ErrProtocol)
		require.ErrorContains(t, err, "wanted array of size 7")
	}
	for _, wrong := range []string{"\x87", "\xc0", "\x07", "\xc4\x07", "\xa7", "\xc1"} {
		_, err := parseFrame([]byte(wrong + "\x01\x02\x03\x04\x05\x06\xc4\x00"))
		require.ErrorIs(t, err, ErrProtocol)
	}
}

func TestMsg_PayloadThatIsNoBinIsAnError(t *testing.T) {
	for _, wrong := range []string{"\xc0", "\xa1p", "\xd9\x01p", "\x91\x01", "\x81\x01\x01", "\x01"} {
		_, err := parseFrame([]byte("\x97\x01\x02\x03\x04\x05\x06" + wrong))
		require.ErrorIs(t, err, ErrProtocol, "%x", wrong)
		require.ErrorContains(t, err, "Payload")
	}
}

// idleSession can dispatch what reaches neither its peer nor a handler.
func idleSession() *session {
	s := &session{conn: &Connection{}, opts: &ManagerOptions{MaxMessageSize: 1 << 20}}
	s.reader.s = s
	s.streams.init()
	return s
}

func TestMsg_MergedThatLiesIsAnError(t *testing.T) {
	response := rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse}
	merged := rawpeer.EncodeMerged(response, response, response)
	count := func(n byte) []byte {
		b := bytes.Clone(merged)
		b[2] = n
		return b
	}
	one := len(response.Encode()) + 2
	huge := []byte("\x97\x00\xce\xff\xff\xff\xff\x00\x00\x11\x00\xc4\x00")
	for _, c := range []struct {
		frame []byte
		says  string
	}{
		{merged, ""},
		{count(4), "merged message 4 of 4"},
		{count(2), fmt.Sprintf("merged message of 2 is followed by %d stray bytes", one)},
		{count(0), fmt.Sprintf("merged message of 0 is followed by %d stray bytes", 3*one)},
		{huge, "merged message 1 of 4294967295"},
		{append(bytes.Clone(huge), "\xc6\xff\xff\xff\xff"...), "merged message 1 of 4294967295"},
		{append(bytes.Clone(huge), 0xc4, 0), "undecodable message of 0 bytes"},
		{append(bytes.Clone(huge), 0x01), "merged message 1 of 4294967295"},
		{rawpeer.EncodeMerged(response, rawpeer.Msg{Op: rawpeer.OpMerged}), "merged message inside a merged one"},
		{rawpeer.EncodeMerged(response, rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 1 << 31, Payload: make([]byte, 100)}), "merged message inside a merged one"},
		{rawpeer.EncodeMerged(rawpeer.Msg{MuxID: 5, Op: rawpeer.OpResponse, Flags: rawpeer.FlagSubroute}), "Response for mux 5 ends inside its subroute"},
		{append(rawpeer.EncodeMerged(response), 0), "merged message of 1 is followed by 1 stray bytes"},
	} {
		err := idleSession().reader.dispatchFrame(c.frame)
		if c.says == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, ErrProtocol)
		require.ErrorContains(t, err, c.says)
	}
}

func TestMsg_NothingIsAllocatedOnAClaim(t *testing.T) {
	const head = "\x97\x01\x02\x03\x04\x0f\x02"
	frames := map[string]string{
		"array32":                "\xdd\xff\xff\xff\xff",
		"payload bin32":          head + "\xc6\xff\xff\xff\xff",
		"payload bin32 2^31":     head + "\xc6\x80\x00\x00\x00",
		"payload bin16":          head + "\xc5\xff\xff",
		"merged count":           "\x97\x00\xce\xff\xff\xff\xff\x00\x00\x11\x00\xc4\x00",
		"merged bin32":           "\x97\x00\x02\x00\x00\x11\x00\xc4\x00\xc6\xff\xff\xff\xff",
		"merged payload bin32":   "\x97\x00\x02\x00\x00\x11\x00\xc4\x00\xc4\x0c" + head + "\xc6\xff\xff\xff\xff",
		"merged head with bin32": "\x97\x00\x02\x00\x00\x11\x00\xc6\xff\xff\xff\xff",
	}
	for name, frame := range frames {
		for _, input := range []string{frame, frame + strings.Repeat("\xc4", 2000)} {
			require.Less(t, allocatedBy(func() {
				_, err := parseFrame([]byte(input))
				require.ErrorIs(t, err, ErrProtocol)
			}), uint64(64<<10), name)
		}
	}

	deep := strings.Repeat("\x91", 1<<20)
	payloads := map[string]string{
		"map32":             "\xdf\xff\xff\xff\xff",
		"key str32":         "\x81\xdb\xff\xff\xff\xff",
		"Host str32":        "\x81\xa4Host\xdb\xff\xff\xff\xff",
		"ID bin32":          "\x81\xa2ID\xc6\xff\xff\xff\xff",
		"Time ext32":        "\x81\xa4Time\xc9\xff\xff\xff\xff\x05",
		"Error str32":       "\x81\xa5Error\xdb\xff\xff\xff\xff",
		"e str32":           "\x81\xa1e\xdb\xff\xff\xff\xff",
		"unknown bin32":     "\x81\xa1x\xc6\xff\xff\xff\xff",
		"unknown array32":   "\x81\xa1x\xdd\xff\xff\xff\xff",
		"unknown and deep":  "\x81\xa1x" + deep,
		"unknown endless":   "\x81\xa1x\xdd\xff\xff\xff\xff\xc6\xff\xff\xff\xfb",
		"unknown ext32":     "\x81\xa1x\xc9\xff\xff\xff\xff\x01",
		"unknown map of it": "\x81\xa1x\x81\xa1y\xdf\xff\xff\xff\xff",
	}
	known := map[string]codec{
		"Host str32": new(connectReq), "ID bin32": new(connectResp), "Time ext32": new(connectReq),
		"Error str32": new(muxConnectError), "e str32": new(pongMsg),
	}
	for name, payload := range payloads {
		all := []codec{new(connectReq), new(connectResp), new(muxConnectError), new(pingMsg), new(pongMsg)}
		if c := known[name]; c != nil {
			all = []codec{c}
		}
		input := []byte(payload)
		for _, c := range all {
			require.Less(t, allocatedBy(func() {
				err := unmarshal(c.UnmarshalMsg, input)
				require.Error(t, err, "%s into %T", name, c)
			}), uint64(64<<10), "%s into %T", name, c)
		}
	}
}

// FuzzMessage holds our decoder against the scripted peer's, and against our own encoder.
func FuzzMessage(f *testing.F) {
	for _, v := range loadVectors(f) {
		f.Add(rawpeer.Unhex(f, v.Hex))
	}
	request := rawpeer.Msg{MuxID: 1 << 40, Seq: 1 << 31, DeadlineMS: 60000, Handler: 200, Op: rawpeer.OpRequest, Flags: rawpeer.FlagCRC | rawpeer.FlagSubroute, Payload: make([]byte, 300), Subroute: make([]byte, 32)}
	f.Add(rawpeer.EncodeMerged())
	f.Add(rawpeer.EncodeMerged(request))
	f.Add(rawpeer.EncodeMerged(request, request, rawpeer.Msg{Op: 255, Flags: 0xff &^ rawpeer.FlagSubroute}))
	f.Add(rawpeer.EncodeMerged(rawpeer.Msg{Op: rawpeer.OpMerged}))
	f.Add(rawpeer.Msg{Op: rawpeer.OpMerged, Flags: rawpeer.FlagSubroute, Subroute: []byte{}}.Encode())
	f.Add([]byte("\xdd\x00\x00\x00\x07\xd3\x00\x00\x00\x00\x00\x00\x00\x01\xcf\x00\x00\x00\x00\x00\x00\x00\x02\x03\x04\x05\x06\xc6\x00\x00\x00\x01p"))
	f.Fuzz(func(t *testing.T, data []byte) {
		input := bytes.Clone(data)
		msgs, err := parseFrameWith(message{knowsMetadata: true}, input)
		require.Equal(t, data, input, "the input was written to")

		flagged := isFlagged(data) // says nothing
		if raw, rawErr := rawpeer.DecodeMerged(data); !flagged && (rawErr == nil) != (err == nil) {
			require.Failf(t, "they differ", "ours %v, the scripted peer's %v", err, rawErr)
		} else if !flagged && err == nil {
			require.Len(t, msgs, len(raw))
			for i := range raw {
				require.Equal(t, raw[i], rawOf(msgs[i]))
			}
		}
		if err != nil {
			return
		}
		var again []byte
		for _, m := range msgs {
			b := m.appendTo(nil)
			require.Len(t, b, m.size())
			got, err := parseFrameWith(message{knowsMetadata: true}, b)
			require.NoError(t, err)
			require.Equal(t, []message{m}, got)
			again = append(again, b...)
		}
		if len(msgs) > 1 {
			got, err := parseFrameWith(message{knowsMetadata: true}, frameOf(t, 0, msgs...))
			require.NoError(t, err)
			require.Equal(t, msgs, got)
		} else if len(msgs) == 1 {
			require.Equal(t, again, frameOf(t, 0, msgs...))
		}
	})
}
