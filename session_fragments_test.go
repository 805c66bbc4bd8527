package grid_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// idle requires that nothing of the attack is left, nor the beginning of anything.
func idle(a *rig.Attacked) {
	a.Helper()
	a.Idle()
	if s := grid.SessionOf(a.Conn); s != nil {
		require.Zero(a, s.Openings())
	}
}

// Openings whose payload never completes hold what MaxHostBytes allows, until they have taken too
// long.
func TestFragments_OfOpeningsThatNeverComplete(t *testing.T) {
	for op, handler := range map[uint8]grid.HandlerID{rawpeer.OpRequest: rig.BlockSingle, rawpeer.OpConnectMux: rig.BlockStream} {
		t.Run(rawpeer.OpName(op), func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.DripLimits, func(a *rig.Attacked) {
				a.Block(1).Release()
				p := a.Next()
				s := a.Session()
				w := a.Swallow(p)
				const size = 64_000
				n := rig.Scaled(1000)
				fits := s.Opts.MaxHostBytes / size
				a.During(func() {
					for i := range n {
						p.Send(rawpeer.Msg{MuxID: uint64(i + 1), Handler: uint8(handler), Op: op, Flags: rawpeer.FlagMore, Payload: make([]byte, size)})
						// Their rest, from those who take no notice of the refusal.
						p.Send(rawpeer.Msg{MuxID: uint64(i + 1), Seq: 1, Op: op, Flags: rawpeer.FlagMore, Payload: make([]byte, 100)})
					}
					synctest.Wait()
				})
				kept := a.Conn.Stats().KeptBytes
				require.LessOrEqual(a, kept, int64(s.Opts.MaxHostBytes))
				require.GreaterOrEqual(a, kept, int64(s.Opts.MaxHostBytes-size))
				require.LessOrEqual(a, a.Conn.Stats().Handlers, fits)
				require.EqualValues(a, n-a.Conn.Stats().Handlers, w.Overloaded.Load())
				// A fragment is kept in the frame that it came in, or in a buffer with room.
				a.RequireGrown(3*int64(s.Opts.MaxHostBytes) + 2<<20)
				a.Logged("limit reached", "MaxHostBytes")
				time.Sleep(s.Opts.MessageTimeout + time.Second)
				a.Idle()
				require.Zero(a, grid.SessionOf(a.Conn).Openings())
				require.Equal(a, n, w.Count(rawpeer.OpMuxConnectError), "all were refused at last")
				a.Same(s)
			})
		})
	}
}

// A frame is kept with the fragment in it only where that makes up a good part of it: a third, so
// MaxHostBytes holds three times as much at the very worst.
func TestFragments_InLargeFramesThatNeverComplete(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make test-long runs it")
	}
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, func(o *grid.ManagerOptions) {
		rig.DripLimits(o)
		o.MessageTimeout = time.Hour
	}, func(a *rig.Attacked) {
		a.Block(1).Release()
		p := a.Next()
		s := a.Session()
		a.Swallow(p)
		for _, c := range []struct{ size, filler, times int }{
			{1, 200_000, 2},
			{1000, 200_000, 2},
			{33_000, 131_000, 2},
			{43_800, 87_000, 3},  // the read buffer is of 128 KiB
			{52_500, 208_000, 2}, // of 256 KiB
			{64_000, 10, 2},
		} {
			const n = 90 // MaxHostBytes takes 80 of the largest but one
			id := uint64(c.size) << 20
			a.During(func() {
				for range n {
					id++
					p.SendMerged(
						rawpeer.Msg{MuxID: id, Handler: uint8(rig.BlockSingle), Op: rawpeer.OpRequest, Flags: rawpeer.FlagMore, Payload: make([]byte, c.size)},
						rawpeer.Msg{Op: 200, Payload: make([]byte, c.filler)}, // nobody wants it
					)
				}
				synctest.Wait()
			})
			kept := a.Conn.Stats().KeptBytes
			require.LessOrEqual(a, kept, int64(s.Opts.MaxHostBytes))
			a.Logf("fragments of %d bytes: %d KiB count", c.size, kept>>10)
			a.RequireGrown(int64(c.times)*kept + 2<<20)
			for i := range uint64(n) {
				p.Send(rawpeer.Msg{MuxID: id - i, Op: rawpeer.OpDisconnectServerMux})
			}
			a.Idle()
			require.Zero(a, grid.SessionOf(a.Conn).Openings())
		}
	})
}

// What has not arrived in whole has no handler that could run on.
func TestFragments_RapidResetOfOpeningsLeavesNothing(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.LimitHandlers, func(a *rig.Attacked) {
		b := a.Block(1)
		p := a.Next()
		w := a.Swallow(p)
		n := rig.Scaled(20_000)
		a.During(func() {
			for op, handler := range map[uint8]grid.HandlerID{rawpeer.OpRequest: rig.BlockSingle, rawpeer.OpConnectMux: rig.BlockStream} {
				a.Resets(p, n/2, func(id uint64) rawpeer.Msg {
					return rawpeer.Msg{MuxID: id, Handler: uint8(handler), Op: op, Flags: rawpeer.FlagMore, Payload: []byte("payload")}
				})
			}
			synctest.Wait()
		})
		require.Zero(a, b.Most.Load())
		require.Zero(a, w.Count(rawpeer.OpMuxConnectError))
		idle(a)
		a.RequireGrown(4 << 20)
	})
}
