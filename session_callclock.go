package grid

import (
	"context"
	"math"
	"math/bits"
	"time"

	"github.com/gridrpc/grid/internal/monotime"
)

// callClock ends calls after their timeouts, so that a call needs neither a timer nor the time,
// which costs as much as all that its table does. It asks for the time once a tick, of which there
// are some only while calls wait. The table's lock guards it.
type callClock struct {
	// Set once.
	table *callTable
	tick  time.Duration
	timer *time.Timer

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
	// maxTimeout is the longest that is not as good as none; with it no time overflows.
	maxTimeout = math.MaxInt64 / 2
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

// add has the clock end a call, when its timeout is over: not before, and by two ticks late at
// most, or as late as two of them come.
func (c *callClock) add(to *call, timeout time.Duration) {
	to.clock, to.timeout, to.expires = c, timeout, 0
	c.calls++
	if !c.runs {
		c.runs = true
		c.timer.Reset(c.tick)
	}
}

// advance is what the timer calls. Ticks may be late, and each by more where the machine is busy:
// so a call is dated by the first that it sees, and not by how many there were.
func (c *callClock) advance() {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || c.calls == 0 {
		c.runs = false
		return
	}
	now := monotime.Now()
	t.each(func(due *call) {
		switch {
		case due.clock != c:
		case due.expires == 0:
			due.expires = now.Add(min(due.timeout, maxTimeout))
		case due.expires <= now:
			t.take(due)
			due.end(answer{err: context.DeadlineExceeded})
		}
	})
	c.timer.Reset(c.tick)
}
