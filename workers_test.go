package grid

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func newWorkers() *workers { return newWorkersAt(new(atomic.Int64)) }

func newWorkersAt(clock *atomic.Int64) *workers {
	w := new(workers)
	w.init(clock)
	return w
}

// However many handlers block, the tasks behind them run.
func TestWorkersBlockedTaskHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkers()
		release := make(chan struct{})
		var started atomic.Int32
		var tasks []task
		for range 100 {
			tasks = append(tasks, taskFunc(func() { started.Add(1); <-release }))
		}
		w.submit(tasks...)
		w.submit(tasks[:1]...)
		synctest.Wait()
		require.EqualValues(t, 101, started.Load())
		close(release)
		synctest.Wait()
		require.Equal(t, 101, w.idle)
		// Those that stay unused go, in time.
		w.trim()
		w.trim()
		synctest.Wait()
		require.Zero(t, w.idle)
		w.close()
	})
}

// A batch of tasks that do not block is worked off by few goroutines.
func TestWorkersShortTasksShareGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkers()
		var n atomic.Int32
		tasks := make([]task, 1000)
		for i := range tasks {
			tasks[i] = taskFunc(func() { n.Add(1) })
		}
		for range 100 {
			w.submit(tasks...)
			synctest.Wait()
		}
		require.EqualValues(t, 100_000, n.Load())
		require.LessOrEqual(t, w.idle, 8)
		w.close()
	})
}

// lateTask is late from one time to another.
type lateTask struct {
	from, to int64
	taskFunc
}

func (t lateTask) late(now int64) bool { return t.from < now && now < t.to }

// A task that has waited for so long that it would be over too late goes behind all
// others; of several such, the newest is first. What is of no use any more is out of the
// way at once.
func TestWorkersPassOverWhatIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := new(atomic.Int64)
		w := newWorkersAt(clock)
		w.looking.Add(1) // so that nobody comes
		var order []int
		submit := func(id int, from int64) {
			w.submit(lateTask{from, from + 10, func() { order = append(order, id) }})
		}
		next := func(n int) []int {
			order = nil
			for range n {
				w.mu.Lock()
				task := w.nextLocked()
				w.mu.Unlock()
				task.run()
			}
			return order
		}
		for i := range 6 {
			submit(i, 10)
		}
		w.submit(taskFunc(func() { order = append(order, 6) })) // never late
		submit(7, 20)
		require.Equal(t, []int{0, 1}, next(2))
		clock.Store(15)
		require.Equal(t, []int{6, 7, 5}, next(3))
		submit(8, 20)
		clock.Store(20)
		require.Equal(t, []int{2, 3, 4, 8}, next(4))
		require.False(t, w.waits())
	})
}

func TestWorkersSurviveATaskThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkers()
		ran := false
		w.submit(taskFunc(runtime.Goexit), taskFunc(func() { ran = true }))
		synctest.Wait()
		require.True(t, ran)
		w.close()
	})
}

func TestWorkersRunWhatIsSubmittedWhileClosing(t *testing.T) {
	var n atomic.Int32
	for range 1000 {
		w := newWorkers()
		w.submit(taskFunc(func() {}))
		var wg sync.WaitGroup
		wg.Add(1)
		wg.Go(w.close)
		wg.Go(w.trim)
		wg.Go(func() { w.submit(taskFunc(func() { n.Add(1); wg.Done() })) })
		wg.Wait()
	}
	require.EqualValues(t, 1000, n.Load())
}

func BenchmarkWorkersBatchOf32(b *testing.B) {
	w := newWorkers()
	defer w.close()
	var wg sync.WaitGroup
	tasks := make([]task, 32)
	for i := range tasks {
		tasks[i] = taskFunc(wg.Done)
	}
	for b.Loop() {
		wg.Add(len(tasks))
		w.submit(tasks...)
		wg.Wait()
	}
}
