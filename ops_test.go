package grid

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// Lesson 27: each op of the protocol is one that a session knows. What the
// receivers do is for the tests of each.
func TestEveryOpHasAReceiver(t *testing.T) {
	require.Len(t, rawOpNames, len(opNames)-1)
	for op := uint8(1); op <= rawOpMerged; op++ {
		require.Equal(t, rawOpNames[op], opNames[op])
		t.Run(rawOpName(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, book := newLogBook()
				g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, func(o *ManagerOptions) { o.Logger = log })
				p := g.dialLone(raw, rawConfig{})
				payload := []byte{0x80} // an empty map, which most take
				switch op {
				case rawOpMerged:
					payload = nil
				case rawOpPing:
					payload = rawPing(time.Now()).Payload
				}
				p.send(rawMsg{Op: op, Payload: payload})
				synctest.Wait()
				require.Empty(t, book.about("unknown op"))

				ends := op == rawOpConnect || op == rawOpConnectResponse || op == rawOpDisconnect
				c := g.nodes[0].Connection(raw)
				require.Equal(t, ends, c.State() != StateConnected, "%s", c.Stats().LastError)
				if ends {
					return
				}
				for _, m := range p.pending() {
					require.NotEqual(t, op, m.Op, "it was sent back: %v", m)
				}
			})
		})
	}
}

// Lesson 27. That the bytes are there where the flag is, the
// scripted peer checks with every message that it reads.
func TestReplyKeepsNoFlagWhoseBytesItDoesNotCarry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		g, raw := newLoneGrid(t, n, true, nil)
		node := g.nodes[0]
		echo := func(b []byte) ([]byte, *RemoteErr) { return b, nil }
		require.NoError(t, node.RegisterSingleHandler(testEcho, echo, "sub"))
		require.NoError(t, node.RegisterSingleHandler(testFail, func([]byte) ([]byte, *RemoteErr) { return nil, NewRemoteErrString("no") }, "sub"))
		p := g.dialLone(raw, rawConfig{})
		const all = rawFlagCRC | rawFlagEOF | rawFlagStateless | rawFlagSubroute
		id := uint64(0)
		ask := func(m rawMsg, ops ...uint8) {
			t.Helper()
			for _, flags := range []uint8{all, all &^ rawFlagCRC, all &^ rawFlagEOF, all | rawFlagPayloadIsZero} {
				id++
				m.MuxID, m.Flags = id, flags
				m.Subroute = rawSubrouteID(m.Handler, "sub")
				if m.Op == rawOpConnectMux && m.Handler == uint8(testBlock) {
					m.Flags &^= rawFlagSubroute // it is registered without one
				}
				p.send(m)
				for _, op := range ops {
					reply := p.expect(op)
					require.Equal(t, id, reply.MuxID)
					require.Zero(t, reply.Flags&(rawFlagSubroute|rawFlagStateless|rawFlagMore), "%v", reply)
					require.NotZero(t, reply.Flags&rawFlagCRC, "%v", reply)
				}
				synctest.Wait()
				require.Empty(t, p.pending())
			}
		}
		payload := []byte("payload")
		ask(rawMsg{Op: rawOpRequest, Handler: uint8(testEcho), Payload: payload}, rawOpResponse)
		ask(rawMsg{Op: rawOpRequest, Handler: uint8(testFail), Payload: payload}, rawOpResponse)
		ask(rawMsg{Op: rawOpRequest, Handler: 200, Payload: payload}, rawOpMuxConnectError)
		ask(rawMsg{Op: rawOpConnectMux, Handler: 200, Payload: payload}, rawOpMuxConnectError)
		ask(rawMsg{Op: rawOpConnectMux, Handler: uint8(testBlock), Payload: payload}, rawOpAckMux)
		ask(rawMsg{Op: rawOpPing}, rawOpPong)
		require.Equal(t, StateConnected, node.Connection(raw).State())

		// For unknown streams: they are told to end, unless they just have.
		for _, c := range []struct{ op, reply uint8 }{
			{rawOpMuxClientMsg, rawOpDisconnectClientMux},
			{rawOpMuxServerMsg, rawOpDisconnectServerMux},
			{rawOpAckMux, rawOpDisconnectServerMux},
		} {
			id++
			p.send(rawMsg{Op: c.op, MuxID: id, Flags: rawFlagCRC | rawFlagSubroute, Subroute: rawSubrouteID(1, "sub"), Payload: payload})
			reply := p.expect(c.reply)
			require.Equal(t, id, reply.MuxID)
			require.Zero(t, reply.Flags&^rawFlagCRC, "%v", reply)
			p.send(rawMsg{Op: c.op, MuxID: id, Flags: rawFlagCRC | rawFlagEOF})
			synctest.Wait()
			require.Empty(t, p.pending())
		}
	})
}
