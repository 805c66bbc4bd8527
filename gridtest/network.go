package gridtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/gridrpc/grid/internal/faultconn"
)

// network joins the nodes. All methods may be called concurrently.
type network interface {
	addr(i int) string // host:port
	listen(i int) (net.Listener, error)
	dialer(i int) dialFunc

	// cut resets all connections between two nodes, also on a link that is broken.
	cut(a, b int)
	// setBroken silences the link between two nodes, or lets it go again: nothing arrives, nor that
	// the other end was closed, and dials wait.
	setBroken(a, b int, broken bool)

	// open is how many connections, or ends of them, nobody has closed.
	open() int
	// close is called when all nodes are stopped, perhaps more than once.
	close()
}

// Network joins hosts by their addresses, such as "node0:9000". All methods may be called
// concurrently.
type Network interface {
	// Listen makes a host reachable until the listener is closed.
	Listen(addr string) (net.Listener, error)
	// Dialer returns the dial function of a host. Dials wait while the link is partitioned.
	Dialer(from string) func(ctx context.Context, network, addr string) (net.Conn, error)
	// Cut resets all connections between two hosts, also where they are partitioned.
	Cut(a, b string)
	// Partition silences the link between two hosts until Heal: nothing arrives, nor that the other
	// end was closed.
	Partition(a, b string)
	Heal(a, b string)
	// Conns is how many ends of connections nobody has closed.
	Conns() int
}

// newNetwork makes one of n nodes, and names these.
func newNetwork(n int, o *options) (_ network, hosts []string, err error) {
	if o.tcp && o.net != nil {
		return nil, nil, errors.New("TCP and WithNetwork exclude each other")
	}
	var sockets *tcp
	m := &named{net: o.net}
	if m.net == nil {
		m.net = faultconn.NewNetwork()
	}
	if o.tcp {
		if sockets, err = newTCP(n); err != nil {
			return nil, nil, err
		}
	}
	for i := range n {
		addr := fmt.Sprintf("node%d:9000", i)
		if o.tcp {
			addr = sockets.addr(i)
		}
		host := "http://" + addr
		for _, name := range o.names {
			host = name(i, addr)
		}
		_, named, _ := strings.Cut(host, "://")
		if o.tcp && named != addr {
			sockets.close()
			return nil, nil, fmt.Errorf("WithHosts: node %d is %q, must have the address %s", i, host, addr)
		}
		hosts, m.addrs = append(hosts, host), append(m.addrs, named)
	}
	if o.tcp {
		return sockets, hosts, nil
	}
	return m, hosts, nil
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// gated is dial once all gates are closed.
func gated(dial dialFunc, gates ...<-chan struct{}) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		for _, gate := range gates {
			select {
			case <-gate:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return dial(ctx, network, addr)
	}
}

// named is the nodes on a Network.
type named struct {
	net   Network
	addrs []string
}

func (n *named) addr(i int) string                  { return n.addrs[i] }
func (n *named) listen(i int) (net.Listener, error) { return n.net.Listen(n.addrs[i]) }
func (n *named) dialer(i int) dialFunc              { return n.net.Dialer(n.addrs[i]) }
func (n *named) cut(a, b int)                       { n.net.Cut(n.addrs[a], n.addrs[b]) }
func (n *named) open() int                          { return n.net.Conns() }
func (n *named) close()                             {}

func (n *named) setBroken(a, b int, broken bool) {
	if broken {
		n.net.Partition(n.addrs[a], n.addrs[b])
	} else {
		n.net.Heal(n.addrs[a], n.addrs[b])
	}
}
