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
// With a [Gate] a new host need not try again where it comes before the gossip of it.
//
// Who can send gossip decides which hosts are dialled, by all hosts: it can make them dial any
// addresses, 4096 at a time, and send an upgrade request to each, which with AuthFn has the token
// of the host that dials. It can also have hosts removed, and keep new ones out. So give the
// configuration a SecretKey wherever somebody else may reach memberlist's port: that is what
// prevents it. Who may call is decided by the grid, as ever: a host that gossip has brought needs a
// valid token.
//
// What gossip can make a host keep is bounded. No more than 4096 names are known, those of members
// that left lately among them; further members, and those whose name has more than 300 bytes, are
// refused, of which memberlist's log tells. Of that log no more than 100 lines of 1 KiB are written
// in a minute, and the number of those that were dropped.
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
	"io"
	"log"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/hostname"
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
	admit   *admission
	gone    gone

	waitersMu sync.Mutex
	waiters   chan struct{} // closed at the next change; nil while nobody waits for it

	// The goroutine's own.
	refused  map[string]bool // members that are no hosts
	refusals errlog.Log
}

// Join begins to gossip, and joins those of seeds that it reaches: addresses of members, with
// memberlist's port. From then on the hosts of m are the members, and what [grid.Manager.SetHosts]
// says otherwise lasts for a PushPullInterval at the most. Without seeds the host waits for others
// to join it.
//
// conf is memberlist's configuration, of which a copy is used; the default is its DefaultLANConfig.
// Name is set, and Events and Alive are called as well as seen.
//
// Where DeadNodeReclaimTime is 0 it is set to a second, so that a host which has died may come back
// at another address; that still takes memberlist half a minute or so.
//
// It is an error if none of the seeds is reached, which the caller may try again, and if memberlist
// can't listen; then the hosts are as they were. A member whose name is no host is left out. The
// first is logged, by [slog.Default], and then one an hour for each reason. What memberlist logs
// itself goes where its configuration says.
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
	}
	c.Name = m.HostName()
	s.admit = newAdmission(&c)
	c.Alive = s.admit
	if c.Logger != nil {
		c.Logger = log.New(&rationed{to: conf.Logger.Writer}, c.Logger.Prefix(), c.Logger.Flags())
	} else if c.LogOutput == nil {
		c.LogOutput = &rationed{to: func() io.Writer { return os.Stderr }}
	} else {
		c.LogOutput = &rationed{to: func() io.Writer { return conf.LogOutput }}
	}
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

// apply makes the hosts what the members are, but for those whose name is no host.
func (s *Membership) apply() {
	hosts, names := []string{s.manager.HostName()}, []string{s.manager.HostName()}
	seen := map[string]bool{hosts[0]: true} // a member may spell its name in another way than its host
	before := s.refused
	s.refused = make(map[string]bool)
	for _, name := range s.Members() {
		host, err := hostname.Normalize(name)
		switch {
		case before[name]:
			s.refused[name] = true
		case err != nil:
			s.refuse(name, err)
		case !seen[host]:
			seen[host] = true
			hosts, names = append(hosts, host), append(names, name)
		}
	}
	if s.manager.SetHosts(hosts) == nil {
		return
	}
	// Those with another scheme than this host may be refused, one by one. They keep out no other.
	scheme, _, _ := strings.Cut(s.manager.HostName(), ":")
	some := hosts[:0]
	for i, host := range hosts {
		if !strings.HasPrefix(host, scheme+":") {
			if err := s.manager.AddHost(host); err != nil {
				s.refuse(names[i], err)
				continue
			}
		}
		some = append(some, host)
	}
	if err := s.manager.SetHosts(some); err != nil {
		s.warn("gridmember: cannot set the hosts", "", err)
	}
}

// refuse leaves a member out.
func (s *Membership) refuse(name string, err error) {
	s.refused[name] = true
	s.warn("gridmember: member is no host", name, err)
}

func (s *Membership) warn(what, member string, err error) {
	if errors.Is(err, grid.ErrDisconnected) {
		return // the manager has ended
	}
	s.refusals.WarnReason(s.log.With("local", s.manager.HostName(), "member", member), what, err)
}

// wake has follow look.
func (s *Membership) wake() {
	s.tellWaiters()
	select {
	case s.changed <- struct{}{}:
	default: // it will
	}
}

// wasConnected reports whether the grid has ever been connected to a member, as which then some
// host has proved itself.
func (s *Membership) wasConnected(name string) bool {
	return !s.manager.Connection(name).Stats().LastConnect.IsZero()
}

// events wakes follow, and tells those who wanted to know before.
type events struct {
	s    *Membership
	next memberlist.EventDelegate
}

// NotifyJoin implements [memberlist.EventDelegate].
func (e *events) NotifyJoin(n *memberlist.Node) {
	e.s.admit.joined(n.Name)
	e.s.gone.remove(n)
	e.s.wake()
	if e.next != nil {
		e.next.NotifyJoin(n)
	}
}

// NotifyLeave implements [memberlist.EventDelegate].
func (e *events) NotifyLeave(n *memberlist.Node) {
	e.s.admit.left(n.Name)
	e.s.gone.add(n, e.s.wasConnected(n.Name))
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
