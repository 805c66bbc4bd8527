package calls

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

// However many callers send small payloads without a pause, a large one gets through within its
// minute.
func TestFragments_AreNotStarvedBySmallCalls(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	for _, size := range []int{1 << 20, 8 << 20} {
		synctest.Test(t, func(t *testing.T) {
			const rate, callers = 8 << 20, 1000
			g, from, to := rig.NewSlow(t, rate, nil)
			c := g.Conn(from, to)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			var users sync.WaitGroup
			for range callers {
				users.Go(func() {
					small := make([]byte, 16<<10)
					for ctx.Err() == nil {
						b, _ := c.SingleRequest(ctx, rig.Echo, small)
						grid.PutByteBuffer(b)
					}
				})
			}
			time.Sleep(time.Second)
			var err error
			took := rig.Elapsed(func() { _, err = c.SingleRequest(t.Context(), rig.Echo, make([]byte, size)) })
			t.Logf("%d bytes at %d a second beside %d callers: %v, %v", size, rate, callers, took, err)
			cancel()
			users.Wait()
			require.NoError(t, err)
		})
	}
}

// While a handler's large message is sent it gets its input.
func TestFragments_OfOutputDoNotHoldUpInput(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g, server, client := rig.NewSlow(t, rig.SlowRate, nil)
		var worst atomic.Int64
		require.NoError(t, g.Manager(server).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 4, OutCapacity: 4,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				out <- make([]byte, 4<<20)
				for b := range in {
					at, _ := time.Parse(time.RFC3339Nano, string(b))
					worst.Store(max(worst.Load(), int64(time.Since(at))))
				}
				return nil
			},
		}))
		st := rig.OpenStream(t, t.Context(), g.Conn(client, server))
		go func() {
			for range 20 {
				_ = st.Send([]byte(time.Now().Format(time.RFC3339Nano)))
				time.Sleep(100 * time.Millisecond)
			}
			st.CloseSend()
		}()
		require.NoError(t, rig.Consume(st))
		require.LessOrEqual(t, time.Duration(worst.Load()), 2*rig.Promptly)
	})
}

// Senders that wait for one another do not hold up the time of a bubble.
func TestFragments_ConcurrentSendersWaitInABubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 1,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				for b := range in {
					grid.PutByteBuffer(b)
					time.Sleep(time.Second)
				}
				return nil
			},
		}))
		st, err := g.Conn(0, 1).NewStream(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				if err := st.Send([]byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		senders.Wait()
		st.CloseSend()
		require.NoError(t, rig.Consume(st))
	})
}
