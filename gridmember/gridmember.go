// Package gridmember keeps the hosts of a grid by gossip: who joins is a host on all of them, who
// leaves or dies is removed.
//
// It is hashicorp/memberlist, with the base URL of a host as the name of its member. So a new host
// needs to know no more than one or a few of the others:
//
//	m, err := grid.NewManager(ctx, grid.ManagerOptions{Local: local, Hosts: []string{local}, ...})
//	...
//	members, err := gridmember.Join(m, nil, "10.0.0.1:7946", "10.0.0.2:7946")
//	...
//	defer members.Leave(5 * time.Second)
//
// Who can send gossip decides which hosts are dialled: give the configuration a SecretKey where the
// network can't be trusted. Who may call is decided by the grid, as ever: a host that gossip has
// brought needs a valid token.
//
// A host that is cut off from the others is dead for them, and they for it, after memberlist's
// suspicion timeout, some seconds; its calls end with [grid.ErrDisconnected]. Who was lost is asked
// again every PushPullInterval of the configuration, some at a time, for an hour, and one of the
// seeds every ten of these intervals for good. When they find each other they are hosts again. So
// where addresses may come to belong to another grid, give the configuration a SecretKey or a
// Label.
package gridmember

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gridrpc/grid"
)

// Membership is a Manager's part in the gossip. Its methods may be called concurrently.
type Membership struct {
	manager *grid.Manager
	list    *memberlist.Memberlist
	log     *slog.Logger
	changed chan struct{} // holds a token when the members may have changed
	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once
	gone    gone
	refused map[string]bool // names that are no hosts, and were logged; the goroutine's own
}

// Join begins to gossip, and joins those of seeds that it reaches: addresses of members, with
// memberlist's port. From then on the hosts of m are the members, and what [grid.Manager.SetHosts]
// says otherwise lasts for a PushPullInterval at the most. Without seeds the host waits for others
// to join it.
//
// conf is memberlist's configuration, of which a copy is used; the default is its DefaultLANConfig.
// Name is set, and Events is called as well as seen.
//
// Where DeadNodeReclaimTime is 0 it is set to a second, so that a host which has died may come back
// at another address; that still takes memberlist half a minute or so.
//
// It is an error if none of the seeds is reached, which the caller may try again, and if memberlist
// can't listen; then the hosts are as they were. A member whose name is no host is logged once, by
// [slog.Default], and left out. What memberlist logs itself goes where its configuration says.
func Join(m *grid.Manager, conf *memberlist.Config, seeds ...string) (*Membership, error) {
	if conf == nil {
		conf = memberlist.DefaultLANConfig()
	}
	c := *conf
	s := &Membership{
		manager: m,
		log:     slog.Default(),
		changed: make(chan struct{}, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
		refused: make(map[string]bool),
	}
	c.Name = m.HostName()
	c.DeadNodeReclaimTime = cmp.Or(c.DeadNodeReclaimTime, time.Second)
	c.Events = &events{s, conf.Events}
	list, err := memberlist.Create(&c)
	if err != nil {
		return nil, fmt.Errorf("gridmember: %w", err)
	}
	s.list = list
	if len(seeds) > 0 {
		if _, err := list.Join(seeds); err != nil {
			return nil, errors.Join(fmt.Errorf("gridmember: join: %w", err), list.Shutdown())
		}
	}
	go s.follow()
	go s.rejoin(c.PushPullInterval, slices.Clone(seeds))
	return s, nil
}

// Members returns the base URLs of all members, this host among them, sorted.
func (s *Membership) Members() []string {
	var hosts []string
	for _, n := range s.list.Members() {
		hosts = append(hosts, n.Name)
	}
	slices.Sort(hosts)
	return hosts
}

// List is memberlist's own view, for whatever else it offers.
func (s *Membership) List() *memberlist.Memberlist { return s.list }

// Leave tells the others that this host leaves, waits until that has spread, for no longer than
// timeout, and closes. They remove it at once, rather than after a time of suspicion. Call it
// before the Shutdown of the manager, or after: hosts that have left can't be called. After Leave
// or Close it does nothing and returns nil; while another call of either is under way it waits for
// that.
func (s *Membership) Leave(timeout time.Duration) (err error) {
	s.once.Do(func() { err = errors.Join(s.list.Leave(timeout), s.close()) })
	return err
}

// Close ends the gossip without a word: for the others this host has died. The hosts of the manager
// stay as they are. A member that is being asked at this moment is asked to the end, for no longer
// than memberlist's TCPTimeout. After Leave or Close it does nothing and returns nil.
func (s *Membership) Close() (err error) {
	s.once.Do(func() { err = s.close() })
	return err
}

func (s *Membership) close() error {
	close(s.stop)
	<-s.stopped
	return s.list.Shutdown()
}

// follow makes the hosts what the members are, until Close.
func (s *Membership) follow() {
	defer close(s.stopped)
	for {
		select {
		case <-s.changed:
			s.apply()
		case <-s.stop:
			return
		}
	}
}

// apply changes what differs. One by one, so that a name that is no host keeps out no other.
func (s *Membership) apply() {
	stay := make(map[*grid.Connection]bool) // a member may spell its name in another way than its host
	for _, host := range s.Members() {
		s.check(host, s.manager.AddHost(host))
		stay[s.manager.Connection(host)] = true
	}
	for _, host := range s.manager.Targets() {
		if !stay[s.manager.Connection(host)] {
			s.check(host, s.manager.RemoveHost(host))
		}
	}
}

// wake has follow look.
func (s *Membership) wake() {
	select {
	case s.changed <- struct{}{}:
	default: // it will
	}
}

func (s *Membership) check(host string, err error) {
	if err == nil || errors.Is(err, grid.ErrDisconnected) || s.refused[host] {
		return // the manager has ended, or that is known
	}
	s.refused[host] = true
	s.log.Warn("gridmember: member is no host", "local", s.manager.HostName(), "member", host, "error", err)
}

// events wakes follow, and tells those who wanted to know before.
type events struct {
	s    *Membership
	next memberlist.EventDelegate
}

// NotifyJoin implements [memberlist.EventDelegate].
func (e *events) NotifyJoin(n *memberlist.Node) {
	e.s.gone.remove(n)
	e.s.wake()
	if e.next != nil {
		e.next.NotifyJoin(n)
	}
}

// NotifyLeave implements [memberlist.EventDelegate].
func (e *events) NotifyLeave(n *memberlist.Node) {
	e.s.gone.add(n)
	e.s.wake()
	if e.next != nil {
		e.next.NotifyLeave(n)
	}
}

// NotifyUpdate implements [memberlist.EventDelegate].
func (e *events) NotifyUpdate(n *memberlist.Node) {
	e.s.wake()
	if e.next != nil {
		e.next.NotifyUpdate(n)
	}
}
