// Package offload runs functions of the application's on goroutines that nothing else needs, so
// that they may block, end their goroutine or call back as they like. What they panic with is for
// who offloads them to recover.
package offload

import (
	"reflect"
	"runtime"
	"sync"
	"time"
)

// Group is goroutines that are waited for, but not for ever. Its methods may be called
// concurrently.
type Group struct {
	mu   sync.Mutex // guards what follows
	n    int
	idle chan struct{} // closed when n is 0; made by the first who waits
}

// Go runs f on a goroutine of its own.
func (g *Group) Go(f func()) {
	g.mu.Lock()
	g.n++
	g.mu.Unlock()
	go run(g, f)
}

// run is the bottom of the stack of each goroutine, by which Inside knows them.
func run(g *Group, f func()) {
	defer g.done()
	f()
}

func (g *Group) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Wait waits until none is running, but no longer than the time given. Called from one of the
// goroutines of any group it does not wait.
func (g *Group) Wait(most time.Duration) {
	g.mu.Lock()
	if g.n == 0 {
		g.mu.Unlock()
		return
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	if inside() {
		return
	}
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	select {
	case <-idle:
	case <-timeout.C:
	}
}

var bottom = runtime.FuncForPC(reflect.ValueOf(run).Pointer()).Name()

// inside reports whether it is called from a goroutine of a group.
func inside() bool {
	pcs := make([]uintptr, 64)
	n := runtime.Callers(2, pcs)
	for ; n == len(pcs); n = runtime.Callers(2, pcs) {
		pcs = make([]uintptr, 2*len(pcs))
	}
	frames := runtime.CallersFrames(pcs[:n])
	for {
		frame, more := frames.Next()
		if frame.Function == bottom {
			return true
		}
		if !more {
			return false
		}
	}
}

// Loop runs a step again and again while there is something to do, on one goroutine at a time, and
// on none otherwise. Its methods may be called concurrently.
type Loop struct {
	// Set once.
	group *Group
	step  func() bool

	mu      sync.Mutex // guards what follows
	running bool
	woken   bool // since the last time that there was nothing to do
}

// Init sets what a step is: it returns false where there is nothing to do. It may end its
// goroutine, in place of returning true.
func (l *Loop) Init(g *Group, step func() bool) { l.group, l.step = g, step }

// Wake says that there is something to do. It does not wait.
func (l *Loop) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.woken = true; !l.running {
		l.running = true
		l.group.Go(l.run)
	}
}

func (l *Loop) run() {
	over := false
	defer func() {
		if !over { // the step has ended the goroutine
			l.mu.Lock()
			defer l.mu.Unlock()
			l.woken = true
			l.group.Go(l.run)
		}
	}()
	for l.begin() {
		for l.step() {
		}
	}
	over = true
}

// begin reports whether there may be something to do.
func (l *Loop) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running, l.woken = l.woken, false
	return l.running
}
