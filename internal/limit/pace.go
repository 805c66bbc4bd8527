package limit

import (
	"time"

	"github.com/gridrpc/grid/internal/monotime"
)

// Pace keeps what somebody else bounds by a [Rate] within that, whenever the seconds begin in which
// that counts. It is for one goroutine.
type Pace struct {
	rate, most float64 // in a second, and at once
	has        float64
	last       monotime.Time
}

// Init sets the limit, of 2 or more, for what is done every so often, as much as is due at once.
func (p *Pace) Init(limit int, every time.Duration) {
	n, t := float64(limit), every.Seconds()
	p.most = max(1, n*t/(1+t)) // what comes in the time, and with it is the limit in a second
	p.rate = n - p.most
	p.has = p.most
}

// Interval is the pause between those that may be done without end.
func (p *Pace) Interval() time.Duration { return time.Duration(float64(time.Second) / p.rate) }

// Allow reports whether it may be done once more, and counts it if so.
func (p *Pace) Allow(now monotime.Time) bool {
	// What is before the first has no meaning.
	p.has = min(p.most, p.has+max(now.Sub(p.last), 0).Seconds()*p.rate)
	p.last = now
	if p.has < 1 {
		return false
	}
	p.has--
	return true
}
