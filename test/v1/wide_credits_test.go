package v1

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// The first extension of the protocol, towards a scripted peer that names its bit and no other.

var wideConfig = rawpeer.Config{Caps: rawpeer.CapWideCredits}

// capacitiesConfig is a peer that tells both capacities as well.
var capacitiesConfig = rawpeer.Config{Caps: rawpeer.CapWideCredits | rawpeer.CapBothCapacities}

// returned is how many credits a message returns.
func returned(t *testing.T, m rawpeer.Msg) int {
	t.Helper()
	if len(m.Payload) == 0 {
		return 1
	}
	n, rest, err := msgp.ReadIntBytes(m.Payload)
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Positive(t, n)
	return n
}

// askedWide opens a stream to handler 50, as the peer, and requires the credits that it starts
// with. A peer that is told both capacities is to learn that OutCapacity is 1.
func (r *wire) askedWide(started <-chan *served, id uint64, m rawpeer.Msg, start int) *served {
	r.Helper()
	m.MuxID, m.Handler, m.Op = id, 50, rawpeer.OpConnectMux
	r.Peer.Send(m)
	s := <-started
	s.id, s.seq = id, 1
	r.Expect(rawpeer.Msg{MuxID: id, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: rawpeer.AckPayload(r.Peer.Config.Caps, start, 1)})
	return s
}

// openWide opens a stream to handler 50 with a number of credits.
func (r *wire) openWide(n int) *v1Stream {
	r.Helper()
	return r.openAcked(rawpeer.Credits(n))
}

// openAcked opens a stream to handler 50, which the peer takes on.
func (r *wire) openAcked(payload []byte) *v1Stream {
	r.Helper()
	c, m, opened := r.opening(r.Context())
	require.Equal(r, rawpeer.Msg{MuxID: c.id, Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC}, m, "whether there is input is the peer's to say")
	c.say(rawpeer.Msg{Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: payload})
	require.NoError(r, <-opened)
	return c
}

func TestCredits_AreCarriedByTheAck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		capacity int
		flags    uint8
		want     string
	}{
		{0, 0, "00"}, {0, rawpeer.FlagEOF, "00"}, {1, 0, "01"}, {3, 0, "03"}, {3, rawpeer.FlagEOF, "00"},
		{127, 0, "7f"}, {200, 0, "ccc8"}, {300, 0, "cd012c"}, {rig.MaxCapacity, 0, "ce00010000"},
	} {
		inWire(t, wideConfig, nil, func(r *wire) {
			started := r.serve(1, c.capacity, "")
			r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 50, Op: rawpeer.OpConnectMux, Flags: c.flags})
			r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: rawpeer.Unhex(r, c.want)})
			(<-started).result <- nil
			r.Peer.Expect(rawpeer.OpMuxServerMsg)
			r.Alive()
		})
	}
}

func TestCredits_EndOfAStreamNeedsNone(t *testing.T) {
	t.Parallel()
	inWire(t, wideConfig, nil, func(r *wire) {
		started := r.serve(1, 0, "")
		for id, result := range []*grid.RemoteErr{nil, grid.NewRemoteErrString("boom")} {
			s := r.askedWide(started, uint64(id), rawpeer.Msg{}, 0)
			s.out <- []byte("x")
			m := serverMsg("x")
			m.MuxID, m.Seq = s.id, 1
			r.Expect(m)
			s.result <- result
			m = rawpeer.Msg{MuxID: s.id, Seq: 2, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}
			if result != nil {
				m.Flags, m.Payload = m.Flags|rawpeer.FlagPayloadIsErr, []byte("boom")
			}
			r.Expect(m)
			r.Alive() // no disconnect after it, either
		}
	})
}

func TestCredits_AreTakenManyAtATime(t *testing.T) {
	t.Parallel()
	inWire(t, wideConfig, nil, func(r *wire) {
		s := r.askedWide(r.serve(1, 0, ""), 1, rawpeer.Msg{}, 0)
		go func() {
			for s.ctx.Err() == nil {
				s.out <- append(grid.GetByteBuffer(), 'x')
			}
		}()
		seq := uint32(1)
		expect := func(n int) {
			r.Helper()
			for range n {
				m := serverMsg("x")
				m.MuxID, m.Seq = s.id, seq
				r.Expect(m)
				seq++
			}
			r.Quiet()
		}
		expect(1)
		s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux}) // none said is one
		expect(1)
		for _, n := range []uint64{0, 1, 5, 130} {
			for _, encoded := range rawpeer.EveryWidth(n) {
				s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Flags: rawpeer.FlagCRC, Payload: encoded})
				expect(int(n))
			}
		}
		r.Peer.Send(rawpeer.Msg{MuxID: s.id, Op: rawpeer.OpDisconnectServerMux})
		<-s.ctx.Done()
		r.Alive()
	})
}

func TestCredits_ClientSpendsThoseItIsGiven(t *testing.T) {
	t.Parallel()
	for _, local := range []bool{false, true} { // its own handler's capacities say nothing
		inWire(t, wideConfig, nil, func(r *wire) {
			if local {
				r.locally(1, 1)
			}
			c := r.openWide(4)
			require.NotNil(r, c.s.Requests)
			go func() {
				for i := range 10 {
					_ = c.s.Send([]byte{byte(i)})
				}
				c.s.CloseSend()
			}()
			seq := uint32(1)
			expect := func(n int) {
				r.Helper()
				for range n {
					r.Expect(rawpeer.Msg{MuxID: c.id, Seq: seq, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: []byte{byte(seq - 1)}})
					seq++
				}
			}
			expect(4)
			r.Quiet()
			c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Payload: rawpeer.Credits(5)})
			expect(5)
			r.Quiet()
			c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux})
			expect(1)
			c.expect(11, rawpeer.OpMuxClientMsg, rig.CRCEOF)
			// More than it began with, which it will not use.
			c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Payload: rawpeer.Credits(1000)})
			c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			require.NoError(r, c.s.Results(nil))
			r.Alive()
		})
	}
}

func TestCredits_ClientWithoutThemHasNoInput(t *testing.T) {
	t.Parallel()
	for _, local := range []bool{false, true} {
		inWire(t, wideConfig, nil, func(r *wire) {
			if local {
				r.locally(1, 1)
			}
			c := r.openWide(0)
			require.Nil(r, c.s.Requests)
			require.Error(r, c.s.Send(nil))
			c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			require.NoError(r, c.s.Results(nil))
			r.Alive()
		})
	}
}

func TestCredits_ThatMakeNoSenseEndTheStream(t *testing.T) {
	t.Parallel()
	inWire(t, wideConfig, nil, func(r *wire) {
		started := r.serve(1, 1, "")
		id := uint64(0)
		for _, c := range []struct {
			payload string
			want    error
		}{
			{"ce00010000", grid.ErrFlowControl}, // the second time at the latest
			{"ce00010001", grid.ErrProtocol},
			{"cfffffffffffffffff", grid.ErrProtocol},
			{"ff", grid.ErrProtocol}, {"d3ffffffffffffffff", grid.ErrProtocol}, {"c0", grid.ErrProtocol}, {"a131", grid.ErrProtocol},
			{"0101", grid.ErrProtocol}, {"cd01", grid.ErrProtocol}, {"91", grid.ErrProtocol},
		} {
			id++
			s := r.askedWide(started, id, rawpeer.Msg{}, 1)
			for range 2 {
				s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Payload: rawpeer.Unhex(r, c.payload)})
			}
			s.dropped(c.want)

			cl := r.openWide(1)
			for range 2 {
				cl.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Payload: rawpeer.Unhex(r, c.payload)})
			}
			r.expectDropped(rawpeer.OpDisconnectServerMux, cl.id, c.want)
			require.ErrorIs(r, cl.s.Results(nil), c.want)
			if c.want == grid.ErrFlowControl {
				continue
			}
			cl, _, opened := r.opening(r.Context())
			cl.say(rawpeer.Msg{Op: rawpeer.OpAckMux, Payload: rawpeer.Unhex(r, c.payload)})
			r.expectDropped(rawpeer.OpDisconnectServerMux, cl.id, c.want)
			require.ErrorIs(r, <-opened, c.want)
		}
		cl, _, opened := r.opening(r.Context())
		cl.say(rawpeer.Msg{Op: rawpeer.OpAckMux})
		r.expectDropped(rawpeer.OpDisconnectServerMux, cl.id, grid.ErrProtocol)
		require.ErrorIs(r, <-opened, grid.ErrProtocol)
		r.Alive()
	})
}

// A peer of version 1 knows nothing of this: whatever it sends is one credit.
func TestCredits_OfVersion1AreOneWhateverTheyCarry(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		s := r.asked(r.serve(2, 0, ""), 1, rawpeer.Msg{})
		go func() {
			for s.ctx.Err() == nil {
				s.out <- []byte("x")
			}
		}()
		r.Peer.Expect(rawpeer.OpMuxServerMsg)
		r.Peer.Expect(rawpeer.OpMuxServerMsg)
		s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Payload: rawpeer.Credits(5)})
		r.Peer.Expect(rawpeer.OpMuxServerMsg)
		r.Quiet()
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux})
		<-s.ctx.Done()
		r.Peer.Expect(rawpeer.OpDisconnectClientMux)
		r.Alive()
	})
}

// Pings and pongs of streams are as ever.
func TestCredits_StreamWithManyIsPinged(t *testing.T) {
	t.Parallel()
	inWire(t, wideConfig, nil, func(r *wire) {
		r.Peer.Timeout = time.Minute
		c := r.openWide(1)
		c.expectPing(1, time.Now())
		c.unnumbered(rawpeer.Msg{Seq: 1, Op: rawpeer.OpPong, Payload: rawpeer.PongPayload(true)})
		require.ErrorIs(r, c.s.Results(nil), grid.ErrDisconnected)

		s := r.askedWide(r.serve(1, 1, ""), 1, rawpeer.Msg{}, 1)
		s.say(rawpeer.Msg{Op: rawpeer.OpPing})
		r.Expect(rawpeer.Msg{MuxID: 1, Seq: 1, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(false)})
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux})
		<-s.ctx.Done()
		require.Equal(r, context.Canceled, context.Cause(s.ctx))
		r.Alive()
	})
}
