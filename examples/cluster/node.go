package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridstatus"
)

// stopTime is how long a node may take to let what runs finish.
const stopTime = 5 * time.Second

// leaveGrace is how long a peer that is done may take to come back.
const leaveGrace = time.Second

// node is one server of the cluster: a manager behind an HTTP server, with a directory that the
// others may ask about.
type node struct {
	*grid.Manager

	name, dir string
	log       *slog.Logger
	page      *gridstatus.Status
	links     *links
	hangUp    context.CancelFunc // ends Serve
	served    chan struct{}      // closed when Serve has returned
	finished  chan struct{}      // see peersDone

	mu      sync.Mutex
	pending map[string]bool // peers that have not said that they are done
}

// startNode serves dir at l, which it owns from then on. Of opts it sets what has to do with the
// secret and with dialling. What extend adds is there before others can ask for it.
func startNode(ctx context.Context, name string, l net.Listener, secret, dir string, opts grid.ManagerOptions, extend ...func(*node) error) (*node, error) {
	n := &node{
		name:     name,
		dir:      dir,
		log:      opts.Logger,
		links:    &links{},
		served:   make(chan struct{}),
		finished: make(chan struct{}),
		pending:  make(map[string]bool),
	}
	opts.SharedSecret = [][]byte{[]byte(secret)}
	opts.Dialer = n.links.dial
	opts.Register = func(m *grid.Manager) error {
		n.Manager = m
		for _, peer := range m.Targets() {
			n.pending[peer] = true
		}
		for _, f := range append([]func(*node) error{(*node).register}, extend...) {
			if err := f(n); err != nil {
				return err
			}
		}
		return nil
	}
	// The manager is ended by stop, not by ctx: an interrupt must leave time for what is under way.
	m, err := grid.NewManager(context.WithoutCancel(ctx), opts)
	if err != nil {
		l.Close()
		return nil, err
	}
	var serving context.Context
	serving, n.hangUp = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(n.served)
		if err := m.Serve(serving, l, grid.ServeOptions{ShutdownTimeout: stopTime}); err != nil {
			opts.Logger.Error("serving ended", "node", name, "error", err)
		}
	}()
	return n, nil
}

func (n *node) register() (err error) {
	n.page, err = gridstatus.New(n.Manager, statusID, gridstatus.Options{Title: "cluster"})
	return errors.Join(
		err,
		disks.Register(n.Manager, n.serveDisk),
		counts.Register(n.Manager, n.serveCount),
		walks.RegisterServe(n.Manager, n.serveWalk),
		n.RegisterSingleHandler(doneID, n.serveDone),
	)
}

func (n *node) serveDisk(req *diskRequest) (*diskInfo, *grid.RemoteErr) {
	dir := req.Dir
	if dir == "" {
		dir = n.dir
	}
	d, err := readDisk(dir)
	if err != nil {
		return nil, grid.NewRemoteErrf("disk of %s: %v", dir, err)
	}
	return d, nil
}

func (n *node) serveCount(grid.NoPayload) (*tally, *grid.RemoteErr) {
	t, err := count(context.Background(), n.dir)
	return t, grid.NewRemoteErr(err)
}

func (n *node) serveWalk(ctx context.Context, req *walkRequest, s *grid.TypedServerStream[grid.NoPayload, *entry]) *grid.RemoteErr {
	send := func(e *entry) error {
		defer walks.PutResponse(e)
		return s.Send(ctx, e)
	}
	err := walk(ctx, n.dir, send)
	for req.Forever && err == nil {
		err = walk(ctx, n.dir, send)
	}
	return grid.NewRemoteErr(err)
}

// serveDone is told by a peer, whose name is the payload, that it needs this node no more.
func (n *node) serveDone(payload []byte) ([]byte, *grid.RemoteErr) {
	host := string(payload)
	grid.PutByteBuffer(payload)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.pending[host] {
		return nil, nil
	}
	delete(n.pending, host)
	if len(n.pending) == 0 {
		close(n.finished)
	}
	return nil, nil
}

// peersDone is closed when all peers have said that they are done.
func (n *node) peersDone() <-chan struct{} { return n.finished }

// hasLeft reports whether a peer that said it is done stays away.
func (n *node) hasLeft(ctx context.Context, host string) bool {
	n.mu.Lock()
	done := !n.pending[host]
	n.mu.Unlock()
	if !done {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, leaveGrace)
	defer cancel()
	return n.Connection(host).WaitForConnect(ctx) != nil
}

// tellDone tells a peer that this node needs it no more. A peer leaves when all have told it so and
// it has told all; so one that is done and has left was told, though its answer was lost.
func (n *node) tellDone(ctx context.Context, host string) error {
	conn := n.Connection(host)
	for {
		_, err := conn.SingleRequest(ctx, doneID, []byte(n.HostName()))
		if !errors.Is(err, grid.ErrDisconnected) {
			return err
		}
		if n.hasLeft(ctx, host) {
			return context.Cause(ctx)
		}
		if err := conn.WaitForConnect(ctx); err != nil {
			return err
		}
	}
}

// stop lets what runs finish, for a while, and closes the node.
func (n *node) stop() {
	n.hangUp()
	<-n.served
	n.Close() // in case that its listener had failed
}

// waitConnected waits for all peers.
func (n *node) waitConnected(ctx context.Context) error {
	for _, host := range n.Targets() {
		conn := n.Connection(host)
		if err := conn.WaitForConnect(ctx); err != nil {
			return fmt.Errorf("%s is not connected: %w", host, err)
		}
	}
	return nil
}

// walkOf streams the tree of a peer. It calls seen after each entry, and returns what has come.
func (n *node) walkOf(ctx context.Context, host string, seen func(*tally)) (*tally, error) {
	t := new(tally)
	s, err := walks.Call(ctx, n.Connection(host), new(walkRequest))
	if err != nil {
		return t, err
	}
	err = s.Results(func(e *entry) error {
		t.add(e)
		walks.PutResponse(e)
		seen(t)
		return nil
	})
	return t, err
}

// addr is what a host is dialled by.
func addr(host string) string { return strings.TrimPrefix(host, "http://") }
