package wheel

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/seed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newWheel(period time.Duration) *Wheel {
	w := new(Wheel)
	w.Init(period)
	return w
}

// isArmed reports whether a timer is pending, and stops it.
func (w *Wheel) isArmed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.timer != nil && w.timer.Stop()
}

func TestWheel_CallsEveryPeriodExactly(t *testing.T) {
	for _, longest := range []time.Duration{125 * time.Microsecond, 10 * time.Millisecond, 625 * time.Millisecond, time.Second} {
		for _, period := range []time.Duration{longest, longest * 3 / 4, longest / 2, longest / 8} {
			for _, phase := range []float64{0, 0.3, 0.99999, 1} {
				synctest.Test(t, func(t *testing.T) {
					w := newWheel(longest)
					other := w.Add(longest, 0, func() {})
					time.Sleep(longest * 5 / 7)
					last, n := time.Now(), 0
					real := w.Period(period)
					require.LessOrEqual(t, real, max(period, w.width))
					require.Greater(t, real, period/2-time.Duration(maxSlots))
					r := w.Add(period, phase, func() {
						if n++; n == 1 {
							require.LessOrEqual(t, time.Since(last), real)
						} else {
							require.Equal(t, real, time.Since(last))
						}
						last = time.Now()
					})
					time.Sleep(100*real + real/2)
					synctest.Wait()
					require.InDelta(t, 100, n, 1)
					r.Stop()
					r.Stop() // which does nothing
					other.Stop()
					before := n
					time.Sleep(time.Hour)
					synctest.Wait()
					require.Equal(t, before, n)
				})
			}
		}
	}
}

// Those of many links are called neither all at once nor each by itself.
func TestWheel_PhasesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWheel(time.Second)
		var mu sync.Mutex
		times := make(map[time.Time]int)
		for range 1000 {
			defer w.Add(time.Second, rand.Float64(), func() {
				mu.Lock()
				defer mu.Unlock()
				times[time.Now()]++
			}).Stop()
		}
		time.Sleep(time.Second + 1)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, times, maxPhases)
		for _, n := range times {
			require.InDelta(t, 1000/maxPhases, n, 150)
		}
	})
}

// Wheels turn together, whenever each began, so that processes are awake at the same time.
func TestWheel_TurnsByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var all [5]map[time.Duration]bool
		for i := range all {
			all[i] = make(map[time.Duration]bool)
			w := newWheel(time.Second)
			for phase := range maxPhases {
				defer w.Add(time.Second, float64(phase)/maxPhases, func() {
					mu.Lock()
					defer mu.Unlock()
					all[i][time.Duration(time.Now().UnixNano())%time.Second] = true
				}).Stop()
			}
			time.Sleep(time.Duration(rand.Int64N(int64(3 * time.Second))))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		for _, times := range all {
			require.Equal(t, all[0], times)
			require.Len(t, times, maxPhases)
		}
	})
}

// One that blocks holds up others for a turn at most, whatever their order.
func TestWheel_BlockedOneHoldsUpOthersOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWheel(time.Second)
		release := make(chan struct{})
		var blocked atomic.Int32
		var counts [40]atomic.Int32
		var regulars []*Regular
		for i := range counts {
			if i%10 == 5 {
				regulars = append(regulars, w.Add(time.Second, float64(i%4)/4, func() { blocked.Add(1); <-release }))
				continue
			}
			regulars = append(regulars, w.Add(time.Second, float64(i%4)/4, func() { counts[i].Add(1) }))
		}
		time.Sleep(20*time.Second + 1)
		synctest.Wait()
		for i := range counts {
			if i%10 != 5 {
				require.GreaterOrEqual(t, counts[i].Load(), int32(17), "number %d", i)
			}
		}
		require.EqualValues(t, 4, blocked.Load(), "calls of one overlap")
		close(release)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Greater(t, blocked.Load(), int32(4))
		for _, r := range regulars {
			r.Stop()
		}
	})
}

func TestWheel_HasNoTimerWhileThereIsNothingToCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWheel(time.Second)
		for range 3 {
			var n atomic.Int32
			a, b := w.Add(time.Second, 0, func() { n.Add(1) }), w.Add(time.Second, 0.5, func() { n.Add(1) })
			time.Sleep(10*time.Second + 1)
			synctest.Wait()
			require.InDelta(t, 20, n.Load(), 1)
			a.Stop()
			b.Stop()
			require.False(t, w.isArmed())
			time.Sleep(time.Hour)
			synctest.Wait()
		}
	})
}

// A process that was stopped for a while does not make up for all that it has missed.
func TestWheel_MissedTurnsAreNotMadeUpFor(t *testing.T) {
	w := newWheel(16 * time.Millisecond)
	n := 0
	r := w.Add(16*time.Millisecond, 0.5, func() { n++ })
	defer r.Stop()
	require.True(t, w.isArmed())
	w.mu.Lock()
	w.when = w.when.Add(-time.Hour)
	w.mu.Unlock()
	var due [maxSlots]slot
	require.Equal(t, maxSlots, w.advance(&due))
	require.True(t, w.isArmed())
	calls := 0
	for _, s := range due {
		calls += len(s)
	}
	require.Equal(t, 1, calls)
	require.Less(t, time.Since(w.when), time.Minute)
}

func TestWheel_AddAndStopConcurrently(t *testing.T) {
	w := newWheel(time.Millisecond)
	var g sync.WaitGroup
	for i := range 8 {
		random := rand.New(rand.NewPCG(seed.Of(t), uint64(i)))
		g.Go(func() {
			for range 300 {
				n := 0 // of one call at a time, or the race detector speaks
				r := w.Add(time.Millisecond>>random.IntN(5), random.Float64(), func() { n++ })
				time.Sleep(time.Duration(random.IntN(100)) * time.Microsecond)
				r.Stop()
			}
		})
	}
	g.Wait()
	require.False(t, w.isArmed())
	require.Zero(t, w.size)
	for _, s := range w.slots {
		require.Empty(t, s)
	}
}

func TestWheel_TurnAllocatesNothing(t *testing.T) {
	w := newWheel(time.Hour)
	n := 0
	for range 100 {
		defer w.Add(time.Hour, rand.Float64(), func() { n++ }).Stop()
	}
	require.True(t, w.isArmed())
	require.Zero(t, testing.AllocsPerRun(100, func() {
		w.mu.Lock()
		w.when = w.when.Add(-time.Hour)
		w.mu.Unlock()
		w.turn()
	}))
	require.NotZero(t, n)
}

func BenchmarkTurn(b *testing.B) {
	w := newWheel(time.Hour)
	for range 1000 {
		defer w.Add(time.Hour, rand.Float64(), func() {}).Stop()
	}
	b.ReportAllocs()
	for b.Loop() {
		w.mu.Lock()
		w.when = w.when.Add(-time.Hour)
		w.mu.Unlock()
		w.turn()
	}
}
