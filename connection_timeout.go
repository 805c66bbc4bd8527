package grid

import (
	"context"
	"time"
)

// timed makes requests that have a timeout.
type timed struct {
	conn    *Connection
	sub     *Subroute // nil for none
	timeout time.Duration
}

// WithTimeout returns what makes requests like [Connection.SingleRequest], none of which takes
// longer than d: where the deadline of its context is later, or there is none, the request has d,
// which travels along, and after it [context.DeadlineExceeded] is its error. That comes up to
// d/32 late, or 2 ms if that is more; never early.
//
// In return it costs next to nothing, while a context with a deadline for each call costs a timer,
// a channel and several allocations. Keep what is returned; it is safe for concurrent use. With a d
// of 0 or less all requests fail.
func (c *Connection) WithTimeout(d time.Duration) Requester {
	return &timed{conn: c, timeout: d}
}

// WithTimeout is [Connection.WithTimeout] for requests to handlers under the subroute.
func (s *Subroute) WithTimeout(d time.Duration) Requester {
	if s == nil {
		return &timed{timeout: d}
	}
	return &timed{conn: s.conn, sub: s, timeout: d}
}

// SingleRequest implements [Requester].
func (t *timed) SingleRequest(ctx context.Context, id HandlerID, payload []byte) ([]byte, error) {
	if t.timeout <= 0 {
		return nil, context.DeadlineExceeded
	}
	if t.sub == nil {
		return t.conn.request(ctx, id, "", nil, payload, t.timeout, nil)
	}
	return t.sub.request(ctx, id, payload, t.timeout)
}
