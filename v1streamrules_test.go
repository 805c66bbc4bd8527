package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What the server of a stream that the node has opened must not do, and the
// pings of such a stream.

// Each case ends its stream, with an error on both sides, and nothing else.
func TestV1StreamWhoseServerBreaksARuleFails(t *testing.T) {
	ack := rawMsg{Op: rawOpAckMux, Flags: rawFlagCRC}
	unblock := rawMsg{Op: rawOpUnblockClMux, Flags: rawFlagCRC}
	numbered := func(seq uint32, m rawMsg) rawMsg { m.Seq = seq; return m }
	for name, c := range map[string]struct {
		say  []rawMsg // the last of them is wrong
		want error
	}{
		"gap before the ack":       {[]rawMsg{numbered(1, ack)}, ErrIncorrectSequence},
		"gap before a message":     {[]rawMsg{ack, numbered(2, serverMsg("x"))}, ErrIncorrectSequence},
		"message repeated":         {[]rawMsg{ack, numbered(1, serverMsg("a")), numbered(1, serverMsg("a"))}, ErrIncorrectSequence},
		"number goes back to 0":    {[]rawMsg{ack, numbered(1, serverMsg("a")), serverMsg("x")}, ErrIncorrectSequence},
		"gap before the end":       {[]rawMsg{ack, numbered(1, serverMsg("a")), {Seq: 3, Op: rawOpMuxServerMsg, Flags: crcEOF}}, ErrIncorrectSequence},
		"gap before a credit":      {[]rawMsg{ack, numbered(1, serverMsg("a")), numbered(4, unblock)}, ErrIncorrectSequence},
		"huge gap":                 {[]rawMsg{ack, numbered(1<<32-1, serverMsg("x"))}, ErrIncorrectSequence},
		"two acks":                 {[]rawMsg{ack, numbered(1, ack)}, ErrProtocol},
		"message before the ack":   {[]rawMsg{serverMsg("x")}, ErrProtocol},
		"end before the ack":       {[]rawMsg{{Op: rawOpMuxServerMsg, Flags: crcEOF}}, ErrProtocol},
		"credit before the ack":    {[]rawMsg{unblock}, ErrProtocol},
		"credit beyond the window": {[]rawMsg{ack, numbered(1, unblock)}, ErrFlowControl},
		"response":                 {[]rawMsg{ack, numbered(1, serverMsg("a")), {Op: rawOpResponse, Flags: crcEOF, Payload: []byte("x")}}, ErrProtocol},
		"error response":           {[]rawMsg{ack, {Op: rawOpResponse, Flags: crcErr, Payload: []byte("x")}}, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			inV1(t, rawConfig{}, nil, func(r *v1Rig) {
				r.locally(2, 2)
				s, _, opened := r.opening(r.Context())
				before := 0
				for i, m := range c.say {
					m.MuxID = s.id
					r.peer.send(m)
					if i < len(c.say)-1 && m.Op == rawOpMuxServerMsg {
						before++
					}
				}
				r.expectDropped(rawOpDisconnectServerMux, s.id, c.want)
				err := <-opened
				if c.say[0].Op != rawOpAckMux || len(c.say) == 1 {
					require.ErrorIs(r, err, c.want)
				} else {
					require.NoError(r, err)
					s.consume()
					got, err := s.rest()
					require.ErrorIs(r, err, c.want)
					require.Len(r, got, before, "what came before it")
					require.ErrorIs(r, s.s.Send(nil), c.want)
				}
				r.alive()
			})
		})
	}
}

func TestV1StreamWithoutInputTakesNoCredits(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.locally(1, 0)
		c := r.open(r.Context())
		require.Nil(r, c.s.Requests)
		require.Error(r, c.s.Send(nil))
		c.s.CloseSend()
		r.quiet()
		c.say(rawMsg{Op: rawOpUnblockClMux})
		r.expectDropped(rawOpDisconnectServerMux, c.id, ErrFlowControl)
		require.ErrorIs(r, c.s.Results(nil), ErrFlowControl)
		r.alive()
	})
}

func TestV1MessagesOfUnknownStreamsStopTheirHandler(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for _, m := range []rawMsg{
			{Op: rawOpAckMux, Flags: rawFlagCRC},
			{Op: rawOpMuxServerMsg, Flags: rawFlagCRC},
			{Seq: 9, Op: rawOpMuxServerMsg, Flags: rawFlagCRC, Payload: []byte("x")},
			{Op: rawOpMuxServerMsg, Flags: crcErr, Payload: []byte("x")},
		} {
			for _, id := range []uint64{0, 1, 1 << 63} {
				m.MuxID = id
				r.peer.send(m)
				r.expect(rawMsg{MuxID: id, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC})
				m.Flags |= rawFlagEOF
				r.peer.send(m)
				r.quiet()
				m.Flags &^= rawFlagEOF
			}
		}
		for _, op := range []uint8{rawOpUnblockClMux, rawOpDisconnectClientMux, rawOpMuxConnectError, rawOpPong} {
			m := rawMsg{MuxID: 1, Op: op, Flags: rawFlagCRC}
			switch op {
			case rawOpMuxConnectError:
				m.Payload = connectError("x")
			case rawOpPong:
				m.Payload = pongPayload(true)
			}
			r.peer.send(m)
		}
		r.alive()
	})
}

// pongPayload is the payload of a stream's pong.
func pongPayload(notFound bool) []byte {
	p := pongMsg{NotFound: notFound, T: time.Now()}
	b, _ := p.MarshalMsg(nil)
	return b
}

// expectPing requires that the next message is a ping of the stream, and comes
// an interval after the time given.
func (c *v1Stream) expectPing(seq uint32, since time.Time) {
	c.r.Helper()
	c.expect(seq, rawOpPing, rawFlagCRC)
	require.InDelta(c.r, 15*time.Second, time.Since(since), float64(2*time.Second))
}

func TestV1StreamIsPinged(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.peer.timeout = time.Minute
		r.locally(2, 1)
		c := r.open(r.Context())
		c.consume()
		start := time.Now()
		// The pings share the numbers of the stream's other messages; the pongs
		// repeat them and have none of their own.
		for i := range uint32(3) {
			c.expectPing(2*i+1, start)
			start = time.Now()
			c.unnumbered(rawMsg{Seq: 2*i + 1, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(false)})
			c.say(serverMsg("x"))
			require.Equal(r, "x", <-c.msgs)
			c.expect(2*i+2, rawOpUnblockSrvMux, rawFlagCRC)
		}
		c.expectPing(7, start)
		c.unnumbered(rawMsg{Seq: 99, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(false)})
		r.quiet()
		c.unnumbered(rawMsg{Seq: 7, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(true)})
		_, err := c.rest()
		require.ErrorIs(r, err, ErrDisconnected)
		require.ErrorContains(r, err, "does not know the stream")
		r.alive()
	})
}

func TestV1StreamWithoutASignOfLifeFails(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.peer.timeout = time.Minute
		r.locally(2, 1)
		for _, deadline := range []time.Duration{0, time.Hour} {
			ctx := r.Context()
			if deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, deadline)
				defer cancel()
			}
			c := r.open(ctx)
			start := time.Now()
			c.expectPing(1, start)
			m := r.peer.recv()
			if m.Op == rawOpPing { // a second one may just have been due
				m = r.peer.recv()
			}
			require.Equal(r, rawMsg{MuxID: c.id, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC}, m)
			require.InDelta(r, 30*time.Second, time.Since(start), float64(2*time.Second))
			err := c.s.Results(nil)
			require.ErrorIs(r, err, ErrDisconnected)
			require.Equal(r, StateConnected, r.conn.State())
		}
		// Anything at all is a sign of life.
		c := r.open(r.Context())
		last := time.Now()
		for i := range uint32(3) {
			c.expectPing(i+1, last)
			last = time.Now()
			time.Sleep(10 * time.Second)
			c.unnumbered(rawMsg{Op: rawOpPong, Payload: pongPayload(false)})
		}
		r.alive()
	})
}

func TestV1StreamWhoseDeadlineIsNearIsNotPinged(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.peer.timeout = time.Minute
		r.locally(1, 1)
		ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
		defer cancel()
		c := r.open(ctx)
		start := time.Now()
		require.Equal(r, context.DeadlineExceeded, c.s.Results(nil))
		require.Equal(r, 15*time.Second, time.Since(start))
		synctest.Wait()
		c.expect(0, rawOpDisconnectServerMux, rawFlagCRC)
		r.alive()
	})
}
