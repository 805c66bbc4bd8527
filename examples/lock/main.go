// Command lock is a lock that servers share: for one writer or many readers, without a server that
// all depend on. Each node keeps what it has agreed to, and who wants the lock needs more than half
// of the nodes.
//
//	go run ./examples/lock
//
// starts five nodes in one process, has them count with it while some of them crash, and checks all
// that comes of it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, Options{Expiry: time.Second}); err != nil {
		fmt.Fprintf(os.Stderr, "lock: %v\n", err)
		os.Exit(1)
	}
}

const (
	demoTime = time.Minute // how long all may take
	perNode  = 2           // workers
	times    = 25          // increments of each
)

// run is the program. It returns an error unless everything that was checked held.
func run(ctx context.Context, w io.Writer, opts Options) error {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "grid-lock-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	nodes, stop, err := startNodes([]string{"anna", "bert", "cleo", "dora", "emil"}, rand.Text(), opts)
	defer stop()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := n.waitConnected(ctx); err != nil {
			return err
		}
	}
	d := &demo{w: w, opts: opts, nodes: nodes, file: filepath.Join(dir, "counter")}
	d.title("Five nodes in one process; who does not refresh a lock for %v has it no more", opts.expiry())
	for _, step := range []func(context.Context) error{d.holderCrashes, d.count, d.majorityCrashes} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.title("%d of %d checks held", d.checks-d.failed, d.checks)
	if d.failed > 0 {
		return errors.New("not everything held")
	}
	return nil
}

// demo is what the program shows, with all nodes running at first.
type demo struct {
	w      io.Writer
	opts   Options
	nodes  []*node
	file   string
	checks int
	failed int
}

func (d *demo) title(format string, a ...any) { fmt.Fprintf(d.w, "\n"+format+"\n", a...) }

func (d *demo) check(ok bool, format string, a ...any) {
	mark := "  ok    "
	d.checks++
	if !ok {
		mark = "  FAIL  "
		d.failed++
	}
	fmt.Fprintf(d.w, mark+format+"\n", a...)
}

// holderCrashes has emil crash with the lock.
func (d *demo) holderCrashes(ctx context.Context) error {
	anna, emil := d.nodes[0], d.nodes[4]
	d.title("%s takes the lock, and crashes", emil.name)
	held, err := emil.Mutex("counter").Lock(ctx)
	if err != nil {
		return err
	}
	defer held.Unlock()
	emil.crash()
	start := time.Now()
	next, err := anna.Mutex("counter").Lock(ctx)
	if err != nil {
		return err
	}
	defer next.Unlock()
	d.check(held.Context().Err() != nil, "%s got it %v later, when %s knew that it was lost",
		anna.name, time.Since(start).Round(time.Millisecond), emil.name)
	return nil
}

// count has workers on the four that are left increment a number in a file, and dora crash
// meanwhile.
func (d *demo) count(ctx context.Context) error {
	running, dora := d.nodes[:4], d.nodes[3]
	d.title("%d workers on each of %s increment a number in a file", perNode, namesOf(running))
	c := &counter{file: d.file, midway: int64(perNode * times), reached: make(chan struct{})}
	if err := c.write(0); err != nil {
		return err
	}
	start := time.Now()
	doraCtx, doraGone := context.WithCancel(ctx)
	defer doraGone()
	var wg sync.WaitGroup
	errs := make([]error, perNode*len(running))
	for i := range errs {
		n, ctx := running[i/perNode], ctx
		if n == dora {
			ctx = doraCtx
		}
		wg.Go(func() { errs[i] = c.worker(ctx, n.Mutex("counter"), times) })
	}
	select {
	case <-c.reached:
	case <-ctx.Done():
	}
	dora.crash()
	doraGone()
	wg.Wait()
	d.check(errors.Join(errs[:3*perNode]...) == nil, "%s crashed after %d increments, the others did all of theirs", dora.name, c.midway)
	n, err := c.read()
	d.check(err == nil && n == c.done.Load(), "the file says %d after %d increments, in %v", n, c.done.Load(), time.Since(start).Round(time.Millisecond))
	d.check(c.clash.Load() == 0, "two at a time: %d", c.clash.Load())
	return ctx.Err()
}

// majorityCrashes has cleo crash, the third of five, while anna has the lock.
func (d *demo) majorityCrashes(ctx context.Context) error {
	anna, bert, cleo := d.nodes[0], d.nodes[1], d.nodes[2]
	d.title("%s takes the lock, and %s crashes: the third of five", anna.name, cleo.name)
	held, err := anna.Mutex("counter").Lock(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	cleo.crash()
	select {
	case <-held.Context().Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	cause := context.Cause(held.Context())
	d.check(errors.Is(cause, ErrLost), "the context of %s ended after %v: %v", anna.name, time.Since(start).Round(time.Millisecond), cause)
	held.Unlock()

	short, cancel := context.WithTimeout(ctx, 2*d.opts.expiry())
	defer cancel()
	_, err = anna.Mutex("counter").Lock(short)
	d.check(errors.Is(err, context.DeadlineExceeded), "%s wants to write: %v", anna.name, err)
	short, cancel = context.WithTimeout(ctx, d.opts.expiry())
	defer cancel()
	_, err = bert.Mutex("counter").RLock(short)
	d.check(errors.Is(err, context.DeadlineExceeded), "%s wants to read: %v", bert.name, err)
	anna.Close()
	bert.Close()
	d.check(len(anna.server.Holders())+len(bert.server.Holders()) == 0, "nothing is left on %s and %s", anna.name, bert.name)
	return ctx.Err()
}
