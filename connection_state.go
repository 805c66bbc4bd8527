package grid

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// State is that of a [Connection].
type State uint32

const (
	// StateUnconnected is the state before the first connection: the side that dials has not begun
	// to, the other has not been dialled.
	StateUnconnected State = iota
	// StateConnecting is the state of a side that is dialling.
	StateConnecting
	// StateConnected is the only state in which calls can be made.
	StateConnected
	// StateConnectionError is the state after a connection was lost or could not be made. The side
	// that dials will try again.
	StateConnectionError
	// StateShutdown is the last state, once the Manager is closed or the host was removed.
	StateShutdown
)

// String returns the state's name, such as "connected".
func (s State) String() string {
	switch s {
	case StateUnconnected:
		return "unconnected"
	case StateConnecting:
		return "connecting"
	case StateConnected:
		return "connected"
	case StateConnectionError:
		return "connection error"
	case StateShutdown:
		return "shutdown"
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// MarshalText returns the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's name.
func (s *State) UnmarshalText(text []byte) error {
	for state := range transitions {
		if state.String() == string(text) {
			*s = state
			return nil
		}
	}
	return fmt.Errorf("grid: unknown state %q", text)
}

// transitions are the legal ones; docs/design.md shows them as a picture. Connected to Connected is
// a connection that the peer has replaced.
var transitions = map[State][]State{
	StateUnconnected:     {StateConnecting, StateConnected, StateShutdown},
	StateConnecting:      {StateConnected, StateConnectionError, StateShutdown},
	StateConnected:       {StateConnected, StateConnectionError, StateShutdown},
	StateConnectionError: {StateConnecting, StateConnected, StateShutdown},
	StateShutdown:        {},
}

var errEnded = errors.New("no connection will be made any more")

// stateMachine is a state that can be waited for.
type stateMachine struct {
	host string     // whose state it is; set once
	hook *stateHook // the same; nil for none

	mu      sync.Mutex
	state   State
	final   bool          // no connection will be made any more
	changed chan struct{} // closed by the next change; made by the first who waits
}

func (s *stateMachine) get() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// set changes the state, for a reason where there is one. It reports whether that is legal, and
// changes nothing where it is not.
func (s *stateMachine) set(to State, reason error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, legal := range transitions[s.state] {
		if to == legal {
			s.hook.tell(StateChange{Host: s.host, From: s.state, To: to, Err: reason, Time: time.Now()})
			s.state = to
			s.notifyLocked()
			return true
		}
	}
	return false
}

// finish lets go of those who wait for a connection, as none will be made any more.
func (s *stateMachine) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = true
	s.notifyLocked()
}

func (s *stateMachine) notifyLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// waitConnected waits for StateConnected. It returns the doneError of ctx if that ends before,
// and errEnded once the state is StateShutdown, or finish was called.
func (s *stateMachine) waitConnected(ctx context.Context) error {
	for {
		s.mu.Lock()
		switch {
		case s.state == StateConnected:
			s.mu.Unlock()
			return nil
		case s.state == StateShutdown, s.final:
			s.mu.Unlock()
			return errEnded
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()

		select {
		case <-changed:
		case <-ctx.Done():
			return doneError(ctx)
		}
	}
}
