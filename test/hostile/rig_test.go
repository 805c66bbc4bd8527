package hostile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
	"github.com/gridrpc/grid/internal/seed"
)

// The tests of this room are about a peer that has been let in and then does what it must not.
// Whatever it does, it may spoil its own calls and its own link, and nothing else: nobody else's
// calls, no memory, no slots.

// What a peer may speak, in what makes a difference here.
var peerKinds = map[string]rawpeer.Config{
	"version 1":       {},
	"extended":        {Caps: rawpeer.CapWideCredits | rawpeer.CapFragments},
	"both capacities": {Caps: rawpeer.CapWideCredits | rawpeer.CapFragments | rawpeer.CapBothCapacities},
}

// hostileRig is one that is attacked, and the peer that breaks the rules, once it is let in.
type hostileRig struct {
	*rig.Attacked
	peer    *rawpeer.Peer
	buffers int // that were out before

	causes  chan error // why the context of a served stream has ended
	release atomic.Pointer[chan struct{}]
}

// Handlers of the node, for the peer.
const (
	slowRequest grid.HandlerID = 150 + iota // a request that runs until it is released
	holdStream                              // a stream that takes its input until its context ends
	fullStream                              // a stream that returns at once, and leaves output behind
	deafStream                              // a stream that ignores the end of its context
)

const streamCapacity = 2 // of these streams, in each direction

// inHostile runs f in a bubble six times: with each kind of peer, with the node as acceptor and as
// dialler.
func inHostile(t *testing.T, edit func(o *grid.ManagerOptions), f func(r *hostileRig)) {
	t.Helper()
	eachPeer(t, func(t *testing.T, dials bool, c rawpeer.Config) {
		r := newHostileRig(t, dials, c, edit)
		f(r)
		r.works()
		r.over()
	})
}

func eachPeer(t *testing.T, f func(t *testing.T, dials bool, c rawpeer.Config)) {
	t.Helper()
	for kind, c := range peerKinds {
		for role, dials := range map[string]bool{"dials us": true, "is dialled": false} {
			t.Run(kind+" "+role, func(t *testing.T) {
				rig.InBubble(t, func(t *testing.T) { f(t, dials, c) })
			})
		}
	}
}

func newHostileRig(t *testing.T, dials bool, c rawpeer.Config, edit func(o *grid.ManagerOptions)) *hostileRig {
	t.Helper()
	r := &hostileRig{buffers: bytepool.Out(), causes: make(chan error, 100)}
	r.Attacked = rig.NewAttacked(t, dials, c, edit)
	r.Grid.Guests = true // the peer's sockets may be there still when the grid has ended
	r.letGo()
	r.register()
	r.connect()
	return r
}

// connect makes the link, once more where it was lost.
func (r *hostileRig) connect() {
	r.Helper()
	r.peer = r.Next()
	require.NoError(r, r.Conn.WaitForConnect(r.Context()))
}

func (r *hostileRig) extended() bool { return r.peer.Config.Caps != 0 }

// toldBoth reports whether acks name both capacities.
func (r *hostileRig) toldBoth() bool { return r.peer.Config.Caps&rawpeer.CapBothCapacities != 0 }

// letGo lets the handlers return that wait for nothing else.
func (r *hostileRig) letGo() {
	later := make(chan struct{})
	if now := r.release.Swap(&later); now != nil {
		close(*now)
	}
}

func (r *hostileRig) register() {
	m := r.Node.Manager
	require.NoError(r, m.RegisterSingleHandler(slowRequest, func(b []byte) ([]byte, *grid.RemoteErr) {
		<-*r.release.Load()
		return b, nil
	}))
	for id, h := range map[grid.HandlerID]grid.StreamHandlerFn{
		holdStream: func(ctx context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			grid.PutByteBuffer(payload)
			for b := range in {
				grid.PutByteBuffer(b)
			}
			<-ctx.Done()
			r.causes <- context.Cause(ctx)
			return nil
		},
		fullStream: func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			grid.PutByteBuffer(payload)
			for i := range 2 * streamCapacity {
				out <- append(grid.GetByteBuffer(), byte(i))
			}
			return nil
		},
		deafStream: func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			grid.PutByteBuffer(payload)
			for b := range in {
				grid.PutByteBuffer(b)
			}
			<-*r.release.Load()
			return nil
		},
	} {
		require.NoError(r, m.RegisterStreamingHandler(id, grid.StreamHandler{
			Handle: h, OutCapacity: streamCapacity, InCapacity: streamCapacity,
		}))
	}
}

// isUp reports whether the link lives.
func (r *hostileRig) isUp() bool {
	synctest.Wait()
	return r.peer.Err() == nil
}

// clear forgets what the node has said so far.
func (r *hostileRig) clear() (said []rawpeer.Msg) {
	synctest.Wait()
	return r.peer.Take()
}

// works requires that calls of others are answered, and those of the peer, if its link lives, when
// it is honest for once.
func (r *hostileRig) works() {
	r.Helper()
	require.NoError(r, rig.HonestCall(r.Grid.Conn(1, 0), 1))
	if !r.isUp() {
		return
	}
	r.clear()
	const id = 1 << 60
	r.peer.Send(rawpeer.Msg{MuxID: id, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("alive")})
	require.Equal(r, rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("alive")}, r.peer.Recv())
	done := make(chan rig.Outcome, 1)
	go func() {
		b, err := r.Conn.SingleRequest(r.Context(), rig.Echo, []byte("and"))
		done <- rig.Outcome{Payload: b, Err: err}
	}()
	asked := r.peer.Expect(rawpeer.OpRequest)
	r.peer.Send(rawpeer.Msg{MuxID: asked.MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("so")})
	got := <-done
	require.NoError(r, got.Err)
	require.Equal(r, "so", string(got.Payload))
	grid.PutByteBuffer(got.Payload)
}

// quit gives up what the peer may have begun as a client, as an honest one does.
func (r *hostileRig) quit(id uint64) {
	r.Helper()
	if r.isUp() { // twice, for what opens under the number of a stream
		r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux})
		r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux})
	} else {
		r.connect()
	}
	r.letGo()
	synctest.Wait()
	for len(r.causes) > 0 {
		<-r.causes
	}
}

// idle requires that nothing of the peer is left.
func (r *hostileRig) idle() {
	r.Helper()
	synctest.Wait()
	st := r.Conn.Stats()
	left := fmt.Sprintf("%d kept, %d handlers, %d served, %d streams, %d calls",
		st.KeptBytes, st.Handlers, st.StreamsServed, st.Streams, st.Calls)
	require.Equal(r, "0 kept, 0 handlers, 0 served, 0 streams, 0 calls", left)
}

// over requires, at the end of a test, that nothing at all is left.
func (r *hostileRig) over() {
	r.Helper()
	r.idle()
	r.CheckLog()
	require.Empty(r, r.Book.About("panic"))
	r.peer.Close()
	r.Grid.StopAll()
	synctest.Wait()
	if bytepool.Strict {
		require.Zero(r, bytepool.Out()-r.buffers, "buffers are out")
	}
}

// outcome is what came of a call or a stream, or of the whole link.
type outcome string

const (
	stillThere  outcome = "still there"
	endedWell   outcome = "ended well"
	linkIsLost  outcome = "link is lost"
	isFlow      outcome = rig.IsFlowControl
	isOutOfTurn outcome = rig.IsSequence
	isAgainst   outcome = rig.IsProtocol
	isGone      outcome = rig.IsDisconnected
	isTheirs    outcome = rig.IsRemote
	isCancelled outcome = rig.IsCanceled
	isLate      outcome = rig.IsDeadline
)

func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return endedWell
	case errors.Is(err, grid.ErrOverloaded):
		return "overloaded"
	}
	return outcome(strings.Join(rig.KindOf(err), ", "))
}

// outcomeOfText is outcomeOf for what travels.
func outcomeOfText(text string) outcome {
	for _, err := range []error{grid.ErrFlowControl, grid.ErrIncorrectSequence, grid.ErrProtocol, grid.ErrOverloaded, context.DeadlineExceeded} {
		if strings.HasPrefix(text, err.Error()) {
			return outcomeOf(err)
		}
	}
	return outcome("unknown reason: " + text)
}

// sampled returns whether case i of a product is one of this run's, of so many that it takes to
// have had them all, more or less: of a product that is too large for one.
func sampled(t testing.TB) func(i int, of int64) bool {
	drawn := seed.Of(t)
	return func(i int, of int64) bool {
		x := (uint64(i) + drawn) * 0x9e3779b97f4a7c15
		return int64(x>>33)%of == 0
	}
}
