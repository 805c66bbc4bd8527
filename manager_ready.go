package grid

import (
	"fmt"
	"net/http"

	"github.com/gridrpc/grid/internal/httpbody"
)

// HostLink is one of the other hosts, for who says by [Manager.Ready] whether there are enough.
type HostLink struct {
	// Host is its base URL.
	Host string
	// Connected reports whether there is a link to it.
	Connected bool
	// Accepted reports whether it is a host only because AcceptHost has taken it in: not once it was
	// given to [Manager.AddHost] or [Manager.SetHosts].
	Accepted bool
}

// Ready returns an HTTP handler that says whether this host is ready for requests of clients, for a
// probe of Kubernetes or a load balancer: 200 where enough links are up, else 503, and so once the
// Manager is shutting down or closed, and until Register has returned and BlockConnect is closed.
// The body is a line of text that says which it is, with the number of hosts and no names.
//
// enough is told of all other hosts, sorted by name, and is called for each request, on its
// goroutine. nil is for a majority of the hosts that the application has named, by
// ManagerOptions.Hosts, [Manager.AddHost] and [Manager.SetHosts]: this host and those of them that
// are connected are more than half of them. Those that AcceptHost has taken in do not count, as they
// may have gone for good, unless there are no others: then one has to be connected. So a host that
// knows only itself is not ready by default. A cluster of one has to say so:
//
//	m.Ready(func([]grid.HostLink) bool { return true })
//
// Where hosts find each other only when they are ready, a majority can't come about: see
// docs/operations.md on Kubernetes.
func (m *Manager) Ready(enough func(others []HostLink) bool) http.HandlerFunc {
	if enough == nil {
		enough = func(others []HostLink) bool { return countLinks(others).majority() }
	}
	return func(w http.ResponseWriter, r *http.Request) {
		httpbody.Unread(w, r)
		w.Header().Set("Cache-Control", "no-store")
		others := m.hostLinks()
		links := countLinks(others).String()
		switch {
		case m.ctx.Err() != nil:
			respondUnavailable(w, errClosed)
		case m.draining.Load():
			respondUnavailable(w, errShuttingDown)
		case m.hold.isRegistering():
			http.Error(w, "grid: not ready: Register has not returned", http.StatusServiceUnavailable)
		case m.hold.isBlocked():
			http.Error(w, "grid: not ready: BlockConnect is not closed", http.StatusServiceUnavailable)
		case !enough(others):
			http.Error(w, "grid: not ready: "+links, http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintln(w, "grid: ready: "+links)
		}
	}
}

func (m *Manager) hostLinks() []HostLink {
	hosts := m.hosts.Load()
	links := make([]HostLink, len(hosts.targets))
	for i, host := range hosts.targets {
		c := hosts.conns[host]
		links[i] = HostLink{Host: host, Connected: c.session.Load() != nil, Accepted: c.accepted.Load()}
	}
	return links
}

// linkCounts counts the other hosts: those that the application has named, and those that AcceptHost
// has taken in.
type linkCounts struct{ named, accepted linkCount }

type linkCount struct{ connected, all int }

func countLinks(links []HostLink) (n linkCounts) {
	for _, l := range links {
		count := &n.named
		if l.Accepted {
			count = &n.accepted
		}
		count.all++
		if l.Connected {
			count.connected++
		}
	}
	return n
}

func (n linkCounts) majority() bool {
	if n.named.all == 0 {
		return n.accepted.connected > 0
	}
	return 2*(n.named.connected+1) > n.named.all+1
}

func (n linkCounts) String() string {
	s := fmt.Sprintf("%d of %d other hosts connected", n.named.connected, n.named.all)
	if n.accepted.all > 0 {
		s += fmt.Sprintf(", and %d of %d that AcceptHost has taken in", n.accepted.connected, n.accepted.all)
	}
	return s
}
