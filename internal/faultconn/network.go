// Package faultconn is a network for tests that fails on command: in memory with [Network], or
// around real sockets with [Wrap].
//
// # Time
//
// Waiting is done on condition variables and with package time alone, and nothing is shared between
// networks, so each may live in a testing/synctest bubble of its own: a goroutine that waits for
// the network counts as durably blocked, and deadlines go by the bubble's clock.
//
// # Faults
//
// A connection can be cut, or become half-open; it can be silent, or slow, or late, or corrupt, in
// one direction or both; and its buffer can be tiny. What is random is drawn from a seed.
//
// # Hosts and links
//
// A host of a [Network] is the name that others dial it by, such as "10.0.0.1:9000". It gets its
// own name as the near end of a link by dialling with [Network.Dialer]. Faults are set for the link
// between two hosts, whoever of them dialled, and hold for its connections of the present and the
// future.
//
// # Concurrency
//
// All methods of all types may be called from several goroutines at once, but for [Conn.Read].
package faultconn

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
)

// DefaultBuffer is how many bytes an in-memory connection takes in each direction before a write
// has to wait for the reader.
const DefaultBuffer = 256 << 10

// anonymous is the host that dials with Network.DialContext.
const anonymous = "client"

// A Network joins the hosts of one test in memory. The links between them work until a fault is
// set.
type Network struct {
	// mu comes before the lock of any pipe.
	mu          sync.Mutex
	buffer      int
	buffers     map[direction]int // of links, both directions, where they differ
	dialled     int
	listeners   map[string]*listener
	pipes       map[*pipe]struct{}
	partitioned map[direction]chan struct{} // both directions of a link, one channel, closed by Heal
	faults      map[direction]faults        // all others
}

// NewNetwork returns a network without hosts or faults.
func NewNetwork() *Network {
	return &Network{
		buffer:      DefaultBuffer,
		buffers:     make(map[direction]int),
		listeners:   make(map[string]*listener),
		pipes:       make(map[*pipe]struct{}),
		partitioned: make(map[direction]chan struct{}),
		faults:      make(map[direction]faults),
	}
}

// SetBuffer sets how many bytes each direction of a connection takes before a write waits, for
// connections dialled from now on. It must be at least 1.
func (n *Network) SetBuffer(bytes int) {
	checkBuffer(bytes)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.buffer = bytes
}

// SetLinkBuffer is SetBuffer for the link between hosts a and b alone.
func (n *Network) SetLinkBuffer(a, b string, bytes int) {
	checkBuffer(bytes)
	n.mu.Lock()
	defer n.mu.Unlock()
	d := direction{a, b}
	n.buffers[d], n.buffers[d.back()] = bytes, bytes
}

func checkBuffer(bytes int) {
	if bytes < 1 {
		panic("faultconn: buffer below 1 byte")
	}
}

// Listen makes host addr reachable. Connections wait to be accepted without limit; those that still
// wait when the listener is closed are reset. The error is EADDRINUSE while another listener has
// the address.
func (n *Network) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, &net.OpError{
			Op: "listen", Net: networkName, Addr: hostAddr(addr),
			Err: os.NewSyscallError("bind", syscall.EADDRINUSE),
		}
	}
	l := &listener{n: n, addr: hostAddr(addr), arrived: sync.Cond{L: &n.mu}}
	n.listeners[addr] = l
	return l, nil
}

// DialContext dials addr as the host "client". It is meant for code that plays no host of its own;
// see [Network.Dialer].
func (n *Network) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return n.Dialer(anonymous)(ctx, network, addr)
}

// Dialer returns the dial function of host from. A dial is refused with ECONNREFUSED where nobody
// listens, and waits while the link is partitioned, until it is healed or the context ends. The
// network argument is ignored.
func (n *Network) Dialer(from string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		c, err := n.dial(ctx, direction{from, addr})
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: networkName, Addr: hostAddr(addr), Err: err}
		}
		return c, nil
	}
}

func (n *Network) dial(ctx context.Context, d direction) (net.Conn, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, healed, err := n.connect(d)
		if healed == nil {
			return c, err
		}
		select {
		case <-healed:
		case <-ctx.Done():
		}
	}
}

// connect makes a connection and queues its far end at the listener. Where the link is partitioned
// it returns the channel that tells the end of that.
func (n *Network) connect(d direction) (_ net.Conn, healed <-chan struct{}, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if healed := n.partitioned[d]; healed != nil {
		return nil, healed, nil
	}
	l := n.listeners[d.to]
	if l == nil {
		return nil, nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	limit, ok := n.buffers[d]
	if !ok {
		limit = n.buffer
	}
	p := newPipe(limit, n.nearAddrLocked(d.from), l.addr)
	p.link, p.serial = d, uint64(n.dialled)
	p.ended = func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.pipes, p)
	}
	n.pipes[p] = struct{}{}
	n.applyLocked(p)
	l.queue = append(l.queue, &p.acceptor)
	l.arrived.Signal()
	return &p.dialler, nil, nil
}

// nearAddrLocked names the dialling end of a new connection: the host's own name, with a port of
// the ephemeral range.
func (n *Network) nearAddrLocked(host string) hostAddr {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	port := 49152 + n.dialled%16384
	n.dialled++
	return hostAddr(net.JoinHostPort(name, strconv.Itoa(port)))
}

// Conns is the number of connection ends that nobody has closed, those that wait to be accepted
// included: 2 for a connection in use, and still 2 after it has been cut.
func (n *Network) Conns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	open := 0
	for p := range n.pipes {
		open += p.open()
	}
	return open
}
