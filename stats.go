package grid

import (
	"cmp"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/wsconn"
)

// ConnectionStats is the state of a [Connection] at one moment.
type ConnectionStats struct {
	// HostName is the base URL of the remote host.
	HostName string
	State    State
	// Dials tells whether this side dials the other.
	Dials bool
	// LastConnect is when the last connection was made; zero for never.
	LastConnect time.Time
	// Reconnects is the number of connections made after the first.
	Reconnects int
	// LastError is why the last connection was lost or could not be made.
	LastError string
	// RoundTrip is that of the last ping; zero before the first.
	RoundTrip time.Duration
	// BytesIn and BytesOut are those of all websockets so far.
	BytesIn, BytesOut int64
	// Calls and Streams were started here and are under way.
	Calls, Streams int
	// KeptBytes are those of payloads that count towards MaxHostBytes.
	KeptBytes int64
	// Handlers are running here for the remote host.
	Handlers int
	// StreamsServed are the streams among them.
	StreamsServed int
}

// ManagerStats is the state of a [Manager] at one moment.
type ManagerStats struct {
	HostName string
	// Connected is how many of the connections are.
	Connected int
	// Connections are in the order of [Manager.Targets].
	Connections []ConnectionStats
}

// connectionCounters are kept from session to session.
type connectionCounters struct {
	mu        sync.Mutex
	connects  int
	last      time.Time
	lastError string
	// Bytes of the sessions that have ended.
	in, out int64
}

func (c *connectionCounters) connected(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connects++
	c.last = now
}

func (c *connectionCounters) lost(s *session) {
	in, _ := s.ws.Reading()
	out, _ := s.ws.Writing()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in += in
	c.out += out
}

func (c *connectionCounters) fault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastError = err.Error()
}

// Stats returns the present statistics; their zero value for nil.
func (c *Connection) Stats() ConnectionStats {
	if c == nil {
		return ConnectionStats{}
	}
	// Under the lock with which they change, so that they are of one moment.
	c.mu.Lock()
	st := ConnectionStats{
		HostName:  c.remote,
		State:     c.state.get(),
		Dials:     c.dials,
		Handlers:  int(c.handlerSlots.n.Load()),
		KeptBytes: c.kept.used.Load(),
	}
	c.stats.mu.Lock()
	st.LastConnect = c.stats.last
	st.Reconnects = max(c.stats.connects-1, 0)
	st.LastError = c.stats.lastError
	st.BytesIn, st.BytesOut = c.stats.in, c.stats.out
	c.stats.mu.Unlock()
	sessions := c.sessionsLocked()
	c.mu.Unlock()
	for _, s := range sessions {
		in, _ := s.ws.Reading()
		out, _ := s.ws.Writing()
		st.BytesIn += in
		st.BytesOut += out
		st.RoundTrip = cmp.Or(st.RoundTrip, time.Duration(s.live.rtt.Load()))
		st.Calls += s.calls.size()
		st.Streams += s.streams.size()
		st.StreamsServed += s.served.size()
	}
	return st
}

// Stats returns the present statistics of all connections.
func (m *Manager) Stats() ManagerStats {
	st := ManagerStats{HostName: m.opts.Local}
	hosts := m.hosts.Load()
	for _, host := range hosts.targets {
		c := hosts.conns[host].Stats()
		if c.State == StateConnected {
			st.Connected++
		}
		st.Connections = append(st.Connections, c)
	}
	return st
}

func (o *ManagerOptions) counters() wsconn.Counters {
	return wsconn.Counters{Read: o.Incoming, Written: o.Outgoing}
}
