package main

import (
	"context"
	"errors"
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

// round is one question to all nodes. A channel is closed when its node has answered, or will not
// any more.
type round []chan struct{}

// inTurn is the connection to a node that is asked after it has answered an earlier question.
type inTurn struct {
	grid.Requester
	after    <-chan struct{} // nil for none
	answered chan struct{}
}

func (t *inTurn) SingleRequest(ctx context.Context, id grid.HandlerID, payload []byte) ([]byte, error) {
	defer close(t.answered)
	if t.after != nil {
		<-t.after
	}
	return t.Requester.SingleRequest(ctx, id, payload)
}

// ask asks all nodes at once, each after its answer to an earlier round, if there is one. It
// returns when enough of them have agreed, when no longer enough can, or when ctx ends: the calls
// themselves go on.
func (c *Client) ask(ctx context.Context, req *request, a *lockArgs, need int, after round) (round, error) {
	r, conns := make(round, len(c.hosts)), make([]grid.Requester, len(c.hosts))
	for i, host := range c.hosts {
		r[i] = make(chan struct{})
		node := &inTurn{Requester: c.m.Connection(host).WithTimeout(c.opts.call()), answered: r[i]}
		if after != nil {
			node.after = after[i]
		}
		conns[i] = node
	}
	verdict := make(chan error, 1)
	c.calls.Go(func() {
		agreed, none := 0, &grid.QuorumError{Need: need, Of: len(conns)}
		for answer := range req.CallEach(context.WithoutCancel(ctx), conns, args.NewJSONWith(a)) {
			switch {
			case answer.Err == nil:
				if agreed++; agreed == need {
					verdict <- nil
				}
			case len(none.Errs) <= none.Of-need:
				if none.Errs = append(none.Errs, answer.Err); len(none.Errs) > none.Of-need {
					verdict <- none
				}
			}
		}
	})
	select {
	case err := <-verdict:
		return r, err
	case <-ctx.Done():
		return r, context.Cause(ctx)
	}
}
