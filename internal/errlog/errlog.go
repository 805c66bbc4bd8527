// Package errlog rations errors that come again and again, so that they can't fill a log. It
// clips them as well.
package errlog

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/clip"
)

// Interval is how often an error is logged that goes on.
const Interval = time.Hour

// Log rations the errors of one kind: the first is logged, and then one in an Interval. The zero
// value is ready. All methods may be called concurrently.
type Log struct {
	mu         sync.Mutex
	last       time.Time // when one was logged
	suppressed int       // since then
	logged     bool      // since the last recovery, or that is news for another reason
	recoveries bool      // there was one
}

// Warn logs an error, if one is due.
func (l *Log) Warn(log *slog.Logger, what string, err error) {
	switch n, ok := l.Due(time.Now()); {
	case !ok:
	case n > 0:
		log.Warn(what, "error", clip.Error(err), "suppressed", n)
	default:
		log.Warn(what, "error", clip.Error(err))
	}
}

// Panicked logs a panic with the stack of its goroutine, if one is due.
func (l *Log) Panicked(log *slog.Logger, what string, p any) {
	n, ok := l.Due(time.Now())
	if !ok {
		return
	}
	if n > 0 {
		log = log.With("suppressed", n)
	}
	log.Error(what, "panic", clip.Text(fmt.Sprint(p)), "stack", string(debug.Stack()))
}

// Due reports whether an error is to be logged, and how many were not since the last.
func (l *Log) Due(now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < Interval {
		l.suppressed++
		return 0, false
	}
	n := l.suppressed
	l.last, l.suppressed, l.logged = now, 0, true
	return n, true
}

// Recovered reports whether it is news that all is well: an error was logged since it last was, or
// it never was before.
func (l *Log) Recovered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	news := l.logged || !l.recoveries
	l.logged, l.recoveries = false, true
	return news
}

// ExpectRecovery makes the next recovery news.
func (l *Log) ExpectRecovery() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logged = true
}

// Reset makes the next error a first one.
func (l *Log) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.suppressed = time.Time{}, 0
}
