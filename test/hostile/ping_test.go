package hostile

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Who is alive, and who is not, while the link is full.

// A link that is saturated in both directions, by all kinds of calls, is no dead one.
func TestPing_SaturatedLinkIsNotTakenForDead(t *testing.T) {
	const rate = 128 << 10
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		g.Net.SetBuffer(64 << 10) // about what a kernel takes
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
		for _, n := range g.Nodes() {
			require.NoError(t, n.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{OutCapacity: 10, Handle: rig.Pour(4 << 10)}))
		}
		for i := range 2 {
			g.Net.Rate(g.Addr(i), g.Addr(1-i), rate)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 70*time.Second)
		defer cancel()
		// A deadline travels in whole milliseconds, so that of the other side may be
		// a little before ours.
		inTime := func(err error) bool { return ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) }
		var users sync.WaitGroup
		for i := range 2 {
			c := g.Conn(i, 1-i)
			idle, err := c.NewStream(ctx, rig.Block, nil) // lives by its pings alone
			require.NoError(t, err)
			idle.CloseSend()
			users.Go(func() {
				if err := rig.Consume(idle); inTime(err) {
					t.Error("the idle stream has ended: ", err)
				}
			})
			for _, size := range []int{100, 30 << 10, 200 << 10} {
				users.Go(func() {
					for ctx.Err() == nil {
						b, err := c.SingleRequest(ctx, rig.Echo, make([]byte, size))
						if err != nil && inTime(err) {
							t.Error(err)
							return
						}
						grid.PutByteBuffer(b)
					}
				})
			}
			users.Go(func() {
				s, err := c.NewStream(ctx, rig.Handler, nil)
				if err == nil {
					err = rig.Consume(s)
				}
				if inTime(err) {
					t.Error(err)
				}
			})
		}
		before := [2]grid.ConnectionStats{g.Conn(0, 1).Stats(), g.Conn(1, 0).Stats()}
		var worst time.Duration
		for range 6 {
			time.Sleep(10 * time.Second)
			for i := range 2 {
				st := g.Conn(i, 1-i).Stats()
				require.Equal(t, grid.StateConnected, st.State)
				worst = max(worst, st.RoundTrip)
			}
		}
		for i := range 2 {
			st := g.Conn(i, 1-i).Stats()
			require.Greater(t, st.BytesOut-before[i].BytesOut, int64(rate*60*6/10), "the link is full")
			require.Equal(t, before[i].Reconnects, st.Reconnects)
		}
		require.Less(t, worst, 10*time.Second)
		users.Wait()
	})
}

// A peer whose data flows but whose pongs never come is noticed all the same.
func TestPing_PeerThatStreamsButAnswersNoneIsNoticed(t *testing.T) {
	eachPeer(t, func(t *testing.T, dials bool, c rawpeer.Config) {
		c.ManualPings = true
		r := newHostileRig(t, dials, c, func(o *grid.ManagerOptions) { o.StreamPingInterval = time.Minute })
		var a *askedMux
		for _, state := range clientStates() {
			if state.name == "stream open" {
				a = state.make(r)
			}
		}
		begin := time.Now()
		for r.isUp() {
			m := rawpeer.Msg{MuxID: 1, Op: rawpeer.OpMuxClientMsg, Payload: make([]byte, 1000)}
			_ = r.peer.TrySend(m) // to a stream that is not there
			time.Sleep(100 * time.Millisecond)
		}
		require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
		require.Greater(t, time.Since(begin), 15*time.Second)
		err := a.end(r)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "no pong for two ping intervals")
		require.Len(t, r.Book.About("connection lost", "no pong"), 1)
		r.over()
	})
}

// The reverse: one that answers the link's pings, but is silent on a stream, loses that alone; and
// data of a stream stands for the pongs of it.
func TestPing_PeerThatIsSilentOnAStreamLosesIt(t *testing.T) {
	inHostile(t, nil, func(r *hostileRig) {
		var open func(r *hostileRig) *askedMux
		for _, state := range clientStates() {
			if state.name == "stream open" {
				open = state.make
			}
		}
		silent, talks := open(r), open(r)
		begin := time.Now()
		for range 40 {
			time.Sleep(time.Second)
			r.peer.Send(rawpeer.Msg{MuxID: talks.id, Seq: talks.seq, Op: rawpeer.OpUnblockClMux, Payload: []byte{0}})
			talks.seq++
			if !r.extended() {
				break // there a credit is one
			}
		}
		err := <-silent.done
		require.ErrorIs(r, err, grid.ErrDisconnected)
		require.ErrorContains(r, err, "nothing heard of the stream")
		if r.extended() {
			require.Empty(r, talks.done)
		} else {
			require.ErrorIs(r, <-talks.done, grid.ErrFlowControl)
		}
		require.LessOrEqual(r, time.Since(begin), 45*time.Second)
		talks.cancel()
		silent.cancel()
	})
}
