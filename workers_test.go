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

// When the oldest has waited for so long that it would be over too late, the newest is
// taken; what is of no use any more is out of the way at once.
func TestWorkersPassOverWhatIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := new(atomic.Int64)
		w := newWorkersAt(clock)
		w.looking.Add(1) // so that nobody comes
		var order []int
		add := func(from, to int64, i int) {
			w.submit(lateTask{from, to, func() { order = append(order, i) }})
		}
		add(10, 20, 1)
		add(10, 20, 2)
		add(30, 40, 3)
		add(30, 40, 4)
		next := func() int {
			w.mu.Lock()
			task := w.nextLocked()
			w.mu.Unlock()
			task.run()
			return order[len(order)-1]
		}
		require.Equal(t, 1, next())
		clock.Store(15)
		require.Equal(t, 4, next())
		add(30, 40, 5)
		require.Equal(t, 5, next())
		clock.Store(25)
		require.Equal(t, 2, next())
		clock.Store(35)
		require.Equal(t, 3, next(), "there is no other")
		require.Equal(t, len(w.queue), w.head)
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
