package grid_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Lesson 27: each op of the protocol is one that a session knows. What the receivers do is for the
// tests of each.
func TestSession_EveryOpHasAReceiver(t *testing.T) {
	require.Len(t, rawpeer.OpNames, len(grid.OpNames)-1)
	for op := uint8(1); op <= rawpeer.OpMerged; op++ {
		require.Equal(t, rawpeer.OpNames[op], grid.OpNames[op])
		t.Run(rawpeer.OpName(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, book := rig.NewLogBook()
				g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, func(o *grid.ManagerOptions) { o.Logger = log })
				p := g.DialLone(raw, rawpeer.Config{})
				payload := []byte{0x80} // an empty map, which most take
				switch op {
				case rawpeer.OpMerged:
					payload = nil
				case rawpeer.OpPing:
					payload = rawpeer.Ping(time.Now()).Payload
				}
				p.Send(rawpeer.Msg{Op: op, Payload: payload})
				synctest.Wait()
				require.Empty(t, book.About("unknown op"))

				ends := op == rawpeer.OpConnect || op == rawpeer.OpConnectResponse || op == rawpeer.OpDisconnect
				c := g.Manager(0).Connection(raw)
				require.Equal(t, ends, c.State() != grid.StateConnected, "%s", c.Stats().LastError)
				if ends {
					return
				}
				for _, m := range p.Pending() {
					require.NotEqual(t, op, m.Op, "it was sent back: %v", m)
				}
			})
		})
	}
}

// Lesson 27. That the bytes are there where the flag is, the scripted peer checks with every
// message that it reads.
func TestSession_ReplyKeepsNoFlagWhoseBytesItDoesNotCarry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		g, raw := rig.NewLone(t, n, true, nil)
		node := g.Node(0)
		echo := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		require.NoError(t, node.RegisterSingleHandler(rig.Echo, echo, "sub"))
		require.NoError(t, node.RegisterSingleHandler(rig.Fail, func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString("no") }, "sub"))
		p := g.DialLone(raw, rawpeer.Config{})
		const all = rawpeer.FlagCRC | rawpeer.FlagEOF | rawpeer.FlagStateless | rawpeer.FlagSubroute
		id := uint64(0)
		ask := func(m rawpeer.Msg, ops ...uint8) {
			t.Helper()
			for _, flags := range []uint8{all, all &^ rawpeer.FlagCRC, all &^ rawpeer.FlagEOF, all | rawpeer.FlagPayloadIsZero} {
				id++
				m.MuxID, m.Flags = id, flags
				m.Subroute = rawpeer.SubrouteID(m.Handler, "sub")
				if m.Op == rawpeer.OpConnectMux && m.Handler == uint8(rig.Block) {
					m.Flags &^= rawpeer.FlagSubroute // it is registered without one
				}
				p.Send(m)
				for _, op := range ops {
					reply := p.Expect(op)
					require.Equal(t, id, reply.MuxID)
					require.Zero(t, reply.Flags&(rawpeer.FlagSubroute|rawpeer.FlagStateless|rawpeer.FlagMore), "%v", reply)
					require.NotZero(t, reply.Flags&rawpeer.FlagCRC, "%v", reply)
				}
				synctest.Wait()
				require.Empty(t, p.Pending())
			}
		}
		payload := []byte("payload")
		ask(rawpeer.Msg{Op: rawpeer.OpRequest, Handler: uint8(rig.Echo), Payload: payload}, rawpeer.OpResponse)
		ask(rawpeer.Msg{Op: rawpeer.OpRequest, Handler: uint8(rig.Fail), Payload: payload}, rawpeer.OpResponse)
		ask(rawpeer.Msg{Op: rawpeer.OpRequest, Handler: 200, Payload: payload}, rawpeer.OpMuxConnectError)
		ask(rawpeer.Msg{Op: rawpeer.OpConnectMux, Handler: 200, Payload: payload}, rawpeer.OpMuxConnectError)
		ask(rawpeer.Msg{Op: rawpeer.OpConnectMux, Handler: uint8(rig.Block), Payload: payload}, rawpeer.OpAckMux)
		ask(rawpeer.Msg{Op: rawpeer.OpPing}, rawpeer.OpPong)
		require.Equal(t, grid.StateConnected, node.Connection(raw).State())

		// For unknown streams: they are told to end, unless they just have.
		for _, c := range []struct{ op, reply uint8 }{
			{rawpeer.OpMuxClientMsg, rawpeer.OpDisconnectClientMux},
			{rawpeer.OpMuxServerMsg, rawpeer.OpDisconnectServerMux},
			{rawpeer.OpAckMux, rawpeer.OpDisconnectServerMux},
		} {
			id++
			p.Send(rawpeer.Msg{Op: c.op, MuxID: id, Flags: rawpeer.FlagCRC | rawpeer.FlagSubroute, Subroute: rawpeer.SubrouteID(1, "sub"), Payload: payload})
			reply := p.Expect(c.reply)
			require.Equal(t, id, reply.MuxID)
			require.Zero(t, reply.Flags&^rawpeer.FlagCRC, "%v", reply)
			p.Send(rawpeer.Msg{Op: c.op, MuxID: id, Flags: rawpeer.FlagCRC | rawpeer.FlagEOF})
			synctest.Wait()
			require.Empty(t, p.Pending())
		}
	})
}
