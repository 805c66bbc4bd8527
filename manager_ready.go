package grid

import (
	"fmt"
	"net/http"
)

// Ready returns an HTTP handler that says whether this host is ready for requests of clients, for a
// probe of Kubernetes or a load balancer: 200 where enough links are up, else 503, and so once the
// Manager is shutting down or closed, and until
// Register has returned and BlockConnect is closed. The body is a line of text
// that says which it is, with the number of hosts and no names.
//
// enough is told how many other hosts are connected, and how many there are, and is called for each
// request, on its goroutine. nil is for a majority: this host and those that are connected are more
// than half of all. Where hosts find each other only when they are ready, that can't come about: see
// docs/operations.md on Kubernetes.
func (m *Manager) Ready(enough func(connected, others int) bool) http.HandlerFunc {
	if enough == nil {
		enough = func(connected, others int) bool { return 2*(connected+1) > others+1 }
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		connected, others := m.countLinks()
		links := fmt.Sprintf("%d of %d other hosts connected", connected, others)
		switch {
		case m.ctx.Err() != nil:
			respondUnavailable(w, errClosed)
		case m.draining.Load():
			respondUnavailable(w, errShuttingDown)
		case m.hold.isRegistering():
			http.Error(w, "grid: not ready: Register has not returned", http.StatusServiceUnavailable)
		case m.hold.isBlocked():
			http.Error(w, "grid: not ready: BlockConnect is not closed", http.StatusServiceUnavailable)
		case !enough(connected, others):
			http.Error(w, "grid: not ready: "+links, http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintln(w, "grid: ready: "+links)
		}
	}
}

// countLinks counts the other hosts, and those of them that are connected.
func (m *Manager) countLinks() (connected, others int) {
	conns := m.hosts.Load().conns
	for _, c := range conns {
		if c.session.Load() != nil {
			connected++
		}
	}
	return connected, len(conns)
}
