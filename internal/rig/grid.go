// Package rig is what the tests of this repository stand on: grids, of a node or several, with the
// handlers that most tests call, scripted peers in the place of a host, a log to read, and measures
// of what is in use.
//
// A grid is made by [New], or from a [Setup], on what package gridtest makes. The other host of a
// lone grid ([NewLone]) is played by the test, through package rawpeer.
package rig

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
	"github.com/gridrpc/grid/internal/faultconn"
)

// Node is a manager with its HTTP server.
type Node struct {
	*grid.Manager
	Host   string
	Server *http.Server
}

// Grid is a cluster in one process, with the handlers of [RegisterHandlers].
type Grid struct {
	*gridtest.Grid
	T     testing.TB
	Net   *faultconn.Network // nil over TCP
	nodes []*Node            // of the last start
	// Guests tells that others use the network too, and may have sockets left at the end.
	Guests bool
}

// Setup is how a grid is made, where [New] does not do.
type Setup struct {
	Net   *faultconn.Network // where the nodes are; made if nil
	TCP   *Loopback          // in its place
	Hosts []string           // base URLs; in memory
	Edit  func(i int, o *grid.ManagerOptions)
	// Prepare may change the server of a node before it serves.
	Prepare func(n *Node)
	Guests  bool // see Grid
	Stopped bool // the test starts the nodes, and waits until they are connected
}

// New starts n nodes over a network in memory, for use in a bubble. edit may change the options of
// each; it may be nil.
func New(t testing.TB, n int, edit func(i int, o *grid.ManagerOptions)) *Grid {
	t.Helper()
	return Setup{Hosts: Names("http", n), Edit: edit}.Start(t)
}

// NewTCP starts n nodes on loopback sockets.
func NewTCP(t testing.TB, n int, edit func(i int, o *grid.ManagerOptions)) *Grid {
	t.Helper()
	return Setup{TCP: NewLoopback(t, "http", n), Edit: edit}.Start(t)
}

// Names are the base URLs that the nodes of a grid have by default.
func Names(scheme string, n int) (hosts []string) {
	for i := range n {
		hosts = append(hosts, fmt.Sprintf("%s://node%d:9000", scheme, i))
	}
	return hosts
}

// Start makes the grid.
func (s Setup) Start(t testing.TB) *Grid {
	t.Helper()
	g := &Grid{T: t, Net: s.Net, Guests: s.Guests}
	hosts := s.Hosts
	opts := []gridtest.Option{
		gridtest.WithOptions(func(i int, o *grid.ManagerOptions) {
			silent := Options(o.Local, o.Hosts)
			silent.Dialer = o.Dialer
			*o = silent
			if s.Edit != nil {
				s.Edit(i, o)
			}
		}),
		gridtest.WithHandlers(func(i int, m *grid.Manager) error {
			g.nodes[i] = &Node{Manager: m, Host: hosts[i]}
			RegisterHandlers(t, m)
			return nil
		}),
		gridtest.WithServer(func(i int, server *http.Server) {
			n := g.nodes[i]
			n.Server = server
			if s.Prepare != nil {
				s.Prepare(n)
			}
		}),
		gridtest.WithHosts(func(i int, _ string) string { return hosts[i] }),
	}
	if s.TCP != nil {
		hosts = s.TCP.Hosts
		opts = append(opts, gridtest.WithNetwork(s.TCP))
	} else {
		if g.Net == nil {
			g.Net = faultconn.NewNetwork()
		}
		opts = append(opts, gridtest.WithNetwork(g.Net))
	}
	if s.Stopped {
		opts = append(opts, gridtest.Stopped())
	}
	g.nodes = make([]*Node, len(hosts))
	t.Cleanup(g.checkSockets) // after what gridtest does there
	g.Grid = gridtest.New(t, len(hosts), opts...)
	return g
}

// StopAll stops all nodes for good, as the end of the test does.
func (g *Grid) StopAll() {
	g.T.Helper()
	g.Close()
	g.checkSockets()
}

func (g *Grid) checkSockets() {
	g.T.Helper()
	if g.Net != nil && !g.Guests && !g.T.Failed() {
		require.Zero(g.T, g.Net.Conns(), "sockets are left")
	}
}

// Node returns node i, nil if it is stopped.
func (g *Grid) Node(i int) *Node {
	g.T.Helper()
	if g.Manager(i) == nil {
		return nil
	}
	return g.nodes[i]
}

// Nodes are all, nil where one is stopped.
func (g *Grid) Nodes() (nodes []*Node) {
	for i := range g.Len() {
		nodes = append(nodes, g.Node(i))
	}
	return nodes
}

// Addr is where node i listens.
func (g *Grid) Addr(i int) string { return HostAddr(g.Host(i)) }

// HostAddr is the address of a host by its base URL.
func HostAddr(host string) string {
	_, addr, _ := strings.Cut(host, "://")
	return addr
}

// Cut cuts the link between two nodes, which then reconnect. Unlike that of gridtest it waits for
// nothing.
func (g *Grid) Cut(i, j int) { g.Net.Cut(g.Addr(i), g.Addr(j)) }

// WaitState waits until a connection has one of the states, in a bubble.
func WaitState(t testing.TB, c *grid.Connection, states ...grid.State) {
	t.Helper()
	for {
		now := c.State()
		for _, s := range states {
			if now == s {
				return
			}
		}
		if t.Context().Err() != nil {
			require.Fail(t, "state never came", "is %v", now)
		}
		time.Sleep(time.Millisecond)
	}
}

// Loopback is a [gridtest.Network] of real sockets, without any faults. What would wrap them would
// be measured too.
type Loopback struct {
	Hosts []string // base URLs
	// Wrap, if set, wraps what a node listens to.
	Wrap func(net.Listener) net.Listener

	first map[string]net.Listener // by address, until a node listens
}

// NewLoopback finds ports for n nodes.
func NewLoopback(t testing.TB, scheme string, n int) *Loopback {
	t.Helper()
	var all []net.Listener
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		all = append(all, l)
	}
	return LoopbackOf(scheme, all...)
}

// LoopbackOf is for nodes that listen there.
func LoopbackOf(scheme string, all ...net.Listener) *Loopback {
	l := &Loopback{first: make(map[string]net.Listener)}
	for _, one := range all {
		addr := one.Addr().String()
		l.Hosts = append(l.Hosts, scheme+"://"+addr)
		l.first[addr] = one
	}
	return l
}

// Listen implements gridtest.Network.
func (l *Loopback) Listen(addr string) (listener net.Listener, err error) {
	if listener = l.first[addr]; listener != nil {
		l.first[addr] = nil
	} else if listener, err = net.Listen("tcp", addr); err != nil {
		return nil, err
	}
	if l.Wrap != nil {
		listener = l.Wrap(listener)
	}
	return listener, nil
}

// Dialer implements gridtest.Network.
func (l *Loopback) Dialer(string) func(context.Context, string, string) (net.Conn, error) {
	return new(net.Dialer).DialContext
}

// Cut implements gridtest.Network.
func (l *Loopback) Cut(string, string) { panic("rig: a loopback has no faults") }

// Partition implements gridtest.Network.
func (l *Loopback) Partition(string, string) { panic("rig: a loopback has no faults") }

// Heal implements gridtest.Network.
func (l *Loopback) Heal(string, string) {}

// Conns implements gridtest.Network.
func (l *Loopback) Conns() int { return 0 }
