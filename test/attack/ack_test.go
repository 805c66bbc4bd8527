package attack

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A server that sends more than it said it would, to consumers that take nothing: what is held is
// what it has named, and each stream ends.
func TestAck_ServerThatSendsBeyondWhatItNamedFillsNothing(t *testing.T) {
	const capacity, messages, streams = 4, 1000, 100
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
		p := a.Next()
		s := a.Session()
		open := make([]*grid.Stream, streams)
		ids := make([]uint64, streams)
		burst := func(i, from, to int) (msgs []rawpeer.Msg) {
			for seq := from; seq <= to; seq++ {
				msgs = append(msgs, rawpeer.Msg{MuxID: ids[i], Seq: uint32(seq), Op: rawpeer.OpMuxServerMsg, Payload: []byte("x")})
			}
			return msgs
		}
		for i := range open {
			opened := rig.InBackground(func() (err error) {
				open[i], err = a.Conn.NewStream(a.Context(), 50, nil)
				return err
			})
			ids[i] = p.Expect(rawpeer.OpConnectMux).MuxID
			p.Send(rawpeer.Msg{MuxID: ids[i], Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(rig.AllCaps, 0, capacity)})
			require.NoError(a, <-opened)
		}
		a.During(func() {
			// As much as it may: it is the consumers that are slow, and nothing is wrong.
			for i := range open {
				p.SendMerged(burst(i, 1, capacity)...)
			}
			synctest.Wait()
			st := a.Conn.Stats()
			require.EqualValues(a, streams*capacity*(1+rig.MessageCost), st.KeptBytes)
			require.Equal(a, streams, st.SlowConsumers)
			require.Equal(a, streams, st.Streams)
			for i, st := range open {
				p.SendMerged(burst(i, capacity+1, messages)...)
				synctest.Wait()
				require.ErrorIs(a, st.Err(), grid.ErrFlowControl)
				require.EqualValues(a, (streams-1-i)*capacity*(1+rig.MessageCost), a.Conn.Stats().KeptBytes)
			}
		})
		a.Same(s)
		a.RequireGrown(1 << 20) // it were 16 MiB if all of it was held
		told := map[uint64]string{}
		for _, m := range p.Take() {
			if m.Op == rawpeer.OpDisconnectServerMux && m.Flags&rawpeer.FlagPayloadIsErr != 0 {
				told[m.MuxID] = string(m.Payload)
			}
		}
		for i, st := range open {
			n := 0
			require.ErrorIs(a, st.Results(func(b []byte) error { n++; grid.PutByteBuffer(b); return nil }), grid.ErrFlowControl)
			require.Equal(a, capacity, n, "what it might send is delivered")
			require.Contains(a, told[ids[i]], "window is 4")
		}
		a.Idle()
		a.Echoes(p)
	})
}
