package grid

// ManagerStats is the state of a [Manager] at one moment.
type ManagerStats struct {
	HostName string
	// ID is that of the Manager, new for each.
	ID string
	// Connected is how many of the connections are.
	Connected int
	// StateChangesMissed is how many changes of states OnStateChange was not told of by themselves,
	// because it had not kept up. It is not among those that fall.
	StateChangesMissed int64
	// What follows is the sum of all present Connections; so a counter falls when a host is
	// removed.
	Traffic
	Reconnects, Calls, Streams, Handlers, StreamsServed, SlowConsumers, QueuedBytes int
	KeptBytes, Refused                                                              int64
	// Connections are in the order of [Manager.Targets]: that of the local host to itself is not
	// among them.
	Connections []ConnectionStats
}

// Stats returns the present statistics of all connections.
func (m *Manager) Stats() ManagerStats {
	st := ManagerStats{HostName: m.opts.Local, ID: m.ID.String(), StateChangesMissed: m.stateHook.missedChanges()}
	hosts := m.hosts.Load()
	for _, host := range hosts.targets {
		c := hosts.conns[host].Stats()
		if c.State == StateConnected {
			st.Connected++
		}
		st.Traffic.add(c.Traffic)
		st.Reconnects += c.Reconnects
		st.Calls += c.Calls
		st.Streams += c.Streams
		st.Handlers += c.Handlers
		st.StreamsServed += c.StreamsServed
		st.SlowConsumers += c.SlowConsumers
		st.QueuedBytes += c.QueuedBytes
		st.KeptBytes += c.KeptBytes
		st.Refused += c.Refused
		st.Connections = append(st.Connections, c)
	}
	return st
}
