package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/gridrpc/grid"
)

// member is one node of a cluster of processes.
type member struct {
	listen string
	hosts  []string
	local  string // the one of hosts that the node is; empty to go by listen
	secret string
	dir    string
	once   bool          // end when all peers are done
	http   string        // where to answer an operator; empty for nowhere
	ping   time.Duration // 0 for grid's default

	dynamic bool // hosts is the node itself, and those to join through
}

// localHost is the one of the hosts that the node itself is: the one with the address that it
// listens on, or, where that names no host, its port.
func (m *member) localHost() (string, error) {
	if m.local != "" {
		return m.local, nil
	}
	host, port, err := net.SplitHostPort(m.listen)
	if err != nil {
		return "", fmt.Errorf("-listen: %w", err)
	}
	var found []string
	for _, h := range m.hosts {
		u, err := url.Parse(h)
		if err != nil {
			return "", fmt.Errorf("-hosts: %w", err)
		}
		if u.Port() == port && (host == "" || u.Hostname() == host) {
			found = append(found, h)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("-listen %s is the address of %d of -hosts, must be one; say which with -local", m.listen, len(found))
	}
	return found[0], nil
}

// run serves until ctx ends, or with once until all peers are done, and uses the others meanwhile.
func (m *member) run(ctx context.Context, r *report) error {
	local, err := m.localHost()
	if err != nil {
		return err
	}
	page, err := listenHTTP(m.http)
	if err != nil {
		return err
	}
	if page != nil {
		defer page.Close() // in case there is no node for it
	}
	l, err := net.Listen("tcp", m.listen)
	if err != nil {
		return err
	}
	r.title("%s, serving %s", local, m.dir)
	if page != nil {
		r.line("the status page is at http://%s/", page.Addr())
	}
	opts := grid.ManagerOptions{
		Local:        local,
		Hosts:        m.hosts,
		PingInterval: m.ping,
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if m.dynamic {
		return m.runDynamic(ctx, r, l, page, opts)
	}
	return m.runFixed(ctx, r, l, page, opts)
}

// runFixed is run in a cluster whose hosts are known from the start.
func (m *member) runFixed(ctx context.Context, r *report, l, page net.Listener, opts grid.ManagerOptions) error {
	n, err := startNode(ctx, opts.Local, l, m.secret, m.dir, opts)
	if err != nil {
		return err
	}
	defer n.stop()
	defer n.answerHTTP(page)() // ends first, so that nobody's stream holds up the node
	r.line("waiting for %s", strings.Join(n.Targets(), " and "))
	start := time.Now()
	if err := n.waitConnected(ctx); err != nil {
		return err
	}
	r.check(true, "all connected after %v", took(start))
	for _, host := range n.Targets() {
		m.use(ctx, r, n, host)
	}
	err = r.end()
	for _, host := range n.Targets() {
		if derr := n.tellDone(ctx, host); derr != nil && err == nil {
			err = fmt.Errorf("telling %s: %w", host, derr)
		}
	}
	if m.once {
		select {
		case <-n.peersDone():
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("while waiting for the others to be done: %w", context.Cause(ctx))
			}
		}
		return err
	}
	r.line("serving; stop with Ctrl-C")
	<-ctx.Done()
	return err
}

// use asks a peer for its disk and streams its tree. It reports whether all calls were answered.
func (m *member) use(ctx context.Context, r *report, n *node, host string) bool {
	r.title("%s", host)
	conn := n.Connection(host)
	start := time.Now()
	d, err := disks.Call(ctx, conn, new(diskRequest))
	if !m.answered(ctx, r, err, "asked for its disk in %v", took(start)) {
		return false
	}
	r.line("%s, of which %s are free", size(d.Total), size(d.Free))
	start = time.Now()
	got, err := n.walkOf(ctx, host, func(t *tally) {
		r.progress("%s entries, %s", number(t.entries()), size(uint64(t.Bytes)))
	})
	if !m.answered(ctx, r, err, "streamed its tree in %v", took(start)) {
		return false
	}
	want, err := counts.Call(ctx, conn, struct{}{})
	if err != nil {
		return m.answered(ctx, r, err, "asked for a count")
	}
	r.check(*got == *want, "%s entries, %s; it counts %s itself",
		number(got.entries()), size(uint64(got.Bytes)), number(want.entries()))
	return true
}

// answered reports whether a call did not fail. In a cluster where nodes come and go it may:
// whichever of the two ends takes it along.
func (m *member) answered(ctx context.Context, r *report, err error, format string, a ...any) bool {
	if m.dynamic && (errors.Is(err, grid.ErrDisconnected) || err != nil && ctx.Err() != nil) {
		r.line("%v", err)
		return false
	}
	ok := r.check(err == nil, format, a...)
	if !ok {
		r.line("%v", err)
	}
	return ok
}
