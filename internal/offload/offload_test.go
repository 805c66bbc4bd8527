package offload

import (
	"context"
	"io"
	"runtime"
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

func elapsed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func TestGroup_IsWaitedForButNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		require.Zero(t, elapsed(func() { g.Wait(time.Second) }))
		g.Go(func() { time.Sleep(time.Minute) })
		g.Go(func() { defer time.Sleep(time.Second); runtime.Goexit() })
		var all sync.WaitGroup
		for _, most := range []time.Duration{10 * time.Second, time.Hour} {
			all.Go(func() { require.Equal(t, min(most, time.Minute), elapsed(func() { g.Wait(most) })) })
		}
		all.Wait()
		require.Zero(t, elapsed(func() { g.Wait(time.Second) }))
	})
}

// deep calls f below many calls.
func deep(n int, f func()) {
	if n == 0 {
		f()
		return
	}
	deep(n-1, f)
}

// However deep in the stack, and by a goroutine of whichever group.
func TestGroup_DoesNotWaitForWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g, other Group
		done := make(chan struct{})
		other.Go(func() { <-done })
		g.Go(func() {
			for _, n := range []int{0, 30, 62, 63, 64, 65, 126, 127, 128, 1000} {
				deep(n, func() {
					require.Zero(t, elapsed(func() { g.Wait(time.Hour) }))
					require.Zero(t, elapsed(func() { other.Wait(time.Hour) }))
				})
			}
			close(done)
		})
		g.Wait(time.Hour)
		require.Zero(t, elapsed(func() { deep(1000, func() { g.Wait(time.Hour) }) }))
	})
}

func TestLoop_MissesNothing(t *testing.T) {
	random := seed.Rand(t)
	var g Group
	var l Loop
	var todo, done, running atomic.Int64
	l.Init(&g, func() bool {
		if running.Add(1) > 1 {
			t.Error("two at a time")
		}
		defer running.Add(-1)
		if todo.Load() == 0 {
			return false
		}
		todo.Add(-1)
		if done.Add(1)%7 == 0 {
			runtime.Goexit()
		}
		return true
	})
	const each = 1000
	var all sync.WaitGroup
	for range 4 {
		pauses := random.IntN(3)
		all.Go(func() {
			for range each {
				todo.Add(1)
				l.Wake()
				for range pauses {
					runtime.Gosched()
				}
			}
		})
	}
	all.Wait()
	g.Wait(time.Minute)
	require.EqualValues(t, 4*each, done.Load())
}

func TestMeter_TellsSumsThatAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		told := make(chan int64, 10)
		m := NewMeter(&g, func(n int64) { told <- n })
		requireTold := func(want ...int64) {
			t.Helper()
			synctest.Wait()
			require.Len(t, told, len(want))
			for _, n := range want {
				require.Equal(t, n, <-told)
			}
		}
		m.Flush()
		requireTold()
		m.Add(1)
		m.Add(2)
		requireTold()
		time.Sleep(MeterInterval)
		requireTold(3)
		time.Sleep(time.Hour)
		m.Add(4)
		m.Flush()
		requireTold(4)
		time.Sleep(time.Hour)
		requireTold()
		(*Meter)(nil).Add(1)
		(*Meter)(nil).Flush()
	})
}

// What is added while the function is busy, or has ended its goroutine, is told later.
func TestMeter_LosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := seed.Rand(t)
		var g Group
		var told atomic.Int64
		m := NewMeter(&g, func(n int64) {
			told.Add(n)
			time.Sleep(time.Duration(random.IntN(3)) * time.Second)
			if random.IntN(2) == 0 {
				runtime.Goexit()
			}
		})
		var all sync.WaitGroup
		for range 4 {
			step := time.Duration(random.IntN(int(time.Second)))
			all.Go(func() {
				for i := range 300 {
					m.Add(1)
					if i%100 == 0 {
						m.Flush()
					}
					time.Sleep(step)
				}
			})
		}
		all.Wait()
		time.Sleep(time.Minute)
		require.EqualValues(t, 1200, told.Load())
	})
}

func TestCall_ReturnsWhatTheFunctionDoes(t *testing.T) {
	var g Group
	for range 100 {
		n, err := Call(t.Context(), &g, func() (int, error) { return 1, io.EOF }, func(int, error) { t.Error("late") })
		require.Equal(t, 1, n)
		require.Equal(t, io.EOF, err)
		_, err = Call(t.Context(), &g, func() (int, error) { runtime.Goexit(); return 1, nil }, func(int, error) { t.Error("late") })
		require.Equal(t, ErrExited, err)
	}
	g.Wait(time.Minute)
}

func TestCall_LeavesBehindWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		stuck, late := make(chan struct{}), make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, exits := range []bool{false, true} {
			n, err := Call(ctx, &g, func() (int, error) {
				<-stuck
				if exits {
					runtime.Goexit()
				}
				return 1, io.EOF
			}, func(n int, err error) {
				require.Equal(t, exits, n == 0)
				late <- err
			})
			require.Equal(t, ErrLeft, err)
			require.Zero(t, n)
			stuck <- struct{}{}
			if err := <-late; exits {
				require.Equal(t, ErrExited, err)
			} else {
				require.Equal(t, io.EOF, err)
			}
		}
	})
}

// Whether it comes in time or not, the result is told once.
func TestCall_TellsOfTheResultOnce(t *testing.T) {
	var g Group
	for range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		late := make(chan int, 1)
		go cancel()
		n, err := Call(ctx, &g, func() (int, error) { return 1, nil }, func(n int, _ error) { late <- n })
		g.Wait(time.Minute)
		if err != nil {
			require.Equal(t, ErrLeft, err)
			require.Equal(t, 1, <-late)
		} else {
			require.Equal(t, 1, n)
		}
		require.Empty(t, late)
	}
}
