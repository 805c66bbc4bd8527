// Package workers runs tasks that may block on goroutines that are reused.
package workers

import (
	"sync"
	"sync/atomic"

	"github.com/gridrpc/grid/internal/lateq"
	"github.com/gridrpc/grid/internal/monotime"
)

// Pool is the goroutines, which are started as tasks come.
//
// Whenever a task waits, a worker is looking for it that runs none: a worker that takes a task and
// leaves others behind first sees to it that there is one. So no task, however long it runs, holds
// up a task behind it; yet short ones that arrive together are worked off by a few goroutines,
// without a wake-up each.
//
// Tasks begin in the order of package lateq. How many there may be is for the caller to bound. All
// methods may be called concurrently.
type Pool struct {
	clock *monotime.Stamp

	// looking counts the workers that are about to look at the queue. It is added to on behalf of a
	// worker before that is started or woken, and by a worker itself when it has run a task.
	looking atomic.Int32

	mu     sync.Mutex // guards what follows
	cond   sync.Cond  // of mu; idle workers wait on it
	queue  lateq.Queue[Task]
	idle   int // workers that wait and have not been woken
	unused int // the fewest that were idle since the last trim
	excess int // workers that are to end
	closed bool
}

// Task is something to run, once at a time: a struct that embeds [Queued].
type Task interface {
	// Run must not panic. It may end its goroutine.
	Run()
	// Late reports whether so much time has passed that the task would probably be over too late,
	// but is not yet.
	Late(now monotime.Time) bool

	place() *lateq.Link[Task]
}

// Queued is embedded in tasks, for their place in the queue. A task is never late unless it has a
// method of its own that says so.
type Queued struct{ link lateq.Link[Task] }

// Late implements [Task]: it reports whether the task is late, which it is not.
func (*Queued) Late(monotime.Time) bool { return false }

func (q *Queued) place() *lateq.Link[Task] { return &q.link }

// Func returns a function as a task.
func Func(f func()) Task { return &funcTask{f: f} }

type funcTask struct {
	Queued
	f func()
}

func (t *funcTask) Run() { t.f() }

// Init sets the clock by which tasks are late; it need not be precise.
func (p *Pool) Init(clock *monotime.Stamp) { p.clock, p.cond.L = clock, &p.mu }

// Submit queues tasks, in order. They run even if the pool is closed.
func (p *Pool) Submit(tasks ...Task) {
	if len(tasks) == 0 {
		return
	}
	p.mu.Lock()
	for _, t := range tasks {
		p.queue.Push(t.place(), t)
	}
	p.callLocked()
	p.mu.Unlock()
}

// callLocked sees to it that a worker is looking.
func (p *Pool) callLocked() {
	if p.looking.Load() > 0 {
		return
	}
	if p.idle > 0 {
		p.wakeLocked()
		return
	}
	p.looking.Add(1)
	go p.work()
}

// wakeLocked wakes one of the idle workers.
func (p *Pool) wakeLocked() {
	p.idle--
	p.unused = min(p.unused, p.idle)
	p.looking.Add(1)
	p.cond.Signal()
}

func (p *Pool) work() {
	p.mu.Lock()
	for {
		if next := p.queue.Next(p.clock.Load()); next != nil {
			t := next.Item()
			next.Remove()
			p.looking.Add(-1)
			if p.queue.Len() > 0 {
				p.callLocked()
			}
			p.mu.Unlock()
			t.Run()
			p.looking.Add(1)
			p.mu.Lock()
			continue
		}
		p.looking.Add(-1)
		if p.closed {
			break
		}
		if p.excess > 0 {
			p.excess--
			break
		}
		p.idle++
		p.cond.Wait()
	}
	p.mu.Unlock()
}

// Trim ends the workers that have had nothing to do since the last Trim. It returns how many others
// have nothing to do.
func (p *Pool) Trim() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excess = min(p.unused, p.idle)
	for range p.excess {
		p.wakeLocked()
	}
	p.unused = p.idle
	return p.idle
}

// Close ends the workers; those that run a task end with it.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for p.idle > 0 {
		p.wakeLocked()
	}
}
