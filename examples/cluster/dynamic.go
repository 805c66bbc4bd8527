package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

// maxChanges is how many changes may wait to be reported. Those beyond hold up the hosts that
// leave.
const maxChanges = 1000

// dynamic is a node of a cluster that nodes join and leave.
type dynamic struct {
	*node

	changing sync.Mutex // held while hosts are added or removed
	// leaving are hosts that have said so, and when, whose link has not ended yet.
	leaving map[string]time.Time
	gone    bool // this node leaves
}

// register adds what others ask of such a node.
func (d *dynamic) register(n *node) error {
	d.node = n
	return errors.Join(
		hostsOf.Register(n.Manager, d.serveHosts),
		n.RegisterSingleHandlerContext(leaveID, d.serveLeave),
	)
}

// add makes a host one of this node's, also where it was about to leave: it is back.
func (d *dynamic) add(host string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.gone {
		return errLeaving // which it would not be told any more
	}
	if err := d.AddHost(host); err != nil {
		return err
	}
	delete(d.leaving, host)
	return nil
}

// staying are all hosts but those that leave.
func (d *dynamic) staying() []string {
	d.changing.Lock()
	defer d.changing.Unlock()
	hosts := append(d.Targets(), d.HostName())
	return slices.DeleteFunc(hosts, func(h string) bool { return !d.leaving[h].IsZero() })
}

// runDynamic is run in a cluster that nodes join and leave, until ctx ends or a node to join
// through refuses.
func (m *member) runDynamic(ctx context.Context, r *report, l, page net.Listener, opts grid.ManagerOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &dynamic{leaving: make(map[string]time.Time)}
	changes := make(chan grid.StateChange, maxChanges)
	opts.Hosts = []string{opts.Local}
	opts.AcceptHost, opts.MaxHosts = d.accept, maxHosts
	opts.OnStateChange = func(c grid.StateChange) {
		if d.removeLeft(c) {
			return // the removal is a change of its own
		}
		select {
		case changes <- c:
		case <-ctx.Done():
		}
	}
	n, err := startNode(ctx, opts.Local, l, m.secret, m.dir, opts, d.register)
	if err != nil {
		return err
	}
	defer n.stop()
	defer n.answerHTTP(page)()

	through := slices.DeleteFunc(slices.Clone(m.hosts), func(h string) bool { return h == opts.Local })
	if len(through) == 0 {
		r.line("the first node of a cluster")
	} else {
		r.line("joining through %s", strings.Join(through, " and "))
	}
	r.line("stop with Ctrl-C")
	refused := make(chan error, 1)
	var joining sync.WaitGroup
	joining.Go(func() {
		if err := d.join(ctx, through); err != nil {
			refused <- err
		}
	})
	err = m.follow(ctx, r, n, changes, refused)
	cancel()
	joining.Wait() // a node that is asked later would not be told
	r.title("left, with %d of the others told", d.leave(context.WithoutCancel(ctx)))
	if err != nil || r.checks == 0 {
		return err
	}
	return r.end()
}

// follow reports who comes and goes, and uses each peer when it has come, until ctx ends, or
// joining was refused.
func (m *member) follow(ctx context.Context, r *report, n *node, changes <-chan grid.StateChange, refused <-chan error) error {
	used := make(map[string]bool)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case err := <-refused:
			return err
		case c := <-changes:
			switch {
			case c.To == grid.StateConnected && used[c.Host]:
				r.title("%s is connected again", c.Host)
			case c.To == grid.StateConnected:
				used[c.Host] = m.use(ctx, r, n, c.Host)
			case c.To == grid.StateShutdown:
				r.title("%s has left", c.Host)
				delete(used, c.Host)
			case c.From == grid.StateConnected || c.Missed > 0:
				r.title("%s is lost: %v", c.Host, c.Err)
			}
		}
	}
	return nil
}
