package main

import (
	"context"
	"net"
	"sync"
)

// links dials, and remembers what it has dialled, so that a link can be cut.
type links struct {
	mu    sync.Mutex
	conns map[string]net.Conn // the last to each address
}

// dial fits grid.ManagerOptions.Dialer.
func (l *links) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = make(map[string]net.Conn)
	}
	l.conns[addr] = c
	return c, nil
}

// cut resets the link to an address, if it was dialled from here.
func (l *links) cut(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conns[addr]
	delete(l.conns, addr)
	if c == nil {
		return
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0) // a reset, as when a cable is pulled and the far end restarts
	}
	c.Close()
}
