package grid

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What the protocol says of messages that no honest peer sends, word for word.

// said is what the node says to one of them: an op, the mux if it is not 7, and how
// the text begins if there is one.
type said struct {
	op   uint8
	text string
}

func TestLiarIsAnsweredAsTheProtocolSays(t *testing.T) {
	msg := func(op, flags uint8, payload string) rawMsg {
		return rawMsg{MuxID: 7, Op: op, Flags: flags, Payload: []byte(payload)}
	}
	asks := func(op uint8, h HandlerID, change func(m *rawMsg)) rawMsg {
		m := rawMsg{MuxID: 7, Op: op, Handler: uint8(h), Payload: []byte("x")}
		if op == rawOpRequest {
			m.Flags = rawFlagEOF
		}
		if change != nil {
			change(&m)
		}
		return m
	}
	under := func(h HandlerID) func(m *rawMsg) {
		return func(m *rawMsg) { m.Flags, m.Subroute = m.Flags|rawFlagSubroute, rawSubrouteID(uint8(h), "none") }
	}
	within := func(ms uint32) func(m *rawMsg) { return func(m *rawMsg) { m.DeadlineMS = ms } }
	data := msg(rawOpMuxClientMsg, 0, "x")
	cancelled, dropped := said{rawOpDisconnectServerMux, ""}, said{rawOpDisconnectClientMux, ""}
	refused := func(text string) []said { return []said{{rawOpMuxConnectError, text}} }
	acked, answered := said{rawOpAckMux, ""}, said{rawOpResponse, "x"}
	numbered := func(m rawMsg, seq uint32) rawMsg { m.Seq = seq; return m }

	for name, c := range map[string]struct {
		send     []rawMsg
		want     []said // of both versions, where extended is nil
		extended []said
	}{
		"message for no stream":             {[]rawMsg{data}, []said{dropped}, nil},
		"end for no stream":                 {[]rawMsg{msg(rawOpMuxClientMsg, rawFlagEOF, "x")}, nil, nil},
		"many messages for no stream":       {[]rawMsg{data, data, data, data, data, data, data}, []said{dropped, dropped, dropped, dropped}, nil},
		"ack to nobody":                     {[]rawMsg{msg(rawOpAckMux, 0, "\x01")}, []said{cancelled}, nil},
		"last ack to nobody":                {[]rawMsg{msg(rawOpAckMux, rawFlagEOF, "\x01")}, nil, nil},
		"message to nobody":                 {[]rawMsg{msg(rawOpMuxServerMsg, 0, "x")}, []said{cancelled}, nil},
		"error to nobody":                   {[]rawMsg{msg(rawOpMuxServerMsg, rawFlagPayloadIsErr, "x")}, []said{cancelled}, nil},
		"end to nobody":                     {[]rawMsg{msg(rawOpMuxServerMsg, rawFlagEOF, "")}, nil, nil},
		"response to nobody":                {[]rawMsg{msg(rawOpResponse, rawFlagEOF, "x")}, nil, nil},
		"refusal to nobody":                 {[]rawMsg{msg(rawOpMuxConnectError, 0, string(muxConnectErrorPayload("no")))}, nil, nil},
		"credits for no stream":             {[]rawMsg{msg(rawOpUnblockSrvMux, 0, "\xc1"), msg(rawOpUnblockClMux, 0, "\xc1")}, nil, nil},
		"disconnects of both kinds":         {[]rawMsg{msg(rawOpDisconnectServerMux, 0, ""), msg(rawOpDisconnectClientMux, 0, ""), msg(rawOpDisconnectServerMux, rawFlagPayloadIsErr, "x")}, nil, nil},
		"ping of no stream":                 {[]rawMsg{msg(rawOpPing, 0, "")}, []said{{rawOpPong, "\x83\xa2nf\xc3"}}, nil},
		"pong to no stream":                 {[]rawMsg{msg(rawOpPong, 0, "\x81\xa2nf\xc3")}, nil, nil},
		"ping of a request":                 {[]rawMsg{asks(rawOpRequest, liarSlow, nil), msg(rawOpPing, 0, "")}, []said{{rawOpPong, "\x83\xa2nf\xc3"}, answered}, nil},
		"cancels its request":               {[]rawMsg{asks(rawOpRequest, liarSlow, nil), msg(rawOpDisconnectServerMux, 0, "")}, []said{answered}, nil},
		"drops its own request":             {[]rawMsg{asks(rawOpRequest, liarSlow, nil), msg(rawOpDisconnectClientMux, 0, "")}, []said{answered}, nil},
		"answers its own request":           {[]rawMsg{asks(rawOpRequest, liarSlow, nil), msg(rawOpResponse, rawFlagEOF, "own")}, []said{answered}, nil},
		"streams to its request":            {[]rawMsg{asks(rawOpRequest, liarSlow, nil), data}, []said{dropped, answered}, nil},
		"same request twice":                {[]rawMsg{asks(rawOpRequest, testEcho, nil), asks(rawOpRequest, testEcho, nil)}, []said{answered, answered}, nil},
		"request as handler 0":              {[]rawMsg{asks(rawOpRequest, 0, nil)}, refused("grid: no request handler with ID 0"), []said{}},
		"stream as handler 0":               {[]rawMsg{asks(rawOpConnectMux, 0, nil)}, refused("grid: no stream handler with ID 0"), []said{}},
		"request of nobody":                 {[]rawMsg{asks(rawOpRequest, testUnused, nil)}, refused("grid: no request handler with ID 8"), nil},
		"stream of nobody":                  {[]rawMsg{asks(rawOpConnectMux, 255, nil)}, refused("grid: no stream handler with ID 255"), nil},
		"request of a stream":               {[]rawMsg{asks(rawOpRequest, liarHold, nil)}, refused("grid: no request handler with ID 151, only one of the other kind"), nil},
		"stream of a request":               {[]rawMsg{asks(rawOpConnectMux, testEcho, nil)}, refused("grid: no stream handler with ID 1, only one of the other kind"), nil},
		"request under no subroute":         {[]rawMsg{asks(rawOpRequest, testEcho, under(testEcho))}, refused("grid: no request handler with ID 1 under that subroute"), nil},
		"stream under no subroute":          {[]rawMsg{asks(rawOpConnectMux, liarHold, under(liarHold))}, refused("grid: no stream handler with ID 151 under that subroute"), nil},
		"opens with a number":               {[]rawMsg{numbered(asks(rawOpConnectMux, liarHold, nil), 5)}, refused(ErrIncorrectSequence.Error()), nil},
		"request with a number":             {[]rawMsg{numbered(asks(rawOpRequest, testEcho, nil), 5)}, []said{answered}, nil},
		"request of a millisecond":          {[]rawMsg{asks(rawOpRequest, liarSlow, within(1))}, nil, nil},
		"request without a deadline":        {[]rawMsg{asks(rawOpRequest, liarSlow, within(0))}, []said{answered}, nil},
		"request of 49 days":                {[]rawMsg{asks(rawOpRequest, liarSlow, within(math.MaxUint32))}, []said{answered}, nil},
		"stream of a millisecond":           {[]rawMsg{asks(rawOpConnectMux, liarHold, within(1))}, []said{acked, {rawOpDisconnectClientMux, "context deadline exceeded"}}, nil},
		"stream of 49 days":                 {[]rawMsg{asks(rawOpConnectMux, liarHold, within(math.MaxUint32))}, []said{acked}, nil},
		"stream of 49 days, then forgotten": {[]rawMsg{asks(rawOpConnectMux, liarHold, within(math.MaxUint32)), msg(rawOpDisconnectServerMux, 0, "")}, []said{acked, dropped}, []said{acked}},
		"request on the ID of a stream":     {[]rawMsg{asks(rawOpConnectMux, liarHold, nil), asks(rawOpRequest, testEcho, nil), msg(rawOpDisconnectServerMux, 0, "")}, []said{acked, answered, dropped}, []said{acked, answered}},
		"stream on the ID of a request":     {[]rawMsg{asks(rawOpRequest, liarSlow, nil), asks(rawOpConnectMux, liarHold, nil)}, []said{acked, answered}, nil},
		"stream opened twice":               {[]rawMsg{asks(rawOpConnectMux, liarHold, nil), asks(rawOpConnectMux, liarHold, nil)}, []said{acked, {rawOpDisconnectClientMux, ErrProtocol.Error()}}, nil},
		"input ended twice": {
			[]rawMsg{asks(rawOpConnectMux, liarHold, nil), numbered(msg(rawOpMuxClientMsg, rawFlagEOF, ""), 1), numbered(msg(rawOpMuxClientMsg, rawFlagEOF, ""), 2)},
			[]said{acked, {rawOpDisconnectClientMux, ErrProtocol.Error()}}, nil,
		},
		"input ended amid a message": { // to version 1 it is no part, but a message
			[]rawMsg{asks(rawOpConnectMux, liarHold, nil), numbered(msg(rawOpMuxClientMsg, rawFlagMore, "abc"), 1), numbered(msg(rawOpMuxClientMsg, rawFlagEOF, ""), 2)},
			[]said{acked, {rawOpUnblockClMux, ""}}, []said{acked, {rawOpDisconnectClientMux, ErrProtocol.Error()}},
		},
		"acks its own stream": {[]rawMsg{asks(rawOpConnectMux, liarHold, nil), msg(rawOpAckMux, 0, "\x01")}, []said{acked, cancelled}, nil},
		"serves its own stream": {
			[]rawMsg{asks(rawOpConnectMux, liarHold, nil), msg(rawOpMuxServerMsg, rawFlagEOF, ""), msg(rawOpUnblockClMux, 0, ""), msg(rawOpDisconnectClientMux, 0, ""), msg(rawOpMuxConnectError, 0, string(muxConnectErrorPayload("no")))},
			[]said{acked}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inLiar(t, nil, func(r *liarRig) {
				for _, m := range c.send {
					r.peer.send(m)
					synctest.Wait()
				}
				time.Sleep(2 * time.Second) // past the short deadlines
				r.letGo()
				want := c.want
				if r.extended() && c.extended != nil {
					want = c.extended
				}
				got := r.clear()
				require.Len(r, got, len(want), rawDump(got))
				for i, m := range got {
					require.EqualValues(r, 7, m.MuxID)
					require.Equal(r, rawOpName(want[i].op), rawOpName(m.Op), rawDump(got))
					text := string(m.Payload)
					if m.Op == rawOpMuxConnectError {
						var e muxConnectError
						require.NoError(r, unmarshal(e.UnmarshalMsg, m.Payload))
						require.Equal(r, want[i].text, e.Error[:min(len(e.Error), len(want[i].text))])
						continue
					}
					require.Contains(r, text, want[i].text)
				}
				require.True(r, r.isUp())
				r.works()
				r.quit(7)
			})
		})
	}
}

// Whatever is under way, in whatever state, when the liar breaks the link: all of it
// is told, nothing of it is left, and the operator reads why, once.
func TestLiarThatBreaksTheLinkIsLoggedOnce(t *testing.T) {
	bad := rawMsg{MuxID: 9, Op: rawOpResponse, Flags: rawFlagCRC}.encode()
	bad[len(bad)-1]++
	for name, c := range map[string]struct {
		frame        []byte
		why          string
		extendedOnly bool
	}{
		"connect":                   {rawMsg{Op: rawOpConnect}.encode(), "Connect after the handshake", false},
		"connect for a mux":         {rawMsg{MuxID: 1, Op: rawOpConnect}.encode(), "Connect after the handshake", false},
		"response to it":            {rawMsg{MuxID: 1, Op: rawOpConnectResponse}.encode(), "ConnectResponse after the handshake", false},
		"disconnect":                {rawMsg{Op: rawOpDisconnect}.encode(), "the peer has closed the connection", false},
		"disconnect of a mux":       {rawMsg{MuxID: 1, Op: rawOpDisconnect}.encode(), "the peer has closed the connection", false},
		"checksum":                  {bad, "checksum", false},
		"subroute without bytes":    {rawMsg{MuxID: 1, Op: rawOpRequest, Flags: rawFlagSubroute}.encode(), "ends inside its subroute", false},
		"pong of garbage":           {rawMsg{MuxID: 1, Op: rawOpPong, Payload: []byte("\xc1")}.encode(), "Pong for mux 1", false},
		"refusal of garbage":        {rawMsg{MuxID: 1, Op: rawOpMuxConnectError, Payload: []byte("\xc1")}.encode(), "MuxConnectError for mux 1", false},
		"ping of the link, garbage": {rawMsg{Op: rawOpPing, Payload: []byte("\xc1")}.encode(), "Ping", false},
		"merged without the rest":   {rawMsg{Op: rawOpMerged, Seq: math.MaxUint32}.encode(), "merged message 1 of 4294967295", false},
		"merged and more":           {append(encodeMerged(rawMsg{Op: rawOpResponse}), 1), "stray bytes", false},
		"ack in fragments":          {rawMsg{MuxID: 1, Op: rawOpAckMux, Flags: rawFlagMore, Payload: []byte("\x01")}.encode(), "AckMux in fragments", true},
		"unknown op in fragments":   {rawMsg{MuxID: 1, Op: 99, Flags: rawFlagMore, Payload: []byte("\x01")}.encode(), "op 99 in fragments", true},
		"empty fragment":            {rawMsg{MuxID: 1, Op: rawOpResponse, Flags: rawFlagMore}.encode(), "bad fragment of 0 bytes", true},
		"last fragment that is not": {rawMsg{MuxID: 1, Op: rawOpRequest, Flags: rawFlagMore | rawFlagEOF, Payload: []byte("x")}.encode(), "bad fragment", true},
		"opened twice":              {fragment(rawOpRequest, 1, 0, testEcho).encode(), "mux 1 opened twice", true},
	} {
		t.Run(name, func(t *testing.T) {
			inLiar(t, nil, func(r *liarRig) {
				if c.extendedOnly && !r.extended() {
					return
				}
				var ours []*liarAsked
				for _, state := range liarClientStates() {
					if !state.fragments || r.extended() {
						ours = append(ours, state.make(r))
						r.clear()
					}
				}
				id, holds := uint64(0), 0
				for _, state := range liarServerStates() {
					if state.fragments && !r.extended() {
						continue
					}
					id++
					s := &liarServed{id: 100 + id}
					if state.name == "request opens" {
						s.id = 1 // of which some messages are
					}
					state.make(r, s)
					if s.holds {
						holds++
					}
				}
				for len(r.causes) > 0 { // of those that have ended before
					<-r.causes
				}
				_ = r.peer.trySendBytes(c.frame)
				require.False(r, r.isUp())
				require.Len(r, r.log.about("connection lost"), 1, "%q", r.log.lines)
				require.Len(r, r.log.about("connection lost", c.why), 1, "%q", r.log.lines)
				require.Contains(r, r.conn.Stats().LastError, c.why)
				for _, a := range ours {
					if err := a.end(r); !a.over {
						require.ErrorIs(r, err, ErrDisconnected)
						require.ErrorContains(r, err, c.why)
					}
				}
				for range holds {
					require.ErrorIs(r, <-r.causes, ErrDisconnected)
				}
				r.works()
				r.letGo()
				r.idle()
				r.connect()
			})
		})
	}
}
