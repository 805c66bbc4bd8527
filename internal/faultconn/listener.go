package faultconn

import (
	"net"
	"sync"
)

// listener hands out the accepted ends of a host's connections.
type listener struct {
	n    *Network
	addr hostAddr

	// The rest is guarded by n.mu.
	arrived sync.Cond
	queue   []*end
	closed  bool
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.arrived.Wait()
	}
	if l.closed {
		return nil, l.closedError("accept")
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *listener) Close() error {
	waiting, err := l.shut()
	for _, c := range waiting {
		_ = c.SetLinger(0) // cannot fail: nobody else has c
		_ = c.Close()
	}
	return err
}

func (l *listener) shut() (waiting []*end, _ error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.closed {
		return nil, l.closedError("close")
	}
	l.closed = true
	delete(l.n.listeners, string(l.addr))
	waiting, l.queue = l.queue, nil
	l.arrived.Broadcast()
	return waiting, nil
}

func (l *listener) closedError(op string) error {
	return &net.OpError{Op: op, Net: networkName, Addr: l.addr, Err: net.ErrClosed}
}
