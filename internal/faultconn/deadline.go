package faultconn

import (
	"sync"
	"time"
)

// deadline is a moment that wakes the waiters of a condition variable when it has passed. The
// variable's lock guards it.
type deadline struct {
	passed bool
	timer  *time.Timer
}

// set replaces the moment; the zero time means never.
func (d *deadline) set(c *sync.Cond, at time.Time) {
	d.stop()
	d.passed = false
	if at.IsZero() {
		return
	}
	left := time.Until(at)
	if left <= 0 {
		d.passed = true
		c.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		c.L.Lock()
		defer c.L.Unlock()
		if d.timer == timer { // else replaced while this waited for the lock
			d.passed = true
			c.Broadcast()
		}
	})
	d.timer = timer
}

// stop forgets the moment, but not that it has passed.
func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
