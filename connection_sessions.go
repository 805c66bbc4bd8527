package grid

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The sessions of a connection, one after the other.

var (
	errClosed   = errors.New("the manager is closed")
	errReplaced = errors.New("replaced by a new connection from the same host")
)

// probeTime is how long the present connection of a host has to show that it is alive, before that
// of another process under the same name takes its place.
const probeTime = time.Second

// adopt makes s the session. It replaces the present one, unless that belongs to another process
// which is alive: two of them under one name would otherwise evict each other for ever.
func (c *Connection) adopt(s *session) error {
	var cleared *session // was probed, and is not alive
	for {
		c.mu.Lock()
		old := c.session.Load()
		if old != nil && old != cleared && old.peerID != s.peerID {
			c.mu.Unlock()
			if old.watch.probe(min(probeTime, c.opts.HandshakeTimeout/2)) {
				return rejectf("two processes use one host name: another is connected as %s, from %v, and alive", c.remote, old.ws.RemoteAddr())
			}
			cleared = old
			continue
		}
		if err := c.acceptsLocked(); err != nil {
			c.mu.Unlock()
			return err
		}
		// The session is there before the state says so to those who wait.
		c.session.Store(s)
		c.state.set(StateConnected, nil)
		c.stats.connected(s.began)
		c.withdrawKnockLocked()
		if old != nil {
			c.stats.lost(old)
		}
		c.mu.Unlock()
		if old != nil {
			old.close(errReplaced)
		}
		c.warnOfTwin(s)
		return nil
	}
}

// warnOfTwin logs that the process which s leads to is connected under another name as well: it has
// the limits of two hosts, and whoever counts hosts counts it twice.
func (c *Connection) warnOfTwin(s *session) {
	if s.peerID == [16]byte{} {
		return
	}
	for name, other := range c.hosts.Load().conns {
		if link := other.session.Load(); other != c && link != nil && link.peerID == s.peerID {
			c.twins.WarnReason(c.log, "grid: two hosts are one process", fmt.Errorf("it is connected as %s, too", name))
			return
		}
	}
}

// acceptsLocked returns why no session may be published any more. It is asked before, and the lock
// held until after: so whoever ends the connection, or announces a shutdown, sees the session, or
// this that. A call can't get hold of a session that nobody runs.
func (c *Connection) acceptsLocked() error {
	switch {
	case c.isClosing(): // before the state is the last one, see end
		return rejectf("%v", context.Cause(c.ctx))
	case c.draining.Load():
		return rejectf("%v", errShuttingDown)
	}
	return nil
}

// lost takes s away, unless it was replaced already.
func (c *Connection) lost(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	current := c.session.CompareAndSwap(s, nil)
	if !current && c.left != s {
		return
	}
	c.stats.lost(s)
	if !c.isClosing() && !c.draining.Load() {
		c.stats.fault(s.err) // the next call says why, which may come before serve does
	}
	if current {
		c.state.set(StateConnectionError, withoutHost(s.err))
	} else {
		c.left = nil
	}
}

// setAside takes s, whose peer is shutting down, away from new calls, while what is under way on it
// goes on. There is one such session at most.
func (c *Connection) setAside(s *session) {
	c.mu.Lock()
	if !c.session.CompareAndSwap(s, nil) {
		c.mu.Unlock()
		return
	}
	s.leaving.Store(true)
	before := c.left
	c.left = s
	if before != nil {
		c.stats.lost(before)
	}
	c.state.set(StateConnectionError, errPeerShuttingDown)
	c.mu.Unlock()
	if before != nil {
		before.close(errReplaced)
	}
	if c.dials && !c.draining.Load() {
		// The goroutine that dials is busy with s until that ends, and what takes the place of the
		// peer may listen before. Frames are no sign of life here: the announcement is one.
		c.redial.pause.beginAfter(s.isOld())
		c.start(func() { c.keepDialling(c.ctx) })
	}
	if _, ok := c.departures.Due(time.Now()); ok {
		c.log.Info("grid: the remote host is shutting down")
		c.errors.ExpectRecovery()
	}
}

// sessions are all that are alive.
func (c *Connection) sessions() []*session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessionsLocked()
}

func (c *Connection) sessionsLocked() (all []*session) {
	for _, s := range []*session{c.session.Load(), c.left} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// serve runs a session until it ends, and reports whether it had lived: such a peer is worth
// dialling again without delay.
func (c *Connection) serve(s *session) (lived bool) {
	if c.errors.Recovered() {
		c.log.Info("grid: connected", "addr", s.ws.RemoteAddr())
	}
	err := s.run()
	life := time.Since(s.began)
	if life > stableLife {
		c.errors.Reset()
	}
	if s.leaving.Load() || s.sender.hungUp.Load() {
		c.stats.fault(err) // one of the two is shutting down, which is no fault
	} else {
		c.lostLink(err)
	}
	return s.hasLived()
}

// hasLived reports whether an end of the session is no reason to wait before there is another.
func (s *session) hasLived() bool {
	return s.reader.frames.Load() > 0 || s.isOld()
}

// isOld reports whether the session has lived, whatever has come of it.
func (s *session) isOld() bool { return time.Since(s.began) >= time.Second }

// stableLife is how long a connection must have lived for its loss to be news.
const stableLife = time.Minute
