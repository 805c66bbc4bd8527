package limit

import (
	"time"

	"github.com/gridrpc/grid/internal/monotime"
)

// Rate bounds how often something may happen in a second. It is for one goroutine.
type Rate struct {
	limit int
	began monotime.Time // of the present second
	n     int           // in it
}

// Init sets the limit.
func (r *Rate) Init(limit int) { r.limit = limit }

// Allow counts once more, and reports whether that is within the limit.
func (r *Rate) Allow(now monotime.Time) bool {
	if r.n == 0 || now.Sub(r.began) >= time.Second {
		r.began, r.n = now, 0
	}
	r.n++
	return r.n <= r.limit
}
