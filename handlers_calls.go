package grid

import (
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/limit"
)

// handlerCalls counts the calls of a handler, and bounds how many run. It is part of what is
// registered, so the calls of one that was unregistered are none of its successor.
type handlerCalls struct {
	// Set once.
	max     int           // how many may run; 0 for no limit
	timeout time.Duration // 0 for none
	pool    *limit.Pool   // of max, which hosts share; nil for no limit

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

// callsFull is why a call may not run: as many of the handler do as may, or of its host as its share
// is.
type callsFull struct{ running, share int64 }

// bound sets how many calls may run.
func (c *handlerCalls) bound(n int) {
	if c.max = n; n > 0 {
		c.pool = new(limit.Pool)
		c.pool.Init("MaxRunning", n)
	}
}

// isFull reports whether as many calls run as may.
func (c *handlerCalls) isFull() *callsFull {
	if c.max == 0 {
		return nil
	}
	began := c.began.Load() // first: what has ended since makes them no more than this
	if n := began - c.ended.Load(); n >= int64(c.max) {
		return &callsFull{running: n}
	}
	return nil
}

// begin counts a call of a host, unless it may not run.
func (c *handlerCalls) begin(host *hostLimits) *callsFull {
	if c.max == 0 {
		c.began.Add(1)
		return nil
	}
	share := host.share(c)
	if e := share.Take(1); e != nil {
		if full := c.isFull(); full != nil {
			return full
		}
		return &callsFull{e.Would - 1, e.Limit}
	}
	for {
		// In this order: what has ended since makes them no more than this.
		began := c.began.Load()
		if n := began - c.ended.Load(); n >= int64(c.max) {
			// Hosts have more than their shares: of before this host was added, say.
			share.Put(1)
			return &callsFull{running: n}
		}
		// Not by an Add that is taken back; see limit.Budget.
		if c.began.CompareAndSwap(began, began+1) {
			return nil
		}
	}
}

// end takes in that a call of a host has ended that has begun.
func (c *handlerCalls) end(host *hostLimits, failed bool) {
	if failed {
		c.failed.Add(1)
	}
	c.finish(host)
}

// turnAway is end for a call that was refused although it had begun.
func (c *handlerCalls) turnAway(host *hostLimits) {
	c.turnedAway.Add(1)
	c.finish(host)
}

func (c *handlerCalls) finish(host *hostLimits) {
	c.ended.Add(1)
	if c.max > 0 {
		host.share(c).Put(1)
	}
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
