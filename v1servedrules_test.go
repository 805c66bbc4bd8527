package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What the client of a stream that the node serves must not do, and the pings
// and deadlines of such a stream.

// dropped requires that the node has ended the stream, and with it the handler,
// because of a broken rule.
func (s *served) dropped(why error) {
	s.r.Helper()
	s.r.expectDropped(rawOpDisconnectClientMux, s.id, why)
	<-s.ctx.Done()
	require.ErrorIs(s.r, context.Cause(s.ctx), why)
	s.requireClosed()
	s.r.quiet()
}

// Each case ends its stream, with an error on both sides, and nothing else.
func TestV1ServedStreamWhoseClientBreaksARuleFails(t *testing.T) {
	unblock := rawMsg{Op: rawOpUnblockSrvMux, Flags: rawFlagCRC}
	ping := rawMsg{Op: rawOpPing, Flags: rawFlagCRC}
	eof := rawMsg{Op: rawOpMuxClientMsg, Flags: crcEOF}
	numbered := func(seq uint32, m rawMsg) rawMsg { m.Seq = seq; return m }
	for name, c := range map[string]struct {
		say   []rawMsg // the last of them is wrong
		flags uint8    // of the open
		want  error
	}{
		"gap before a message":      {[]rawMsg{numbered(2, clientMsg("x"))}, 0, ErrIncorrectSequence},
		"number 0 twice":            {[]rawMsg{clientMsg("x")}, 0, ErrIncorrectSequence},
		"message repeated":          {[]rawMsg{numbered(1, clientMsg("x")), numbered(1, clientMsg("x"))}, 0, ErrIncorrectSequence},
		"gap before the end":        {[]rawMsg{numbered(1, clientMsg("x")), numbered(3, eof)}, 0, ErrIncorrectSequence},
		"gap before a credit":       {[]rawMsg{numbered(2, unblock)}, 0, ErrIncorrectSequence},
		"gap before a ping":         {[]rawMsg{numbered(2, ping)}, 0, ErrIncorrectSequence},
		"huge gap":                  {[]rawMsg{numbered(1<<32-1, unblock)}, 0, ErrIncorrectSequence},
		"credit beyond the window":  {[]rawMsg{numbered(1, unblock)}, 0, ErrFlowControl},
		"message after the end":     {[]rawMsg{numbered(1, eof), numbered(2, clientMsg("x"))}, 0, ErrProtocol},
		"end twice":                 {[]rawMsg{numbered(1, eof), numbered(2, eof)}, 0, ErrProtocol},
		"message though none would": {[]rawMsg{numbered(1, clientMsg("x"))}, rawFlagEOF, ErrProtocol},
		"end though none would":     {[]rawMsg{numbered(1, eof)}, rawFlagEOF, ErrProtocol},
		"opened twice":              {[]rawMsg{{Handler: 50, Op: rawOpConnectMux, Flags: rawFlagCRC}}, 0, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			inV1(t, rawConfig{}, nil, func(r *v1Rig) {
				s := r.asked(r.serve(2, 2, ""), 7, rawMsg{Flags: c.flags})
				for _, m := range c.say {
					m.MuxID = s.id
					r.peer.send(m)
				}
				s.dropped(c.want)
				r.alive()
			})
		})
	}
}

func TestV1ServedStreamWithoutInputTakesNone(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		started := r.serve(1, 0, "")
		// A client that does not know it ends its input in vain.
		s := r.asked(started, 1, rawMsg{})
		s.say(rawMsg{Op: rawOpMuxClientMsg, Flags: crcEOF})
		s.ended(1, nil)

		s = r.asked(started, 2, rawMsg{})
		s.say(clientMsg("x"))
		s.dropped(ErrFlowControl)
		r.alive()
	})
}

// A stream whose first message has another number than 0 does not come about;
// those that are open do not suffer.
func TestV1StreamThatDoesNotBeginAtNumber0IsRefused(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		started := r.serve(1, 1, "")
		s := r.asked(started, 1, rawMsg{})
		r.peer.send(rawMsg{MuxID: 2, Seq: 1, Handler: 50, Op: rawOpConnectMux, Flags: rawFlagCRC})
		m := r.peer.expect(rawOpMuxConnectError)
		require.EqualValues(r, 2, m.MuxID)
		require.Contains(r, remoteText(r.T, m.Payload), ErrIncorrectSequence.Error())
		r.quiet()
		require.Empty(r, started)
		s.ended(1, nil)
		r.alive()
	})
}

func TestV1MessagesForUnknownServedStreams(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for _, id := range []uint64{1, 1 << 63} {
			m := clientMsg("x")
			m.MuxID, m.Seq = id, 9
			r.peer.send(m)
			r.expect(rawMsg{MuxID: id, Op: rawOpDisconnectClientMux, Flags: rawFlagCRC})
			m.Flags |= rawFlagEOF
			r.peer.send(m)
			for _, op := range []uint8{rawOpUnblockSrvMux, rawOpDisconnectServerMux} {
				r.peer.send(rawMsg{MuxID: id, Op: op, Flags: rawFlagCRC})
			}
			r.quiet()
			r.peer.send(rawMsg{MuxID: id, Seq: 5, Op: rawOpPing, Flags: rawFlagCRC})
			r.expect(rawMsg{MuxID: id, Seq: 5, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(true)})
		}
		r.alive()
	})
}

func TestV1ServedStreamAnswersPings(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		s := r.asked(r.serve(1, 1, ""), 7, rawMsg{})
		for i := range uint32(3) {
			s.say(rawMsg{Op: rawOpPing, Flags: rawFlagCRC})
			// It repeats the ping's number, and takes none of the stream's own.
			r.expect(rawMsg{MuxID: 7, Seq: 2*i + 1, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(false)})
			s.say(clientMsg("x"))
			<-s.in
			s.expect(i+1, rawOpUnblockClMux, rawFlagCRC)
		}
		s.ended(4, nil)
		s.say(rawMsg{Op: rawOpPing, Flags: rawFlagCRC})
		r.expect(rawMsg{MuxID: 7, Seq: 7, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(true)})
		r.alive()
	})
}

func TestV1ServedStreamWhoseClientIsSilentIsAborted(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.peer.timeout = 2 * time.Minute
		started := r.serve(1, 1, "")
		for i, deadlineMS := range []uint32{0, 600_000} {
			s := r.asked(started, uint64(i+1), rawMsg{DeadlineMS: deadlineMS})
			for range 3 {
				time.Sleep(50 * time.Second)
				r.quiet()
				s.say(rawMsg{Op: rawOpPing})
				r.peer.expect(rawOpPong)
			}
			silence := elapsed(func() { s.dropped(ErrDisconnected) })
			require.InDelta(r, 60*time.Second, silence, float64(2*time.Second))
		}
		// One that ends soon anyway is left alone.
		s := r.asked(started, 9, rawMsg{DeadlineMS: 60_000})
		time.Sleep(59 * time.Second)
		r.quiet()
		s.ended(1, nil)
		r.alive()
	})
}

func TestV1ServedStreamEndsAtItsDeadline(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		started := r.serve(1, 1, "")
		s := r.asked(started, 1, rawMsg{DeadlineMS: 1500})
		require.Equal(r, 1500*time.Millisecond, elapsed(func() { s.dropped(context.DeadlineExceeded) }))

		// Also where the handler has returned, and its last message waits for a
		// credit.
		s = r.asked(started, 2, rawMsg{DeadlineMS: 1500})
		for range 2 {
			s.out <- []byte("x")
		}
		m := serverMsg("x")
		m.MuxID, m.Seq = 2, 1
		r.expect(m)
		s.result <- nil
		r.quiet()
		require.Equal(r, 1500*time.Millisecond, elapsed(func() {
			r.expectDropped(rawOpDisconnectClientMux, 2, context.DeadlineExceeded)
		}))
		synctest.Wait()
		require.Zero(r, r.conn.Stats().Handlers)
		r.alive()
	})
}

// The handler's slot is free when it has returned, not when its client has gone.
func TestV1HandlersBeyondTheLimitAreRefused(t *testing.T) {
	inV1(t, rawConfig{}, func(o *ManagerOptions) { o.MaxHandlers = 1 }, func(r *v1Rig) {
		release := make(chan struct{})
		require.NoError(r, r.node.RegisterSingleHandler(51, func([]byte) ([]byte, *RemoteErr) { <-release; return nil, nil }))
		s := r.asked(r.serve(1, 1, ""), 1, rawMsg{})
		refused := func(op uint8) {
			r.Helper()
			r.peer.send(rawMsg{MuxID: 2, DeadlineMS: 700, Handler: 50, Op: op, Flags: crcEOF})
			m := r.peer.expect(rawOpMuxConnectError)
			require.EqualValues(r, 2, m.MuxID)
			r.quiet()
		}
		refused(rawOpConnectMux)
		require.NoError(r, s.ctx.Err())
		s.ended(1, nil)

		r.peer.send(rawMsg{MuxID: 3, Handler: 51, Op: rawOpRequest, Flags: crcEOF})
		r.quiet()
		r.peer.send(rawMsg{MuxID: 4, DeadlineMS: 700, Handler: 51, Op: rawOpRequest, Flags: crcEOF})
		m := r.peer.expect(rawOpMuxConnectError)
		require.Contains(r, remoteText(r.T, m.Payload), "1 handlers are running for this host, the limit of MaxHandlers")
		close(release)
		require.EqualValues(r, 3, r.peer.expect(rawOpResponse).MuxID)
		r.alive()
	})
}
