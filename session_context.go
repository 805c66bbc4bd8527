package grid

import (
	"context"
	"sync"
	"time"
)

// requestContext is the context of a handler of a single request: [handlerContext] over a life that
// costs little as long as nobody waits for its end.
type requestContext struct {
	handlerContext
	life requestLife
}

// init makes it the context of a handler of s. It lives until the deadline, zero for none, and until
// end.
func (c *requestContext) init(s *session, subroute string, deadline time.Time, metadata []byte) {
	c.life.session, c.life.deadline = s.ctx, deadline
	c.handlerContext = handlerContext{
		Context: &c.life, caller: &s.conn.caller, subroute: subroute, draining: s.draining, metadata: metadata,
	}
}

// requestLife is a context that ends with a session, at a deadline, or when a handler has returned.
// What package context makes for that, with a timer and a place among what ends with the session, is
// made when somebody asks for Done or the cause: most handlers do not.
type requestLife struct {
	// Set once.
	session  context.Context
	deadline time.Time // zero for none

	mu     sync.Mutex      // guards what follows
	made   context.Context // nil: nobody has asked
	cancel context.CancelFunc
	over   bool // the handler has returned, or the client has given up
	first  bool // before the session has ended
	late   bool // after the deadline
	gone   bool // the client has given up
}

// end ends the context of a handler that has returned, and says whether it was past the deadline.
func (c *requestLife) end(late bool) {
	c.mu.Lock()
	cancel := c.endLocked(late)
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// endLocked returns what the caller is to call without the lock, or nil.
func (c *requestLife) endLocked(late bool) context.CancelFunc {
	if c.over {
		return nil
	}
	c.over, c.first, c.late = true, c.session.Err() == nil, late
	return c.cancel
}

// clientGone ends it because the client has given up. So a client does at its deadline, too; then it
// ends by that.
func (c *requestLife) clientGone() {
	var cancel context.CancelFunc
	c.mu.Lock()
	c.gone = true
	if c.deadline.IsZero() || time.Until(c.deadline) > deadlineSlack {
		cancel = c.endLocked(false)
	}
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// isGone reports whether the client has given up.
func (c *requestLife) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// whole returns the context of package context.
func (c *requestLife) whole() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != nil {
		return c.made
	}
	parent, deadline := c.session, c.deadline
	// What was later than the end is not the cause.
	if c.first {
		parent = context.Background()
		if !c.late {
			deadline = time.Time{}
		}
	}
	if deadline.IsZero() {
		c.made, c.cancel = context.WithCancel(parent)
	} else {
		c.made, c.cancel = context.WithDeadline(parent, deadline)
	}
	if c.over {
		c.cancel()
	}
	return c.made
}

// Deadline implements [context.Context].
func (c *requestLife) Deadline() (deadline time.Time, ok bool) {
	return c.deadline, !c.deadline.IsZero()
}

// Done implements [context.Context].
func (c *requestLife) Done() <-chan struct{} { return c.whole().Done() }

// Err implements [context.Context].
func (c *requestLife) Err() error {
	c.mu.Lock()
	alive := c.made == nil && !c.over && c.session.Err() == nil &&
		(c.deadline.IsZero() || time.Now().Before(c.deadline))
	c.mu.Unlock()
	if alive {
		return nil
	}
	return c.whole().Err()
}

// Value implements [context.Context].
func (c *requestLife) Value(key any) any {
	// The session's has no value but that by which package context finds its own, for a cause.
	if c.session.Value(key) == nil {
		return nil
	}
	return c.whole().Value(key)
}
