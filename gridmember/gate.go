package gridmember

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/hostname"
)

// gateTime is how long a host may wait for the gossip of it, which takes a few rounds of that. It is
// less than a handshake may take, so that a host that waits in vain is told so.
const gateTime = 3 * time.Second

var (
	errNoMember = errors.New("it is no member of the gossip")
	errNoGossip = errors.New("the gossip has ended")
)

// Gate has a new member let in at once. Without it, a host that dials before the gossip of it has
// come is refused as unknown, and tries again after a pause; with it, the host waits for the gossip,
// for no longer than 3 seconds. Who is no member is refused by then, as without a Gate: it is still
// gossip that says which hosts there are.
//
//	var gate gridmember.Gate
//	m, err := grid.NewManager(ctx, grid.ManagerOptions{..., AcceptHost: gate.AcceptHost})
//	...
//	members, err := gate.Join(m, nil, "10.0.0.1:7946", "10.0.0.2:7946")
//
// Hosts that the gossip has brought are named hosts for [grid.Manager.Ready], and are not subject to
// ForgetAfter of [grid.ManagerOptions]: they go when the gossip says so.
//
// The zero value is ready, and belongs to one Manager. Its methods may be called concurrently.
type Gate struct {
	mu     sync.Mutex    // guards what follows
	open   *Membership   // nil before Join
	opened chan struct{} // closed by Join; made by the first who waits
}

// Join is the function [Join], whose members the Gate lets in.
func (g *Gate) Join(m *grid.Manager, conf *memberlist.Config, seeds ...string) (*Membership, error) {
	s, err := Join(m, conf, seeds...)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = s
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
	return s, nil
}

// membership is that of Join, or nil, with what is closed when there is one.
func (g *Gate) membership() (s *Membership, opened <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil && g.opened == nil {
		g.opened = make(chan struct{})
	}
	return g.open, g.opened
}

// AcceptHost is that of [grid.ManagerOptions]. It returns nil once host is a member.
func (g *Gate) AcceptHost(ctx context.Context, host string, _ *http.Request) error {
	timeout := time.NewTimer(gateTime)
	defer timeout.Stop()
	for {
		s, opened := g.membership()
		var changed, stop <-chan struct{}
		if s != nil {
			changed, stop = s.nextChange(), s.stop
			if s.isMember(host) {
				return nil
			}
		}
		select {
		case <-opened:
		case <-changed:
		case <-stop:
			return errNoGossip
		case <-timeout.C:
			return errNoMember
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isMember reports whether host, in normal form, is a member.
func (s *Membership) isMember(host string) bool {
	for _, n := range s.list.Members() {
		if n.Name == host {
			return true
		}
		if normal, err := hostname.Normalize(n.Name); err == nil && normal == host {
			return true
		}
	}
	return false
}

// nextChange is closed when the members may have changed after it was asked for.
func (s *Membership) nextChange() <-chan struct{} {
	s.waitersMu.Lock()
	defer s.waitersMu.Unlock()
	if s.waiters == nil {
		s.waiters = make(chan struct{})
	}
	return s.waiters
}

// tellWaiters tells those who wait for a change.
func (s *Membership) tellWaiters() {
	s.waitersMu.Lock()
	defer s.waitersMu.Unlock()
	if s.waiters != nil {
		close(s.waiters)
		s.waiters = nil
	}
}
