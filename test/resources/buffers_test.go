//go:build race

package resources

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

// Lesson 30: what has been taken from the pool comes back, once everybody has given back what is
// his. Under the race detector the pool itself looks for buffers that are put back twice or used
// afterwards.
func TestResources_BuffersComeBackToThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := bytepool.Out()
		g := rig.New(t, 2, nil)
		for _, n := range g.Nodes() {
			require.NoError(t, n.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				grid.PutByteBuffer(payload)
				for ctx.Err() == nil {
					out <- append(grid.GetByteBuffer(), 1, 2, 3)
				}
				return nil
			}, OutCapacity: 10}))
		}
		for round := range 20 {
			g.RequireWorks()
			for i := range 2 {
				c := g.Conn(i, 1-i)
				_, err := c.SingleRequest(t.Context(), rig.Unused, make([]byte, 5000))
				require.True(t, grid.IsRemoteErr(err))
				st, err := c.NewStream(t.Context(), rig.Stream, make([]byte, 100))
				require.NoError(t, err)
				require.NoError(t, rig.Consume(st))
				// Consumed in part, and not at all.
				st, err = c.NewStream(t.Context(), rig.Unused, make([]byte, 100))
				require.NoError(t, err)
				for b, err := range st.All() {
					require.NoError(t, err)
					grid.PutByteBuffer(b)
					break
				}
				ctx, cancel := context.WithCancel(t.Context())
				_, err = c.NewStream(ctx, rig.Unused, nil)
				require.NoError(t, err)
				synctest.Wait()
				cancel() // what has arrived is given back, before the link can go
				synctest.Wait()
			}
			if round%3 == 0 {
				g.Cut(0, 1)
				synctest.Wait()
				g.WaitConnected()
			}
			synctest.Wait()
		}
		g.StopAll()
		synctest.Wait()
		require.Zero(t, bytepool.Out()-before, "buffers are out")
	})
}
