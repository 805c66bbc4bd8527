package main

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/gridrpc/grid"
)

// cutAfter is how many entries have come when the link is cut.
const cutAfter = 1000

// demoTime is how long the demonstration may take, with a large -dir.
const demoTime = 5 * time.Minute

// demo runs three nodes in this process and uses them. With an address for http the first one
// answers there, until ctx ends.
func demo(ctx context.Context, r *report, dir, http string) error {
	page, err := listenHTTP(http)
	if err != nil {
		return err
	}
	if page != nil {
		defer page.Close() // in case there is no node for it
	}
	r.title("Three nodes in one process, over loopback sockets")
	var hosts []string
	var listeners []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		listeners = append(listeners, l)
		hosts = append(hosts, "http://"+l.Addr().String())
	}
	names := []string{"anna", "bert", "cleo"}
	secret := rand.Text()
	start := time.Now()
	var nodes []*node
	for i, l := range listeners {
		n, err := startNode(ctx, names[i], l, secret, dir, grid.ManagerOptions{
			Local: hosts[i],
			Hosts: hosts,
			// What grid logs of the link that is cut below would be noise here.
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		defer n.stop()
		nodes = append(nodes, n)
		r.line("%s is %s", n.name, n.HostName())
	}
	defer nodes[0].answerHTTP(page)()
	if err := useAll(ctx, r, nodes, start); err != nil {
		return err
	}
	err = r.end()
	if page != nil {
		r.line("the status page is at http://%s/; stop with Ctrl-C", page.Addr())
		<-ctx.Done()
	}
	return err
}

// useAll waits for nodes that were started at a time, and shows what they do. It returns an error
// if they do not even connect.
func useAll(ctx context.Context, r *report, nodes []*node, start time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	for _, n := range nodes {
		if err := n.waitConnected(ctx); err != nil {
			return err
		}
	}
	r.check(true, "all connected to each other after %v", took(start))

	askDisks(ctx, r, nodes)
	streamTree(ctx, r, nodes[0], nodes[2])
	cutLink(ctx, r, nodes[0], nodes[1])
	showErrors(ctx, r, nodes[2], nodes[0])
	return nil
}

// askDisks has every node ask every other for its disk: single requests.
func askDisks(ctx context.Context, r *report, nodes []*node) {
	r.title("Every node asks every other for its disk (typed single requests)")
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to {
				continue
			}
			start := time.Now()
			d, err := disks.Call(ctx, from.Connection(to.HostName()), new(diskRequest))
			if err != nil {
				r.check(false, "%s asks %s: %v", from.name, to.name, err)
				continue
			}
			r.check(d.Total > 0 && d.Free <= d.Total, "%s asks %s: %10s, of which %10s are free  (%v)",
				from.name, to.name, size(d.Total), size(d.Free), took(start))
			disks.PutResponse(d)
		}
	}
}

// streamTree has one node stream a directory tree from another.
func streamTree(ctx context.Context, r *report, from, to *node) {
	r.title("%s streams %s from %s (a typed stream)", from.name, to.dir, to.name)
	start := time.Now()
	got, err := from.walkOf(ctx, to.HostName(), func(t *tally) {
		r.progress("%s entries, %s", number(t.entries()), size(uint64(t.Bytes)))
	})
	if !r.check(err == nil, "the stream ended well after %v", took(start)) {
		r.line("%v", err)
		return
	}
	want, err := count(ctx, to.dir)
	if err != nil {
		r.check(false, "local walk: %v", err)
		return
	}
	r.check(*got == *want, "%s files and %s directories, %s; a local walk counts %s and %s, %s",
		number(got.Files), number(got.Dirs), size(uint64(got.Bytes)),
		number(want.Files), number(want.Dirs), size(uint64(want.Bytes)))
}

// cutLink cuts the link in the middle of a stream, and waits for the next one.
func cutLink(ctx context.Context, r *report, from, to *node) {
	r.title("The link between %s and %s is cut in the middle of a stream", from.name, to.name)
	conn := from.Connection(to.HostName())
	s, err := walks.Call(ctx, conn, &walkRequest{Forever: true})
	if err != nil {
		r.check(false, "second stream: %v", err)
		return
	}
	n := 0
	var cut time.Time
	err = s.Results(func(e *entry) error {
		walks.PutResponse(e)
		if n++; n == cutAfter {
			cut = time.Now()
			from.links.cut(addr(to.HostName())) // one of the two has dialled
			to.links.cut(addr(from.HostName()))
		}
		return nil
	})
	r.check(errors.Is(err, grid.ErrDisconnected), "the stream ended after %s entries with: %v", number(n), err)
	if err := conn.WaitForConnect(ctx); err != nil {
		r.check(false, "reconnect: %v", err)
		return
	}
	r.check(true, "reconnected %v after the cut", took(cut))
	_, err = disks.Call(ctx, conn, new(diskRequest))
	r.check(err == nil, "and a request goes through again")
}

// showErrors shows what comes back where something is wrong on the other side.
func showErrors(ctx context.Context, r *report, from, to *node) {
	r.title("What comes from the other side is told apart from what is local")
	conn := from.Connection(to.HostName())
	_, err := conn.SingleRequest(ctx, missingID, nil)
	r.check(grid.IsRemoteErr(err), "a missing handler: %v", err)
	_, err = disks.Call(ctx, conn, &diskRequest{Dir: "/no/such/directory"})
	r.check(grid.IsRemoteErr(err), "a handler's error: %v", err)
	_, err = disks.Call(ctx, from.Connection("http://nobody:1"), new(diskRequest))
	r.check(errors.Is(err, grid.ErrDisconnected) && !grid.IsRemoteErr(err), "an unknown host: %v", err)
}
