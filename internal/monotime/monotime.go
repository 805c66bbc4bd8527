// Package monotime is time for intervals: it never jumps, whatever is done to the wall clock, and
// it fits into an atomic integer.
package monotime

import (
	"math"
	"sync/atomic"
	"time"
)

// Time is a point in time, in nanoseconds since one that the process has chosen. It means nothing
// to anybody else.
type Time int64

var origin = time.Now()

// Never is later than any other Time.
const Never = Time(math.MaxInt64)

// Now returns the present time.
func Now() Time { return Of(time.Now()) }

// Of converts a time of [time.Now], or one that was made from it by Add. A time without a monotonic
// reading is converted by the wall clock.
func Of(t time.Time) Time { return Time(t.Sub(origin)) }

// Add returns t+d.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Stamp is a Time that may be read and written concurrently.
type Stamp struct{ v atomic.Int64 }

// Load returns the time that was stored last, or 0.
func (s *Stamp) Load() Time { return Time(s.v.Load()) }

// Store replaces the time.
func (s *Stamp) Store(t Time) { s.v.Store(int64(t)) }

// CompareAndSwap replaces the time, if it is old.
func (s *Stamp) CompareAndSwap(old, t Time) bool { return s.v.CompareAndSwap(int64(old), int64(t)) }
