package grid

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func newWorkers() *workers {
	w := new(workers)
	w.init()
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
