package attack

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Rapid reset: what a peer opens and cancels at once costs it nothing, and the node a handler that
// does not look at its context.

func TestStream_RapidResetIsRefusedBeyondMaxStreams(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.LimitHandlers, func(a *rig.Attacked) {
		b := a.Block(1)
		p := a.Next()
		w := a.Swallow(p)
		before := rig.BubbleGoroutines()
		n := rig.Scaled(20_000)
		a.During(func() {
			a.Resets(p, n, func(id uint64) rawpeer.Msg {
				return rawpeer.Msg{MuxID: id, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux, Payload: []byte("payload")}
			})
			synctest.Wait()
		})
		require.EqualValues(a, 40, b.Most.Load(), "MaxStreams")
		require.Equal(a, 40, a.Conn.Stats().Handlers)
		require.Zero(a, a.Conn.Stats().StreamsServed, "all were cancelled")
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 2*40+20)
		require.Equal(a, n-40, w.Count(rawpeer.OpMuxConnectError))
		require.EqualValues(a, n-40, w.Overloaded.Load())
		a.RequireGrown(4 << 20)
		a.Logged("limit reached", "MaxStreams")

		// It has slots left for requests.
		p.Send(rawpeer.Msg{MuxID: 1 << 50, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		synctest.Wait()
		require.Equal(a, 1, w.Count(rawpeer.OpResponse))
		// Another link does not bring it others.
		p.Close()
		p = a.Next()
		w = a.Swallow(p)
		p.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
		synctest.Wait()
		require.EqualValues(a, 1, w.Overloaded.Load())
		b.Release()
		a.Idle()
	})
}

func TestRequest_RapidResetIsRefusedBeyondTheLimit(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.LimitHandlers, func(a *rig.Attacked) {
		b := a.Block(1)
		p := a.Next()
		w := a.Swallow(p)
		before := rig.BubbleGoroutines()
		n := rig.Scaled(20_000)
		a.During(func() {
			a.Resets(p, n, func(id uint64) rawpeer.Msg {
				return rawpeer.Msg{MuxID: id, Handler: uint8(rig.BlockSingle), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, DeadlineMS: 1, Payload: []byte("payload")}
			})
			synctest.Wait()
		})
		require.EqualValues(a, 50, b.Most.Load(), "MaxHandlers")
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 50+20)
		require.EqualValues(a, n-50, w.Overloaded.Load())
		require.EqualValues(a, 50*len("payload"), a.Conn.Stats().KeptBytes)
		a.RequireGrown(4 << 20)
		a.Logged("limit reached", "MaxHandlers")
		b.Release()
		a.Idle()
	})
}

// cancelMany opens streams, and cancels them all at once.
func cancelMany(t *testing.T, g *rig.Grid, n int) {
	c := g.Conn(1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for range n / 50 {
				if _, err := c.NewStream(ctx, rig.Block, nil); err != nil {
					t.Errorf("%d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, n, c.Stats().Streams)
	cancel()
	for i := range 20 {
		require.NoError(t, rig.HonestCall(c, i))
	}
	require.Eventually(t, func() bool { return g.Conn(0, 1).Stats().Handlers == 0 }, 30*time.Second, time.Millisecond)
	require.Zero(t, c.Stats().Streams)
	require.Zero(t, c.Stats().Reconnects)
	require.Empty(t, c.Stats().LastError)
}

// It is not the number of cancels that makes an attack.
func TestStream_TenThousandAreCancelledAtOnceByAnHonestHost(t *testing.T) {
	cancelMany(t, rig.NewTCP(t, 2, nil), rig.Scaled(10_000))
}

// The same as a peer's frames: ten thousand in one websocket message.
func TestStream_TenThousandAreCancelledInOneMessage(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
		p := a.Next()
		s := a.Session()
		w := a.Swallow(p)
		n := rig.Scaled(10_000)
		var opens, cancels []rawpeer.Msg
		for i := range n {
			opens = append(opens, rawpeer.Msg{MuxID: uint64(i + 1), Handler: uint8(rig.Block), Op: rawpeer.OpConnectMux})
			cancels = append(cancels, rawpeer.Msg{MuxID: uint64(i + 1), Op: rawpeer.OpDisconnectServerMux})
		}
		a.During(func() {
			p.SendMerged(opens...)
			synctest.Wait()
			require.Equal(a, n, w.Count(rawpeer.OpAckMux))
			require.Equal(a, n, a.Conn.Stats().StreamsServed)
			p.SendMerged(cancels...)
			synctest.Wait()
		})
		a.Idle()
		a.Same(s)
		require.Zero(a, w.Overloaded.Load())
	})
}
