package grid

import (
	"sync/atomic"
	"time"
)

// budget bounds the bytes that are kept here for one host, over all its sessions:
// see ManagerOptions.MaxHostBytes. A nil budget has no bound.
type budget struct {
	limit int64 // set once
	used  atomic.Int64
}

// take adds n bytes. It fails, and adds nothing, where they are too many; what comes
// alone never is.
func (b *budget) take(n int) error { return b.takeBeyond(n, 0) }

// takeAround is take for what is around a message that was taken: one of just the
// limit fits.
func (b *budget) takeAround() error { return b.takeBeyond(messageCost, messageCost) }

func (b *budget) takeBeyond(n int, slack int64) error {
	if b == nil || n == 0 {
		return nil
	}
	if used := b.used.Add(int64(n)); used > b.limit+slack && used > int64(n) {
		b.put(n)
		return overloadedf("MaxHostBytes", "%d bytes would be kept for this host, MaxHostBytes is %d", used, b.limit)
	}
	return nil
}

// put takes n bytes away, which were added.
func (b *budget) put(n int) {
	if b != nil && n != 0 {
		b.used.Add(-int64(n))
	}
}

// scarce tells whether so much is taken that nobody should ask for more.
func (b *budget) scarce() bool { return b != nil && b.used.Load() > b.limit/2 }

// rate bounds how often something may happen in a second.
type rate struct {
	limit int
	began int64 // of the present second, in Unix nanoseconds
	n     int   // in it
}

// due tells whether it may happen once more, at a time in Unix nanoseconds.
func (r *rate) due(now int64) bool {
	if now < r.began || now-r.began >= int64(time.Second) { // also when the clock is set back
		r.began, r.n = now, 0
	}
	r.n++
	return r.n <= r.limit
}

// charge is a number of bytes of a budget that are to be given back.
type charge struct {
	budget *budget
	bytes  int
}

func (c charge) release() { c.budget.put(c.bytes) }
