package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/token"
)

// Hosts that are not known, and may become so (AcceptHost).

// claimant is who an arrival says that it is: one of the hosts, or one that may become it.
type claimant struct {
	name string      // in normal form
	conn *Connection // nil for one that is no host yet

	// Of one that is no host yet.
	manager *Manager
	at      *progress // of the arrival

	// Under strangers.mu.
	holders  int  // the arrival, and functions of the application's that have not returned
	removed  bool // by RemoveHost, since it has arrived
	outdated bool // by SetHosts, since AcceptHost was asked
}

// strangers are those on their way in that are no hosts: of each name one, so that AcceptHost is not
// asked about a host twice at a time, and half of MaxHandshakes in all, so that names that are made
// up leave room for the hosts.
type strangers struct {
	mu sync.Mutex // guards m, and the holders in it
	m  map[string]*claimant
}

// claimant returns who it is that claims to be host; nil for one that is unknown, where there is no
// AcceptHost. An error says why that is not to be asked. leave must be called at the end.
func (m *Manager) claimant(host string, at *progress) (*claimant, error) {
	if c := m.peer(host); c != nil {
		return &claimant{name: c.remote, conn: c}, nil
	}
	if m.opts.AcceptHost == nil {
		return nil, nil
	}
	name, err := normalHost(host)
	switch {
	case err != nil:
		return nil, errors.New("that is no name of a host")
	case name == m.opts.Local:
		return nil, errors.New("that is this host")
	}
	if err := m.opts.checkScheme(name); err != nil {
		return nil, err
	}
	if n := len(m.hosts.Load().targets) + 1; n >= m.opts.MaxHosts {
		return nil, m.opts.fullOfHosts(n)
	}
	return m.strangers.enter(&claimant{name: name, manager: m, at: at}, max(1, m.incoming.room()/2))
}

func (o *ManagerOptions) fullOfHosts(n int) error {
	return fmt.Errorf("there are %d hosts, MaxHosts is %d", n, o.MaxHosts)
}

// enter takes in one that is no host.
func (s *strangers) enter(who *claimant, limit int) (*claimant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.m[who.name]; before != nil {
		return nil, fmt.Errorf("it is on its way in already, %s", before.at.reached())
	}
	if len(s.m) >= limit {
		return nil, fmt.Errorf("%d unknown hosts are on their way in, half of MaxHandshakes", len(s.m))
	}
	if s.m == nil {
		s.m = make(map[string]*claimant)
	}
	s.m[who.name], who.holders = who, 1
	return who, nil
}

func (who *claimant) hold() {
	s := &who.manager.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	who.holders++
}

// leave ends one hold of its place.
func (who *claimant) leave() {
	if who.manager == nil {
		return // one of the hosts
	}
	s := &who.manager.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	if who.holders--; who.holders == 0 {
		delete(s.m, who.name)
	}
}

// remove has a host that is on its way in not be taken in.
func (s *strangers) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if who := s.m[name]; who != nil {
		who.removed = true
	}
}

// outdate has AcceptHost be asked again about those that are on their way in.
func (s *strangers) outdate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, who := range s.m {
		who.outdated = true
	}
}

// isOutdated reports whether what AcceptHost says of who has come before the hosts were changed, and
// does so once for each time; an error says that it does not matter.
func (who *claimant) isOutdated() (bool, error) {
	s := &who.manager.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	if who.removed {
		return false, errRemoved
	}
	was := who.outdated
	who.outdated = false
	return was, nil
}

// ask asks a function of the application's about an arrival that claims to be who.
func (who *claimant) ask(a *arrival, at *progress, f func() error) error {
	if who.manager == nil {
		return who.conn.ask(a, at, f)
	}
	who.hold()
	err := a.run(at, who.manager.panicked, f, who.leave)
	var left *leftError
	if !errors.As(err, &left) {
		who.leave()
	}
	return err
}

// takeIn makes who a host, if AcceptHost says so.
func (m *Manager) takeIn(who *claimant, r *http.Request, a *arrival, at *progress) error {
	ctx, cancel := context.WithCancelCause(at.ctx)
	defer cancel(nil)
	// Of a knock it would not end with the manager.
	defer context.AfterFunc(a.ctx, func() { cancel(context.Cause(a.ctx)) })()
	shown := a.show(r)
	for added := false; !added; {
		if _, err := who.isOutdated(); err != nil {
			return err
		}
		if err := who.ask(a, at, func() error { return m.opts.AcceptHost(ctx, who.name, shown) }); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var err error
		if added, err = m.addAccepted(who); err != nil {
			return err
		}
	}
	if who.conn = m.peer(who.name); who.conn == nil {
		return errRemoved // at once
	}
	m.opts.Logger.Info("grid: host accepted", "remote", who.name, "addr", addrOf(r))
	return nil
}

// addAccepted adds who to the hosts, unless AcceptHost has to be asked again.
func (m *Manager) addAccepted(who *claimant) (added bool, err error) {
	var refused error
	added = true
	err = m.changeHosts(hostsChange{accepted: who.name, to: func(hosts []string) []string {
		outdated, err := who.isOutdated()
		switch {
		case slices.Contains(hosts, who.name):
		case err != nil:
			refused = err
		case outdated:
			added = false
		case len(hosts) >= m.opts.MaxHosts:
			refused = m.opts.fullOfHosts(len(hosts))
		default:
			return append(hosts, who.name)
		}
		return hosts
	}})
	return added, cmp.Or(err, refused)
}

// addPass remembers the pass of a knock. known is the host that has signed it, or nil.
func (m *Manager) addPass(known *Connection, signer string, nonce token.Nonce, now time.Time) error {
	switch {
	case known != nil:
		return m.passes.Add(known.remote, nonce, now)
	case m.opts.AcceptHost == nil:
		return nil // it is refused in any case
	}
	name, err := normalHost(signer)
	if err != nil {
		return fmt.Errorf("knock of %s, which is no host", clip.Name(signer))
	}
	return m.passes.AddStranger(name, nonce, now)
}
