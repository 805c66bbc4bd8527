package grid

import (
	"context"
	"math/bits"
	"time"
)

// callClock ends calls after their timeouts, so that a call needs neither a timer nor the time,
// which costs as much as all that its table does. It counts ticks, of which there are some only
// while calls wait. The table's lock guards it.
type callClock struct {
	// Set once.
	table *callTable
	tick  time.Duration
	timer *time.Timer

	now   uint64
	runs  bool // the timer does
	calls int
}

const (
	// maxClocks is how many there may be: for ticks of one millisecond, two, four, up to some nine
	// minutes.
	maxClocks = 20
	// ticksOfTimeout is how many ticks there are in a timeout, at least, if it is not a matter of
	// milliseconds.
	ticksOfTimeout = 64
)

// clock is the one for a timeout.
func (t *callTable) clock(timeout time.Duration) *callClock {
	i := bits.Len64(uint64(timeout / (ticksOfTimeout * time.Millisecond)))
	i = min(max(i-1, 0), maxClocks-1)
	c := t.clocks[i]
	if c == nil {
		c = &callClock{table: t, tick: time.Millisecond << i}
		c.timer = time.AfterFunc(time.Hour, c.advance) // which locks the table
		c.timer.Stop()
		t.clocks[i] = c
	}
	return c
}

// add has the clock end a call, when its timeout is over: not before, and by two ticks late at most.
func (c *callClock) add(to *call, timeout time.Duration) {
	to.clock = c
	to.expires = c.now + uint64((timeout+c.tick-1)/c.tick) + 1 // the first may be short
	c.calls++
	if !c.runs {
		c.runs = true
		c.timer.Reset(c.tick)
	}
}

// advance is what the timer calls.
func (c *callClock) advance() {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	c.now++
	if t.err != nil || c.calls == 0 {
		c.runs = false
		return
	}
	t.each(func(due *call) {
		if due.clock == c && due.expires <= c.now {
			t.take(due)
			due.end(answer{err: context.DeadlineExceeded})
		}
	})
	c.timer.Reset(c.tick)
}
