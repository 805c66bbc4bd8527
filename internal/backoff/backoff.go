// Package backoff paces attempts that fail.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// Min is about the first pause, and what it doubles from, where nothing else is said.
	Min = 50 * time.Millisecond
	// Max is the longest pause, likewise.
	Max = 5 * time.Second
)

// Backoff is the pause between attempts: it doubles from a least to a longest one, with jitter, so
// that many who begin together do not go on so. The zero value goes from Min to Max. It is for one
// goroutine.
type Backoff struct {
	least, longest time.Duration
	last           time.Duration
}

// New returns a Backoff from a least pause to a longest one, which is no shorter.
func New(least, longest time.Duration) Backoff { return Backoff{least: least, longest: longest} }

// Reset makes the next pause a first one.
func (b *Backoff) Reset() { b.last = 0 }

// Next returns the next pause.
func (b *Backoff) Next() time.Duration { return b.next(rand.Int64N) }

func (b *Backoff) next(random func(n int64) int64) time.Duration {
	if b.longest == 0 {
		b.least, b.longest = Min, Max
	}
	b.last = min(max(2*b.last, b.least), b.longest)
	if pause := b.last + time.Duration(random(int64(b.last/2)+1)); pause <= b.longest {
		return pause
	}
	return b.longest - time.Duration(random(int64(b.longest/4)+1))
}

// Wait pauses, unless ctx ends.
func (b *Backoff) Wait(ctx context.Context) {
	t := time.NewTimer(b.Next())
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
