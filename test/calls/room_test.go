package calls

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Who waits for room in the queue, because the peer takes nothing.

// A sender that waits when its own manager is closed is let go.
func TestClose_LetsASenderThatWaitsGo(t *testing.T) {
	t.Parallel()
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			g := rig.New(t, 2, nil)
			st, err := g.Conn(0, 1).NewStream(t.Context(), rig.Block, nil)
			require.NoError(t, err)
			st.Requests <- nil // the handler's one credit
			st.Requests <- nil // waits in the forwarder
			sent := make(chan struct{})
			go func() {
				st.Requests <- nil
				close(sent)
			}()
			synctest.Wait()
			require.NoError(t, g.Manager(0).Close())
			<-sent
		})
	}
}

// While an open waits for room, nothing else of the stream may be sent.
func TestPing_StreamThatWaitsToBeOpenedGetsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) {
			o.StreamPingInterval = 100 * time.Millisecond
			o.PingInterval, o.WriteTimeout = time.Hour, time.Hour
		})
		c := g.Conn(0, 1)
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, size := range []int{rig.WholeSize, 1 << 10, 0} { // fill socket and queue, to the last byte
			for range 300 {
				go func() {
					b, _ := c.SingleRequest(ctx, rig.Echo, make([]byte, size))
					grid.PutByteBuffer(b)
				}()
			}
			synctest.Wait()
		}
		opened := make(chan error, 1)
		go func() {
			st, err := c.NewStream(t.Context(), rig.Stream, []byte("abc"))
			if err == nil {
				err = st.Results(func(b []byte) error { grid.PutByteBuffer(b); return nil })
			}
			opened <- err
		}()
		time.Sleep(time.Second)
		require.Empty(t, opened)
		g.Net.Stall(g.Addr(0), g.Addr(1), false)
		require.NoError(t, <-opened)
	})
}

// The default deadline holds for the wait for room as well, and a call that has passed it is not
// made later.
func TestDeadline_DefaultHoldsWhileThereIsNoRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.PingInterval, o.WriteTimeout = time.Hour, time.Hour })
		var ran atomic.Int32
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			ran.Add(1)
			return b, nil
		}))
		c := g.Conn(0, 1)
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		ctx, cancel := context.WithCancel(t.Context())
		for range 8 {
			go func() {
				b, _ := c.SingleRequest(ctx, rig.Echo, make([]byte, rig.PendingLimit))
				grid.PutByteBuffer(b)
			}()
		}
		synctest.Wait()
		start := time.Now()
		_, err := c.SingleRequest(t.Context(), rig.Handler, make([]byte, rig.PendingLimit))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.InDelta(t, time.Minute, time.Since(start), float64(2*time.Second))
		cancel()
		g.Net.Stall(g.Addr(0), g.Addr(1), false)
		synctest.Wait()
		require.Zero(t, ran.Load())
		require.Equal(t, grid.StateConnected, c.State())
	})
}
