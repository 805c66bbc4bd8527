package grid

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

// The first extension of the protocol, towards a scripted peer that names its
// bit and no other.

var wideConfig = rawConfig{Caps: rawCapWideCredits}

func credits(n int) []byte { return msgp.AppendUint64(nil, uint64(n)) }

// returned is how many credits a message returns.
func returned(t *testing.T, m rawMsg) int {
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

// askedWide opens a stream to handler 50, as the peer, and requires the credits
// that it starts with.
func (r *v1Rig) askedWide(started <-chan *served, id uint64, m rawMsg, start int) *served {
	r.Helper()
	m.MuxID, m.Handler, m.Op = id, 50, rawOpConnectMux
	r.peer.send(m)
	s := <-started
	s.id, s.seq = id, 1
	r.expect(rawMsg{MuxID: id, Op: rawOpAckMux, Flags: rawFlagCRC, Payload: credits(start)})
	return s
}

// openWide opens a stream to handler 50 with a number of credits.
func (r *v1Rig) openWide(n int) *v1Stream {
	r.Helper()
	c, m, opened := r.opening(r.Context())
	require.Equal(r, rawMsg{MuxID: c.id, Handler: 50, Op: rawOpConnectMux, Flags: rawFlagCRC}, m, "whether there is input is the peer's to say")
	c.say(rawMsg{Op: rawOpAckMux, Flags: rawFlagCRC, Payload: credits(n)})
	require.NoError(r, <-opened)
	return c
}

func TestWideAckCarriesTheCredits(t *testing.T) {
	for _, c := range []struct {
		capacity int
		flags    uint8
		want     string
	}{
		{0, 0, "00"}, {0, rawFlagEOF, "00"}, {1, 0, "01"}, {3, 0, "03"}, {3, rawFlagEOF, "00"},
		{127, 0, "7f"}, {200, 0, "ccc8"}, {300, 0, "cd012c"}, {maxCapacity, 0, "ce00010000"},
	} {
		inV1(t, wideConfig, nil, func(r *v1Rig) {
			started := r.serve(1, c.capacity, "")
			r.peer.send(rawMsg{MuxID: 1, Handler: 50, Op: rawOpConnectMux, Flags: c.flags})
			r.expect(rawMsg{MuxID: 1, Op: rawOpAckMux, Flags: rawFlagCRC, Payload: unhex(r, c.want)})
			(<-started).result <- nil
			r.peer.expect(rawOpMuxServerMsg)
			r.alive()
		})
	}
}

func TestWideEndOfAStreamNeedsNoCredit(t *testing.T) {
	inV1(t, wideConfig, nil, func(r *v1Rig) {
		started := r.serve(1, 0, "")
		for id, result := range []*RemoteErr{nil, NewRemoteErrString("boom")} {
			s := r.askedWide(started, uint64(id), rawMsg{}, 0)
			s.out <- []byte("x")
			m := serverMsg("x")
			m.MuxID, m.Seq = s.id, 1
			r.expect(m)
			s.result <- result
			m = rawMsg{MuxID: s.id, Seq: 2, Op: rawOpMuxServerMsg, Flags: crcEOF}
			if result != nil {
				m.Flags, m.Payload = m.Flags|rawFlagPayloadIsErr, []byte("boom")
			}
			r.expect(m)
			r.alive() // no disconnect after it, either
		}
	})
}

func TestWideCreditsAreTakenManyAtATime(t *testing.T) {
	inV1(t, wideConfig, nil, func(r *v1Rig) {
		s := r.askedWide(r.serve(1, 0, ""), 1, rawMsg{}, 0)
		go func() {
			for s.ctx.Err() == nil {
				s.out <- append(GetByteBuffer(), 'x')
			}
		}()
		seq := uint32(1)
		expect := func(n int) {
			r.Helper()
			for range n {
				m := serverMsg("x")
				m.MuxID, m.Seq = s.id, seq
				r.expect(m)
				seq++
			}
			r.quiet()
		}
		expect(1)
		s.say(rawMsg{Op: rawOpUnblockSrvMux}) // none said is one
		expect(1)
		for _, n := range []uint64{0, 1, 5, 130} {
			for _, encoded := range everyWidth(n) {
				s.say(rawMsg{Op: rawOpUnblockSrvMux, Flags: rawFlagCRC, Payload: encoded})
				expect(int(n))
			}
		}
		r.peer.send(rawMsg{MuxID: s.id, Op: rawOpDisconnectServerMux})
		<-s.ctx.Done()
		r.alive()
	})
}

func TestWideClientSpendsTheCreditsItIsGiven(t *testing.T) {
	for _, local := range []bool{false, true} { // its own handler's capacities say nothing
		inV1(t, wideConfig, nil, func(r *v1Rig) {
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
					r.expect(rawMsg{MuxID: c.id, Seq: seq, Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: []byte{byte(seq - 1)}})
					seq++
				}
			}
			expect(4)
			r.quiet()
			c.say(rawMsg{Op: rawOpUnblockClMux, Payload: credits(5)})
			expect(5)
			r.quiet()
			c.say(rawMsg{Op: rawOpUnblockClMux})
			expect(1)
			c.expect(11, rawOpMuxClientMsg, crcEOF)
			// More than it began with, which it will not use.
			c.say(rawMsg{Op: rawOpUnblockClMux, Payload: credits(1000)})
			c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF})
			require.NoError(r, c.s.Results(nil))
			r.alive()
		})
	}
}

func TestWideClientWithoutCreditsHasNoInput(t *testing.T) {
	for _, local := range []bool{false, true} {
		inV1(t, wideConfig, nil, func(r *v1Rig) {
			if local {
				r.locally(1, 1)
			}
			c := r.openWide(0)
			require.Nil(r, c.s.Requests)
			require.Error(r, c.s.Send(nil))
			c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF})
			require.NoError(r, c.s.Results(nil))
			r.alive()
		})
	}
}

func TestWideCreditsThatMakeNoSenseEndTheStream(t *testing.T) {
	inV1(t, wideConfig, nil, func(r *v1Rig) {
		started := r.serve(1, 1, "")
		id := uint64(0)
		for _, c := range []struct {
			payload string
			want    error
		}{
			{"ce00010000", ErrFlowControl}, // the second time at the latest
			{"ce00010001", ErrProtocol},
			{"cfffffffffffffffff", ErrProtocol},
			{"ff", ErrProtocol}, {"d3ffffffffffffffff", ErrProtocol}, {"c0", ErrProtocol}, {"a131", ErrProtocol},
			{"0101", ErrProtocol}, {"cd01", ErrProtocol}, {"91", ErrProtocol},
		} {
			id++
			s := r.askedWide(started, id, rawMsg{}, 1)
			for range 2 {
				s.say(rawMsg{Op: rawOpUnblockSrvMux, Payload: unhex(r, c.payload)})
			}
			s.dropped(c.want)

			cl := r.openWide(1)
			for range 2 {
				cl.say(rawMsg{Op: rawOpUnblockClMux, Payload: unhex(r, c.payload)})
			}
			r.expectDropped(rawOpDisconnectServerMux, cl.id, c.want)
			require.ErrorIs(r, cl.s.Results(nil), c.want)
			if c.want == ErrFlowControl {
				continue
			}
			cl, _, opened := r.opening(r.Context())
			cl.say(rawMsg{Op: rawOpAckMux, Payload: unhex(r, c.payload)})
			r.expectDropped(rawOpDisconnectServerMux, cl.id, c.want)
			require.ErrorIs(r, <-opened, c.want)
		}
		cl, _, opened := r.opening(r.Context())
		cl.say(rawMsg{Op: rawOpAckMux})
		r.expectDropped(rawOpDisconnectServerMux, cl.id, ErrProtocol)
		require.ErrorIs(r, <-opened, ErrProtocol)
		r.alive()
	})
}

// A peer of version 1 knows nothing of this: whatever it sends is one credit.
func TestV1CreditIsOneWhateverItCarries(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		s := r.asked(r.serve(2, 0, ""), 1, rawMsg{})
		go func() {
			for s.ctx.Err() == nil {
				s.out <- []byte("x")
			}
		}()
		r.peer.expect(rawOpMuxServerMsg)
		r.peer.expect(rawOpMuxServerMsg)
		s.say(rawMsg{Op: rawOpUnblockSrvMux, Payload: credits(5)})
		r.peer.expect(rawOpMuxServerMsg)
		r.quiet()
		r.peer.send(rawMsg{MuxID: 1, Op: rawOpDisconnectServerMux})
		<-s.ctx.Done()
		r.peer.expect(rawOpDisconnectClientMux)
		r.alive()
	})
}

// Pings and pongs of streams are as ever.
func TestWideStreamIsPinged(t *testing.T) {
	inV1(t, wideConfig, nil, func(r *v1Rig) {
		r.peer.timeout = time.Minute
		c := r.openWide(1)
		c.expectPing(1, time.Now())
		c.unnumbered(rawMsg{Seq: 1, Op: rawOpPong, Payload: pongPayload(true)})
		require.ErrorIs(r, c.s.Results(nil), ErrDisconnected)

		s := r.askedWide(r.serve(1, 1, ""), 1, rawMsg{}, 1)
		s.say(rawMsg{Op: rawOpPing})
		r.expect(rawMsg{MuxID: 1, Seq: 1, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(false)})
		r.peer.send(rawMsg{MuxID: 1, Op: rawOpDisconnectServerMux})
		<-s.ctx.Done()
		require.Equal(r, context.Canceled, context.Cause(s.ctx))
		r.alive()
	})
}
