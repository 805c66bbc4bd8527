package gridtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// stream opens one that lasts until its link is lost.
func stream(t *testing.T, g *Grid, from, to int) (end func() error) {
	t.Helper()
	s, err := g.Conn(from, to).NewStream(context.Background(), block, nil)
	require.NoError(t, err)
	return func() error { return s.Results(func([]byte) error { return nil }) }
}

func TestCut_EndsStreamsOfThatLink(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		there, back, other := stream(t, g, 0, 1), stream(t, g, 1, 0), stream(t, g, 1, 2)
		g.Cut(1, 0)
		require.ErrorIs(t, there(), grid.ErrDisconnected)
		require.ErrorIs(t, back(), grid.ErrDisconnected)
		g.WaitConnected()
		requireReach(t, g, everyone)
		require.Equal(t, 1, g.Conn(0, 1).Stats().Reconnects)
		require.Equal(t, 1, g.Conn(1, 2).Stats().Streams)
		require.Zero(t, g.Conn(1, 2).Stats().Reconnects)
		g.Close()
		require.ErrorIs(t, other(), grid.ErrDisconnected)
	})
}

func TestCut_OverAndOver(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		for range 20 {
			g.Cut(0, 1)
			g.WaitConnected()
			requireReach(t, g, everyone)
		}
		g.Cut(0, 0) // of no use, but no harm either
	})
}

func TestPartition_OfFive(t *testing.T) {
	inBoth(t, 5, func(t *testing.T, g *Grid) {
		began := time.Now()
		g.Partition([]int{0, 1}, []int{2, 3, 4})
		requireReach(t, g, func(a, b int) bool { return (a < 2) == (b < 2) })
		require.Less(t, time.Since(began), 5*time.Second, "calls wait for nothing")
		g.WaitConnected() // within the groups
		require.NotEqual(t, grid.StateConnected, g.Conn(0, 4).State())

		// Another takes its place. Node 4 is in no group.
		g.Partition([]int{0, 2}, []int{1, 3})
		g.WaitConnected()
		requireReach(t, g, func(a, b int) bool { return a%2 == b%2 && a != 4 && b != 4 })

		g.Heal()
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}

func TestPartition_OfOneGroupIsolatesIt(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		g.Partition([]int{1})
		requireReach(t, g, func(a, b int) bool { return a != 1 && b != 1 })
		g.Partition()
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}

func TestPartition_WithABridge(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		g.Partition([]int{0, 2}, []int{1, 2})
		g.WaitConnected()
		requireReach(t, g, func(a, b int) bool { return a == 2 || b == 2 })
	})
}

func TestPartition_HoldsForNodesThatStart(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		g.Partition([]int{0}, []int{1, 2})
		g.Restart(0)
		g.Restart(1)
		g.WaitConnected()
		requireReach(t, g, func(a, b int) bool { return a != 0 && b != 0 })
		g.Heal()
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}

func TestPartition_SilentOneIsNoticedByPings(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		end := stream(t, g, 0, 1)
		g.PartitionSilently([]int{0}, []int{1})
		began := time.Now()
		require.Equal(t, grid.StateConnected, g.Conn(0, 1).State())
		require.Equal(t, grid.StateConnected, g.Conn(1, 0).State())
		require.ErrorIs(t, end(), grid.ErrDisconnected)
		require.GreaterOrEqual(t, time.Since(began), 200*time.Millisecond)
		// A side that has not noticed yet still takes the old link for one that works.
		noticed := func() bool {
			return g.Conn(0, 1).State() != grid.StateConnected && g.Conn(1, 0).State() != grid.StateConnected
		}
		require.Eventually(t, noticed, 10*time.Second, time.Millisecond)
		g.Heal()
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}

func TestPartition_SilentOneThatHealsInTimeLosesNothing(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		for range 3 {
			g.PartitionSilently([]int{0})
			answered := make(chan error)
			go func() { answered <- ask(g, 0, 1) }()
			select {
			case err := <-answered:
				require.Fail(t, "an answer came through", "%v", err)
			case <-time.After(50 * time.Millisecond):
			}
			g.Heal()
			require.NoError(t, <-answered)
		}
		require.Zero(t, g.Conn(0, 1).Stats().Reconnects)
		g.PartitionSilently([]int{0})
		g.Cut(0, 1) // noticed all the same
		require.ErrorIs(t, ask(g, 0, 1), grid.ErrDisconnected)
		g.Heal()
		g.WaitConnected()
		g.PartitionSilently([]int{0})
		g.Partition([]int{0})
		require.ErrorIs(t, ask(g, 0, 1), grid.ErrDisconnected)
		require.ErrorIs(t, ask(g, 1, 0), grid.ErrDisconnected)
	}, WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = 10 * time.Second }))
}

// Whichever of the two has dialled, the other must not be told that it is gone; and WaitConnected
// must not take the old link for the new one.
func TestNode_StopsBehindASilentPartition(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		for i := range 3 {
			g.PartitionSilently([]int{i})
			g.Stop(i)
			time.Sleep(20 * time.Millisecond)
			for j := range 3 {
				if j != i {
					require.Equal(t, grid.StateConnected, g.Conn(j, i).State(), "%d of %d", j, i)
				}
			}
			g.Start(i)
			g.Heal()
			g.WaitConnected()
			requireReach(t, g, everyone)
		}
	}, WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = 10 * time.Second }))
}

func TestGrid_AllFaultsAtOnce(t *testing.T) {
	inBoth(t, 4, func(t *testing.T, g *Grid) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		for _, f := range []func(i int){
			func(i int) { g.Cut(i%4, (i+1)%4) },
			func(i int) { g.Restart(i % 4) },
			func(i int) { g.Stop(i % 3); g.Start(i % 3) },
			func(i int) { _ = g.Shutdown(ctx, 3); g.Start(3) },
			func(i int) { g.Partition([]int{i % 4}); g.Heal() },
			func(i int) { g.PartitionSilently([]int{i % 4}); g.Heal() },
			func(i int) { _ = ask(g, i%4, (i+1)%4) },
		} {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					f(i)
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		all.Wait()
		g.Heal()
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}
