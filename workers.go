package grid

import (
	"sync"
	"sync/atomic"
)

// workers runs a session's handlers, and what goes with those of streams, on
// goroutines that are reused.
//
// Whenever a task waits, a worker is looking for it that runs no handler: a
// worker that takes a task and leaves others behind first sees to it that there
// is one. So no handler, however long it runs, holds up a task behind it; yet
// short handlers that arrive in a batch are worked off by a few goroutines,
// without a wake-up each.
//
// Tasks are taken in order, but see nextLocked. How many there may be is for the caller
// to bound.
type workers struct {
	clock *atomic.Int64 // Unix nanoseconds, roughly

	// looking counts the workers that are about to look at the queue. It is
	// added to on behalf of a worker before that is started or woken, and by a
	// worker itself when it has run a task.
	looking atomic.Int32

	mu     sync.Mutex // guards what follows
	cond   sync.Cond  // of mu; idle workers wait on it
	queue  []task
	head   int    // of queue
	behind []task // those that were late when they were the oldest
	idle   int    // workers that wait and have not been woken
	unused int    // the fewest that were idle since the last trim
	excess int    // workers that are to end
	closed bool
}

// task is something to run. It must not panic.
type task interface {
	run()
	// late tells whether so much time has passed that it would probably be over too
	// late, but is not yet.
	late(now int64) bool
}

// taskFunc is a function as a task.
type taskFunc func()

func (f taskFunc) run()          { f() }
func (taskFunc) late(int64) bool { return false }

// neverLate is embedded in tasks that are not.
type neverLate struct{}

func (neverLate) late(int64) bool { return false }

func (w *workers) init(clock *atomic.Int64) { w.clock, w.cond.L = clock, &w.mu }

// submit queues tasks, in order. They run even if the workers are closed.
func (w *workers) submit(tasks ...task) {
	if len(tasks) == 0 {
		return
	}
	w.mu.Lock()
	if w.head > 0 && len(w.queue)+len(tasks) > cap(w.queue) {
		n := copy(w.queue, w.queue[w.head:])
		clear(w.queue[n:])
		w.queue, w.head = w.queue[:n], 0
	}
	w.queue = append(w.queue, tasks...)
	w.callLocked()
	w.mu.Unlock()
}

// waits tells whether there is a task.
func (w *workers) waits() bool { return w.head < len(w.queue) || len(w.behind) > 0 }

// callLocked sees to it that a worker is looking.
func (w *workers) callLocked() {
	if w.looking.Load() > 0 {
		return
	}
	if w.idle > 0 {
		w.wakeLocked()
		return
	}
	w.looking.Add(1)
	go w.work()
}

// wakeLocked wakes one of the idle workers.
func (w *workers) wakeLocked() {
	w.idle--
	w.unused = min(w.unused, w.idle)
	w.looking.Add(1)
	w.cond.Signal()
}

func (w *workers) work() {
	w.mu.Lock()
	for {
		if w.waits() {
			w.looking.Add(-1)
			t := w.nextLocked()
			if w.head == len(w.queue) {
				w.queue, w.head = w.queue[:0], 0
			}
			if w.waits() {
				w.callLocked()
			}
			w.mu.Unlock()
			t.run()
			w.looking.Add(1)
			w.mu.Lock()
			continue
		}
		w.looking.Add(-1)
		if w.closed {
			break
		}
		if w.excess > 0 {
			w.excess--
			break
		}
		w.idle++
		w.cond.Wait()
	}
	w.mu.Unlock()
}

// nextLocked takes the oldest task that is not late, or else the newest of those that
// are: where more arrives than can be done, some is done in time then, rather than all
// too late. Those whose time is over are out of the way first.
func (w *workers) nextLocked() task {
	now := w.clock.Load()
	if len(w.behind) > 0 && !w.behind[0].late(now) {
		t := w.behind[0]
		w.behind[0] = nil
		w.behind = w.behind[1:]
		return t
	}
	for w.head < len(w.queue) {
		t := w.queue[w.head]
		w.queue[w.head] = nil
		w.head++
		if !t.late(now) {
			return t
		}
		w.behind = append(w.behind, t)
	}
	last := len(w.behind) - 1
	t := w.behind[last]
	w.behind[last] = nil
	w.behind = w.behind[:last]
	return t
}

// trim ends the workers that have had nothing to do since the last trim.
func (w *workers) trim() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excess = min(w.unused, w.idle)
	for range w.excess {
		w.wakeLocked()
	}
	w.unused = w.idle
	if w.head == len(w.queue) {
		w.queue, w.head = nil, 0 // a burst's room is not kept
	}
	if len(w.behind) == 0 {
		w.behind = nil
	}
}

// close ends the workers; those that run a handler end with it.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for w.idle > 0 {
		w.wakeLocked()
	}
}
