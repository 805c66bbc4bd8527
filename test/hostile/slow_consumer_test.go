package hostile

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// A consumer that is slow slows down its own stream, and nothing else on the link.

// neighbours is what two streams and a caller get out of a link in some time, by the bubble's
// clock.
type neighbours struct {
	messages int64
	calls    int64
	worst    time.Duration // of the calls
}

func measureNeighbours(t *testing.T, slow func(ctx context.Context, c *grid.Connection)) (n neighbours) {
	const rate, size, period = 256 << 10, 1 << 10, 20 * time.Second
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxQueuedBytes = 16 << 10 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Net.SetBuffer(8 << 10) // what has been written can't be overtaken
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
		g.Stream(8, 0, rig.Pour(size))
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
			InCapacity: 8, // takes its time over each message
			Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				for range in {
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
					}
				}
				return nil
			},
		}))
		for i := range 2 {
			g.Net.Rate(g.Addr(i), g.Addr(1-i), rate)
		}
		ctx, cancel := context.WithTimeout(t.Context(), period)
		defer cancel()
		var users sync.WaitGroup
		if slow != nil {
			users.Go(func() { slow(ctx, c) })
		}
		var messages atomic.Int64
		for range 2 {
			users.Go(func() {
				s, err := c.NewStream(ctx, rig.Handler, nil)
				if err != nil {
					t.Error(err)
					return
				}
				_ = s.Results(func(b []byte) error { messages.Add(1); grid.PutByteBuffer(b); return nil })
			})
		}
		users.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				if _, err := c.SingleRequest(ctx, rig.Echo, nil); err == nil {
					n.calls++
					n.worst = max(n.worst, time.Since(start))
				}
			}
		})
		users.Wait()
		n.messages = messages.Load()
		time.Sleep(time.Second) // what was on its way arrives
		g.RequireNothingKept()
	})
	return n
}

func TestStream_SlowConsumerLeavesTheLinkToTheOthers(t *testing.T) {
	alone := measureNeighbours(t, nil)
	require.Greater(t, alone.messages, int64(4<<10), "the link is busy")
	for name, slow := range map[string]func(ctx context.Context, c *grid.Connection){
		"reads slowly": func(ctx context.Context, c *grid.Connection) {
			s, err := c.NewStream(ctx, rig.Handler, nil)
			if err == nil {
				_, _ = rig.Collect(s, time.Second)
			}
		},
		"reads nothing": func(ctx context.Context, c *grid.Connection) {
			if _, err := c.NewStream(ctx, rig.Handler, nil); err == nil {
				<-ctx.Done()
			}
		},
		"handler is slow": func(ctx context.Context, c *grid.Connection) {
			if s, err := c.NewStream(ctx, rig.Handler+1, nil); err == nil {
				for s.Send(make([]byte, 10<<10)) == nil {
				}
				s.CloseSend()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := measureNeighbours(t, slow)
			t.Logf("alone %+v, beside it %+v", alone, n)
			require.Greater(t, n.messages, alone.messages*9/10)
			require.Greater(t, n.calls, alone.calls*3/4)
			require.LessOrEqual(t, n.worst, 2*alone.worst+100*time.Millisecond)
		})
	}
}
