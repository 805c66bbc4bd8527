package v1

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestV1Request_AsItIsSentAndAnswered(t *testing.T) {
	t.Parallel()
	text := grid.NewRemoteErrString
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for i, c := range []struct {
			payload []byte
			flag    uint8 // of the request
			answer  rawpeer.Msg
			want    rig.Outcome
		}{
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rig.CRCEOF}, rig.Outcome{}},
			{[]byte{}, rawpeer.FlagPayloadIsZero, rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rig.CRCEOF | rawpeer.FlagPayloadIsZero}, rig.Outcome{Payload: []byte{}}},
			{[]byte("q"), 0, rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("a")}, rig.Outcome{Payload: []byte("a")}},
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpResponse}, rig.Outcome{}},
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("boom")}, rig.Outcome{Err: text("boom")}},
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rig.CRCErr | rawpeer.FlagEOF}, rig.Outcome{Err: text("")}},
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rig.CRCErr, Payload: []byte(grid.ErrDisconnected.Error())}, rig.Outcome{Err: text(grid.ErrDisconnected.Error())}},
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpMuxConnectError, Flags: rig.CRCEOF, Handler: 50, Payload: rawpeer.ConnectError("no such handler")}, rig.Outcome{Err: text("no such handler")}},
			{nil, 0, rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Flags: rig.CRCErr, Payload: []byte("dropped")}, rig.Outcome{Err: text("dropped")}},
		} {
			done := r.Call(r.Context(), 50, c.payload)
			id := r.Mux(i + 1)
			r.Expect(rawpeer.Msg{MuxID: id, DeadlineMS: 60000, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF | c.flag, Payload: c.payload})
			r.Quiet()
			c.answer.MuxID = id
			r.Peer.Send(c.answer)
			got := <-done
			require.Equal(r, c.want, got)
			require.NotErrorIs(r, got.Err, grid.ErrDisconnected)
			r.Peer.Send(c.answer) // once more: nobody waits for it
			r.Quiet()
		}

		done := r.Call(r.Context(), 50, nil)
		id := r.Peer.Expect(rawpeer.OpRequest).MuxID
		r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux})
		got := <-done
		require.ErrorIs(r, got.Err, grid.ErrDisconnected)
		require.False(r, grid.IsRemoteErr(got.Err))
		r.Alive()
	})
}

func TestV1Request_UnderASubroute(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		go r.Conn.Subroute("a").Subroute("b").SingleRequest(r.Context(), 50, []byte{})
		r.Expect(rawpeer.Msg{
			MuxID: r.Mux(1), DeadlineMS: 60000, Handler: 50, Op: rawpeer.OpRequest,
			Flags: rig.CRCEOF | rawpeer.FlagPayloadIsZero | rawpeer.FlagSubroute, Payload: []byte{}, Subroute: rawpeer.SubrouteID(50, "a/b"),
		})
		r.Peer.Send(rawpeer.Msg{MuxID: r.Mux(1), Op: rawpeer.OpResponse})
		r.Quiet()

		echo := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		require.NoError(r, r.Node.RegisterSingleHandler(50, echo, "a", "b"))
		ask := rawpeer.Msg{MuxID: 1, DeadlineMS: 700, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF | rawpeer.FlagSubroute, Payload: []byte("q")}
		ask.Subroute = rawpeer.SubrouteID(50, "a/b")
		r.Peer.Send(ask)
		r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("q")})

		// Neither the plain handler nor that of another subroute stands in, and the answer
		// announces no subroute, which it does not carry.
		for _, route := range []string{"a", "a/b/c", ""} {
			ask.Subroute = rawpeer.SubrouteID(50, route)
			r.Peer.Send(ask)
			m := r.Peer.Expect(rawpeer.OpMuxConnectError)
			require.Contains(r, rawpeer.ConnectErrorText(r.T, m.Payload), "no request handler with ID 50 under that subroute")
			m.Payload = nil
			require.Equal(r, rawpeer.Msg{MuxID: 1, DeadlineMS: 700, Handler: 50, Op: rawpeer.OpMuxConnectError, Flags: rig.CRCEOF}, m)
		}
		ask.Flags, ask.Subroute = rig.CRCEOF, nil
		r.Peer.Send(ask)
		r.Peer.Expect(rawpeer.OpMuxConnectError)
		r.Alive()
	})
}

func TestV1Request_CarriesItsDeadline(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
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
			done := r.Call(ctx, 50, nil)
			m := r.Peer.Expect(rawpeer.OpRequest)
			require.Equal(r, ms, m.DeadlineMS)
			cancel()
			require.Error(r, (<-done).Err)
		}
		r.Alive()
	})
}

func TestV1Request_AnswersThatNobodyWaitsForAreDropped(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		// The deadline passes: nothing is sent about it, and the answer is late.
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		done := r.Call(ctx, 50, nil)
		r.Peer.Expect(rawpeer.OpRequest)
		require.ErrorIs(r, (<-done).Err, context.DeadlineExceeded)
		r.Quiet()
		late := rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("late")}
		r.Peer.Send(late)
		r.Quiet()

		// So does that of a context without one.
		done = r.Call(r.Context(), 50, nil)
		r.Peer.Expect(rawpeer.OpRequest)
		took := rig.Elapsed(func() { require.ErrorIs(r, (<-done).Err, context.DeadlineExceeded) })
		require.InDelta(r, time.Minute, took, float64(2*time.Second))

		cause := errors.New("cause")
		ctx2, cancel2 := context.WithCancelCause(r.Context())
		done = r.Call(ctx2, 50, nil)
		r.Peer.Expect(rawpeer.OpRequest)
		cancel2(cause)
		require.ErrorIs(r, (<-done).Err, cause)

		for _, m := range []rawpeer.Msg{
			{Op: rawpeer.OpResponse, Flags: rig.CRCEOF},
			{Op: rawpeer.OpMuxConnectError, Flags: rig.CRCEOF, Payload: rawpeer.ConnectError("late")},
			{Op: rawpeer.OpDisconnectClientMux, Flags: rig.CRCErr, Payload: []byte("late")},
			{Op: rawpeer.OpUnblockClMux},
		} {
			for id := range uint64(6) {
				m.MuxID = id
				r.Peer.Send(m)
			}
		}
		r.Alive()
	})
}

func TestV1Request_IsAnswered(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		type handled struct {
			payload []byte
			err     *grid.RemoteErr
		}
		var got []byte
		var answer handled
		require.NoError(r, r.Node.RegisterSingleHandler(50, func(b []byte) ([]byte, *grid.RemoteErr) {
			got = b
			return answer.payload, answer.err
		}))
		for i, c := range []struct {
			payload []byte
			flags   uint8
			answer  handled
			want    rawpeer.Msg
		}{
			{nil, rig.CRCEOF, handled{}, rawpeer.Msg{Flags: rig.CRCEOF}},
			{nil, rawpeer.FlagEOF, handled{}, rawpeer.Msg{Flags: rig.CRCEOF}},
			{nil, 0, handled{}, rawpeer.Msg{Flags: rig.CRCEOF}},
			{[]byte{}, rig.CRCEOF | rawpeer.FlagPayloadIsZero, handled{payload: []byte{}}, rawpeer.Msg{Flags: rig.CRCEOF | rawpeer.FlagPayloadIsZero, Payload: []byte{}}},
			{[]byte("q"), rig.CRCEOF, handled{payload: []byte("a")}, rawpeer.Msg{Flags: rig.CRCEOF, Payload: []byte("a")}},
			{[]byte("q"), rig.CRCEOF | rawpeer.FlagPayloadIsZero, handled{}, rawpeer.Msg{Flags: rig.CRCEOF}},
			{[]byte("q"), rig.CRCEOF | rawpeer.FlagStateless, handled{}, rawpeer.Msg{Flags: rig.CRCEOF}},
			{nil, rig.CRCEOF, handled{err: grid.NewRemoteErrString("boom")}, rawpeer.Msg{Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("boom")}},
			{nil, rig.CRCEOF, handled{err: grid.NewRemoteErrString("")}, rawpeer.Msg{Flags: rig.CRCErr | rawpeer.FlagEOF}},
			{nil, rig.CRCEOF, handled{payload: []byte("a"), err: grid.NewRemoteErrString("boom")}, rawpeer.Msg{Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("boom")}},
		} {
			answer = c.answer
			id := uint64(1000 + i)
			r.Peer.Send(rawpeer.Msg{MuxID: id, DeadlineMS: 60000, Handler: 50, Op: rawpeer.OpRequest, Flags: c.flags, Payload: c.payload})
			c.want.MuxID, c.want.Op = id, rawpeer.OpResponse
			r.Expect(c.want)
			require.Equal(r, c.payload, got)
		}
		r.Alive()
	})
}

func TestV1Request_WithoutAHandlerIsRefused(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for _, c := range []struct {
			handler uint8
			flags   uint8
			says    string
		}{
			{50, rig.CRCEOF, "no request handler with ID 50"},
			{0, rig.CRCEOF, "no request handler with ID 0"},
			{255, rig.CRCEOF | rawpeer.FlagPayloadIsZero, "no request handler with ID 255"},
			{uint8(rig.Stream), rig.CRCEOF, "only one of the other kind"},
			{50, 0, "no request handler"},
		} {
			r.Peer.Send(rawpeer.Msg{MuxID: 5, DeadlineMS: 700, Handler: c.handler, Op: rawpeer.OpRequest, Flags: c.flags})
			m := r.Peer.Expect(rawpeer.OpMuxConnectError)
			require.Contains(r, rawpeer.ConnectErrorText(r.T, m.Payload), c.says)
			m.Payload = nil
			require.Equal(r, rawpeer.Msg{MuxID: 5, DeadlineMS: 700, Handler: c.handler, Op: rawpeer.OpMuxConnectError, Flags: rawpeer.FlagCRC | c.flags&rawpeer.FlagEOF}, m)
		}
		r.Alive()
	})
}

func TestV1Request_HandlerWhoseDeadlineHasPassedSendsNothing(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		var takes time.Duration
		var fails *grid.RemoteErr
		require.NoError(r, r.Node.RegisterSingleHandler(50, func([]byte) ([]byte, *grid.RemoteErr) {
			time.Sleep(takes)
			return nil, fails
		}))
		ask := func(handling time.Duration, deadlineMS uint32) {
			takes = handling
			r.Peer.Send(rawpeer.Msg{MuxID: 1, DeadlineMS: deadlineMS, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		}
		r.Peer.Timeout = time.Hour
		ask(99*time.Millisecond, 100)
		r.Peer.Expect(rawpeer.OpResponse)
		ask(100*time.Millisecond, 100)
		time.Sleep(time.Second)
		r.Quiet()
		fails = grid.NewRemoteErrString("late")
		ask(time.Minute, 59_999)
		time.Sleep(2 * time.Minute)
		r.Quiet()
		ask(10*time.Minute, 0) // none
		r.Peer.Expect(rawpeer.OpResponse)
		r.Alive()
	})
}

// Messages of streams that name a single request end it, where it is ours, and are refused like
// those of unknown streams.
func TestV1Request_StreamMessagesToItEndIt(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for _, m := range []rawpeer.Msg{
			{Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC},
			{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC, Payload: []byte("x")},
			{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF},
		} {
			done := r.Call(r.Context(), 50, nil)
			m.MuxID = r.Peer.Expect(rawpeer.OpRequest).MuxID
			r.Peer.Send(m)
			require.ErrorIs(r, (<-done).Err, grid.ErrProtocol)
			if m.Flags&rawpeer.FlagEOF == 0 {
				r.Expect(rawpeer.Msg{MuxID: m.MuxID, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
			}
			r.Quiet()
		}
		release := make(chan struct{})
		require.NoError(r, r.Node.RegisterSingleHandler(50, func([]byte) ([]byte, *grid.RemoteErr) { <-release; return nil, nil }))
		r.Peer.Send(rawpeer.Msg{MuxID: 9, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		r.Peer.Send(rawpeer.Msg{MuxID: 9, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: []byte("x")})
		r.Expect(rawpeer.Msg{MuxID: 9, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
		for _, op := range []uint8{rawpeer.OpUnblockSrvMux, rawpeer.OpDisconnectServerMux} {
			r.Peer.Send(rawpeer.Msg{MuxID: 9, Op: op, Flags: rawpeer.FlagCRC})
		}
		synctest.Wait()
		close(release)
		r.Expect(rawpeer.Msg{MuxID: 9, Op: rawpeer.OpResponse, Flags: rig.CRCEOF})
		r.Alive()
	})
}
