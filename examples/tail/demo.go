package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

const (
	lines    = 12 // of each log, that are shown
	interval = poll
	still    = 10 * poll // how long must nothing come for nothing to come any more
	backlog  = 100_000   // lines that a slow consumer has before it, about 5 MB
	bound    = 1 << 20   // bytes that may be on their way to it
)

// report prints what happens, and remembers whether all of it held.
type report struct {
	checks, failed int // of one goroutine

	mu sync.Mutex // of w
	w  io.Writer
}

// print may be called concurrently.
func (r *report) print(format string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.w, format+"\n", a...)
}

func (r *report) check(ok bool, format string, a ...any) {
	mark := "  ok    "
	r.checks++
	if !ok {
		mark = "  FAIL  "
		r.failed++
	}
	r.print(mark+format, a...)
}

// demo has anna follow bert and cleo.
func demo(ctx context.Context, w io.Writer) error {
	dir, err := os.MkdirTemp("", "grid-tail-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	names := []string{"anna", "bert", "cleo"}
	var listeners []net.Listener
	var hosts []string
	for range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		listeners, hosts = append(listeners, l), append(hosts, "http://"+l.Addr().String())
	}
	secret, quiet := rand.Text(), slog.New(slog.DiscardHandler)
	var nodes []*node
	for i, name := range names {
		s := &source{path: filepath.Join(dir, name+".log"), poll: poll, ends: make(chan error, 16)}
		n, err := startNode(name, hosts[i], listeners[i], hosts, secret, s, quiet)
		if err != nil {
			return err
		}
		defer n.stop()
		nodes = append(nodes, n)
	}
	r := &report{w: w}
	if err := followTwo(ctx, r, nodes[0], nodes[1], nodes[2]); err != nil {
		return err
	}
	if err := slow(ctx, r, nodes[0], nodes[1]); err != nil {
		return err
	}
	r.print("\n%d of %d checks held", r.checks-r.failed, r.checks)
	if r.failed > 0 {
		return errors.New("not everything held")
	}
	return nil
}

const format = "line %d of %s, for whoever wants it\n"

// write appends lines to the log of a node: those from from to to, one every interval, or all at
// once.
func (n *node) write(from, to int, every time.Duration) error {
	f, err := os.OpenFile(n.source.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i := from; i < to && err == nil; i++ {
		fmt.Fprintf(w, format, i, n.name)
		if every > 0 {
			err = w.Flush()
			time.Sleep(every)
		}
	}
	return errors.Join(err, w.Flush(), f.Close())
}

// lineCheck takes the lines that write has written, and finds out if one is missing, comes twice or
// out of order.
type lineCheck struct {
	name string
	n    int
	bad  bool
	all  chan struct{} // closed at line number want
	want int
}

func (c *lineCheck) take(line []byte) {
	c.bad = c.bad || string(line)+"\n" != fmt.Sprintf(format, c.n, c.name)
	if c.n++; c.n == c.want {
		close(c.all)
	}
}

func (c *lineCheck) wait(ctx context.Context) {
	select {
	case <-c.all:
	case <-ctx.Done():
	}
}

// followTwo follows two logs, of which one is cut off and the other one replaced.
func followTwo(ctx context.Context, r *report, anna, bert, cleo *node) error {
	r.print("anna follows bert and cleo; midway the link to bert is cut, and cleo's log replaced")
	following, stop := context.WithCancel(ctx)
	defer stop()
	peers := []*node{bert, cleo}
	midway := []func() error{
		func() error { cut(anna, bert); return nil },
		func() error { return os.Rename(cleo.source.path, cleo.source.path+".1") },
	}
	var writers, followers sync.WaitGroup
	errs := make([]error, 2)
	got, from := make([]*lineCheck, 2), make([]*follower, 2)
	for i, n := range peers {
		writers.Go(func() {
			errs[i] = errors.Join(n.write(0, lines/2, interval), midway[i](), n.write(lines/2, lines, interval))
		})
		got[i] = &lineCheck{name: n.name, want: lines, all: make(chan struct{})}
		from[i] = &follower{conn: anna.m.Connection(n.m.HostName())}
		followers.Go(func() {
			from[i].run(following, func(line []byte) error {
				r.print("        %s: %s", n.name, line)
				got[i].take(line)
				return nil
			})
		})
	}
	writers.Wait()
	got[0].wait(ctx)
	got[1].wait(ctx)
	time.Sleep(still)
	stop()
	followers.Wait()
	for i, n := range peers {
		r.check(!got[i].bad && got[i].n == lines, "%d of %d lines of %s, once each and in order, in %d stream(s)", got[i].n, lines, n.name, from[i].streams)
	}
	cause := ended(ctx, bert)
	r.check(errors.Is(cause, grid.ErrDisconnected), "bert's first handler ended with: %v", cause)
	for _, n := range peers {
		cause := ended(ctx, n)
		r.check(errors.Is(cause, context.Canceled), "anna has stopped, and so has %s's handler: %v", n.name, cause)
	}
	return errors.Join(errs[0], errs[1], ctx.Err())
}

// ended waits for the next end of a handler of a node.
func ended(ctx context.Context, n *node) error {
	select {
	case err := <-n.source.ends:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// slow follows a long log, and takes nothing for a while after the first line.
func slow(ctx context.Context, r *report, anna, bert *node) error {
	r.print("\nanna follows bert, who has a long log, and does not read on after the first line")
	if err := errors.Join(os.Remove(bert.source.path), bert.write(0, backlog, 0)); err != nil {
		return err
	}
	bert.source.sent.Store(0)
	following, stop := context.WithCancel(ctx)
	defer stop()
	goOn := make(chan struct{})
	got := &lineCheck{name: bert.name, want: backlog, all: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		(&follower{conn: anna.m.Connection(bert.m.HostName())}).run(following, func(line []byte) error {
			got.take(line)
			select {
			case <-goOn:
			case <-following.Done():
			}
			return nil
		})
	})
	sent := bert.source.settled(ctx)
	r.check(sent > 0 && sent < bound, "bert's handler waits, %d KiB ahead", sent>>10)
	start := time.Now()
	close(goOn)
	got.wait(ctx)
	took := time.Since(start).Round(time.Millisecond)
	stop()
	wg.Wait()
	r.check(!got.bad && got.n == backlog, "then %d of %d lines in %v, %d KiB", got.n, backlog, took, bert.source.sent.Load()>>10)
	cause := ended(ctx, bert)
	r.check(errors.Is(cause, context.Canceled), "anna has stopped, and so has the handler: %v", cause)
	return ctx.Err()
}

// settled waits until handlers send no more, and returns how much they have sent.
func (s *source) settled(ctx context.Context) int64 {
	for was := int64(0); ; {
		time.Sleep(still)
		now := s.sent.Load()
		if now > 0 && now == was || ctx.Err() != nil {
			return now
		}
		was = now
	}
}
