// Package fifo has a lock whose waiters get it in the order in which they ask.
package fifo

import (
	"cmp"
	"context"
	"sync"
)

// Lock is a lock whose waiters come one after the other, and may give up. Different from those of a
// [sync.Mutex], they are durably blocked in a testing/synctest bubble. The zero value is free; it
// allocates nothing until somebody waits.
type Lock struct {
	mu      sync.Mutex
	taken   bool
	waiting int           // in Take
	given   bool          // it is in next, for one of them
	next    chan struct{} // made by the first waiter; it serves them in their order
	err     error         // set by Close
}

// Take takes the lock, and waits for it until ctx ends, whose cause it then returns, or until
// [Lock.Close], whose error it returns then and later.
func (l *Lock) Take(ctx context.Context) error {
	l.mu.Lock()
	if l.err != nil || !l.taken {
		defer l.mu.Unlock()
		if l.err == nil {
			l.taken = true
		}
		return l.err
	}
	if l.next == nil {
		l.next = make(chan struct{}, 1)
	}
	l.waiting++
	l.mu.Unlock()
	select {
	case <-l.next:
		return l.served()
	case <-ctx.Done():
		l.giveUp()
		// Not nil for a context that says that it has ended, and not with what.
		return cmp.Or(context.Cause(ctx), context.Canceled)
	}
}

// served is a waiter that has got the lock, or has heard of the end.
func (l *Lock) served() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
	if l.err == nil {
		l.given = false
	}
	return l.err
}

// giveUp is a waiter that waits no more. If it is there, another one gets it.
func (l *Lock) giveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting--; l.err == nil && l.given && l.waiting == 0 {
		<-l.next
		l.given, l.taken = false, false
	}
}

// Leave gives the lock back.
func (l *Lock) Leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil || l.waiting == 0:
		l.taken = false
	default:
		l.given = true
		l.next <- struct{}{}
	}
}

// Close makes every present and later Take return err, which must not be nil. Whoever has it
// keeps it. Only the first call has an effect.
func (l *Lock) Close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	if l.next != nil {
		close(l.next)
	}
}
