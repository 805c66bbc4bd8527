package grid

import (
	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/wsconn"
)

// selfLink is what calls of a host to itself go over (LocalCalls): two connections, as between two
// hosts, and between them a session with a pipe for a socket. So all that holds for other calls
// holds for these.
type selfLink struct {
	near *Connection // makes the calls
	far  *Connection // serves them
}

// These are the names of the limits of its two ends, which are none of hosts.
const (
	nearLimits = "near"
	farLimits  = "far"
)

func newSelfLink(m *Manager) *selfLink {
	l := &selfLink{
		near: newConnection(m, m.opts.Local, m.limits.of(nearLimits)),
		far:  newConnection(m, m.opts.Local, m.limits.of(farLimits)),
	}
	l.near.dials = true
	// What handlers of calls from elsewhere call here is part of what they do.
	l.near.ended, l.far.refuses = &m.noLocal, &m.noLocal
	l.near.crc, l.far.crc = 0, 0 // nothing can happen to what is sent
	return l
}

// has reports whether c is one of the two.
func (l *selfLink) has(c *Connection) bool { return l != nil && (c == l.near || c == l.far) }

// startSelf connects m.self, and keeps it connected until the manager ends: a session may end before,
// where something has broken a rule of the protocol.
func (m *Manager) startSelf() error {
	l := m.self
	serve, err := l.connect(m)
	if err != nil {
		return err
	}
	m.start(func() {
		var b backoff.Backoff
		for ; m.ctx.Err() == nil; b.Wait(m.ctx) {
			if serve == nil {
				if serve, err = l.connect(m); err != nil {
					l.near.cannotConnect(err)
					continue
				}
			}
			if serve() {
				b.Reset()
			}
			serve = nil
		}
	})
	return nil
}

// connect makes a session. serve runs it, and reports whether it had lived; see [Connection.serve].
func (l *selfLink) connect(m *Manager) (serve func() (lived bool), err error) {
	near, far, err := wsconn.Pipe(m.opts.frameLimit())
	if err != nil {
		return nil, err
	}
	self := peer{m.ID, ourCaps, m.opts.tell()}
	n, f := newSession(l.near, near, self), newSession(l.far, far, self)
	for _, s := range []*session{f, n} {
		if err := s.conn.adopt(s); err != nil {
			n.close(err)
			f.close(err)
			return nil, err
		}
	}
	return func() bool {
		m.start(func() { _ = f.run() })
		l.near.lostLink(n.run())
		return n.hasLived()
	}, nil
}
