package v1

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// What the server of a stream that the node has opened must not do, and the pings of such a stream.

// Each case ends its stream, with an error on both sides, and nothing else.
func TestV1Stream_WhoseServerBreaksARuleFails(t *testing.T) {
	t.Parallel()
	ack := rawpeer.Msg{Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC}
	unblock := rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Flags: rawpeer.FlagCRC}
	numbered := func(seq uint32, m rawpeer.Msg) rawpeer.Msg { m.Seq = seq; return m }
	for name, c := range map[string]struct {
		say  []rawpeer.Msg // the last of them is wrong
		want error
	}{
		"gap before the ack":       {[]rawpeer.Msg{numbered(1, ack)}, grid.ErrIncorrectSequence},
		"gap before a message":     {[]rawpeer.Msg{ack, numbered(2, serverMsg("x"))}, grid.ErrIncorrectSequence},
		"message repeated":         {[]rawpeer.Msg{ack, numbered(1, serverMsg("a")), numbered(1, serverMsg("a"))}, grid.ErrIncorrectSequence},
		"number goes back to 0":    {[]rawpeer.Msg{ack, numbered(1, serverMsg("a")), serverMsg("x")}, grid.ErrIncorrectSequence},
		"gap before the end":       {[]rawpeer.Msg{ack, numbered(1, serverMsg("a")), {Seq: 3, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}}, grid.ErrIncorrectSequence},
		"gap before a credit":      {[]rawpeer.Msg{ack, numbered(1, serverMsg("a")), numbered(4, unblock)}, grid.ErrIncorrectSequence},
		"huge gap":                 {[]rawpeer.Msg{ack, numbered(1<<32-1, serverMsg("x"))}, grid.ErrIncorrectSequence},
		"two acks":                 {[]rawpeer.Msg{ack, numbered(1, ack)}, grid.ErrProtocol},
		"message before the ack":   {[]rawpeer.Msg{serverMsg("x")}, grid.ErrProtocol},
		"end before the ack":       {[]rawpeer.Msg{{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}}, grid.ErrProtocol},
		"credit before the ack":    {[]rawpeer.Msg{unblock}, grid.ErrProtocol},
		"credit beyond the window": {[]rawpeer.Msg{ack, numbered(1, unblock)}, grid.ErrFlowControl},
		"response":                 {[]rawpeer.Msg{ack, numbered(1, serverMsg("a")), {Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("x")}}, grid.ErrProtocol},
		"error response":           {[]rawpeer.Msg{ack, {Op: rawpeer.OpResponse, Flags: rig.CRCErr, Payload: []byte("x")}}, grid.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{}, nil, func(r *wire) {
				r.locally(2, 2)
				s, _, opened := r.opening(r.Context())
				before := 0
				for i, m := range c.say {
					m.MuxID = s.id
					r.Peer.Send(m)
					if i < len(c.say)-1 && m.Op == rawpeer.OpMuxServerMsg {
						before++
					}
				}
				r.expectDropped(rawpeer.OpDisconnectServerMux, s.id, c.want)
				err := <-opened
				if c.say[0].Op != rawpeer.OpAckMux || len(c.say) == 1 {
					require.ErrorIs(r, err, c.want)
				} else {
					require.NoError(r, err)
					s.consume()
					got, err := s.rest()
					require.ErrorIs(r, err, c.want)
					require.Len(r, got, before, "what came before it")
					require.ErrorIs(r, s.s.Send(nil), c.want)
				}
				r.Alive()
			})
		})
	}
}

func TestV1Stream_WithoutInputTakesNoCredits(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.locally(1, 0)
		c := r.open(r.Context())
		require.Nil(r, c.s.Requests)
		require.Error(r, c.s.Send(nil))
		c.s.CloseSend()
		r.Quiet()
		c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux})
		r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrFlowControl)
		require.ErrorIs(r, c.s.Results(nil), grid.ErrFlowControl)
		r.Alive()
	})
}

func TestV1Stream_MessagesOfUnknownOnesStopTheirHandler(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for _, m := range []rawpeer.Msg{
			{Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC},
			{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC},
			{Seq: 9, Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC, Payload: []byte("x")},
			{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr, Payload: []byte("x")},
		} {
			for _, id := range []uint64{0, 1, 1 << 63} {
				m.MuxID = id
				r.Peer.Send(m)
				r.Expect(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
				m.Flags |= rawpeer.FlagEOF
				r.Peer.Send(m)
				r.Quiet()
				m.Flags &^= rawpeer.FlagEOF
			}
		}
		for _, op := range []uint8{rawpeer.OpUnblockClMux, rawpeer.OpDisconnectClientMux, rawpeer.OpMuxConnectError, rawpeer.OpPong} {
			m := rawpeer.Msg{MuxID: 1, Op: op, Flags: rawpeer.FlagCRC}
			switch op {
			case rawpeer.OpMuxConnectError:
				m.Payload = rawpeer.ConnectError("x")
			case rawpeer.OpPong:
				m.Payload = rawpeer.PongPayload(true)
			}
			r.Peer.Send(m)
		}
		r.Alive()
	})
}

// expectPing requires that the next message is a ping of the stream, and comes an interval after
// the time given.
func (c *v1Stream) expectPing(seq uint32, since time.Time) {
	c.r.Helper()
	c.expect(seq, rawpeer.OpPing, rawpeer.FlagCRC)
	require.InDelta(c.r, 15*time.Second, time.Since(since), float64(2*time.Second))
}

func TestV1Stream_IsPinged(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.Peer.Timeout = time.Minute
		r.locally(2, 1)
		c := r.open(r.Context())
		c.consume()
		start := time.Now()
		// The pings share the numbers of the stream's other messages; the pongs repeat them and
		// have none of their own.
		for i := range uint32(3) {
			c.expectPing(2*i+1, start)
			start = time.Now()
			c.unnumbered(rawpeer.Msg{Seq: 2*i + 1, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(false)})
			c.say(serverMsg("x"))
			require.Equal(r, "x", <-c.msgs)
			c.expect(2*i+2, rawpeer.OpUnblockSrvMux, rawpeer.FlagCRC)
		}
		c.expectPing(7, start)
		c.unnumbered(rawpeer.Msg{Seq: 99, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(false)})
		r.Quiet()
		c.unnumbered(rawpeer.Msg{Seq: 7, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(true)})
		_, err := c.rest()
		require.ErrorIs(r, err, grid.ErrDisconnected)
		require.ErrorContains(r, err, "does not know the stream")
		r.Alive()
	})
}

func TestV1Stream_WithoutASignOfLifeFails(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.Peer.Timeout = time.Minute
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
			m := r.Peer.Recv()
			for m.Op == rawpeer.OpPing { // one an interval
				m = r.Peer.Recv()
			}
			require.Equal(r, rawpeer.Msg{MuxID: c.id, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC}, m)
			require.InDelta(r, 45*time.Second, time.Since(start), float64(2*time.Second))
			err := c.s.Results(nil)
			require.ErrorIs(r, err, grid.ErrDisconnected)
			require.Equal(r, grid.StateConnected, r.Conn.State())
		}
		// Anything at all is a sign of life.
		c := r.open(r.Context())
		last := time.Now()
		for i := range uint32(3) {
			c.expectPing(i+1, last)
			last = time.Now()
			time.Sleep(10 * time.Second)
			c.unnumbered(rawpeer.Msg{Op: rawpeer.OpPong, Payload: rawpeer.PongPayload(false)})
		}
		r.Alive()
	})
}

func TestV1Stream_WhoseDeadlineIsNearIsNotPinged(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.Peer.Timeout = time.Minute
		r.locally(1, 1)
		ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
		defer cancel()
		c := r.open(ctx)
		start := time.Now()
		require.ErrorIs(r, c.s.Results(nil), context.DeadlineExceeded)
		require.Equal(r, 15*time.Second, time.Since(start))
		synctest.Wait()
		c.expect(0, rawpeer.OpDisconnectServerMux, rawpeer.FlagCRC)
		r.Alive()
	})
}
