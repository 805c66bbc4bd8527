package grid

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// errorLog rations the errors of one peer.
type errorLog struct {
	mu         sync.Mutex
	last       time.Time // when one was logged
	suppressed int       // since then
	logged     bool      // since the last recovery, or that is news for another reason
	recoveries bool      // there was one
}

// warn logs an error, if one is due.
func (l *errorLog) warn(log *slog.Logger, what string, err error) {
	switch n, ok := l.due(time.Now()); {
	case !ok:
	case n > 0:
		log.Warn(what, "error", err, "suppressed", n)
	default:
		log.Warn(what, "error", err)
	}
}

// due tells whether an error is to be logged, and how many were not.
func (l *errorLog) due(now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < time.Hour {
		l.suppressed++
		return 0, false
	}
	n := l.suppressed
	l.last, l.suppressed, l.logged = now, 0, true
	return n, true
}

// panicked logs a panic of the application's with its stack, if one is due: a peer that
// can provoke one must not fill the log.
func (l *errorLog) panicked(log *slog.Logger, what string, p any) {
	n, ok := l.due(time.Now())
	if !ok {
		return
	}
	if n > 0 {
		log = log.With("suppressed", n)
	}
	log.Error(what, "panic", p, "stack", string(debug.Stack()))
}

// recovered tells whether it is news that all is well: an error was logged since
// it last was, or it never was before.
func (l *errorLog) recovered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	news := l.logged || !l.recoveries
	l.logged, l.recoveries = false, true
	return news
}

// expectRecovery makes the next recovery news.
func (l *errorLog) expectRecovery() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logged = true
}

// reset makes the next error a first one.
func (l *errorLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.suppressed = time.Time{}, 0
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// backoff is the pause between attempts to connect.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

// wait pauses, longer every time, unless ctx ends.
func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, minBackoff), maxBackoff)
	// Jitter, so that the hosts of a cluster do not come all at once.
	pause := b.next + rand.N(b.next/2)
	if pause > maxBackoff {
		pause = maxBackoff - rand.N(maxBackoff/4)
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// waitFor waits until c is closed, if it is not nil. It returns false if ctx
// ends first.
func waitFor(ctx context.Context, c <-chan struct{}) bool {
	if c == nil {
		return true
	}
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}
