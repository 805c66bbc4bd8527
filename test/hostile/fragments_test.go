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

// answeredInPart makes a call of which the liar answers a part.
func (r *liarRig) answeredInPart(ctx context.Context) (id uint64, done <-chan error) {
	r.Helper()
	done = rig.InBackground(func() error {
		b, err := r.conn.SingleRequest(ctx, rig.Echo, nil)
		grid.PutByteBuffer(b)
		return err
	})
	id = r.peer.Expect(rawpeer.OpRequest).MuxID
	for range 3 {
		r.peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0))
	}
	synctest.Wait()
	require.EqualValues(r, 9, r.conn.Stats().KeptBytes)
	return id, done
}

// What had come of an answer goes with its call, however that ends.
func TestFragments_PartOfAnAnswerIsNotKept(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(r *liarRig, id uint64, cancel context.CancelFunc)
		want liarOutcome
	}{
		"answered": {func(r *liarRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF})
		}, endedWell},
		"cancelled": {func(_ *liarRig, _ uint64, cancel context.CancelFunc) { cancel() }, isCancelled},
		"deadline":  {func(*liarRig, uint64, context.CancelFunc) { time.Sleep(time.Minute) }, isLate},
		"an error": {func(r *liarRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("no")})
		}, isTheirs},
		"refused": {func(r *liarRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError("no")})
		}, isTheirs},
		"dropped": {func(r *liarRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux})
		}, isGone},
		"as a stream": {func(r *liarRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpMuxServerMsg})
		}, isAgainst},
		"too large": {func(r *liarRig, id uint64, _ context.CancelFunc) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Payload: make([]byte, 995)})
		}, isGone},
		"link lost": {func(r *liarRig, _ uint64, _ context.CancelFunc) { r.peer.Close() }, isGone},
	} {
		t.Run(name, func(t *testing.T) {
			inLiar(t, func(o *grid.ManagerOptions) { o.MaxMessageSize = 1000 }, func(r *liarRig) {
				if !r.extended() {
					return
				}
				ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
				defer cancel()
				id, done := r.answeredInPart(ctx)
				c.end(r, id, cancel)
				require.Equal(r, c.want, outcomeOf(<-done))
				synctest.Wait()
				require.Zero(r, r.conn.Stats().KeptBytes)
				if !r.isUp() {
					r.connect()
				}
			})
		})
	}
}

// An answer in fragments counts as it comes; where that is too much its call ends.
func TestFragments_OfAnAnswerBeyondMaxHostBytesEndItsCall(t *testing.T) {
	inLiar(t, func(o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = 20, 20 }, func(r *liarRig) {
		if !r.extended() {
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		_, first := r.answeredInPart(ctx)
		second := rig.InBackground(func() error { _, err := r.conn.SingleRequest(ctx, rig.Echo, nil); return err })
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
	inLiar(t, func(o *grid.ManagerOptions) { o.MessageTimeout = timeout }, func(r *liarRig) {
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

// A peer that says that it leaves, and stays: what is new goes nowhere, what it asks for is
// answered, and of its links one such is kept at most.
func TestShutdown_PeerThatLeavesAgainAndAgainAndStays(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		config := rawpeer.Config{Caps: rawpeer.CapWideCredits | rawpeer.CapFragments | rawpeer.CapDrain}
		r := newLiarRig(t, true, config, nil)
		leave := rawpeer.Msg{Op: rawpeer.OpDisconnect}
		var before *rawpeer.Peer
		for range 3 {
			call := make(chan error, 1)
			go func() { _, err := r.conn.SingleRequest(t.Context(), rig.Echo, nil); call <- err }()
			asked := r.peer.Expect(rawpeer.OpRequest)
			r.peer.Send(leave)
			r.peer.Send(leave)
			synctest.Wait()
			if before != nil {
				before.ExpectClosed()
			}
			require.Equal(t, grid.StateConnectionError, r.conn.State())
			_, err := r.conn.SingleRequest(t.Context(), rig.Echo, nil)
			require.ErrorIs(t, err, grid.ErrDisconnected)
			r.peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpRequest, Handler: uint8(rig.Echo), Flags: rawpeer.FlagEOF, Payload: []byte("x")})
			require.Equal(t, "x", string(r.peer.Expect(rawpeer.OpResponse).Payload))
			r.peer.Send(rawpeer.Msg{MuxID: asked.MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF})
			require.NoError(t, <-call)
			before = r.peer
			r.connect()
			r.works()
		}
		r.peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect, MuxID: 3})
		require.False(t, r.isUp(), "of a mux it is the end")
		before.Close()
		r.over()
	})
}
