package grid

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errShuttingDown     = errors.New("the manager is shutting down")
	errPeerShuttingDown = errors.New("the remote host is shutting down")
)

// Shutdown closes the Manager gracefully: no call or stream is begun any more, what
// is under way in either direction may finish until ctx ends, and then it does as
// [Manager.Close]. It returns the cause of ctx if that ended before everything had
// finished, else nil.
//
// The remote hosts are told (protocol section 8). From then on they find the host
// disconnected, and wait for it to come back, while what they have under way goes on;
// those that do not know the extension, and calls that were on their way, are refused
// with a [RemoteErr] that says so. Connections that are lost meanwhile are not made
// again.
//
// Nothing waits for a peer that does not read for longer than WriteTimeout, or ctx
// if that ends first. Calling it again, or Close meanwhile, is allowed; Close ends
// the wait. A handler that calls it waits for itself, until ctx ends.
//
// A process that is started anew under the same name before this one has finished
// is heard by those hosts that it dials; those that dial it do so when their old
// connection has ended.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.draining.Store(true)
	for _, c := range m.connections() {
		for _, s := range c.sessions() {
			s.announceShutdown()
		}
	}
	err := m.waitIdle(ctx)
	if err == nil {
		m.hangUp(ctx)
	}
	m.Close()
	return err
}

// hangUpTime is how long the peers may take to read the last answers.
const hangUpTime = time.Second

// hangUp ends the sending side of all connections, and waits until the peers have
// closed theirs: a socket that is closed with something unread in it takes back
// what the peer has not read yet.
func (m *Manager) hangUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, hangUpTime)
	defer cancel()
	// Under TLS, ending the sending side is a write, which may wait for the peer: it
	// ends when the socket is closed.
	defer context.AfterFunc(ctx, m.close)()
	var all sync.WaitGroup
	for _, c := range m.connections() {
		for _, s := range c.sessions() {
			s.hungUp.Store(true) // refusals of what still arrives must not fail
			all.Go(func() {
				if s.ws.CloseWrite() {
					<-s.done
				}
			})
		}
	}
	all.Wait()
}

// waitIdle waits until no call, stream or handler is under way.
func (m *Manager) waitIdle(ctx context.Context) error {
	for _, c := range m.connections() {
		for {
			busy := c.busy()
			if busy == nil {
				break
			}
			select {
			case <-busy:
			case <-m.closing:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// busy returns nil if nothing is under way on the connection, else what is
// closed when that may have changed.
func (c *Connection) busy() <-chan struct{} {
	if busy := c.handlerSlots.busy(); busy != nil {
		return busy
	}
	for _, s := range c.sessions() {
		if busy := s.busy(); busy != nil {
			return busy
		}
	}
	return nil
}

func (s *session) busy() <-chan struct{} {
	if busy := s.calls.busy(); busy != nil {
		return busy
	}
	if busy := s.streams.busy(); busy != nil {
		return busy
	}
	return s.out.busy() // the last answers
}

// announceShutdown tells the peer, if it knows what that means.
func (s *session) announceShutdown() {
	if s.caps&capDrain != 0 && !s.announced.Swap(true) {
		s.post(message{Op: opDisconnect}, nil)
	}
}

// idleSignal is a channel that is closed when something has become idle, made
// when somebody wants to know. Its owner's lock guards it.
type idleSignal struct{ c chan struct{} }

func (i *idleSignal) wait() <-chan struct{} {
	if i.c == nil {
		i.c = make(chan struct{})
	}
	return i.c
}

func (i *idleSignal) notify() {
	if i.c != nil {
		close(i.c)
		i.c = nil
	}
}

// slots counts the handlers, or streams, that run for one host.
type slots struct {
	// Set once.
	what, option string // what they are, and the option that limits them
	limit        int
	of           *slots // whose slots these take as well, if not nil

	n      atomic.Int64
	wanted atomic.Bool // somebody waits for n to become 0
	mu     sync.Mutex
	idle   idleSignal
}

func (s *slots) init(what, option string, limit int, of *slots) {
	s.what, s.option, s.limit, s.of = what, option, limit, of
}

// acquire takes a slot, or returns those of which all are taken. release gives it
// back when the handler has returned.
func (s *slots) acquire() (full *slots) {
	if s.of != nil {
		if full := s.of.acquire(); full != nil {
			return full
		}
	}
	if s.n.Add(1) > int64(s.limit) {
		s.release()
		return s
	}
	return nil
}

func (s *slots) release() {
	if s.of != nil {
		s.of.release()
	}
	if s.n.Add(-1) == 0 && s.wanted.Load() {
		s.mu.Lock()
		s.idle.notify()
		s.mu.Unlock()
	}
}

// busy returns nil if no slot is taken, else what is closed when that may have
// changed.
func (s *slots) busy() <-chan struct{} {
	s.wanted.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n.Load() == 0 {
		return nil
	}
	return s.idle.wait()
}
