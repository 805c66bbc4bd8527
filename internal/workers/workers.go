// Package workers runs tasks that may block on goroutines that are reused.
package workers

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

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
// Where tasks take the cores rather than wait, it is the queue that grows and not the number of
// workers: a worker that has run a task does not look for another if enough others do, and one that
// has worked for a while lets the rest of the process have its turn. So what is too late can be told
// while it still waits in the queue, and those that feed the queue keep their share of the cores.
//
// Tasks begin in the order of package lateq, behind those of [Pool.Resume]. How many there may be
// is for the caller to bound. All methods may be called concurrently.
type Pool struct {
	clock *monotime.Stamp

	// looking counts the workers that are about to look at the queue. It is added to on behalf of a
	// worker before that is started or woken, and by a worker itself when it has run a task.
	looking atomic.Int32

	mu      sync.Mutex // guards what follows
	cond    sync.Cond  // of mu; idle workers wait on it
	resumed lateq.Queue[Task]
	queue   lateq.Queue[Task]
	lost    monotime.Time // when a task in the queue was last found to be lost, or as good as that
	// caughtUp is when there was last nothing in the queue but what was late.
	caughtUp monotime.Time
	enough   int // workers that are looking
	running  int // workers that run a task
	idle     int // workers that wait and have not been woken
	unused   int // the fewest that were idle since the last trim
	excess   int // workers that are to end
	closed   bool
}

// turn is for how long a worker runs short tasks, one after the other, before it yields. The
// scheduler would let it have ten times as much, also in front of what feeds the queue.
const turn = time.Millisecond

// strict is for how long a task that was lost has others refused that have waited for a while.
const strict = 10 * time.Second

// passing is how long a task may wait without being refused, however short its time: other workers'
// turns take as long, and so what has lost tasks once, such as a pause of the process, would have
// those with a deadline of a few milliseconds refused where nothing else is in their way.
const passing = 2 * turn

// Task is something to run, once at a time: a struct that embeds [Queued].
type Task interface {
	// Run must not panic. It may end its goroutine.
	Run()
	// Refuse takes the place of Run where the task has waited for too long to be over in time. It
	// must not block.
	Refuse()
	lateq.Item

	queued() *Queued
}

// Queued is embedded in tasks, for their place in the queue.
type Queued struct {
	link         lateq.Link[Task]
	since, until monotime.Time // until 0: it has all the time
}

// Limit says when the task has arrived, and by when it must be over, if that is not zero.
func (q *Queued) Limit(since, until time.Time) {
	q.since, q.until = monotime.Of(since), 0
	if !until.IsZero() {
		q.until = monotime.Of(until)
	}
}

// Waited is how long ago the task has arrived.
func (q *Queued) Waited() time.Duration { return monotime.Now().Sub(q.since) }

// Late implements [lateq.Item]: it reports whether an eighth of the task's time is over, but not all
// of it.
func (q *Queued) Late(now monotime.Time) bool {
	return q.until != 0 && q.lateFrom() < now && now < q.until
}

// lateFrom is from when on the task is late.
func (q *Queued) lateFrom() monotime.Time { return q.since.Add(q.until.Sub(q.since) / 8) }

// waited reports whether the task has waited for longer than a part of its time.
func (q *Queued) waited(now monotime.Time, part int) bool {
	return q.until != 0 && now.Sub(q.since) > q.until.Sub(q.since)/time.Duration(part)
}

// Refuse implements [Task] for those without a limit, which are not refused.
func (*Queued) Refuse() {}

func (q *Queued) queued() *Queued { return q }

// Func returns a function as a task.
func Func(f func()) Task { return &funcTask{f: f} }

type funcTask struct {
	Queued
	f func()
}

func (t *funcTask) Run() { t.f() }

// Init sets the clock by which tasks are late; it need not be precise.
func (p *Pool) Init(clock *monotime.Stamp) {
	p.clock, p.cond.L = clock, &p.mu
	p.enough = 2 * runtime.GOMAXPROCS(0)
}

// Submit queues tasks, in order. They run even if the pool is closed.
func (p *Pool) Submit(tasks ...Task) {
	if len(tasks) == 0 {
		return
	}
	p.mu.Lock()
	for _, t := range tasks {
		p.queue.Push(&t.queued().link, t)
	}
	p.callLocked()
	p.mu.Unlock()
}

// Resume is Submit for a task without which another one that has begun can't go on.
func (p *Pool) Resume(t Task) {
	p.mu.Lock()
	p.resumed.Push(&t.queued().link, t)
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

// takeLocked takes the task that is next, nil if there is none. It reports whether that is to be
// refused: where some are lost, one that has waited for a quarter of what makes it late, rather than
// all to be answered at the last moment, and those behind it to be lost as well.
func (p *Pool) takeLocked() (t Task, refuse bool) {
	if next := p.resumed.Next(0); next != nil {
		t = next.Item()
		next.Remove()
		return t, false
	}
	now := p.clock.Load()
	next := p.queue.Next(now)
	if next == nil {
		p.caughtUp = now
		return nil, false
	}
	t = next.Item()
	q := t.queued()
	oldest, ok := p.queue.Behind()
	switch {
	case q.until != 0 && now >= q.until:
		p.lost = now
	case !ok || q.Late(now):
		p.caughtUp = now
	case oldest.queued().waited(now, 2) && p.caughtUp < oldest.queued().lateFrom():
		p.lost = now // in good time: all that came since then was before it, and there is more
	}
	next.Remove()
	refuse = p.lost != 0 && now.Sub(p.lost) < strict && q.waited(now, 32) && now.Sub(q.since) > passing
	return t, refuse && now < q.until
}

func (p *Pool) work() {
	runs := false
	p.mu.Lock()
	defer func() {
		if runs { // a task that has ended the goroutine
			p.mu.Lock()
			p.running--
		}
		p.mu.Unlock()
	}()
	var s stint
	for {
		if t, refuse := p.takeLocked(); t != nil {
			p.looking.Add(-1)
			if p.queue.Len() > 0 || p.resumed.Len() > 0 {
				p.callLocked()
			}
			p.running++
			runs = true
			p.mu.Unlock()
			if refuse {
				t.Refuse()
			} else {
				t.Run()
			}
			p.looking.Add(1)
			s.yield()
			p.mu.Lock()
			runs = false
			p.running--
			if int(p.looking.Load()) <= p.enough {
				continue
			}
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
		s = stint{}
	}
}

// stint is what a worker does without a pause.
type stint struct {
	tasks int
	began monotime.Time // 0: not known yet
}

// yield lets others run if the worker has had its turn. The clock is asked once for several tasks,
// since that takes as long as a part of a short one.
func (s *stint) yield() {
	if s.tasks++; s.tasks%4 != 0 {
		return
	}
	switch now := monotime.Now(); {
	case s.began == 0:
		s.began = now
	case now.Sub(s.began) >= turn:
		runtime.Gosched()
		*s = stint{}
	}
}

// Trim ends the workers that have had nothing to do since the last Trim. It returns how many others
// have nothing to do.
func (p *Pool) Trim() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enough = 2 * runtime.GOMAXPROCS(0)
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
