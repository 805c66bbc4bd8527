package grid

import (
	"context"
	"errors"
	"sync"
	"time"
)

var (
	errShuttingDown     = errors.New("the manager is shutting down")
	errPeerShuttingDown = errors.New("the remote host is shutting down")
	errNoNewLinks       = errors.New("the manager is shutting down, and makes no connection any more")
)

// Shutdown closes the Manager gracefully: no call or stream is taken from other hosts any more, what
// is under way in either direction may finish until ctx ends, with interceptors told how it has, and
// then it does as [Manager.Close]. If that comes before everything has finished it returns the error
// of ctx, as a call does, else nil. Handlers and streams that would not finish by themselves hear of
// it by [Draining] and [Stream.Draining].
//
// As long as a handler is running here, calls and streams can be begun from here, over the links
// that there are: a handler may need them to finish. Once the last one has returned, they fail with
// [ErrShutdown]. Calls to the local host (LocalCalls) do so once no handler is running for another
// host.
//
// The remote hosts are told (protocol section 8). From then on they find the host disconnected, and
// wait for it to come back, while what they have under way goes on; calls that were on their way
// are refused with a [RemoteErr] that says so, and the connection is not closed before the remote
// has said that no more are. So [CanRetry] is true for each call that has not run because of it.
// That takes a way there and back, and no longer than a second. Those of hosts that do not know the
// extension are dropped without a reason, as by a lost connection. Connections that are lost
// meanwhile are not made again.
//
// Nothing waits for a peer that does not read for longer than WriteTimeout, or ctx if that ends
// first. Calling it again, or Close meanwhile, is allowed; Close ends the wait. A handler or an
// interceptor that calls it waits for itself, until ctx ends.
//
// A process that is started anew under the same name before this one has finished is connected at
// once, if it listens at the address of the name: the remote hosts go on dialling meanwhile.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.draining.Store(true)
	for _, c := range m.connections() {
		c.state.finish()
		for _, s := range c.sessions() {
			if m.self.has(c) {
				s.beginDraining() // handlers may call on
			} else {
				s.announceShutdown()
			}
		}
	}
	m.waitDrained(ctx)
	err := m.waitHandlers(ctx)
	if err == nil {
		err = m.waitIdle(ctx)
	}
	if err == nil {
		m.hangUp(ctx)
	}
	m.Close()
	return err
}

const (
	// drainTime is how long the peers may take to take in the announcement, and to say so.
	drainTime = time.Second
	// hangUpTime is how long they may take to read the last answers.
	hangUpTime = time.Second
)

// waitDrained waits until the peers have nothing on its way here that they began before they knew
// of the shutdown: all of it is answered, so that none of it is lost without anybody's knowing
// whether its handler has run.
func (m *Manager) waitDrained(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	for _, c := range m.connections() {
		for _, s := range c.sessions() {
			s.awaitDrained(ctx)
		}
	}
}

// hangUp ends the sending side of all connections, and waits until the peers have closed theirs: a
// socket that is closed with something unread in it takes back what the peer has not read yet.
func (m *Manager) hangUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, hangUpTime)
	defer cancel()
	// Under TLS, ending the sending side is a write, which may wait for the peer: it ends when the
	// socket is closed.
	defer context.AfterFunc(ctx, m.close)()
	var all sync.WaitGroup
	for _, c := range m.connections() {
		for _, s := range c.sessions() {
			s.sender.hungUp.Store(true) // refusals of what still arrives must not fail
			all.Go(func() {
				if s.ws.CloseWrite() {
					<-s.done
				}
			})
		}
	}
	all.Wait()
}

// waitHandlers waits until no handler is running, and has nothing begin here any more: none is taken
// from other hosts, so calls can't keep it from that, nor can those of this host to itself.
func (m *Manager) waitHandlers(ctx context.Context) error {
	others := m.hosts.Load().conns
	for _, c := range others {
		if err := m.waitFor(ctx, c.taken.handlers.UntilIdle); err != nil {
			return err
		}
	}
	m.noLocal.Store(true)
	if m.self != nil {
		m.self.near.refuseCalls()
		if err := m.waitFor(ctx, m.self.far.taken.handlers.UntilIdle); err != nil {
			return err
		}
	}
	m.noCalls.Store(true)
	for _, c := range others {
		c.refuseCalls()
	}
	return nil
}

// refuseCalls has no call or stream begin over the connection any more.
func (c *Connection) refuseCalls() {
	for _, s := range c.sessions() {
		s.refuseCalls()
	}
}

// waitIdle waits until no call, stream or handler is under way, and interceptors know of each end.
func (m *Manager) waitIdle(ctx context.Context) error {
	for _, c := range m.connections() {
		if err := m.waitFor(ctx, c.untilIdle); err != nil {
			return err
		}
	}
	return m.waitFor(ctx, m.untold.UntilIdle)
}

// waitFor waits until idle returns nil, or the manager is closed.
func (m *Manager) waitFor(ctx context.Context, idle func() <-chan struct{}) error {
	for busy := idle(); busy != nil; busy = idle() {
		select {
		case <-busy:
		case <-m.closing:
			return nil
		case <-ctx.Done():
			return doneError(ctx)
		}
	}
	return nil
}
