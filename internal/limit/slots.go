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
	parent *Slots

	taken  Budget
	wanted atomic.Bool // somebody waits for none to be taken
	mu     sync.Mutex
	idle   Idle
}

// Init sets what the slots are for, the option that limits them, how many there are, and the pool
// that they have a share of, nil for none. Each takes one of parent as well, if that is not nil.
func (s *Slots) Init(kind, option string, limit int, pool *Pool, parent *Slots) {
	s.kind, s.parent = kind, parent
	s.taken.Init(option, limit, pool)
}

// Leave gives up the share of the pool; see [Budget.Leave].
func (s *Slots) Leave() { s.taken.Leave() }

// Kind is what the slots are for.
func (s *Slots) Kind() string { return s.kind }

// InUse is how many slots are taken.
func (s *Slots) InUse() int { return int(s.taken.Used()) }

// Acquire takes a slot. It returns nil, or the slots of which there is none, s or a parent, and
// why; then it has taken none.
func (s *Slots) Acquire() (full *Slots, exceeded *Exceeded) {
	if s.parent != nil {
		if full, exceeded := s.parent.Acquire(); full != nil {
			return full, exceeded
		}
	}
	if exceeded := s.taken.Take(1); exceeded != nil {
		if s.parent != nil {
			s.parent.Release()
		}
		return s, exceeded
	}
	return nil, nil
}

// Release gives a slot back.
func (s *Slots) Release() {
	if s.parent != nil {
		s.parent.Release()
	}
	if s.taken.Put(1) == 0 && s.wanted.Load() {
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
	if s.taken.Used() == 0 {
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
