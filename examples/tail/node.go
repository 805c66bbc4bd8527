package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

// node is one host, with its log.
type node struct {
	name   string
	m      *grid.Manager
	source *source
	srv    *http.Server
	served chan struct{} // closed when Serve has returned

	mu     sync.Mutex
	dialed map[string]net.Conn // the last to each address
}

// startNode serves at l, which it owns from then on. A nil logger is the default.
func startNode(name, local string, l net.Listener, hosts []string, secret string, s *source, logger *slog.Logger) (*node, error) {
	n := &node{name: name, source: s, served: make(chan struct{}), dialed: make(map[string]net.Conn)}
	var err error
	n.m, err = grid.NewManager(context.Background(), grid.ManagerOptions{
		Local: local, Hosts: hosts, SharedSecret: [][]byte{[]byte(secret)},
		Dialer: n.dial, Logger: logger, Register: s.register,
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
		_ = n.srv.Serve(l) // until stop
	}()
	return n, nil
}

// stopTime is how long what is under way may take when a node stops.
const stopTime = 5 * time.Second

func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	_ = n.m.Shutdown(ctx) // the handlers of source hear of it
	n.srv.Close()
	<-n.served
}

func (n *node) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.dialed[addr] = c
	}
	return c, err
}

// cut resets the link between two nodes, whoever has dialled.
func cut(a, b *node) {
	for _, n := range [][2]*node{{a, b}, {b, a}} {
		n[0].mu.Lock()
		c := n[0].dialed[strings.TrimPrefix(n[1].m.HostName(), "http://")]
		n[0].mu.Unlock()
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0) // a reset
			tcp.Close()
		}
	}
}
