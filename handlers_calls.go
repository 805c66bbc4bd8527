package grid

import (
	"sync/atomic"
	"time"
)

// handlerCalls counts the calls of a handler, and bounds how many run. It is part of what is
// registered, so the calls of one that was unregistered are none of its successor.
type handlerCalls struct {
	// Set once.
	max     int           // how many may run; 0 for no limit
	timeout time.Duration // 0 for none

	// Those that have begun, and those of them that have ended, apart from each other: the one is
	// written by readers, the other by workers.
	began atomic.Int64
	_     [cacheLine]byte
	ended atomic.Int64

	failed atomic.Int64 // by the handler
	// Refused because of a limit: before they have begun, and after.
	refused, turnedAway atomic.Int64
}

// cacheLine is as large as on the most common processors.
const cacheLine = 64

// begin counts a call, and reports whether it may run.
func (c *handlerCalls) begin() bool {
	if c.max == 0 {
		c.began.Add(1)
		return true
	}
	for {
		// In this order: what has ended since makes them no more than this.
		began := c.began.Load()
		if began-c.ended.Load() >= int64(c.max) {
			return false
		}
		// Not by an Add that is taken back; see limit.Budget.
		if c.began.CompareAndSwap(began, began+1) {
			return true
		}
	}
}

// end takes in that a call has ended that has begun.
func (c *handlerCalls) end(failed bool) {
	if failed {
		c.failed.Add(1)
	}
	c.ended.Add(1)
}

// turnAway is end for a call that was refused although it had begun.
func (c *handlerCalls) turnAway() {
	c.turnedAway.Add(1)
	c.ended.Add(1)
}

// deadline is the earlier one of a caller's deadline, zero for none, and that of a call which has
// arrived as long ago as waited. own says that it is the latter.
func (c *handlerCalls) deadline(caller time.Time, waited time.Duration) (_ time.Time, own bool) {
	if c.timeout == 0 {
		return caller, false
	}
	end := time.Now().Add(c.timeout - waited)
	if !caller.IsZero() && !end.Before(caller) {
		return caller, false
	}
	return end, true
}
