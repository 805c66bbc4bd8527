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

// timed is a task with a limit.
type timed struct {
	Queued
	run, refuse func()
}

func (t *timed) Run()    { t.run() }
func (t *timed) Refuse() { t.refuse() }

// stalled is a pool that nobody works for but the test.
type stalled struct {
	*Pool
	clock *monotime.Stamp
	start time.Time
	did   []string
}

func newStalled() *stalled {
	s := &stalled{clock: new(monotime.Stamp), start: time.Now()}
	s.Pool = newPoolAt(s.clock)
	s.looking.Add(1) // so that nobody comes
	s.at(0)
	return s
}

// at sets the clock to so long after the start.
func (s *stalled) at(after time.Duration) { s.clock.Store(monotime.Of(s.start.Add(after))) }

// submit submits a task that arrives now and has so much time, 0 for any.
func (s *stalled) submit(id string, within time.Duration) {
	t := &timed{
		run:    func() { s.did = append(s.did, id) },
		refuse: func() { s.did = append(s.did, "no "+id) },
	}
	arrived := s.start.Add(s.clock.Load().Sub(monotime.Of(s.start)))
	if within > 0 {
		t.Limit(arrived, arrived.Add(within))
	}
	s.Submit(t)
}

// work does n tasks, as workers would.
func (s *stalled) work(n int) []string {
	s.did = nil
	for range n {
		t, refuse := s.takeLocked()
		if refuse {
			t.Refuse()
		} else {
			t.Run()
		}
	}
	return s.did
}

// A task that has waited for so long that it would be over too late goes behind all others; of
// several such, the newest is first. What is of no use any more is out of the way at once.
func TestWorkers_PassOverWhatIsLate(t *testing.T) {
	s := newStalled()
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		s.submit(id, 80*time.Millisecond)
	}
	s.submit("any", 0)
	s.submit("long", time.Minute)
	require.Equal(t, []string{"a"}, s.work(1))
	s.at(11 * time.Millisecond)
	require.Equal(t, []string{"any", "long", "e"}, s.work(3))
	s.at(80 * time.Millisecond)
	require.Equal(t, []string{"b", "c", "d"}, s.work(3))
	require.Zero(t, s.queue.Len())
}

// As long as nothing was lost, everything that waits has its chance. Where something was, what has
// waited for a part of its time is refused at once, until a while later.
func TestWorkers_RefuseWhatWaitsWhereTasksAreLost(t *testing.T) {
	s := newStalled()
	s.submit("lost", time.Second)
	s.submit("patient", time.Minute)
	s.at(500 * time.Millisecond)
	s.submit("late", 640*time.Millisecond)
	s.submit("soon", 960*time.Millisecond)
	s.submit("any", 0)
	s.at(999 * time.Millisecond)
	require.Equal(t, []string{"patient"}, s.work(1), "nothing is lost yet")
	s.at(time.Second)
	require.Equal(t, []string{"lost", "any", "no soon", "no late"}, s.work(4))
	s.submit("early", 320*time.Millisecond)
	s.at(time.Second + 11*time.Millisecond)
	s.submit("next", 320*time.Millisecond)
	require.Equal(t, []string{"no early", "next"}, s.work(2))
	s.at(time.Second + strict)
	s.submit("after", 320*time.Millisecond)
	s.at(time.Second + strict + 20*time.Millisecond)
	require.Equal(t, []string{"after"}, s.work(1), "it is over")
}

// Where a pause of the process has lost some, those with little time are not refused for a moment's
// wait.
func TestWorkers_RefuseNoneForAMoment(t *testing.T) {
	s := newStalled()
	s.submit("lost", 5*time.Millisecond)
	s.at(time.Second)
	s.work(1)
	require.NotZero(t, s.lost)
	for _, within := range []time.Duration{3 * time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond} {
		began := s.clock.Load().Sub(monotime.Of(s.start))
		s.submit("short", within)
		s.at(began + passing)
		require.Equal(t, []string{"short"}, s.work(1))
	}
	began := s.clock.Load().Sub(monotime.Of(s.start))
	s.submit("short", 5*time.Millisecond)
	s.at(began + passing + time.Millisecond)
	require.Equal(t, []string{"no short"}, s.work(1))
}

// It is no reason to refuse any that many have come at once, as long as what comes later does not
// keep them from their turn.
func TestWorkers_RefuseNothingOfABurst(t *testing.T) {
	for _, flood := range []bool{false, true} {
		s := newStalled()
		for range 1000 {
			s.submit("burst", 800*time.Millisecond)
		}
		s.submit("first", time.Minute)
		for at := 101 * time.Millisecond; at < 450*time.Millisecond; at += time.Millisecond {
			s.at(at)
			s.submit("new", 800*time.Millisecond)
			if flood {
				s.submit("more", 800*time.Millisecond)
				s.submit("more", 800*time.Millisecond)
			}
			for _, did := range s.work(2) {
				if !flood || at < 400*time.Millisecond {
					require.NotContains(t, did, "no ")
				}
			}
		}
		require.Equal(t, flood, s.lost != 0)
	}
}

// What goes on with what has begun is before all that has not.
func TestWorkers_ResumeBeforeTheyBegin(t *testing.T) {
	s := newStalled()
	s.submit("a", time.Second)
	s.submit("b", time.Second)
	s.Resume(Func(func() { s.did = append(s.did, "first") }))
	s.Resume(Func(func() { s.did = append(s.did, "second") }))
	require.Equal(t, []string{"first", "second", "a", "b"}, s.work(4))
}

// Tasks that take a core each leave the others in the queue: as many workers as there are cores,
// and some that are about to look, but not one for each task.
func TestWorkers_StayFewWhereTasksCompute(t *testing.T) {
	p := newPool()
	defer p.Close()
	var all sync.WaitGroup
	var tasks []Task
	for range 3000 {
		all.Add(1)
		tasks = append(tasks, Func(func() {
			defer all.Done()
			for start := time.Now(); time.Since(start) < 100*time.Microsecond; {
			}
		}))
	}
	p.Submit(tasks...)
	all.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	// Without yields and rests there were some hundred.
	require.Less(t, p.idle+p.running+int(p.looking.Load()), 10*runtime.GOMAXPROCS(0)+20)
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

// BenchmarkWorkersStartOf10000TasksThatWait is until the last of so many has begun.
func BenchmarkWorkersStartOf10000TasksThatWait(b *testing.B) {
	p := newPool()
	defer p.Close()
	for b.Loop() {
		var begun, ended sync.WaitGroup
		release := make(chan struct{})
		tasks := make([]Task, 10_000)
		begun.Add(len(tasks))
		ended.Add(len(tasks))
		for i := range tasks {
			tasks[i] = Func(func() { begun.Done(); <-release; ended.Done() })
		}
		p.Submit(tasks...)
		begun.Wait()
		b.StopTimer()
		close(release)
		ended.Wait()
		b.StartTimer()
	}
}

// BenchmarkWorkersTasksThatCompute shows how long a goroutine that is not one of theirs waits for a
// core beside them.
func BenchmarkWorkersTasksThatCompute(b *testing.B) {
	for _, cost := range []time.Duration{20 * time.Microsecond, 200 * time.Microsecond, 2 * time.Millisecond, 50 * time.Millisecond} {
		b.Run(cost.String(), func(b *testing.B) {
			p := newPool()
			defer p.Close()
			var stop atomic.Bool
			var all sync.WaitGroup
			var again func()
			again = func() {
				for start := time.Now(); time.Since(start) < cost; {
				}
				if !stop.Load() {
					p.Submit(Func(again), Func(all.Done))
					all.Add(1)
					return
				}
				all.Done()
			}
			for range 1000 {
				all.Add(1)
				p.Submit(Func(again))
			}
			most, n := time.Duration(0), time.Duration(0)
			for b.Loop() {
				before := time.Now()
				time.Sleep(time.Millisecond)
				took := time.Since(before) - time.Millisecond
				most, n = max(most, took), n+took
			}
			b.ReportMetric(float64(most.Microseconds())/1000, "ms-most")
			b.ReportMetric(float64(n.Microseconds())/1000/float64(b.N), "ms-mean")
			stop.Store(true)
			all.Wait()
		})
	}
}
