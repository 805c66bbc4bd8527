package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/gridrpc/grid"
)

// Client asks the nodes, this one included, on behalf of the locks of this host.
type Client struct {
	m     *grid.Manager
	hosts []string // all of them
	opts  Options
	calls sync.WaitGroup
}

// NewClient makes the client of m's host. The hosts that m has now are those that vote. m needs
// LocalCalls.
func NewClient(m *grid.Manager, opts Options) (*Client, error) {
	if m.Connection(m.HostName()) == nil {
		return nil, errors.New("lock: the manager has no LocalCalls")
	}
	return &Client{m: m, hosts: append(m.Targets(), m.HostName()), opts: opts}, nil
}

// Close waits until what was released is released on all nodes that can be reached. It must not be
// called before all locks are unlocked.
func (c *Client) Close() { c.calls.Wait() }

// errNoQuorum is a round in which too few nodes agreed.
type errNoQuorum struct {
	need, of int
	unknown  int   // those that have said errUnknown
	last     error // what one of them has said, or why it was not reached
}

func (e *errNoQuorum) Error() string {
	return fmt.Sprintf("fewer than %d of %d nodes agree: %v", e.need, e.of, e.last)
}

func (e *errNoQuorum) Unwrap() error { return e.last }

// round is one question to all nodes. A channel is closed when its node has answered, or will not
// any more.
type round []chan struct{}

// ask asks all nodes at once, each after its answer to an earlier round, if there is one. It
// returns when enough of them have agreed, when no longer enough can, or when ctx ends: the calls
// themselves go on.
func (c *Client) ask(ctx context.Context, req *request, a *lockArgs, need int, after round) (round, error) {
	r := make(round, len(c.hosts))
	votes := make(chan error, len(c.hosts))
	for i, host := range c.hosts {
		r[i] = make(chan struct{})
		c.calls.Go(func() {
			defer close(r[i])
			if after != nil {
				<-after[i]
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.opts.call())
			defer cancel()
			_, err := req.Call(ctx, c.m.Connection(host), args.NewJSONWith(a))
			votes <- err
		})
	}
	agreed, against, none := 0, 0, &errNoQuorum{need: need, of: len(c.hosts)}
	for {
		select {
		case err := <-votes:
			if err == nil {
				agreed++
			} else {
				against++
				none.last = err
				if errors.Is(err, errUnknown) {
					none.unknown++
				}
			}
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
		switch {
		case agreed >= need:
			return r, nil
		case against > len(c.hosts)-need:
			return r, none
		}
	}
}
