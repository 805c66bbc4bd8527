package hostile

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

// A peer that begins what it does not end.

// answeredInPart makes a call of which the peer answers a part.
func (r *hostileRig) answeredInPart(ctx context.Context) (id uint64, done <-chan error) {
	r.Helper()
	done = rig.InBackground(func() error {
		b, err := r.Conn.SingleRequest(ctx, rig.Echo, nil)
		grid.PutByteBuffer(b)
		return err
	})
	id = r.peer.Expect(rawpeer.OpRequest).MuxID
	for range 3 {
		r.peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0))
	}
	synctest.Wait()
	require.EqualValues(r, 9, r.Conn.Stats().KeptBytes)
	return id, done
}

// What had come of an answer goes with its call, however that ends.
func TestFragments_PartOfAnAnswerIsNotKept(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(r *hostileRig, id uint64, cancel context.CancelFunc)
		want outcome
	}{
		"answered": {func(r *hostileRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF})
		}, endedWell},
		"cancelled": {func(_ *hostileRig, _ uint64, cancel context.CancelFunc) { cancel() }, isCancelled},
		"deadline":  {func(*hostileRig, uint64, context.CancelFunc) { time.Sleep(time.Minute) }, isLate},
		"an error": {func(r *hostileRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("no")})
		}, isTheirs},
		"refused": {func(r *hostileRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError("no")})
		}, isTheirs},
		"dropped": {func(r *hostileRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux})
		}, isGone},
		"as a stream": {func(r *hostileRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpMuxServerMsg})
		}, isAgainst},
		"too large": {func(r *hostileRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Payload: make([]byte, 995)})
		}, isGone},
		"link lost": {func(r *hostileRig, _ uint64, _ context.CancelFunc) { r.peer.Close() }, isGone},
	} {
		t.Run(name, func(t *testing.T) {
			inHostile(t, func(o *grid.ManagerOptions) { o.MaxMessageSize = 1000 }, func(r *hostileRig) {
				if !r.extended() {
					return
				}
				ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
				defer cancel()
				id, done := r.answeredInPart(ctx)
				c.end(r, id, cancel)
				require.Equal(r, c.want, outcomeOf(<-done))
				synctest.Wait()
				require.Zero(r, r.Conn.Stats().KeptBytes)
				if !r.isUp() {
					r.connect()
				}
			})
		})
	}
}

// An answer in fragments counts as it comes; where that is too much its call ends.
func TestFragments_OfAnAnswerBeyondMaxHostBytesEndItsCall(t *testing.T) {
	inHostile(t, func(o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = 20, 20 }, func(r *hostileRig) {
		if !r.extended() {
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		_, first := r.answeredInPart(ctx)
		second := rig.InBackground(func() error { _, err := r.Conn.SingleRequest(ctx, rig.Echo, nil); return err })
		id := r.peer.Expect(rawpeer.OpRequest).MuxID
		for range 4 {
			r.peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0))
		}
		err := <-second
		require.ErrorIs(r, err, grid.ErrOverloaded)
		require.ErrorContains(r, err, "MaxHostBytes")
		require.False(r, grid.IsRemoteErr(err), "it is this side that has no room")
		cancel()
		require.Equal(r, isCancelled, outcomeOf(<-first))
		synctest.Wait()
	})
}

// An answer that trickles in is given up like any other message, though its call has time left.
func TestFragments_OfAnAnswerThatNeverEndsAreGivenUp(t *testing.T) {
	const timeout = 2 * time.Minute
	inHostile(t, func(o *grid.ManagerOptions) { o.MessageTimeout = timeout }, func(r *hostileRig) {
		if !r.extended() {
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		begin := time.Now()
		id, done := r.answeredInPart(ctx)
		for len(done) == 0 && time.Since(begin) < timeout+5*time.Second {
			time.Sleep(time.Second)
			r.peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0))
			synctest.Wait()
		}
		require.Len(r, done, 1, "still waits after %v", time.Since(begin))
		require.ErrorContains(r, <-done, "MessageTimeout")
	})
}
