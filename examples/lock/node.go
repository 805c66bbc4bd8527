package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/gridrpc/grid"
)

// node is one host of the demonstration.
type node struct {
	*Client
	server *Server

	name   string
	m      *grid.Manager
	srv    *http.Server
	served chan struct{} // closed when Serve has returned
}

// startNode serves at l, which it owns from then on.
func startNode(l net.Listener, hosts []string, secret string, opts Options) (*node, error) {
	n := &node{name: l.Addr().String(), served: make(chan struct{})}
	var err error
	n.m, err = grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:        "http://" + n.name,
		Hosts:        hosts,
		LocalCalls:   true, // this node votes like all others
		SharedSecret: [][]byte{[]byte(secret)},
		Register: func(m *grid.Manager) (err error) {
			if n.server, err = NewServer(m, opts); err != nil {
				return err
			}
			n.Client, err = NewClient(m, opts)
			return err
		},
		// What grid logs of nodes that are stopped would be noise here.
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		l.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, n.m.Handler())
	n.srv = &http.Server{Handler: mux}
	go func() {
		defer close(n.served)
		_ = n.srv.Serve(l) // until crash
	}()
	return n, nil
}

// crash ends the node at once: it unlocks nothing, and tells nobody.
func (n *node) crash() {
	n.m.Close()
	n.srv.Close()
	<-n.served
}

// startNodes starts some on loopback sockets. stop ends them all, and may be called where err is
// not nil too.
func startNodes(names []string, secret string, opts Options) (nodes []*node, stop func(), err error) {
	stop = func() {
		for _, n := range nodes {
			n.crash()
		}
		for _, n := range nodes {
			n.Close()
		}
	}
	var listeners []net.Listener
	var hosts []string
	for range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			closeAll(listeners)
			return nil, stop, err
		}
		listeners, hosts = append(listeners, l), append(hosts, "http://"+l.Addr().String())
	}
	for i, l := range listeners {
		n, err := startNode(l, hosts, secret, opts)
		if err != nil {
			closeAll(listeners[i:])
			return nodes, stop, err
		}
		n.name = names[i]
		nodes = append(nodes, n)
	}
	return nodes, stop, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// waitConnected waits for the links to all other nodes.
func (n *node) waitConnected(ctx context.Context) error {
	for _, host := range n.m.Targets() {
		if err := n.m.Connection(host).WaitForConnect(ctx); err != nil {
			return err
		}
	}
	return nil
}

func namesOf(nodes []*node) string {
	var names []string
	for _, n := range nodes {
		names = append(names, n.name)
	}
	return strings.Join(names, ", ")
}
