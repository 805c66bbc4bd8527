package main

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

// Server is the part of one node in all locks: it keeps who holds which, as far as this node was
// asked. It knows nothing of the other nodes. What it keeps is in memory only; so after a start it
// agrees to nobody until all that it may have agreed to before has expired.
type Server struct {
	opts    Options   // set once
	silent  time.Time // it agrees to nobody until then; set once
	mu      sync.Mutex
	holders map[string]map[string]*holder // by name and UID; no empty ones
}

// holder has a lock, here at least.
type holder struct {
	owner   string
	write   bool
	expires time.Time
	timer   *time.Timer // removes it
}

// Holder is what a [Server] knows about one, for people.
type Holder struct {
	Name, UID, Owner string
	Write            bool
	Expires          time.Time
}

// NewServer makes the server of m's host, and registers it with m.
func NewServer(m *grid.Manager, opts Options) (*Server, error) {
	s := &Server{
		opts:    opts,
		silent:  time.Now().Add(opts.expiry()),
		holders: make(map[string]map[string]*holder),
	}
	register := func(r *request, serve func(a lockArgs) error) error {
		return r.Register(m, func(req *grid.JSON[lockArgs]) (grid.NoPayload, *grid.RemoteErr) {
			return grid.NoPayload{}, grid.NewRemoteErr(serve(req.ValueOrZero()))
		})
	}
	return s, errors.Join(
		register(lockReq, func(a lockArgs) error { return s.add(a, true) }),
		register(rlockReq, func(a lockArgs) error { return s.add(a, false) }),
		register(unlockReq, s.remove),
		register(refreshReq, s.refresh),
		register(forceUnlockReq, s.removeAll),
	)
}

// add takes a holder in, unless there are others that it can't share the lock with.
func (s *Server) add(a lockArgs, write bool) error {
	if a.Name == "" || a.UID == "" {
		return errBadArgs
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.silent) {
		return errStarting
	}
	for _, h := range s.holders[a.Name] {
		if write || h.write {
			return errHeld
		}
	}
	if s.holders[a.Name] == nil {
		s.holders[a.Name] = make(map[string]*holder)
	}
	s.holders[a.Name][a.UID] = &holder{
		owner:   a.Owner,
		write:   write,
		expires: time.Now().Add(s.opts.expiry()),
		timer:   time.AfterFunc(s.opts.expiry(), func() { s.expire(a) }),
	}
	return nil
}

func (s *Server) refresh(a lockArgs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holders[a.Name][a.UID]
	if h == nil {
		return errUnknown
	}
	h.expires = time.Now().Add(s.opts.expiry())
	h.timer.Reset(s.opts.expiry())
	return nil
}

func (s *Server) remove(a lockArgs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(a)
	return nil
}

func (s *Server) removeAll(a lockArgs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.holders[a.Name] {
		s.removeLocked(lockArgs{Name: a.Name, UID: uid})
	}
	return nil
}

// expire removes a holder, unless it was refreshed while the timer fired.
func (s *Server) expire(a lockArgs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.holders[a.Name][a.UID]; h != nil && !time.Now().Before(h.expires) {
		s.removeLocked(a)
	}
}

func (s *Server) removeLocked(a lockArgs) {
	h := s.holders[a.Name][a.UID]
	if h == nil {
		return
	}
	h.timer.Stop()
	delete(s.holders[a.Name], a.UID)
	if len(s.holders[a.Name]) == 0 {
		delete(s.holders, a.Name)
	}
}

// Holders returns all that this node knows of, sorted by name.
func (s *Server) Holders() (all []Holder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, holders := range s.holders {
		for uid, h := range holders {
			all = append(all, Holder{Name: name, UID: uid, Owner: h.owner, Write: h.write, Expires: h.expires})
		}
	}
	slices.SortFunc(all, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return all
}
