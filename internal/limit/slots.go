// Package limit counts what may be there at a time, or happen in one, and says when it is too much:
// slots for what runs, a budget for bytes, a rate for events. It knows nothing of what is counted.
package limit

import (
	"sync"
	"sync/atomic"
)

// Slots bounds how much runs at a time. All methods may be called concurrently.
type Slots struct {
	// Set once.
	kind   string
	option string
	limit  int
	parent *Slots

	n      atomic.Int64
	wanted atomic.Bool // somebody waits for n to become 0
	mu     sync.Mutex
	idle   Idle
}

// Init sets what the slots are for, the option that limits them, and how many there are. Each takes
// one of parent as well, if that is not nil.
func (s *Slots) Init(kind, option string, limit int, parent *Slots) {
	s.kind, s.option, s.limit, s.parent = kind, option, limit, parent
}

// Kind is what the slots are for.
func (s *Slots) Kind() string { return s.kind }

// Option is the option that limits the slots.
func (s *Slots) Option() string { return s.option }

// Limit is how many slots there are.
func (s *Slots) Limit() int { return s.limit }

// InUse is how many slots are taken.
func (s *Slots) InUse() int { return int(s.n.Load()) }

// Acquire takes a slot. It returns nil, or the slots of which all are taken, s or a parent; then it
// has taken none.
func (s *Slots) Acquire() (full *Slots) {
	if s.parent != nil {
		if full := s.parent.Acquire(); full != nil {
			return full
		}
	}
	if s.n.Add(1) > int64(s.limit) {
		s.Release()
		return s
	}
	return nil
}

// Release gives a slot back.
func (s *Slots) Release() {
	if s.parent != nil {
		s.parent.Release()
	}
	if s.n.Add(-1) == 0 && s.wanted.Load() {
		s.mu.Lock()
		s.idle.Notify()
		s.mu.Unlock()
	}
}

// UntilIdle returns nil if no slot is taken, else a channel that is closed when that may have
// changed.
func (s *Slots) UntilIdle() <-chan struct{} {
	s.wanted.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n.Load() == 0 {
		return nil
	}
	return s.idle.Wait()
}

// Idle is a channel that is closed when something has become idle, made when somebody wants to
// know. Its owner's lock guards it.
type Idle struct{ c chan struct{} }

// Wait returns the channel that the next Notify closes.
func (i *Idle) Wait() <-chan struct{} {
	if i.c == nil {
		i.c = make(chan struct{})
	}
	return i.c
}

// Notify closes the channel, if somebody waits.
func (i *Idle) Notify() {
	if i.c != nil {
		close(i.c)
		i.c = nil
	}
}
