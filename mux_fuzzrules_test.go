package grid

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// wireRules holds what two hosts say to each other on streams against section 5 of the protocol:
// numbers, credits, and what may follow what; and on requests against that on cancels.
type wireRules struct {
	t        *testing.T
	r        *streamsRun
	muxes    map[wireMux]*muxRules
	requests map[wireMux]*requestRules
}

// wireMux names a stream or a request: both hosts count, each for what it opens.
type wireMux struct {
	client int
	id     uint64
}

// muxRules is one stream; its two directions are that of the client and that of the server.
type muxRules struct {
	stream *fuzzStream
	side   [2]sideRules
}

type sideRules struct {
	next    uint32 // number
	dropped bool   // disconnected: nothing that is numbered may follow
	ended   bool   // EOF was sent
	amid    bool   // in the middle of a message
	spent   int    // credits
	granted int    // credits returned, or given to begin with, to the other side
	had     int    // those of them that have been delivered
}

func newWireRules(t *testing.T, r *streamsRun) *wireRules {
	return &wireRules{t: t, r: r, muxes: map[wireMux]*muxRules{}, requests: map[wireMux]*requestRules{}}
}

// find returns the stream that a message of host from belongs to, and the side that sends it; nil
// if it belongs to none.
func (w *wireRules) find(from int, m rawpeer.Msg) (x *muxRules, side int) {
	switch {
	case m.MuxID == 0:
		return nil, 0
	case m.Op == rawpeer.OpConnectMux || m.Op == rawpeer.OpMuxClientMsg || m.Op == rawpeer.OpUnblockSrvMux || m.Op == rawpeer.OpDisconnectServerMux || m.Op == rawpeer.OpPing:
	case m.Op == rawpeer.OpAckMux || m.Op == rawpeer.OpMuxServerMsg || m.Op == rawpeer.OpUnblockClMux || m.Op == rawpeer.OpDisconnectClientMux || m.Op == rawpeer.OpPong || m.Op == rawpeer.OpMuxConnectError:
		side, from = 1, 1-from
	default:
		require.Fail(w.t, "an op that nobody asked for", "%v", m)
	}
	key := wireMux{from, m.MuxID}
	if w.muxes[key] == nil {
		require.Equal(w.t, uint8(rawpeer.OpConnectMux), m.Op, "%v of a stream that was not opened", m)
		s := w.r.stream(m.Payload)
		require.Equal(w.t, uint8(s.handler()), m.Handler)
		require.Equal(w.t, s.metadata != nil && w.r.caps&capMetadata != 0, m.Flags&rawpeer.FlagMetadata != 0, "%v", m)
		w.muxes[key] = &muxRules{stream: s}
	}
	return w.muxes[key], side
}

// sent is told what a host has written.
func (w *wireRules) sent(from int, m rawpeer.Msg) {
	if m.MuxID != 0 {
		require.Equal(w.t, w.r.hosts[0].conn.crc != 0, m.Flags&rawpeer.FlagCRC != 0, "%v", m)
	}
	if w.request(from, m) {
		return
	}
	x, side := w.find(from, m)
	if x == nil {
		require.Contains(w.t, []uint8{rawpeer.OpPing, rawpeer.OpPong}, m.Op)
		return
	}
	s := &x.side[side]
	if m.Flags&rawpeer.FlagDetails != 0 {
		require.True(w.t, w.r.caps&capErrors != 0 && m.Op == rawpeer.OpMuxServerMsg && m.Flags&rawpeer.FlagPayloadIsErr != 0, "%v", m)
		_, err := rawpeer.DecodeErrorDetails(m.Payload)
		require.NoError(w.t, err)
	}
	switch m.Op {
	case rawpeer.OpDisconnectClientMux, rawpeer.OpDisconnectServerMux:
		s.dropped = true
		return
	case rawpeer.OpMuxConnectError, rawpeer.OpPong:
		return
	}
	require.False(w.t, s.dropped, "%v after a disconnect", m)
	require.Equal(w.t, s.next, m.Seq, "%v out of turn", m)
	s.next++
	switch m.Op {
	case rawpeer.OpMuxClientMsg, rawpeer.OpMuxServerMsg:
		require.False(w.t, s.ended, "%v after the end", m)
		eof, more := m.Flags&rawpeer.FlagEOF != 0, m.Flags&rawpeer.FlagMore != 0
		s.ended = eof
		require.False(w.t, eof && s.amid, "%v amid a message", m)
		// An end is alone, or an error.
		require.False(w.t, eof && len(m.Payload) > 0 && m.Flags&rawpeer.FlagPayloadIsErr == 0, "%v", m)
		if !s.amid && (!eof || m.Op == rawpeer.OpMuxServerMsg && !w.r.caps.wide()) {
			s.spent++
		}
		s.amid = more
		require.LessOrEqual(w.t, s.spent, w.begun(x, side)+s.had, "%v without a credit", m)
	case rawpeer.OpAckMux:
		require.Equal(w.t, rawpeer.AckPayload(uint64(w.r.caps), x.stream.inCapacity, x.stream.outCapacity), m.Payload, "%v", m)
	case rawpeer.OpUnblockSrvMux, rawpeer.OpUnblockClMux:
		require.False(w.t, !w.r.caps.wide() && len(m.Payload) > 0, "%v to version 1", m)
		s.granted += creditsIn(m)
	}
}

// begun is what a side may send before any credit is returned.
func (w *wireRules) begun(x *muxRules, side int) int {
	if side == 1 {
		return x.stream.outCapacity
	}
	return x.stream.inCapacity
}

// creditsIn are those that a message returns.
func creditsIn(m rawpeer.Msg) int {
	if len(m.Payload) == 0 {
		return 1
	}
	n, _, _ := msgp.ReadIntBytes(m.Payload)
	return n
}

// delivered is told what is about to be given to the other host.
func (w *wireRules) delivered(from int, m rawpeer.Msg) {
	if m.Op == rawpeer.OpUnblockSrvMux || m.Op == rawpeer.OpUnblockClMux {
		x, side := w.find(from, m)
		x.side[1-side].had += creditsIn(m)
	}
}

// check compares the credits that were returned with what was consumed. It is called when all is
// quiet.
func (w *wireRules) check() {
	for _, x := range w.muxes {
		for side := range 2 {
			s := x.stream
			if side == 0 && (s.left.Load() || s.consumer >= byReader) || side == 1 && s.reads {
				continue // nobody counts what is consumed
			}
			// The client's consumer may hold one that it has not counted.
			consumed := []int{s.down.taken + 1, s.up.taken}[side]
			granted, capacity := x.side[side].granted, w.begun(x, 1-side)
			if !w.r.caps.wide() {
				require.LessOrEqual(w.t, granted, consumed, "stream %d: credits for nothing", s.i)
				continue
			}
			require.LessOrEqual(w.t, capacity+granted-consumed, max(capacity, credit.MaxWindow), "stream %d: the window is too wide", s.i)
		}
	}
}
