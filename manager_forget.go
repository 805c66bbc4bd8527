package grid

import (
	"slices"
	"time"
)

// keepForgetting removes the hosts that AcceptHost has taken in, and that have had no link for as
// long as ForgetAfter, until the manager ends.
func (m *Manager) keepForgetting() {
	tick := time.NewTicker(min(max(m.opts.ForgetAfter/8, minInterval), time.Minute))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.forget(time.Now())
		case <-m.closing:
			return
		}
	}
}

// forget removes those that have had no link for as long at a time.
func (m *Manager) forget(now time.Time) {
	due := func(host string) bool {
		c := m.hosts.Load().conns[host]
		return c != nil && c.accepted.Load() && c.alone(now) >= m.opts.ForgetAfter
	}
	if !slices.ContainsFunc(m.hosts.Load().targets, due) {
		return
	}
	var gone []string
	err := m.changeHosts(hostsChange{to: func(hosts []string) []string {
		return slices.DeleteFunc(hosts, func(host string) bool {
			if !due(host) {
				return false
			}
			gone = append(gone, host)
			return true
		})
	}})
	if err != nil {
		return // it is shutting down
	}
	for _, host := range gone {
		m.opts.Logger.Info("grid: host forgotten", "remote", host, "unconnected", m.opts.ForgetAfter)
	}
}

// alone is for how long there has been no link; 0 where there is one.
func (c *Connection) alone(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sessionsLocked()) > 0 {
		return 0
	}
	since, _, _ := c.stats.lastFault()
	if since.IsZero() {
		since = c.began
	}
	return now.Sub(since)
}
