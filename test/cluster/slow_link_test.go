package cluster

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Lesson 25: a message takes longer than the write timeout and two ping intervals, on the way there
// as a request, on the way back as a response.
func TestSlowLink_MessageBiggerThanTheWriteTimeoutsWorthGetsThrough(t *testing.T) {
	t.Parallel()
	const rate = 16 << 10
	for name, backwards := range map[string]bool{"request": false, "response": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, from, to := rig.NewSlow(t, rate, nil)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				payload := make([]byte, 45*rate)
				for i := range payload {
					payload[i] = byte(i >> 8)
				}
				// Another message waits behind it, and is not lost.
				calls := make([]<-chan error, 2)
				begin := time.Now()
				for i := range calls {
					calls[i] = rig.InBackground(func() error {
						c := g.Conn(from, to)
						if backwards {
							c = g.Conn(to, from)
						}
						b, err := c.SingleRequest(ctx, rig.Echo, payload)
						if err == nil && string(b) != string(payload) {
							t.Errorf("%d bytes came back, or others", len(b))
						}
						return err
					})
				}
				for _, call := range calls {
					require.NoError(t, <-call)
				}
				require.Greater(t, time.Since(begin), 85*time.Second)
				require.Less(t, time.Since(begin), 100*time.Second)
				for i := range 2 {
					require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects)
				}
				g.RequireWorks()
			})
		})
	}
}

// Lesson 25: the other side answers as if it were alive, but takes nothing.
func TestSlowLink_WriteWithoutProgressEndsIt(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{20 * time.Second, 3 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, func(o *grid.ManagerOptions) { o.WriteTimeout = timeout })
			c := g.Manager(0).Connection(raw)
			p := g.DialLone(raw, rawpeer.Config{Unread: true})
			pongs := rig.InBackground(func() error {
				for {
					pong, err := rawpeer.Pong(rawpeer.Ping(time.Now()))
					if err != nil {
						return err
					}
					if err := p.TrySend(pong); err != nil {
						return nil
					}
					time.Sleep(time.Second)
				}
			})
			time.Sleep(5 * time.Minute)
			require.Equal(t, grid.StateConnected, c.State(), "idle is not stuck")
			require.Zero(t, c.Stats().Reconnects)

			begin := time.Now()
			call := rig.InBackground(func() error {
				ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				_, err := c.SingleRequest(ctx, rig.Echo, make([]byte, 2*faultconn.DefaultBuffer))
				return err
			})
			err := <-call
			require.ErrorIs(t, err, grid.ErrDisconnected)
			require.ErrorContains(t, err, "has read nothing for "+timeout.String())
			require.InDelta(t, timeout.Seconds(), time.Since(begin).Seconds(), 2)
			require.NotEqual(t, grid.StateConnected, c.State())
			require.NoError(t, <-pongs)
		})
	}
}

// A peer that reads now and then is kept, and one that stops in the middle of a message is not.
func TestSlowLink_PeerThatReadsNowAndThenIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		c := g.Manager(0).Connection(raw)
		p := g.DialLone(raw, rawpeer.Config{Unread: true})
		call := rig.InBackground(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			_, err := c.SingleRequest(ctx, rig.Echo, make([]byte, 4<<20))
			return err
		})
		buf := make([]byte, 100<<10)
		for range 20 {
			time.Sleep(15 * time.Second)
			_, err := io.ReadFull(p.WS.NetConn(), buf)
			require.NoError(t, err)
			require.Empty(t, call)
		}
		begin := time.Now()
		require.ErrorIs(t, <-call, grid.ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
	})
}

// Pings overtake the data that waits, and a saturated link is not taken for a dead one.
func TestSlowLink_PingsAreNotStarvedByData(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate = 64 << 10
		g, from, to := rig.NewSlow(t, rate, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var senders sync.WaitGroup
		for range 60 { // what they have to send takes far longer than a ping may
			senders.Go(func() {
				for ctx.Err() == nil {
					b, err := g.Conn(from, to).SingleRequest(ctx, rig.Echo, make([]byte, 16<<10))
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					grid.PutByteBuffer(b)
				}
			})
		}
		// The batch that has begun must end first, at 64 KiB a second.
		const most = (rig.PendingLimit + 64<<10) / rate * time.Second
		var worst time.Duration
		for range 5 {
			time.Sleep(10 * time.Second)
			for i := range 2 {
				st := g.Conn(i, 1-i).Stats()
				require.Equal(t, grid.StateConnected, st.State)
				worst = max(worst, st.RoundTrip)
			}
		}
		senders.Wait()
		require.Positive(t, worst)
		require.LessOrEqual(t, worst, most)
		for i := range 2 {
			require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects)
		}
		t.Logf("worst round trip of a ping: %v", worst)
	})
}
