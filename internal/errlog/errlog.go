// Package errlog rations errors that come again and again, so that they can't fill a log. It
// clips them as well.
package errlog

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/clip"
)

// Interval is how often an error is logged that goes on.
const Interval = time.Hour

// MaxReasons is for how many reasons an error is logged in an Interval: who has a part in its text
// may make up ever new ones. A host that is down, booted, started and set right gives about half of
// them.
const MaxReasons = 8

// Log rations the errors of one kind: the first is logged, and then one in an Interval. The zero
// value is ready. All methods may be called concurrently.
type Log struct {
	mu         sync.Mutex
	last       time.Time // when one was logged
	reasons    []reason  // that were logged, MaxReasons at most
	suppressed int       // since last
	logged     bool      // since the last recovery, or that is news for another reason
	recoveries bool      // there was one
}

// reason is one for which an error was logged.
type reason struct {
	hash uint64
	at   time.Time
}

// Warn logs an error, if one is due.
func (l *Log) Warn(log *slog.Logger, what string, err error) {
	n, ok := l.Due(time.Now())
	warn(log, what, err, n, ok)
}

// WarnReason logs an error, if one is due for its reason: so a new one does not wait until the hour
// of another is over. There are few in an Interval. It makes no difference between texts that
// differ in digits, as those with the port of a client do.
func (l *Log) WarnReason(log *slog.Logger, what string, err error) {
	n, ok := l.dueFor(hashOf(clip.Text(err.Error())), time.Now())
	warn(log, what, err, n, ok)
}

func warn(log *slog.Logger, what string, err error, suppressed int, due bool) {
	switch {
	case !due:
	case suppressed > 0:
		log.Warn(what, "error", clip.Error(err), "suppressed", suppressed)
	default:
		log.Warn(what, "error", clip.Error(err))
	}
}

var hashSeed = maphash.MakeSeed()

func hashOf(reason string) uint64 {
	return maphash.String(hashSeed, strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, reason))
}

// Panicked logs a panic with the stack of its goroutine, if one is due for its reason; see
// WarnReason.
func (l *Log) Panicked(log *slog.Logger, what string, p any) {
	text := clip.Text(fmt.Sprint(p))
	n, ok := l.dueFor(hashOf(text), time.Now())
	if !ok {
		return
	}
	if n > 0 {
		log = log.With("suppressed", n)
	}
	log.Error(what, "panic", text, "stack", string(debug.Stack()))
}

// Due reports whether an error is to be logged, and how many were not since the last.
func (l *Log) Due(now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < Interval {
		l.suppressed++
		return 0, false
	}
	return l.loggedLocked(now), true
}

// dueFor is Due for a reason.
func (l *Log) dueFor(hash uint64, now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reasons = slices.DeleteFunc(l.reasons, func(r reason) bool { return now.Sub(r.at) >= Interval })
	known := slices.ContainsFunc(l.reasons, func(r reason) bool { return r.hash == hash })
	if known || len(l.reasons) == MaxReasons {
		l.suppressed++
		return 0, false
	}
	l.reasons = append(l.reasons, reason{hash, now})
	return l.loggedLocked(now), true
}

func (l *Log) loggedLocked(now time.Time) (suppressed int) {
	suppressed = l.suppressed
	l.last, l.suppressed, l.logged = now, 0, true
	return suppressed
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
	l.last, l.reasons, l.suppressed = time.Time{}, nil, 0
}
