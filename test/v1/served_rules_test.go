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

// What the client of a stream that the node serves must not do, and the pings and deadlines of such
// a stream.

// dropped requires that the node has ended the stream, and with it the handler, because of a broken
// rule.
func (s *served) dropped(why error) {
	s.r.Helper()
	s.r.expectDropped(rawpeer.OpDisconnectClientMux, s.id, why)
	<-s.ctx.Done()
	require.ErrorIs(s.r, context.Cause(s.ctx), why)
	s.drain()
	s.requireClosed()
	s.r.Quiet()
}

// Each case ends its stream, with an error on both sides, and nothing else.
func TestV1ServedStream_WhoseClientBreaksARuleFails(t *testing.T) {
	t.Parallel()
	unblock := rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Flags: rawpeer.FlagCRC}
	ping := rawpeer.Msg{Op: rawpeer.OpPing, Flags: rawpeer.FlagCRC}
	eof := rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCEOF}
	numbered := func(seq uint32, m rawpeer.Msg) rawpeer.Msg { m.Seq = seq; return m }
	for name, c := range map[string]struct {
		say   []rawpeer.Msg // the last of them is wrong
		flags uint8         // of the open
		want  error
	}{
		"gap before a message":      {[]rawpeer.Msg{numbered(2, clientMsg("x"))}, 0, grid.ErrIncorrectSequence},
		"number 0 twice":            {[]rawpeer.Msg{clientMsg("x")}, 0, grid.ErrIncorrectSequence},
		"message repeated":          {[]rawpeer.Msg{numbered(1, clientMsg("x")), numbered(1, clientMsg("x"))}, 0, grid.ErrIncorrectSequence},
		"gap before the end":        {[]rawpeer.Msg{numbered(1, clientMsg("x")), numbered(3, eof)}, 0, grid.ErrIncorrectSequence},
		"gap before a credit":       {[]rawpeer.Msg{numbered(2, unblock)}, 0, grid.ErrIncorrectSequence},
		"gap before a ping":         {[]rawpeer.Msg{numbered(2, ping)}, 0, grid.ErrIncorrectSequence},
		"huge gap":                  {[]rawpeer.Msg{numbered(1<<32-1, unblock)}, 0, grid.ErrIncorrectSequence},
		"credit beyond the window":  {[]rawpeer.Msg{numbered(1, unblock)}, 0, grid.ErrFlowControl},
		"message after the end":     {[]rawpeer.Msg{numbered(1, eof), numbered(2, clientMsg("x"))}, 0, grid.ErrProtocol},
		"end twice":                 {[]rawpeer.Msg{numbered(1, eof), numbered(2, eof)}, 0, grid.ErrProtocol},
		"message though none would": {[]rawpeer.Msg{numbered(1, clientMsg("x"))}, rawpeer.FlagEOF, grid.ErrProtocol},
		"end though none would":     {[]rawpeer.Msg{numbered(1, eof)}, rawpeer.FlagEOF, grid.ErrProtocol},
		"opened twice":              {[]rawpeer.Msg{{Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC}}, 0, grid.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{}, nil, func(r *wire) {
				s := r.asked(r.serve(2, 2, ""), 7, rawpeer.Msg{Flags: c.flags})
				for _, m := range c.say {
					m.MuxID = s.id
					r.Peer.Send(m)
				}
				s.dropped(c.want)
				r.Alive()
			})
		})
	}
}

func TestV1ServedStream_WithoutInputTakesNone(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		started := r.serve(1, 0, "")
		// A client that does not know it ends its input in vain.
		s := r.asked(started, 1, rawpeer.Msg{})
		s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCEOF})
		s.ended(1, nil)

		s = r.asked(started, 2, rawpeer.Msg{})
		s.say(clientMsg("x"))
		s.dropped(grid.ErrFlowControl)
		r.Alive()
	})
}

// A stream whose first message has another number than 0 does not come about; those that are open
// do not suffer.
func TestV1ServedStream_ThatDoesNotBeginAtNumber0IsRefused(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		started := r.serve(1, 1, "")
		s := r.asked(started, 1, rawpeer.Msg{})
		r.Peer.Send(rawpeer.Msg{MuxID: 2, Seq: 1, Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC})
		m := r.Peer.Expect(rawpeer.OpMuxConnectError)
		require.EqualValues(r, 2, m.MuxID)
		require.Contains(r, rawpeer.ConnectErrorText(r.T, m.Payload), grid.ErrIncorrectSequence.Error())
		r.Quiet()
		require.Empty(r, started)
		s.ended(1, nil)
		r.Alive()
	})
}

func TestV1ServedStream_MessagesForUnknownOnes(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for _, id := range []uint64{1, 1 << 63} {
			m := clientMsg("x")
			m.MuxID, m.Seq = id, 9
			r.Peer.Send(m)
			r.Expect(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
			m.Flags |= rawpeer.FlagEOF
			r.Peer.Send(m)
			for _, op := range []uint8{rawpeer.OpUnblockSrvMux, rawpeer.OpDisconnectServerMux} {
				r.Peer.Send(rawpeer.Msg{MuxID: id, Op: op, Flags: rawpeer.FlagCRC})
			}
			r.Quiet()
			r.Peer.Send(rawpeer.Msg{MuxID: id, Seq: 5, Op: rawpeer.OpPing, Flags: rawpeer.FlagCRC})
			r.Expect(rawpeer.Msg{MuxID: id, Seq: 5, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(true)})
		}
		r.Alive()
	})
}

func TestV1ServedStream_AnswersPings(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		s := r.asked(r.serve(1, 1, ""), 7, rawpeer.Msg{})
		for i := range uint32(3) {
			s.say(rawpeer.Msg{Op: rawpeer.OpPing, Flags: rawpeer.FlagCRC})
			// It repeats the ping's number, and takes none of the stream's own.
			r.Expect(rawpeer.Msg{MuxID: 7, Seq: 2*i + 1, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(false)})
			s.say(clientMsg("x"))
			<-s.in
			s.expect(i+1, rawpeer.OpUnblockClMux, rawpeer.FlagCRC)
		}
		s.ended(4, nil)
		s.say(rawpeer.Msg{Op: rawpeer.OpPing, Flags: rawpeer.FlagCRC})
		r.Expect(rawpeer.Msg{MuxID: 7, Seq: 7, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(true)})
		r.Alive()
	})
}

func TestV1ServedStream_WhoseClientIsSilentIsAborted(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.Peer.Timeout = 2 * time.Minute
		started := r.serve(1, 1, "")
		for i, deadlineMS := range []uint32{0, 600_000} {
			s := r.asked(started, uint64(i+1), rawpeer.Msg{DeadlineMS: deadlineMS})
			for range 3 {
				time.Sleep(50 * time.Second)
				r.Quiet()
				s.say(rawpeer.Msg{Op: rawpeer.OpPing})
				r.Peer.Expect(rawpeer.OpPong)
			}
			silence := rig.Elapsed(func() { s.dropped(grid.ErrDisconnected) })
			require.InDelta(r, 60*time.Second, silence, float64(2*time.Second))
		}
		// One that ends soon anyway is left alone.
		s := r.asked(started, 9, rawpeer.Msg{DeadlineMS: 60_000})
		time.Sleep(59 * time.Second)
		r.Quiet()
		s.ended(1, nil)
		r.Alive()
	})
}

func TestV1ServedStream_EndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		started := r.serve(1, 1, "")
		s := r.asked(started, 1, rawpeer.Msg{DeadlineMS: 1500})
		require.Equal(r, 1500*time.Millisecond, rig.Elapsed(func() { s.dropped(context.DeadlineExceeded) }))

		// Also where the handler has returned, and its last message waits for a credit.
		s = r.asked(started, 2, rawpeer.Msg{DeadlineMS: 1500})
		for range 2 {
			s.out <- []byte("x")
		}
		m := serverMsg("x")
		m.MuxID, m.Seq = 2, 1
		r.Expect(m)
		s.result <- nil
		r.Quiet()
		require.Equal(r, 1500*time.Millisecond, rig.Elapsed(func() {
			r.expectDropped(rawpeer.OpDisconnectClientMux, 2, context.DeadlineExceeded)
		}))
		synctest.Wait()
		require.Zero(r, r.Conn.Stats().Handlers)
		r.Alive()
	})
}

// The handler's slot is free when it has returned, not when its client has gone.
func TestV1ServedStream_HandlersBeyondTheLimitAreRefused(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, func(o *grid.ManagerOptions) { o.MaxHandlers = 1 }, func(r *wire) {
		release := make(chan struct{})
		require.NoError(r, r.Node.RegisterSingleHandler(51, func([]byte) ([]byte, *grid.RemoteErr) { <-release; return nil, nil }))
		s := r.asked(r.serve(1, 1, ""), 1, rawpeer.Msg{})
		refused := func(op uint8) {
			r.Helper()
			r.Peer.Send(rawpeer.Msg{MuxID: 2, DeadlineMS: 700, Handler: 50, Op: op, Flags: rig.CRCEOF})
			m := r.Peer.Expect(rawpeer.OpMuxConnectError)
			require.EqualValues(r, 2, m.MuxID)
			r.Quiet()
		}
		refused(rawpeer.OpConnectMux)
		require.NoError(r, s.ctx.Err())
		s.ended(1, nil)

		r.Peer.Send(rawpeer.Msg{MuxID: 3, Handler: 51, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		r.Quiet()
		r.Peer.Send(rawpeer.Msg{MuxID: 4, DeadlineMS: 700, Handler: 51, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		m := r.Peer.Expect(rawpeer.OpMuxConnectError)
		require.Contains(r, rawpeer.ConnectErrorText(r.T, m.Payload), "1 handlers are running for this host, the limit of MaxHandlers")
		close(release)
		require.EqualValues(r, 3, r.Peer.Expect(rawpeer.OpResponse).MuxID)
		r.Alive()
	})
}
