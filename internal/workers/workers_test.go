package workers

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/seed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPool() *Pool { return newPoolAt(new(monotime.Stamp)) }

func newPoolAt(clock *monotime.Stamp) *Pool {
	p := new(Pool)
	p.Init(clock)
	return p
}

// However many tasks block, those behind them run.
func TestWorkers_BlockedTaskHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool()
		release := make(chan struct{})
		var started atomic.Int32
		var tasks []Task
		for range 100 {
			tasks = append(tasks, Func(func() { started.Add(1); <-release }))
		}
		p.Submit(tasks...)
		p.Submit(Func(func() { started.Add(1); <-release }))
		synctest.Wait()
		require.EqualValues(t, 101, started.Load())
		close(release)
		synctest.Wait()
		require.Equal(t, 101, p.idle)
		// Those that stay unused go, in time.
		p.Trim()
		p.Trim()
		synctest.Wait()
		require.Zero(t, p.idle)
		p.Close()
	})
}

// A batch of tasks that do not block is worked off by few goroutines.
func TestWorkers_ShortTasksShareGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool()
		var n atomic.Int32
		tasks := make([]Task, 1000)
		for i := range tasks {
			tasks[i] = Func(func() { n.Add(1) })
		}
		for range 100 {
			p.Submit(tasks...)
			synctest.Wait()
		}
		require.EqualValues(t, 100_000, n.Load())
		require.LessOrEqual(t, p.idle, 8)
		p.Close()
	})
}

// lateTask is late from one time to another.
type lateTask struct {
	Queued
	from, to monotime.Time
	f        func()
}

func (t *lateTask) Run()                        { t.f() }
func (t *lateTask) Late(now monotime.Time) bool { return t.from < now && now < t.to }

// A task that has waited for so long that it would be over too late goes behind all others; of
// several such, the newest is first. What is of no use any more is out of the way at once.
func TestWorkers_PassOverWhatIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := new(monotime.Stamp)
		p := newPoolAt(clock)
		p.looking.Add(1) // so that nobody comes
		var order []int
		submit := func(id int, from monotime.Time) {
			p.Submit(&lateTask{from: from, to: from + 10, f: func() { order = append(order, id) }})
		}
		next := func(n int) []int {
			order = nil
			for range n {
				l := p.queue.Next(p.clock.Load())
				task := l.Item()
				l.Remove()
				task.Run()
			}
			return order
		}
		for i := range 6 {
			submit(i, 10)
		}
		p.Submit(Func(func() { order = append(order, 6) })) // never late
		submit(7, 20)
		require.Equal(t, []int{0, 1}, next(2))
		clock.Store(15)
		require.Equal(t, []int{6, 7, 5}, next(3))
		submit(8, 20)
		clock.Store(20)
		require.Equal(t, []int{2, 3, 4, 8}, next(4))
		require.Zero(t, p.queue.Len())
	})
}

func TestWorkers_SurviveATaskThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool()
		ran := false
		p.Submit(Func(runtime.Goexit), Func(func() { ran = true }))
		synctest.Wait()
		require.True(t, ran)
		p.Close()
	})
}

func TestWorkers_RunWhatIsSubmittedWhileClosing(t *testing.T) {
	var n atomic.Int32
	for range 1000 {
		p := newPool()
		p.Submit(Func(func() {}))
		var wg sync.WaitGroup
		wg.Add(1)
		wg.Go(p.Close)
		wg.Go(func() { p.Trim() })
		wg.Go(func() { p.Submit(Func(func() { n.Add(1); wg.Done() })) })
		wg.Wait()
	}
	require.EqualValues(t, 1000, n.Load())
}

// Tasks that wait for others, at random, which may be behind them: all of them end, and with the
// pool all workers do.
func TestWorkers_EndWhateverWaitsForWhat(t *testing.T) {
	random := seed.Rand(t)
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			p := newPool()
			const n = 200
			var done [n]chan struct{}
			for i := range done {
				done[i] = make(chan struct{})
			}
			var batch []Task
			order := random.Perm(n) // task i waits for one that is before it in this
			place := make([]int, n)
			for at, i := range order {
				place[i] = at
			}
			for i := range n {
				waitFor := -1
				if place[i] > 0 && random.IntN(3) > 0 {
					waitFor = order[random.IntN(place[i])]
				}
				pause := time.Duration(random.IntN(3)) * time.Millisecond
				batch = append(batch, Func(func() {
					time.Sleep(pause)
					if waitFor >= 0 {
						<-done[waitFor]
					}
					close(done[i])
				}))
				if random.IntN(4) == 0 {
					p.Submit(batch...)
					batch = nil
				}
				if random.IntN(20) == 0 {
					p.Trim()
				}
			}
			p.Submit(batch...)
			for i := range done {
				<-done[i]
			}
			p.Close()
		})
	}
}

// Trim ends as many workers as have had nothing to do all the while since the last one, and no
// more: those that were needed will be again.
func TestWorkers_TrimLeavesThoseThatWereNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool()
		defer p.Close()
		run := func(n int) { // at a time
			release := make(chan struct{})
			for range n {
				p.Submit(Func(func() { <-release }))
			}
			synctest.Wait()
			close(release)
			synctest.Wait()
		}
		trim := func() int {
			p.Trim()
			synctest.Wait()
			return p.idle
		}
		run(10)
		require.Equal(t, 10, p.idle)
		require.Equal(t, 10, trim(), "all of them have just been at it")
		run(4)
		run(7)
		run(2)
		require.Equal(t, 7, trim(), "three were not needed")
		run(7)
		require.Equal(t, 7, trim())
		require.Zero(t, trim(), "none was")
		run(3)
		require.Equal(t, 3, trim())
	})
}

func BenchmarkWorkersBatchOf32(b *testing.B) {
	p := newPool()
	defer p.Close()
	var wg sync.WaitGroup
	tasks := make([]Task, 32)
	for i := range tasks {
		tasks[i] = Func(wg.Done)
	}
	for b.Loop() {
		wg.Add(len(tasks))
		p.Submit(tasks...)
		wg.Wait()
	}
}
