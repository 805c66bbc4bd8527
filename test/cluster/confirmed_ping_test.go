package cluster

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// One side of each link pings, whichever was first, also where both do at the same moments; and the
// other knows the round trip from it.
func TestConfirmedPing_OneSideOfEachLinkPings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 16
		const latency = 20 * time.Millisecond
		g := rig.New(t, n, nil)
		for i := range n {
			for j := range n {
				g.Net.Delay(g.Addr(i), g.Addr(j), latency)
			}
		}
		out := func(i, j int) int64 { return g.Conn(i, j).Stats().BatchesOut }
		var before [n][n]int64
		time.Sleep(time.Minute)
		for i := range n {
			for j := range n {
				if i != j {
					before[i][j] = out(i, j)
				}
			}
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		for i := range n {
			for j := range n {
				if i == j {
					continue
				}
				// As many of the one side as of the other, pings of the one and pongs of the other.
				require.InDelta(t, 10*60/9, out(i, j)-before[i][j], 2, "from %d to %d", i, j)
				st := g.Conn(i, j).Stats()
				require.Equal(t, 2*latency, st.RoundTrip)
				require.InDelta(t, 2*latency, st.RoundTripMean, float64(time.Millisecond))
				require.Zero(t, st.Reconnects)
			}
		}
	})
}

// Each side has its own interval; the shorter one goes for the link.
func TestConfirmedPing_TheShorterIntervalIsKept(t *testing.T) {
	t.Parallel()
	for quick := range 2 {
		synctest.Test(t, func(t *testing.T) {
			g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
				if i == quick {
					o.PingInterval = 2 * time.Second
				}
			})
			time.Sleep(time.Minute)
			before := [2]int64{g.Conn(0, 1).Stats().BatchesOut, g.Conn(1, 0).Stats().BatchesOut}
			time.Sleep(7 * time.Minute)
			synctest.Wait()
			for i := range 2 {
				require.InDelta(t, 7*60*4/7, g.Conn(i, 1-i).Stats().BatchesOut-before[i], 2)
			}
			g.Net.Partition(g.Addr(0), g.Addr(1))
			begin := time.Now()
			rig.WaitState(t, g.Conn(quick, 1-quick), grid.StateConnectionError, grid.StateConnecting, grid.StateUnconnected)
			require.LessOrEqual(t, time.Since(begin), 3*2*time.Second)
		})
	}
}

// A link that is dead, in one direction or both, is noticed on both sides, though one of them has
// not pinged for long.
func TestConfirmedPing_DeadLinkIsNoticedOnBothSides(t *testing.T) {
	t.Parallel()
	const tick = time.Second
	for _, dead := range [][2]bool{{true, true}, {true, false}, {false, true}} {
		for phase := time.Duration(0); phase < 10*time.Second; phase += 900 * time.Millisecond {
			t.Run(fmt.Sprintf("%v %v", dead, phase), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := rig.New(t, 2, nil)
					time.Sleep(time.Minute + phase)
					synctest.Wait()
					g.Net.Stall(g.Addr(0), g.Addr(1), dead[0])
					g.Net.Stall(g.Addr(1), g.Addr(0), dead[1])
					begin := time.Now()
					for i := range 2 {
						rig.WaitState(t, g.Conn(i, 1-i), grid.StateConnectionError, grid.StateConnecting, grid.StateUnconnected)
						require.LessOrEqual(t, time.Since(begin), rig.NoticeTime+tick)
						require.Greater(t, time.Since(begin), 19*time.Second)
					}
					g.Net.HealAll()
					g.WaitConnected()
					g.RequireWorks()
				})
			})
		}
	}
}

// A side that has pinged goes on when the other one, that did, does not hear it for a while.
func TestConfirmedPing_ManyStallsCostNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		for i := range 40 {
			time.Sleep(time.Minute + time.Duration(i)*700*time.Millisecond)
			from := i % 2
			g.Net.Stall(g.Addr(from), g.Addr(1-from), true)
			time.Sleep(19 * time.Second)
			g.Net.Stall(g.Addr(from), g.Addr(1-from), false)
		}
		time.Sleep(time.Minute)
		for i := range 2 {
			require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects)
		}
		g.RequireWorks()
	})
}
