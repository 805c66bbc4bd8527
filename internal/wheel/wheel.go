// Package wheel calls many functions regularly, with one timer for all of them.
package wheel

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSlots is into how many parts a turn is divided. It is a power of two.
	maxSlots = 16
	// minWidth is the least time between two slots, or there are fewer of them.
	minWidth = time.Millisecond
	// maxPhases is into how many parts a turn is divided for what is called once in it: not
	// everything is called at once, but the process is not woken for each either, which costs more
	// than what it then does.
	maxPhases = 4
)

// Wheel is what is called regularly. It has no timer while there is nothing to call. All methods may
// be called concurrently.
//
// Wheels of one period turn together, in all processes whose clocks agree: where what is called
// sends something to another process, that is awake.
//
// A function that blocks, which none should, holds up others once, for a turn at most.
type Wheel struct {
	width time.Duration // of a slot; set once

	mu    sync.Mutex // guards what follows
	slots []slot     // of a turn
	size  int        // how many there are to call
	at    int        // the slot that was due last
	when  time.Time  // that was
	next  int        // how many slots further the timer goes off
	timer *time.Timer
}

// slot is what is called at one time. It is never changed once it is in the wheel, so that it can
// be gone through without the lock.
type slot []*Regular

// Regular is a function that is called until it is stopped.
type Regular struct {
	w       *Wheel
	f       func()
	running atomic.Bool

	first, stride int // it is in one slot, and in each so many further; set once
	stopped       atomic.Bool
}

// Init sets the longest period that there will be.
func (w *Wheel) Init(period time.Duration) {
	n := maxSlots
	for n > 1 && period/time.Duration(n) < minWidth {
		n /= 2
	}
	w.slots = make([]slot, n)
	w.width = max(period/time.Duration(n), 1)
}

// stride is how many slots are between two calls that are to be no further apart than a period.
func (w *Wheel) stride(period time.Duration) int {
	n := min(int64(period/w.width), int64(len(w.slots)))
	return 1 << (bits.Len64(uint64(max(n, 1))) - 1)
}

// Period is how far apart calls really are that are to be no further apart than a period: that of
// the wheel by a power of two.
func (w *Wheel) Period(period time.Duration) time.Duration {
	return time.Duration(w.stride(period)) * w.width
}

// Add has f called every Period(period), from now on, until it is stopped. phase, from 0 to 1, says
// at what time of that. Calls of f do not overlap: one that is due meanwhile is left out.
func (w *Wheel) Add(period time.Duration, phase float64, f func()) *Regular {
	r := &Regular{w: w, f: f, stride: w.stride(period)}
	phases := min(r.stride, maxPhases)
	r.first = min(int(phase*float64(phases)), phases-1) * (r.stride / phases)
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.size == 0 {
		w.alignLocked(now)
	} else { // over slots that were empty, and are passed
		w.moveLocked(min(w.passedLocked(now), w.next-1))
	}
	for i := r.first; i < len(w.slots); i += r.stride {
		w.slots[i] = append(slices.Clip(w.slots[i]), r)
	}
	w.size++
	w.armLocked(now)
	return r
}

// Stop ends the calls. It does not wait for one that has begun.
func (r *Regular) Stop() {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.stopped.Swap(true) {
		return
	}
	for i := r.first; i < len(w.slots); i += r.stride {
		s := make(slot, 0, len(w.slots[i])-1)
		for _, other := range w.slots[i] {
			if other != r {
				s = append(s, other)
			}
		}
		w.slots[i] = s
	}
	if w.size--; w.size == 0 {
		w.timer.Stop()
	}
}

// alignLocked turns the wheel to where it is by the clock.
func (w *Wheel) alignLocked(now time.Time) {
	turn := int64(w.width) * int64(len(w.slots))
	into := (now.UnixNano()%turn + turn) % turn
	w.at = int(into / int64(w.width))
	w.when = now.Add(-time.Duration(into % int64(w.width)))
}

// passedLocked is how many slots have become due; those of a turn and one for any more.
func (w *Wheel) passedLocked(now time.Time) int {
	return int(min(int64(now.Sub(w.when)/w.width), int64(len(w.slots))+1))
}

// moveLocked moves on by n slots.
func (w *Wheel) moveLocked(n int) {
	w.at = (w.at + n) % len(w.slots)
	w.when = w.when.Add(time.Duration(n) * w.width)
	w.next -= n
}

// armLocked sets the timer to the next slot that is not empty; there is one.
func (w *Wheel) armLocked(now time.Time) {
	for w.next = 1; len(w.slots[(w.at+w.next)%len(w.slots)]) == 0; w.next++ {
	}
	left := w.when.Add(time.Duration(w.next) * w.width).Sub(now)
	if w.timer == nil {
		w.timer = time.AfterFunc(left, w.turn)
	} else {
		w.timer.Reset(left)
	}
}

// turn calls what is due. The timer is set before, so that what blocks does not hold up the rest
// of the wheel.
func (w *Wheel) turn() {
	var due [maxSlots]slot
	for _, s := range due[:w.advance(&due)] {
		for _, r := range s {
			r.call()
		}
	}
}

// advance finds the slots that are due, and returns how many. What is late does not make the rest
// so, but where more than a turn was missed it goes on from now.
func (w *Wheel) advance(due *[maxSlots]slot) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size == 0 {
		return 0
	}
	now := time.Now()
	passed := w.passedLocked(now)
	for ; n < min(passed, len(w.slots)); n++ {
		w.moveLocked(1)
		due[n] = w.slots[w.at]
	}
	if n < passed {
		w.alignLocked(now)
	}
	w.armLocked(now)
	return n
}

func (r *Regular) call() {
	if r.stopped.Load() || r.running.Swap(true) {
		return
	}
	defer r.running.Store(false)
	r.f()
}
