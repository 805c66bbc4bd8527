//go:build race

package grid

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

// Lesson 30: what has been taken from the pool comes back, once everybody has
// given back what is his. Under the race detector the pool itself looks for
// buffers that are put back twice or used afterwards.
func TestBuffersComeBackToThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := bytepool.Out()
		g := newTestGrid(t, 2, nil)
		for _, n := range g.nodes {
			require.NoError(t, n.RegisterStreamingHandler(testUnused, StreamHandler{Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
				PutByteBuffer(payload)
				for ctx.Err() == nil {
					out <- append(GetByteBuffer(), 1, 2, 3)
				}
				return nil
			}, OutCapacity: 10}))
		}
		for round := range 20 {
			g.requireWorks()
			for i := range 2 {
				c := g.conn(i, 1-i)
				_, err := c.SingleRequest(t.Context(), testUnused, make([]byte, 5000))
				require.True(t, IsRemoteErr(err))
				st, err := c.NewStream(t.Context(), testStream, make([]byte, 100))
				require.NoError(t, err)
				require.NoError(t, consume(st))
				// Consumed in part, and not at all.
				st, err = c.NewStream(t.Context(), testUnused, make([]byte, 100))
				require.NoError(t, err)
				for b, err := range st.All() {
					require.NoError(t, err)
					PutByteBuffer(b)
					break
				}
				ctx, cancel := context.WithCancel(t.Context())
				_, err = c.NewStream(ctx, testUnused, nil)
				require.NoError(t, err)
				synctest.Wait()
				cancel() // what has arrived is given back, before the link can go
				synctest.Wait()
			}
			if round%3 == 0 {
				g.cut(0, 1)
				synctest.Wait()
				g.waitConnected()
			}
			synctest.Wait()
		}
		g.stopAll()
		synctest.Wait()
		require.Zero(t, bytepool.Out()-before, "buffers are out")
	})
}
