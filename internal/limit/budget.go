package limit

import (
	"math"
	"sync/atomic"
)

// Budget bounds a number of bytes, or of whatever else is counted: by a limit of its own, and by
// its share of a [Pool], if it has one. A nil Budget has no bound. All methods may be called
// concurrently.
type Budget struct {
	// Set once.
	option string
	limit  int64
	pool   *Pool

	used atomic.Int64
	// open is what may be used without asking the pool: own and borrowed.
	open    atomic.Int64
	borrows atomic.Bool // borrowed is not 0

	// The pool's lock guards these.
	own      int64
	borrowed int64
}

// Exceeded is why something could not be taken.
type Exceeded struct {
	// Option is the option that limits it: the budget's, or the pool's.
	Option string
	// Would is how much the budget would have had to hold, of which no more than Limit may be.
	Would, Limit int64
	// Pool is the limit of the pool, where it was that; else 0.
	Pool int64
}

// Init sets the limit, the option that it comes from, and the pool that the budget has a share of,
// nil for none. The share is nothing but what the pool lends until it is next divided.
func (b *Budget) Init(option string, limit int, pool *Pool) {
	b.option, b.limit, b.pool = option, int64(limit), pool
	if pool == nil {
		b.open.Store(math.MaxInt64)
		return
	}
	pool.join(b)
}

// Leave gives up the share of the pool, of which the budget keeps what it has taken until that is
// put back. It may be called more than once.
func (b *Budget) Leave() {
	if b.pool != nil {
		b.pool.leave(b)
	}
}

// Used is how much is taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// Take adds n. Where that is too much it adds nothing, and says why; else it returns nil. What
// comes alone is never too much for the budget's own limit, nor for a pool that has lent nothing.
func (b *Budget) Take(n int) *Exceeded { return b.take(request{n: n}) }

// Grow is Take for who has taken have before, and comes alone where that is all. The limits are
// higher by slack.
func (b *Budget) Grow(have, n, slack int) *Exceeded { return b.take(request{n, have, slack}) }

// request is what somebody wants to take.
type request struct{ n, have, slack int }

func (b *Budget) take(r request) *Exceeded {
	if b == nil || r.n == 0 {
		return nil
	}
	for {
		used := b.used.Load()
		total, exceeded := b.add(used, r)
		switch {
		case exceeded != nil:
			return exceeded
		case total > b.open.Load():
			return b.pool.lend(b, r)
		// Not by an Add that is taken back: of two who come at once, both might be too many for a
		// moment, and neither get what there is.
		case b.used.CompareAndSwap(used, total):
			if total > b.open.Load() {
				b.pool.settle(b) // what was open is less since it was looked at
			}
			return nil
		}
	}
}

// add is what would be used with more, and why the limit forbids that, if it does.
func (b *Budget) add(used int64, r request) (total int64, exceeded *Exceeded) {
	total = sum(used, int64(r.n))
	if total-int64(r.slack) > b.limit && used > int64(r.have) {
		return total, &Exceeded{Option: b.option, Would: total, Limit: b.limit}
	}
	return total, nil
}

// sum is a+b, of numbers that are not negative, or the greatest number.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Put takes n away, which were added. It returns what is left.
func (b *Budget) Put(n int) (left int64) {
	if b == nil {
		return 0
	}
	left = b.used.Add(-int64(n))
	if b.borrows.Load() {
		b.pool.settle(b)
	}
	return left
}

// Spare reports whether n may be promised, beside what is taken: if that is no more than half of
// the limit then, and if there is room for more besides, also in the share of the pool.
func (b *Budget) Spare(n, more int64) bool {
	if b == nil {
		return true
	}
	used := b.used.Load()
	room := min(b.limit, b.open.Load()) - used
	if b.pool != nil {
		room = min(b.limit-used, room+b.pool.left.Load()/2)
	}
	return n <= b.limit/2-used && n+more <= room
}

// Charge is a number that was taken of a budget, and is to be given back once.
type Charge struct {
	Budget *Budget
	Bytes  int
}

// GrowTo takes what is missing to n, if anything is.
func (c *Charge) GrowTo(n int) *Exceeded {
	if n <= c.Bytes {
		return nil
	}
	exceeded := c.Budget.Grow(c.Bytes, n-c.Bytes, 0)
	if exceeded == nil {
		c.Bytes = n
	}
	return exceeded
}

// Release gives it back.
func (c Charge) Release() { c.Budget.Put(c.Bytes) }
