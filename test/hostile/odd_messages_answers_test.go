package hostile

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// What the protocol says of messages that no honest peer sends, word for word.

// said is what the node says to one of them: an op, the mux if it is not 7, and how the text begins
// if there is one.
type said struct {
	op   uint8
	text string
}

func TestSession_OddMessagesAreAnsweredAsTheProtocolSays(t *testing.T) {
	msg := func(op, flags uint8, payload string) rawpeer.Msg {
		return rawpeer.Msg{MuxID: 7, Op: op, Flags: flags, Payload: []byte(payload)}
	}
	asks := func(op uint8, h grid.HandlerID, change func(m *rawpeer.Msg)) rawpeer.Msg {
		m := rawpeer.Msg{MuxID: 7, Op: op, Handler: uint8(h), Payload: []byte("x")}
		if op == rawpeer.OpRequest {
			m.Flags = rawpeer.FlagEOF
		}
		if change != nil {
			change(&m)
		}
		return m
	}
	under := func(h grid.HandlerID) func(m *rawpeer.Msg) {
		return func(m *rawpeer.Msg) {
			m.Flags, m.Subroute = m.Flags|rawpeer.FlagSubroute, rawpeer.SubrouteID(uint8(h), "none")
		}
	}
	within := func(ms uint32) func(m *rawpeer.Msg) { return func(m *rawpeer.Msg) { m.DeadlineMS = ms } }
	data := msg(rawpeer.OpMuxClientMsg, 0, "x")
	cancelled, dropped := said{rawpeer.OpDisconnectServerMux, ""}, said{rawpeer.OpDisconnectClientMux, ""}
	refused := func(text string) []said { return []said{{rawpeer.OpMuxConnectError, text}} }
	acked, answered := said{rawpeer.OpAckMux, ""}, said{rawpeer.OpResponse, "x"}
	numbered := func(m rawpeer.Msg, seq uint32) rawpeer.Msg { m.Seq = seq; return m }

	for name, c := range map[string]struct {
		send     []rawpeer.Msg
		want     []said // of both versions, where extended is nil
		extended []said
	}{
		"message for no stream":             {[]rawpeer.Msg{data}, []said{dropped}, nil},
		"end for no stream":                 {[]rawpeer.Msg{msg(rawpeer.OpMuxClientMsg, rawpeer.FlagEOF, "x")}, nil, nil},
		"many messages for no stream":       {[]rawpeer.Msg{data, data, data, data, data, data, data}, []said{dropped, dropped, dropped, dropped}, nil},
		"ack to nobody":                     {[]rawpeer.Msg{msg(rawpeer.OpAckMux, 0, "\x01")}, []said{cancelled}, nil},
		"last ack to nobody":                {[]rawpeer.Msg{msg(rawpeer.OpAckMux, rawpeer.FlagEOF, "\x01")}, nil, nil},
		"message to nobody":                 {[]rawpeer.Msg{msg(rawpeer.OpMuxServerMsg, 0, "x")}, []said{cancelled}, nil},
		"error to nobody":                   {[]rawpeer.Msg{msg(rawpeer.OpMuxServerMsg, rawpeer.FlagPayloadIsErr, "x")}, []said{cancelled}, nil},
		"end to nobody":                     {[]rawpeer.Msg{msg(rawpeer.OpMuxServerMsg, rawpeer.FlagEOF, "")}, nil, nil},
		"response to nobody":                {[]rawpeer.Msg{msg(rawpeer.OpResponse, rawpeer.FlagEOF, "x")}, nil, nil},
		"refusal to nobody":                 {[]rawpeer.Msg{msg(rawpeer.OpMuxConnectError, 0, string(rawpeer.ConnectError("no")))}, nil, nil},
		"credits for no stream":             {[]rawpeer.Msg{msg(rawpeer.OpUnblockSrvMux, 0, "\xc1"), msg(rawpeer.OpUnblockClMux, 0, "\xc1")}, nil, nil},
		"disconnects of both kinds":         {[]rawpeer.Msg{msg(rawpeer.OpDisconnectServerMux, 0, ""), msg(rawpeer.OpDisconnectClientMux, 0, ""), msg(rawpeer.OpDisconnectServerMux, rawpeer.FlagPayloadIsErr, "x")}, nil, nil},
		"ping of no stream":                 {[]rawpeer.Msg{msg(rawpeer.OpPing, 0, "")}, []said{{rawpeer.OpPong, "\x83\xa2nf\xc3"}}, nil},
		"pong to no stream":                 {[]rawpeer.Msg{msg(rawpeer.OpPong, 0, "\x81\xa2nf\xc3")}, nil, nil},
		"ping of a request":                 {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, nil), msg(rawpeer.OpPing, 0, "")}, []said{{rawpeer.OpPong, "\x83\xa2nf\xc3"}, answered}, nil},
		"cancels its request":               {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, nil), msg(rawpeer.OpDisconnectServerMux, 0, "")}, []said{answered}, nil},
		"drops its own request":             {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, nil), msg(rawpeer.OpDisconnectClientMux, 0, "")}, []said{answered}, nil},
		"answers its own request":           {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, nil), msg(rawpeer.OpResponse, rawpeer.FlagEOF, "own")}, []said{answered}, nil},
		"streams to its request":            {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, nil), data}, []said{dropped, answered}, nil},
		"same request twice":                {[]rawpeer.Msg{asks(rawpeer.OpRequest, rig.Echo, nil), asks(rawpeer.OpRequest, rig.Echo, nil)}, []said{answered, answered}, nil},
		"request as handler 0":              {[]rawpeer.Msg{asks(rawpeer.OpRequest, 0, nil)}, refused("grid: no request handler with ID 0"), []said{}},
		"stream as handler 0":               {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, 0, nil)}, refused("grid: no stream handler with ID 0"), []said{}},
		"request of nobody":                 {[]rawpeer.Msg{asks(rawpeer.OpRequest, rig.Unused, nil)}, refused("grid: no request handler with ID 8"), nil},
		"stream of nobody":                  {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, 255, nil)}, refused("grid: no stream handler with ID 255"), nil},
		"request of a stream":               {[]rawpeer.Msg{asks(rawpeer.OpRequest, holdStream, nil)}, refused("grid: no request handler with ID 151, only one of the other kind"), nil},
		"stream of a request":               {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, rig.Echo, nil)}, refused("grid: no stream handler with ID 1, only one of the other kind"), nil},
		"request under no subroute":         {[]rawpeer.Msg{asks(rawpeer.OpRequest, rig.Echo, under(rig.Echo))}, refused("grid: no request handler with ID 1 under that subroute"), nil},
		"stream under no subroute":          {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, under(holdStream))}, refused("grid: no stream handler with ID 151 under that subroute"), nil},
		"opens with a number":               {[]rawpeer.Msg{numbered(asks(rawpeer.OpConnectMux, holdStream, nil), 5)}, refused(grid.ErrIncorrectSequence.Error()), nil},
		"request with a number":             {[]rawpeer.Msg{numbered(asks(rawpeer.OpRequest, rig.Echo, nil), 5)}, []said{answered}, nil},
		"request of a millisecond":          {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, within(1))}, nil, nil},
		"request without a deadline":        {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, within(0))}, []said{answered}, nil},
		"request of 49 days":                {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, within(math.MaxUint32))}, []said{answered}, nil},
		"stream of a millisecond":           {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, within(1))}, []said{acked, {rawpeer.OpDisconnectClientMux, "context deadline exceeded"}}, nil},
		"stream of 49 days":                 {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, within(math.MaxUint32))}, []said{acked}, nil},
		"stream of 49 days, then forgotten": {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, within(math.MaxUint32)), msg(rawpeer.OpDisconnectServerMux, 0, "")}, []said{acked, dropped}, []said{acked}},
		"request on the ID of a stream":     {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, nil), asks(rawpeer.OpRequest, rig.Echo, nil), msg(rawpeer.OpDisconnectServerMux, 0, "")}, []said{acked, answered, dropped}, []said{acked, answered}},
		"stream on the ID of a request":     {[]rawpeer.Msg{asks(rawpeer.OpRequest, slowRequest, nil), asks(rawpeer.OpConnectMux, holdStream, nil)}, []said{acked, answered}, nil},
		"stream opened twice":               {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, nil), asks(rawpeer.OpConnectMux, holdStream, nil)}, []said{acked, {rawpeer.OpDisconnectClientMux, grid.ErrProtocol.Error()}}, nil},
		"input ended twice": {
			[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, nil), numbered(msg(rawpeer.OpMuxClientMsg, rawpeer.FlagEOF, ""), 1), numbered(msg(rawpeer.OpMuxClientMsg, rawpeer.FlagEOF, ""), 2)},
			[]said{acked, {rawpeer.OpDisconnectClientMux, grid.ErrProtocol.Error()}}, nil,
		},
		"input ended amid a message": { // to version 1 it is no part, but a message
			[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, nil), numbered(msg(rawpeer.OpMuxClientMsg, rawpeer.FlagMore, "abc"), 1), numbered(msg(rawpeer.OpMuxClientMsg, rawpeer.FlagEOF, ""), 2)},
			[]said{acked, {rawpeer.OpUnblockClMux, ""}}, []said{acked, {rawpeer.OpDisconnectClientMux, grid.ErrProtocol.Error()}},
		},
		"acks its own stream": {[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, nil), msg(rawpeer.OpAckMux, 0, "\x01")}, []said{acked, cancelled}, nil},
		"serves its own stream": {
			[]rawpeer.Msg{asks(rawpeer.OpConnectMux, holdStream, nil), msg(rawpeer.OpMuxServerMsg, rawpeer.FlagEOF, ""), msg(rawpeer.OpUnblockClMux, 0, ""), msg(rawpeer.OpDisconnectClientMux, 0, ""), msg(rawpeer.OpMuxConnectError, 0, string(rawpeer.ConnectError("no")))},
			[]said{acked}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inHostile(t, nil, func(r *hostileRig) {
				for _, m := range c.send {
					r.peer.Send(m)
					synctest.Wait()
				}
				time.Sleep(2 * time.Second) // past the short deadlines
				r.letGo()
				want := c.want
				if r.extended() && c.extended != nil {
					want = c.extended
				}
				got := r.clear()
				require.Len(r, got, len(want), rawpeer.Dump(got))
				for i, m := range got {
					require.EqualValues(r, 7, m.MuxID)
					require.Equal(r, rawpeer.OpName(want[i].op), rawpeer.OpName(m.Op), rawpeer.Dump(got))
					text := string(m.Payload)
					if m.Op == rawpeer.OpMuxConnectError {
						text := rawpeer.ConnectErrorText(r, m.Payload)
						require.Equal(r, want[i].text, text[:min(len(text), len(want[i].text))])
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

// Whatever is under way, in whatever state, when the peer breaks the link: all of it is told,
// nothing of it is left, and the operator reads why, once.
func TestLog_PeerThatBreaksTheLinkIsToldOnce(t *testing.T) {
	bad := rawpeer.Msg{MuxID: 9, Op: rawpeer.OpResponse, Flags: rawpeer.FlagCRC}.Encode()
	bad[len(bad)-1]++
	for name, c := range map[string]struct {
		frame        []byte
		why          string
		extendedOnly bool
	}{
		"connect":                   {rawpeer.Msg{Op: rawpeer.OpConnect}.Encode(), "Connect after the handshake", false},
		"connect for a mux":         {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpConnect}.Encode(), "Connect after the handshake", false},
		"response to it":            {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpConnectResponse}.Encode(), "ConnectResponse after the handshake", false},
		"disconnect":                {rawpeer.Msg{Op: rawpeer.OpDisconnect}.Encode(), "the peer has closed the connection", false},
		"disconnect of a mux":       {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnect}.Encode(), "the peer has closed the connection", false},
		"checksum":                  {bad, "checksum", false},
		"subroute without bytes":    {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpRequest, Flags: rawpeer.FlagSubroute}.Encode(), "ends inside its subroute", false},
		"pong of garbage":           {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpPong, Payload: []byte("\xc1")}.Encode(), "Pong for mux 1", false},
		"refusal of garbage":        {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpMuxConnectError, Payload: []byte("\xc1")}.Encode(), "MuxConnectError for mux 1", false},
		"ping of the link, garbage": {rawpeer.Msg{Op: rawpeer.OpPing, Payload: []byte("\xc1")}.Encode(), "Ping", false},
		"merged without the rest":   {rawpeer.Msg{Op: rawpeer.OpMerged, Seq: math.MaxUint32}.Encode(), "merged message 1 of 4294967295", false},
		"merged and more":           {append(rawpeer.EncodeMerged(rawpeer.Msg{Op: rawpeer.OpResponse}), 1), "stray bytes", false},
		"ack in fragments":          {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagMore, Payload: []byte("\x01")}.Encode(), "AckMux in fragments", true},
		"unknown op in fragments":   {rawpeer.Msg{MuxID: 1, Op: 99, Flags: rawpeer.FlagMore, Payload: []byte("\x01")}.Encode(), "op 99 in fragments", true},
		"empty fragment":            {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagMore}.Encode(), "bad fragment of 0 bytes", true},
		"last fragment that is not": {rawpeer.Msg{MuxID: 1, Op: rawpeer.OpRequest, Flags: rawpeer.FlagMore | rawpeer.FlagEOF, Payload: []byte("x")}.Encode(), "bad fragment", true},
		"opened twice":              {rawpeer.Fragment(rawpeer.OpRequest, 1, 0, rig.Echo).Encode(), "mux 1 opened twice", true},
	} {
		t.Run(name, func(t *testing.T) {
			inHostile(t, nil, func(r *hostileRig) {
				if c.extendedOnly && !r.extended() {
					return
				}
				var ours []*askedMux
				for _, state := range clientStates() {
					if !state.fragments || r.extended() {
						ours = append(ours, state.make(r))
						r.clear()
					}
				}
				id, holds := uint64(0), 0
				for _, state := range serverStates() {
					if state.fragments && !r.extended() {
						continue
					}
					id++
					s := &servedMux{id: 100 + id}
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
				_ = r.peer.TrySendBytes(c.frame)
				require.False(r, r.isUp())
				require.Len(r, r.Book.About("connection lost"), 1, "%q", r.Book.Lines)
				require.Len(r, r.Book.About("connection lost", c.why), 1, "%q", r.Book.Lines)
				require.Contains(r, r.Conn.Stats().LastError, c.why)
				for _, a := range ours {
					if err := a.end(r); !a.over {
						require.ErrorIs(r, err, grid.ErrDisconnected)
						require.ErrorContains(r, err, c.why)
					}
				}
				for range holds {
					require.ErrorIs(r, <-r.causes, grid.ErrDisconnected)
				}
				r.works()
				r.letGo()
				r.idle()
				r.connect()
			})
		})
	}
}
