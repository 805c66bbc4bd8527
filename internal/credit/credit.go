// Package credit counts how many messages a stream's sender may still send: as the sender knows it,
// in [Credits], and as the receiver does, in [Window]. It knows nothing of frames.
package credit

import (
	"cmp"
	"context"
	"errors"
	"sync"
)

// ErrOverflow is returned when more credits are added than the sender may ever hold.
var ErrOverflow = errors.New("credit: more credits than the limit")

// Credits is a counter to reserve from, safe for concurrent use. The zero value holds none and may
// hold none; see [Credits.Reset].
type Credits struct {
	mu     sync.Mutex
	avail  int
	limit  int
	err    error         // set by Close
	signal chan struct{} // holds a token when a waiter should look again; made by the first waiter
}

// Reset sets the credits at hand and the most that may be held at a time.
func (c *Credits) Reset(avail, limit int) {
	c.mu.Lock()
	c.avail, c.limit = avail, limit
	c.wakeLocked()
	c.mu.Unlock()
}

// Adjust sets the most that may be held at a time, and adds n credits to those at hand, or takes
// away -n: where more were reserved than there turn out to be, the next ones that are added make up
// for it.
func (c *Credits) Adjust(n, limit int) {
	c.mu.Lock()
	c.avail += n
	c.limit = limit
	c.wakeLocked()
	c.mu.Unlock()
}

// Reserve takes one credit. It waits for one until ctx ends, whose cause it then returns, or until
// [Credits.Close], whose error it then returns. After Close it returns that error even if credits
// are left.
func (c *Credits) Reserve(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.err != nil || c.avail > 0 {
			err := c.err
			if err == nil {
				c.avail--
			}
			// A token wakes one waiter, so whoever got it passes it on while there is a reason for
			// another one to look.
			c.wakeLocked()
			c.mu.Unlock()
			return err
		}
		if c.signal == nil {
			c.signal = make(chan struct{}, 1)
		}
		signal := c.signal
		c.mu.Unlock()

		select {
		case <-signal:
		case <-ctx.Done():
			// The token, if there is one, is left to others. A context that says that it has ended,
			// and not with what, gets no credit.
			return cmp.Or(context.Cause(ctx), context.Canceled)
		}
	}
}

// Ready returns nil if Reserve would not wait, else a channel that gets a token when that may have
// changed. Only one goroutine at a time may wait for the token, or be in Reserve.
func (c *Credits) Ready() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.avail > 0 {
		return nil
	}
	if c.signal == nil {
		c.signal = make(chan struct{}, 1)
	}
	return c.signal
}

// Add returns n credits. Where that makes more than the limit it adds none and returns
// [ErrOverflow].
func (c *Credits) Add(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n < 0 || n > c.limit-c.avail {
		return ErrOverflow
	}
	c.avail += n
	c.wakeLocked()
	return nil
}

// Close makes every present and later Reserve return err, which must not be nil. Only the first
// call has an effect.
func (c *Credits) Close(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.wakeLocked()
	c.mu.Unlock()
}

func (c *Credits) wakeLocked() {
	if c.signal == nil || c.err == nil && c.avail <= 0 {
		return
	}
	select {
	case c.signal <- struct{}{}:
	default:
	}
}
