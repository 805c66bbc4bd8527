package attack

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

// Handlers that heed their context end with it, and have their slots until then: nothing is left of
// them, and nothing is answered that was cancelled.
func TestRequest_RapidResetOfHandlersWithAContext(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.LimitHandlers, func(a *rig.Attacked) {
		var running, most, cancelled atomic.Int64
		require.NoError(a, a.Node.RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			most.Store(max(most.Load(), running.Add(1)))
			<-ctx.Done()
			if context.Cause(ctx) == context.Canceled {
				cancelled.Add(1)
			}
			running.Add(-1)
			return b, nil
		}))
		p := a.Next()
		w := a.Swallow(p)
		before := rig.BubbleGoroutines()
		n := rig.Scaled(20_000)
		open := func(id uint64) rawpeer.Msg {
			return rawpeer.Msg{MuxID: id, Handler: uint8(rig.Unused), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("payload")}
		}
		a.During(func() {
			a.Resets(p, n, open)
			synctest.Wait()
			for id := range uint64(50) { // those run before they are cancelled
				p.Send(open(1<<40 + id))
			}
			synctest.Wait()
			require.EqualValues(a, 50, running.Load())
			for id := range uint64(50) {
				p.Send(rawpeer.Msg{MuxID: 1<<40 + id, Op: rawpeer.OpDisconnectServerMux})
			}
			synctest.Wait()
		})
		require.EqualValues(a, 50, most.Load(), "MaxHandlers")
		require.GreaterOrEqual(a, cancelled.Load(), int64(50))
		require.Zero(a, w.Count(rawpeer.OpResponse))
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 50+20)
		a.RequireGrown(4 << 20)
		a.Idle()
	})
}

// Nor is it the number of cancelled requests.
func TestRequest_TenThousandAreCancelledAtOnceByAnHonestHost(t *testing.T) {
	n := rig.Scaled(10_000)
	g := rig.NewTCP(t, 2, func(_ int, o *grid.ManagerOptions) { o.MaxHandlers = n + 100 })
	var running, ended atomic.Int64
	require.NoError(t, g.Manager(0).RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
		running.Add(1)
		<-ctx.Done()
		if context.Cause(ctx) == context.Canceled {
			ended.Add(1)
		}
		return b, nil
	}))
	c := g.Conn(1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := c.SingleRequest(ctx, rig.Unused, []byte("x")); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool { return running.Load() == int64(n) }, time.Minute, time.Millisecond)
	cancel()
	wg.Wait()
	for i := range 20 {
		require.NoError(t, rig.HonestCall(c, i))
	}
	require.Eventually(t, func() bool { return g.Conn(0, 1).Stats().Handlers == 0 }, 30*time.Second, time.Millisecond)
	require.EqualValues(t, n, ended.Load(), "a cancel was lost")
	require.Zero(t, c.Stats().Reconnects)
	require.Empty(t, c.Stats().LastError)
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
	// A stream is taken out of the client's table once its cancel is queued.
	require.Eventually(t, func() bool { return g.Conn(0, 1).Stats().Handlers == 0 && c.Stats().Streams == 0 }, 30*time.Second, time.Millisecond)
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

// A peer that cancels a stream amid its input takes nothing of what the handler was given away from
// under it: that reads a prefix, and all that its channel held.
func TestStream_CancelledAmidItsInputLeavesAPrefix(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
		release := make(chan struct{})
		read := make(chan []byte, 1)
		const capacity = 16
		require.NoError(a, a.Node.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{
			InCapacity: capacity,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				<-release
				all := []byte{}
				for b := range in {
					all = append(all, b...)
				}
				read <- all
				return nil
			},
		}))
		p := a.Next()
		link := a.Session()
		a.Swallow(p)
		a.During(func() {
			for id := range uint64(2 * capacity) {
				atOnce := id%2 == 0 // so that it is cancelled while it is being handed on
				p.Send(rawpeer.Msg{MuxID: id + 1, Handler: uint8(rig.Unused), Op: rawpeer.OpConnectMux})
				var all []byte
				input := func(n int) {
					for range n {
						all = append(all, byte(len(all)))
						p.Send(rawpeer.Msg{
							MuxID: id + 1, Seq: uint32(len(all)), Op: rawpeer.OpMuxClientMsg, Payload: all[len(all)-1:],
						})
					}
				}
				input(int(id/2) + 1)
				given := min(len(all), capacity/2)
				if !atOnce {
					synctest.Wait()
				}
				p.Send(rawpeer.Msg{MuxID: id + 1, Op: rawpeer.OpDisconnectServerMux})
				input(4) // too late
				if !atOnce {
					synctest.Wait()
				}
				release <- struct{}{}
				got := <-read
				require.Equal(a, all[:len(got)], got)
				require.LessOrEqual(a, len(got), len(all)-4)
				if !atOnce {
					require.Len(a, got, given)
				}
			}
		})
		a.Same(link)
		a.Idle()
	})
}
