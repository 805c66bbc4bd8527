package grid

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/hostname"
)

// Which hosts there are, and how that changes.

var errRemoved = errors.New("the host was removed")

// hostSet is the other hosts. It is never changed once it is published.
type hostSet struct {
	conns   map[string]*Connection
	targets []string // sorted
}

// normalHost is the normal form of the name of a host.
func normalHost(host string) (string, error) {
	normal, err := hostname.Normalize(host)
	if err != nil {
		return "", fmt.Errorf("grid: host %s: %w", clip.Name(host), clip.Error(err))
	}
	return normal, nil
}

// normalHosts is the normal form of the names of all hosts, the local one among them.
func (o *ManagerOptions) normalHosts(hosts []string) ([]string, error) {
	all := make([]string, 0, len(hosts))
	spelled := make(map[string]string, len(hosts))
	for _, h := range hosts {
		normal, err := normalHost(h)
		if err != nil {
			return nil, err
		}
		switch before, ok := spelled[normal]; {
		case ok && before == h:
			return nil, fmt.Errorf("grid: host %q is given twice", h)
		case ok:
			return nil, fmt.Errorf("grid: host %q is given twice, also as %q", h, before)
		}
		if err := o.checkScheme(normal); err != nil {
			return nil, fmt.Errorf("grid: host %q %w", h, err)
		}
		spelled[normal] = h
		all = append(all, normal)
	}
	if _, ok := spelled[o.Local]; !ok {
		return nil, fmt.Errorf("grid: local host %q is not in Hosts %q", o.Local, hosts)
	}
	return all, nil
}

// checkScheme returns why a host may not be one because of its scheme.
func (o *ManagerOptions) checkScheme(host string) error {
	if isSecure(o.Local) && !isSecure(host) && !o.AllowHTTPHosts {
		return fmt.Errorf("has http, the local host %q https, and AllowHTTPHosts is not set", o.Local)
	}
	return nil
}

// AddHost adds a host to those of the options, by its base URL: from now on it is dialled or
// awaited. It does nothing if the host is there already.
//
// A host is to be added on all others, and they on it, in any order: one that does not know the
// other yet refuses it, and is tried again within MaxBackoff. Where the others have an AcceptHost,
// it is enough to add one of them on the new host.
//
// An error says what is wrong with the name; after Shutdown or Close it wraps [ErrDisconnected].
// AddHost, RemoveHost and SetHosts may be called concurrently, and while calls are made.
func (m *Manager) AddHost(host string) error {
	if c := m.hosts.Load().conns[host]; c != nil && !c.accepted.Load() && m.ctx.Err() == nil && !m.draining.Load() {
		return nil // without the work in proportion to all hosts: it may be called for each of them
	}
	normal, err := normalHost(host)
	if err != nil {
		return err
	}
	return m.changeHosts(hostsChange{
		to: func(hosts []string) []string {
			if slices.Contains(hosts, normal) {
				return hosts
			}
			return append(hosts, normal)
		},
		named: func(host string) bool { return host == normal },
	})
}

// RemoveHost takes a host away: calls and streams to and from it end with [ErrDisconnected] on both
// sides, the contexts of its handlers end, and its link is closed. It does nothing if there is no
// such host.
//
// Its [Connection] is of no use any more, nor what was made of it by Subroute, With or WithTimeout,
// also when the host is added again: [Manager.Connection] returns another one then. Calls over the
// old one fail with [ErrHostRemoved], and so does WaitForConnect.
// One that AcceptHost is being asked about is refused, whatever it says.
//
// It is an error to remove the local host, and after Shutdown or Close, as for AddHost.
func (m *Manager) RemoveHost(host string) error {
	if normal, err := hostname.Normalize(host); err == nil {
		host = normal // else there is none
	}
	return m.changeHosts(hostsChange{to: func(hosts []string) []string {
		m.strangers.remove(host)
		return slices.DeleteFunc(hosts, func(h string) bool { return h == host })
	}})
}

// SetHosts adds and removes hosts, so that they are those that are given, in any order, the local
// one among them: ManagerOptions.Hosts anew. Hosts that stay keep their connections. AcceptHost is
// asked again about a host that it is being asked about, as its answer may be from before. With an
// error, as of [NewManager], nothing has changed.
func (m *Manager) SetHosts(hosts []string) error {
	return m.changeHosts(hostsChange{
		to: func([]string) []string {
			m.strangers.outdate()
			return hosts
		},
		named: func(string) bool { return true },
	})
}

// hostsChange is a change of the hosts.
type hostsChange struct {
	to       func(hosts []string) []string // is called with m.hostsMu locked
	named    func(host string) bool        // reports whether the application has named it now; may be nil
	accepted string                        // is arriving, and AcceptHost takes it in; empty for none
}

// changeHosts makes the hosts what the change makes of them. One that is arriving is not asked to
// dial.
func (m *Manager) changeHosts(change hostsChange) error {
	// Close takes the lock after its end has been decided, so it finds all those that are added
	// here, and waits until those that are removed have ended.
	if !m.begin() {
		return disconnected("", errClosed)
	}
	defer m.work.Done()
	removed, err := m.replaceHosts(change)
	for _, c := range removed {
		c.shutdown(errRemoved)
	}
	m.hostsMu.Lock()
	defer m.hostsMu.Unlock()
	m.limits.divide(m.isHost)
	return err
}

func (m *Manager) replaceHosts(change hostsChange) (removed map[string]*Connection, err error) {
	m.hostsMu.Lock()
	defer m.hostsMu.Unlock()
	if m.draining.Load() {
		return nil, disconnected("", errShuttingDown)
	}
	old := m.hosts.Load()
	hosts, err := m.opts.normalHosts(change.to(append(slices.Clone(old.targets), m.opts.Local)))
	if err != nil {
		return nil, err
	}
	removed = maps.Clone(old.conns)
	next := &hostSet{conns: make(map[string]*Connection, len(hosts))}
	var added []*Connection
	for _, host := range hosts {
		if host == m.opts.Local {
			continue
		}
		c := old.conns[host]
		if c == nil {
			c = newConnection(m, host, m.limits.of(host))
			c.state.host, c.state.hook = host, m.stateHook
			c.accepted.Store(host == change.accepted)
			added = append(added, c)
		} else if change.named != nil && change.named(host) {
			c.accepted.Store(false)
		}
		delete(removed, host)
		next.conns[host] = c
		next.targets = append(next.targets, host)
	}
	slices.Sort(next.targets)
	m.incoming.setLimit(m.opts.maxHandshakes(len(hosts)))
	m.hosts.Store(next)
	// Under the lock, so that of a host which is added again the end of the old connection is told
	// before anything of the new one.
	for _, c := range removed {
		c.end(errRemoved)
	}
	for _, c := range added {
		if c.dials {
			m.start(func() { c.keepDialling(c.ctx) })
		} else if c.remote != change.accepted {
			c.knock(0)
		}
	}
	return removed, nil
}

// isHost reports whether limits are those of a present host, by its name, or of a link to itself.
func (m *Manager) isHost(name string) bool {
	return m.hosts.Load().conns[name] != nil || m.self != nil && (name == nearLimits || name == farLimits)
}

// peer is the connection to another host, by its name in any spelling, or nil.
func (m *Manager) peer(host string) *Connection {
	conns := m.hosts.Load().conns
	if c := conns[host]; c != nil {
		return c
	}
	normal, err := hostname.Normalize(host)
	if err != nil {
		return nil
	}
	return conns[normal]
}

// connections are all that the manager has, those to itself included.
func (m *Manager) connections() (all []*Connection) {
	for _, c := range m.hosts.Load().conns {
		all = append(all, c)
	}
	if m.self != nil {
		all = append(all, m.self.near, m.self.far)
	}
	return all
}
