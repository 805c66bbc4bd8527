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

// Cancel of single requests (protocol section 8).

// A client that gives up says so to a peer that wants to know, once its request was sent; but not at
// the deadline, which the peer knows.
func TestCancel_OnTheWire(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rig.AllCaps &^ rawpeer.CapCancel, rig.AllCaps, rawpeer.CapCancel} {
		inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
			told := func() {
				r.Helper()
				if caps&rawpeer.CapCancel == 0 {
					r.Quiet()
				}
			}
			ctx, cancel := context.WithCancel(r.Context())
			call := r.Call(ctx, rig.Unused, []byte("x"))
			id := r.Peer.Expect(rawpeer.OpRequest).MuxID
			cancel()
			require.ErrorIs(r, (<-call).Err, context.Canceled)
			told()
			if caps&rawpeer.CapCancel != 0 {
				r.Expect(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
			}
			// An answer that was on its way is dropped.
			r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("late")})

			// Given up before a deadline.
			ctx, cancel = context.WithTimeout(r.Context(), time.Hour)
			call = r.Call(ctx, rig.Unused, nil)
			r.Peer.Expect(rawpeer.OpRequest)
			cancel()
			require.ErrorIs(r, (<-call).Err, context.Canceled)
			told()
			if caps&rawpeer.CapCancel != 0 {
				r.Peer.Expect(rawpeer.OpDisconnectServerMux)
			}

			// At the deadline, of a context or a timeout; with an answer; before it was sent.
			ctx, cancel = context.WithTimeout(r.Context(), time.Second)
			call = r.Call(ctx, rig.Unused, nil)
			r.Peer.Expect(rawpeer.OpRequest)
			require.ErrorIs(r, (<-call).Err, context.DeadlineExceeded)
			cancel()
			timed := rig.InBackground(func() error {
				_, err := r.Conn.WithTimeout(time.Second).SingleRequest(r.Context(), rig.Unused, nil)
				return err
			})
			r.Peer.Expect(rawpeer.OpRequest)
			require.ErrorIs(r, <-timed, context.DeadlineExceeded)
			ctx, cancel = context.WithCancel(r.Context())
			call = r.Call(ctx, rig.Unused, nil)
			r.Peer.Send(rawpeer.Msg{MuxID: r.Peer.Expect(rawpeer.OpRequest).MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF})
			require.NoError(r, (<-call).Err)
			cancel()
			require.ErrorIs(r, (<-r.Call(ctx, rig.Unused, nil)).Err, context.Canceled)
			r.Alive()
		})
	}
}

// waiting is a handler that waits for the end of its context, and tells the cause.
type waiting struct {
	begun chan uint8 // the payload's first byte
	ended chan error
	after func() // is called once the context has ended
}

func newWaiting(r *wire) *waiting {
	w := &waiting{begun: make(chan uint8, 100), ended: make(chan error, 100)}
	require.NoError(r, r.Node.RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
		w.begun <- b[0]
		<-ctx.Done()
		if w.after != nil {
			w.after()
		}
		w.ended <- context.Cause(ctx)
		return b, nil
	}))
	return w
}

func ask(id uint64, h grid.HandlerID, deadline uint32) rawpeer.Msg {
	return rawpeer.Msg{MuxID: id, Handler: uint8(h), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, DeadlineMS: deadline, Payload: []byte{byte(id)}}
}

func cancelOf(id uint64) rawpeer.Msg {
	return rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux}
}

// A cancel ends the context of the handler, which is not answered; nor does it end any other.
func TestCancel_EndsTheHandlersContext(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *wire) {
		w := newWaiting(r)
		r.Peer.SendMerged(ask(1, rig.Unused, 0), ask(2, rig.Unused, 60_000), ask(3, rig.Unused, 1000), ask(4, rig.Unused, 1000))
		synctest.Wait()
		require.Len(r, w.begun, 4)
		for id := range uint64(2) {
			r.Peer.Send(cancelOf(id + 1))
			r.Peer.Send(cancelOf(id + 1)) // once more, which means nothing
			require.Equal(r, context.Canceled, <-w.ended)
		}
		r.Quiet()
		require.Equal(r, 2, r.Conn.Stats().Handlers, "a slot is free when its handler has returned")

		// The client's timer may be the first to see the deadline.
		time.Sleep(time.Second - 5*time.Millisecond)
		r.Peer.Send(cancelOf(3))
		synctest.Wait()
		require.Empty(r, w.ended)
		time.Sleep(5 * time.Millisecond)
		for range 2 {
			require.Equal(r, context.DeadlineExceeded, <-w.ended)
		}
		r.Alive()
		r.requireNoneListed()
	})
}

// requireNoneListed requires that nothing is left of requests that could be cancelled.
func (r *wire) requireNoneListed() {
	r.Helper()
	synctest.Wait()
	require.Zero(r, r.Conn.Stats().Handlers)
	require.Zero(r, r.Conn.Stats().KeptBytes)
}

// Of a peer without the extension it means nothing, nor does it for a handler without a context, or a
// number that is not known.
func TestCancel_ThatMeansNothing(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rig.AllCaps &^ rawpeer.CapCancel} {
		inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
			w := newWaiting(r)
			r.Peer.Send(ask(1, rig.Unused, 1000))
			synctest.Wait()
			r.Peer.Send(cancelOf(1))
			synctest.Wait()
			require.Empty(r, w.ended)
			time.Sleep(time.Second)
			require.Equal(r, context.DeadlineExceeded, <-w.ended)
			r.Alive()
		})
	}
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *wire) {
		release := make(chan struct{})
		require.NoError(r, r.Node.RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
		r.Peer.Send(ask(1, rig.Handler, 0))
		synctest.Wait()
		r.Peer.Send(cancelOf(1))
		for id := range uint64(100) {
			r.Peer.Send(cancelOf(id))
		}
		r.Quiet()
		close(release)
		require.Equal(r, []byte{1}, r.Peer.Expect(rawpeer.OpResponse).Payload)
		// Nor does one that comes after the answer, for the next of that number.
		w := newWaiting(r)
		r.Peer.Send(cancelOf(7))
		r.Peer.Send(ask(7, rig.Unused, 1000))
		synctest.Wait()
		require.Empty(r, w.ended)
		time.Sleep(time.Second)
		require.Equal(r, context.DeadlineExceeded, <-w.ended)
		r.Alive()
	})
}

// A request that is cancelled before there was time for its handler does not run; nor does one that
// has come in part.
func TestCancel_BeforeTheHandlerHasRun(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *wire) {
		w := newWaiting(r)
		// In one frame: none of its tasks runs before all of it was read.
		r.Peer.SendMerged(ask(1, rig.Unused, 0), cancelOf(1), ask(2, rig.Unused, 0))
		require.Equal(r, uint8(2), <-w.begun)
		whole := ask(3, rig.Unused, 0)
		whole.Payload = rig.Mixed(100_000)
		r.Peer.Send(inPieces(whole, 70_000)[0])
		r.Peer.Send(cancelOf(3))
		synctest.Wait()
		require.Equal(r, 1, r.Conn.Stats().Handlers)
		r.Peer.Send(inPieces(whole, 70_000)[1])
		r.Peer.Send(cancelOf(2))
		require.Equal(r, context.Canceled, <-w.ended)
		r.Quiet()
		require.Empty(r, w.begun)
		r.Alive()
		r.requireNoneListed()
	})
}

// A cancel and the answer may pass each other, whichever the node sees first.
func TestCancel_RacesWithTheAnswer(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *wire) {
		require.NoError(r, r.Node.RegisterSingleHandlerContext(rig.Unused, func(_ context.Context, b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		answered := map[uint64]bool{}
		for id := uint64(1); id <= 200; id++ {
			r.Peer.Send(ask(id, rig.Unused, 0))
			r.Peer.Send(cancelOf(id))
		}
		synctest.Wait()
		for _, m := range r.Peer.Take() {
			require.Equal(r, uint8(rawpeer.OpResponse), m.Op)
			require.False(r, answered[m.MuxID], "twice")
			answered[m.MuxID] = true
			require.Equal(r, []byte{byte(m.MuxID)}, m.Payload)
		}
		r.Alive()
		r.requireNoneListed()
	})
}

// Of an answer in fragments no more is sent, once its client has gone.
func TestCancel_EndsALargeAnswer(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(r *wire) {
		require.NoError(r, r.Node.RegisterSingleHandlerContext(rig.Unused, func(context.Context, []byte) ([]byte, *grid.RemoteErr) {
			return make([]byte, 30<<20), nil
		}))
		r.Peer.Send(ask(1, rig.Unused, 0))
		synctest.Wait() // until the socket is full
		require.Equal(r, 1, r.Conn.Stats().Handlers)
		r.Peer.Send(cancelOf(1))
		synctest.Wait()
		r.Peer.StartReading()
		synctest.Wait()
		size := 0
		for _, m := range r.Peer.Take() {
			require.NotZero(r, m.Flags&rawpeer.FlagMore, "the last fragment")
			size += len(m.Payload)
		}
		require.Less(r, size, 10<<20)
		require.Zero(r, r.Conn.Stats().Handlers)
		r.Alive()
	})
}

// An interceptor hears that the client has given up.
func TestCancel_IsToldToInterceptors(t *testing.T) {
	t.Parallel()
	ends := &servedEnds{ends: make(chan error, 10)}
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) { o.ServeInterceptors = []grid.ServeInterceptor{ends} }, func(r *wire) {
		ends.ends = make(chan error, 10)
		w := newWaiting(r)
		r.Peer.Send(ask(1, rig.Unused, 0))
		<-w.begun
		r.Peer.Send(cancelOf(1))
		require.Equal(r, context.Canceled, <-w.ended)
		require.Equal(r, context.Canceled, <-ends.ends)
		r.Quiet()
	})
}

// servedEnds keeps how the calls that are served end.
type servedEnds struct{ ends chan error }

func (s *servedEnds) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, func(r grid.CallResult) { s.ends <- r.Err }, nil
}
