package hostile

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Twice as many calls as may run, for some seconds: what was let in finishes in its time, what was
// not is told at once, and nothing adds up.
func TestOverload_TwiceTheLoadThatMayRun(t *testing.T) {
	rig.Long(t)
	const (
		limit = 50
		work  = 100 * time.Millisecond
		every = work / limit / 2
	)
	seconds := 2 + rig.Scaled(5)
	for name, stream := range map[string]bool{"requests": false, "streams": true} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxHandlers, o.MaxStreams = limit, limit }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { time.Sleep(work); return b, nil })
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
					Handle: func(_ context.Context, b []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
						time.Sleep(work)
						out <- b
						return nil
					},
				}))
				call := func(ctx context.Context) error {
					if stream {
						s, err := c.NewStream(ctx, rig.Handler+1, make([]byte, 1000))
						if err != nil {
							return err
						}
						return rig.Consume(s)
					}
					b, err := c.SingleRequest(ctx, rig.Handler, make([]byte, 1000))
					grid.PutByteBuffer(b)
					return err
				}
				require.NoError(t, call(t.Context()))
				time.Sleep(5 * time.Second)
				goroutines, memory := rig.BubbleGoroutines(), rig.Heap()

				var done, refused atomic.Int64
				var callers sync.WaitGroup
				for second := range seconds {
					for range int(time.Second / every) {
						callers.Go(func() {
							ctx, cancel := context.WithTimeout(t.Context(), time.Second)
							defer cancel()
							start := time.Now()
							switch err := call(ctx); {
							case err == nil:
								done.Add(1)
								if took := time.Since(start); took != work {
									t.Errorf("took %v", took)
								}
							case errors.Is(err, grid.ErrOverloaded) && grid.IsRemoteErr(err):
								refused.Add(1)
								if took := time.Since(start); took != 0 {
									t.Errorf("refused after %v", took)
								}
							default:
								t.Error(err)
							}
						})
						time.Sleep(every)
					}
					require.LessOrEqual(t, g.Conn(1, 0).Stats().Handlers, limit)
					if second > 0 && second%2 == 0 {
						// A caller, a handler, its pump, and as many that have just had one.
						require.Less(t, rig.BubbleGoroutines()-goroutines, 8*limit)
						require.Less(t, rig.Heap()-memory, int64(4<<20))
					}
				}
				callers.Wait()
				require.EqualValues(t, seconds*int(time.Second/every), done.Load()+refused.Load())
				require.InDelta(t, seconds*limit*int(time.Second/work), done.Load(), 2*limit, "the rate of what may run")
				time.Sleep(time.Second)
				g.RequireNothingKept()
				require.NoError(t, call(t.Context()))
				require.Zero(t, c.Stats().Reconnects)
				time.Sleep(2 * time.Second) // the goroutines that nobody needs
				synctest.Wait()
				require.InDelta(t, goroutines, rig.BubbleGoroutines(), 4)
				require.Less(t, rig.Heap()-memory, int64(2<<20))
			})
		})
	}
}
