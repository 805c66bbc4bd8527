// Package backoff paces attempts that fail.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// Min is about the first pause, and what it doubles from.
	Min = 50 * time.Millisecond
	// Max is the longest pause.
	Max = 5 * time.Second
)

// Backoff is the pause between attempts: it doubles from Min to Max, with jitter, so that many who
// begin together do not go on so. The zero value is ready. It is for one goroutine.
type Backoff struct{ last time.Duration }

// Reset makes the next pause a first one.
func (b *Backoff) Reset() { b.last = 0 }

// Next returns the next pause.
func (b *Backoff) Next() time.Duration { return b.next(rand.Int64N) }

func (b *Backoff) next(random func(n int64) int64) time.Duration {
	b.last = min(max(2*b.last, Min), Max)
	if pause := b.last + time.Duration(random(int64(b.last/2))); pause <= Max {
		return pause
	}
	return Max - time.Duration(random(int64(Max/4)))
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
