package grid

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func connectError(text string) []byte {
	e := muxConnectError{Error: text}
	b, _ := e.MarshalMsg(nil)
	return b
}

func TestV1RequestAsItIsSentAndAnswered(t *testing.T) {
	text := NewRemoteErrString
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for i, c := range []struct {
			payload []byte
			flag    uint8 // of the request
			answer  rawMsg
			want    outcome
		}{
			{nil, 0, rawMsg{Op: rawOpResponse, Flags: crcEOF}, outcome{}},
			{[]byte{}, rawFlagPayloadIsZero, rawMsg{Op: rawOpResponse, Flags: crcEOF | rawFlagPayloadIsZero}, outcome{payload: []byte{}}},
			{[]byte("q"), 0, rawMsg{Op: rawOpResponse, Flags: rawFlagEOF, Payload: []byte("a")}, outcome{payload: []byte("a")}},
			{nil, 0, rawMsg{Op: rawOpResponse}, outcome{}},
			{nil, 0, rawMsg{Op: rawOpResponse, Flags: crcErr | rawFlagEOF, Payload: []byte("boom")}, outcome{err: text("boom")}},
			{nil, 0, rawMsg{Op: rawOpResponse, Flags: crcErr | rawFlagEOF}, outcome{err: text("")}},
			{nil, 0, rawMsg{Op: rawOpResponse, Flags: crcErr, Payload: []byte(ErrDisconnected.Error())}, outcome{err: text(ErrDisconnected.Error())}},
			{nil, 0, rawMsg{Op: rawOpMuxConnectError, Flags: crcEOF, Handler: 50, Payload: connectError("no such handler")}, outcome{err: text("no such handler")}},
			{nil, 0, rawMsg{Op: rawOpDisconnectClientMux, Flags: crcErr, Payload: []byte("dropped")}, outcome{err: text("dropped")}},
		} {
			done := r.call(r.Context(), 50, c.payload)
			id := uint64(i + 1)
			r.expect(rawMsg{MuxID: id, DeadlineMS: 60000, Handler: 50, Op: rawOpRequest, Flags: crcEOF | c.flag, Payload: c.payload})
			r.quiet()
			c.answer.MuxID = id
			r.peer.send(c.answer)
			got := <-done
			require.Equal(r, c.want, got)
			require.NotErrorIs(r, got.err, ErrDisconnected)
			r.peer.send(c.answer) // once more: nobody waits for it
			r.quiet()
		}

		done := r.call(r.Context(), 50, nil)
		id := r.peer.expect(rawOpRequest).MuxID
		r.peer.send(rawMsg{MuxID: id, Op: rawOpDisconnectClientMux})
		got := <-done
		require.ErrorIs(r, got.err, ErrDisconnected)
		require.False(r, IsRemoteErr(got.err))
		r.alive()
	})
}

func TestV1RequestUnderASubroute(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		go r.conn.Subroute("a").Subroute("b").SingleRequest(r.Context(), 50, []byte{})
		r.expect(rawMsg{
			MuxID: 1, DeadlineMS: 60000, Handler: 50, Op: rawOpRequest,
			Flags: crcEOF | rawFlagPayloadIsZero | rawFlagSubroute, Payload: []byte{}, Subroute: rawSubrouteID(50, "a/b"),
		})
		r.peer.send(rawMsg{MuxID: 1, Op: rawOpResponse})
		r.quiet()

		echo := func(b []byte) ([]byte, *RemoteErr) { return b, nil }
		require.NoError(r, r.node.RegisterSingleHandler(50, echo, "a", "b"))
		ask := rawMsg{MuxID: 1, DeadlineMS: 700, Handler: 50, Op: rawOpRequest, Flags: crcEOF | rawFlagSubroute, Payload: []byte("q")}
		ask.Subroute = rawSubrouteID(50, "a/b")
		r.peer.send(ask)
		r.expect(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("q")})

		// Neither the plain handler nor that of another subroute stands in, and
		// the answer announces no subroute, which it does not carry.
		for _, route := range []string{"a", "a/b/c", ""} {
			ask.Subroute = rawSubrouteID(50, route)
			r.peer.send(ask)
			m := r.peer.expect(rawOpMuxConnectError)
			require.Contains(r, remoteText(r.T, m.Payload), "no request handler with ID 50 under that subroute")
			m.Payload = nil
			require.Equal(r, rawMsg{MuxID: 1, DeadlineMS: 700, Handler: 50, Op: rawOpMuxConnectError, Flags: crcEOF}, m)
		}
		ask.Flags, ask.Subroute = crcEOF, nil
		r.peer.send(ask)
		r.peer.expect(rawOpMuxConnectError)
		r.alive()
	})
}

// remoteText is the text of a MuxConnectError.
func remoteText(t *testing.T, payload []byte) string {
	t.Helper()
	var e muxConnectError
	rest, err := e.UnmarshalMsg(payload)
	require.NoError(t, err)
	require.Empty(t, rest)
	return e.Error
}

func TestV1RequestCarriesItsDeadline(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for d, ms := range map[time.Duration]uint32{
			1500 * time.Millisecond:                   1500,
			1500*time.Millisecond + time.Nanosecond:   1500,
			time.Nanosecond:                           1, // 0 would mean none
			time.Hour:                                 3600000,
			math.MaxUint32 * time.Millisecond:         math.MaxUint32,
			math.MaxUint32*time.Millisecond + 1000000: math.MaxUint32,
			200 * 24 * time.Hour:                      math.MaxUint32,
		} {
			ctx, cancel := context.WithTimeout(r.Context(), d)
			done := r.call(ctx, 50, nil)
			m := r.peer.expect(rawOpRequest)
			require.Equal(r, ms, m.DeadlineMS)
			cancel()
			require.Error(r, (<-done).err)
		}
		r.alive()
	})
}

func TestV1AnswersThatNobodyWaitsForAreDropped(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		// The deadline passes: nothing is sent about it, and the answer is late.
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		done := r.call(ctx, 50, nil)
		r.peer.expect(rawOpRequest)
		require.Equal(r, context.DeadlineExceeded, (<-done).err)
		r.quiet()
		late := rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("late")}
		r.peer.send(late)
		r.quiet()

		// So does that of a context without one.
		done = r.call(r.Context(), 50, nil)
		r.peer.expect(rawOpRequest)
		took := elapsed(func() { require.Equal(r, context.DeadlineExceeded, (<-done).err) })
		require.InDelta(r, time.Minute, took, float64(2*time.Second))

		cause := errors.New("cause")
		ctx2, cancel2 := context.WithCancelCause(r.Context())
		done = r.call(ctx2, 50, nil)
		r.peer.expect(rawOpRequest)
		cancel2(cause)
		require.Equal(r, cause, (<-done).err)

		for _, m := range []rawMsg{
			{Op: rawOpResponse, Flags: crcEOF},
			{Op: rawOpMuxConnectError, Flags: crcEOF, Payload: connectError("late")},
			{Op: rawOpDisconnectClientMux, Flags: crcErr, Payload: []byte("late")},
			{Op: rawOpUnblockClMux},
		} {
			for id := range uint64(6) {
				m.MuxID = id
				r.peer.send(m)
			}
		}
		r.alive()
	})
}

func TestV1RequestIsAnswered(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		type handled struct {
			payload []byte
			err     *RemoteErr
		}
		var got []byte
		var answer handled
		require.NoError(r, r.node.RegisterSingleHandler(50, func(b []byte) ([]byte, *RemoteErr) {
			got = b
			return answer.payload, answer.err
		}))
		for i, c := range []struct {
			payload []byte
			flags   uint8
			answer  handled
			want    rawMsg
		}{
			{nil, crcEOF, handled{}, rawMsg{Flags: crcEOF}},
			{nil, rawFlagEOF, handled{}, rawMsg{Flags: crcEOF}},
			{nil, 0, handled{}, rawMsg{Flags: crcEOF}},
			{[]byte{}, crcEOF | rawFlagPayloadIsZero, handled{payload: []byte{}}, rawMsg{Flags: crcEOF | rawFlagPayloadIsZero, Payload: []byte{}}},
			{[]byte("q"), crcEOF, handled{payload: []byte("a")}, rawMsg{Flags: crcEOF, Payload: []byte("a")}},
			{[]byte("q"), crcEOF | rawFlagPayloadIsZero, handled{}, rawMsg{Flags: crcEOF}},
			{[]byte("q"), crcEOF | rawFlagStateless, handled{}, rawMsg{Flags: crcEOF}},
			{nil, crcEOF, handled{err: NewRemoteErrString("boom")}, rawMsg{Flags: crcErr | rawFlagEOF, Payload: []byte("boom")}},
			{nil, crcEOF, handled{err: NewRemoteErrString("")}, rawMsg{Flags: crcErr | rawFlagEOF}},
			{nil, crcEOF, handled{payload: []byte("a"), err: NewRemoteErrString("boom")}, rawMsg{Flags: crcErr | rawFlagEOF, Payload: []byte("boom")}},
		} {
			answer = c.answer
			id := uint64(1000 + i)
			r.peer.send(rawMsg{MuxID: id, DeadlineMS: 60000, Handler: 50, Op: rawOpRequest, Flags: c.flags, Payload: c.payload})
			c.want.MuxID, c.want.Op = id, rawOpResponse
			r.expect(c.want)
			require.Equal(r, c.payload, got)
		}
		r.alive()
	})
}

func TestV1RequestWithoutAHandlerIsRefused(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for _, c := range []struct {
			handler uint8
			flags   uint8
			says    string
		}{
			{50, crcEOF, "no request handler with ID 50"},
			{0, crcEOF, "no request handler with ID 0"},
			{255, crcEOF | rawFlagPayloadIsZero, "no request handler with ID 255"},
			{uint8(testStream), crcEOF, "only one of the other kind"},
			{50, 0, "no request handler"},
		} {
			r.peer.send(rawMsg{MuxID: 5, DeadlineMS: 700, Handler: c.handler, Op: rawOpRequest, Flags: c.flags})
			m := r.peer.expect(rawOpMuxConnectError)
			require.Contains(r, remoteText(r.T, m.Payload), c.says)
			m.Payload = nil
			require.Equal(r, rawMsg{MuxID: 5, DeadlineMS: 700, Handler: c.handler, Op: rawOpMuxConnectError, Flags: rawFlagCRC | c.flags&rawFlagEOF}, m)
		}
		r.alive()
	})
}

func TestV1HandlerWhoseDeadlineHasPassedSendsNothing(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		var takes time.Duration
		var fails *RemoteErr
		require.NoError(r, r.node.RegisterSingleHandler(50, func([]byte) ([]byte, *RemoteErr) {
			time.Sleep(takes)
			return nil, fails
		}))
		ask := func(handling time.Duration, deadlineMS uint32) {
			takes = handling
			r.peer.send(rawMsg{MuxID: 1, DeadlineMS: deadlineMS, Handler: 50, Op: rawOpRequest, Flags: crcEOF})
		}
		r.peer.timeout = time.Hour
		ask(99*time.Millisecond, 100)
		r.peer.expect(rawOpResponse)
		ask(100*time.Millisecond, 100)
		time.Sleep(time.Second)
		r.quiet()
		fails = NewRemoteErrString("late")
		ask(time.Minute, 59_999)
		time.Sleep(2 * time.Minute)
		r.quiet()
		ask(10*time.Minute, 0) // none
		r.peer.expect(rawOpResponse)
		r.alive()
	})
}

// Messages of streams that name a single request end it, where it is ours, and
// are refused like those of unknown streams.
func TestV1StreamMessagesToASingleRequest(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for _, m := range []rawMsg{
			{Op: rawOpAckMux, Flags: rawFlagCRC},
			{Op: rawOpMuxServerMsg, Flags: rawFlagCRC, Payload: []byte("x")},
			{Op: rawOpMuxServerMsg, Flags: crcEOF},
		} {
			done := r.call(r.Context(), 50, nil)
			m.MuxID = r.peer.expect(rawOpRequest).MuxID
			r.peer.send(m)
			require.ErrorIs(r, (<-done).err, ErrProtocol)
			if m.Flags&rawFlagEOF == 0 {
				r.expect(rawMsg{MuxID: m.MuxID, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC})
			}
			r.quiet()
		}
		release := make(chan struct{})
		require.NoError(r, r.node.RegisterSingleHandler(50, func([]byte) ([]byte, *RemoteErr) { <-release; return nil, nil }))
		r.peer.send(rawMsg{MuxID: 9, Handler: 50, Op: rawOpRequest, Flags: crcEOF})
		r.peer.send(rawMsg{MuxID: 9, Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: []byte("x")})
		r.expect(rawMsg{MuxID: 9, Op: rawOpDisconnectClientMux, Flags: rawFlagCRC})
		for _, op := range []uint8{rawOpUnblockSrvMux, rawOpDisconnectServerMux} {
			r.peer.send(rawMsg{MuxID: 9, Op: op, Flags: rawFlagCRC})
		}
		synctest.Wait()
		close(release)
		r.expect(rawMsg{MuxID: 9, Op: rawOpResponse, Flags: crcEOF})
		r.alive()
	})
}
