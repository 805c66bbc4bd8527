package limit

import "sync/atomic"

// Budget bounds a number of bytes. A nil Budget has no bound. All methods may be called
// concurrently.
type Budget struct {
	limit int64 // set once
	used  atomic.Int64
}

// Init sets the limit in bytes.
func (b *Budget) Init(limit int) { b.limit = int64(limit) }

// Limit is the most that may be taken.
func (b *Budget) Limit() int64 { return b.limit }

// Used is how many bytes are taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// Take adds n bytes. Where they are too many it adds nothing, and returns what there would have
// been, else 0. What comes alone is never too much.
func (b *Budget) Take(n int) (exceeded int64) { return b.TakeBeyond(n, 0) }

// TakeBeyond is Take with a limit that is higher by slack.
func (b *Budget) TakeBeyond(n, slack int) (exceeded int64) {
	if b == nil || n == 0 {
		return 0
	}
	for {
		used := b.used.Load()
		total := used + int64(n)
		if total-int64(slack) > b.limit && used > 0 {
			return total
		}
		// Not by an Add that is taken back: of two who come at once, both might be too many for
		// a moment, and neither get what there is.
		if b.used.CompareAndSwap(used, total) {
			return 0
		}
	}
}

// Put takes n bytes away, which were added.
func (b *Budget) Put(n int) {
	if b != nil && n != 0 {
		b.used.Add(-int64(n))
	}
}

// Spare reports whether n bytes may be promised, beside what is taken: if that is no more than half
// of the limit then, and if there is room for more besides.
func (b *Budget) Spare(n, more int64) bool {
	if b == nil {
		return true
	}
	used := b.used.Load()
	return n <= b.limit/2-used && n+more <= b.limit-used
}

// Charge is a number of bytes that were taken of a budget, and are to be given back once.
type Charge struct {
	Budget *Budget
	Bytes  int
}

// Release gives the bytes back.
func (c Charge) Release() { c.Budget.Put(c.Bytes) }
