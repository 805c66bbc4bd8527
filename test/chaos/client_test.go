package chaos

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
)

// client makes one call after the other from one host to another.
type client struct {
	cluster  *cluster
	from, to int
	rng      *rand.Rand
	calm     bool // its calls are to end well
}

// run calls until ctx ends. It finishes the last call.
func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		err := c.callAnything()
		if errors.Is(err, grid.ErrDisconnected) && time.Since(began) < time.Millisecond {
			// There is no link, or no more of this manager: many calls that can't be made are worth
			// no more than a few.
			wait, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			_ = c.cluster.conn(c.from, c.to).WaitForConnect(wait)
			cancel()
			sleep(ctx, 5*time.Millisecond)
		}
		if errors.As(err, new(plannedError)) {
			sleep(ctx, 5*time.Millisecond) // as much
		}
	}
}

func (c *client) callAnything() error {
	m := c.cluster.model
	n := note{call: m.begin(), from: uint8(c.from), to: uint8(c.to), route: uint8(c.rng.IntN(len(routes)))}
	defer m.end(n.call)
	life := c.cluster.nodes[c.from].life.Load()
	call := &call{note: n, conn: life.Connection(c.cluster.names[c.to]), over: life.over, calm: c.calm}
	patience := c.patience()
	c.choose(call)
	kind := c.rng.IntN(100)
	if kind < 4 && !c.calm {
		// It has nothing but its cancel to end by.
		call.traits |= waitsForEnd
		patience.deadline, patience.cancel = 0, time.Duration(1+c.rng.IntN(15_000))*time.Microsecond
	}
	var cancel context.CancelFunc
	call.ctx, cancel = patience.context(func() {
		m.mark(n.call, gaveUp)
	})
	defer cancel()
	switch {
	case kind < 8:
		call.what, call.id = "cancellable request", cancellable
		return c.cluster.send(call, call.encode(c.size()), false)
	case kind < 12:
		return c.many(call)
	case kind < 24:
		return c.stream(call)
	}
	return c.single(call)
}

// choose says what the handler is to do.
func (c *client) choose(call *call) {
	n := &call.note
	n.size = uint32(c.size())
	if c.rng.IntN(4) == 0 {
		n.traits |= isTagged
	}
	if c.calm {
		return
	}
	switch p := c.rng.IntN(100); {
	case p < 4:
		n.end = endsInError
	case p < 5:
		n.end = endsInPanic
	}
	if c.rng.IntN(10) == 0 {
		n.pause = uint8(1 + c.rng.IntN(10))
	}
}

// size is that of a payload: few are so large that they go in fragments. The pool that looks at
// every byte, one buffer at a time, has fewer of them.
func (c *client) size() int {
	large, medium, most := 12, 100, 300<<10
	if bytepool.Strict {
		large, medium, most = 3, 30, 80<<10
	}
	switch p := c.rng.IntN(1000); {
	case p < large:
		return 64<<10 + c.rng.IntN(most)
	case p < medium:
		return c.rng.IntN(32 << 10)
	}
	return c.rng.IntN(1 << 10)
}

// patience is how long a caller waits.
type patience struct {
	deadline time.Duration // 0 for none
	cancel   time.Duration // when it gives up; 0 for never
}

const (
	longEnough = 5 * time.Second
	// tooLong is after how long a call without a deadline must have ended.
	tooLong = 15 * time.Second
)

func (c *client) patience() patience {
	if c.calm {
		return patience{deadline: longEnough}
	}
	switch p := c.rng.IntN(100); {
	case p < 5:
		return patience{deadline: time.Duration(1+c.rng.IntN(25)) * time.Millisecond}
	case p < 10:
		return patience{deadline: longEnough, cancel: time.Duration(c.rng.IntN(15_000)) * time.Microsecond}
	case p < 25:
		return patience{}
	}
	return patience{deadline: longEnough}
}

// context calls before just before it gives up.
func (p patience) context(before func()) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	wait, cause := p.cancel, errGaveUp
	if p.deadline == 0 && p.cancel == 0 {
		wait, cause = tooLong, errHung
	}
	stop := func() bool { return true }
	if wait > 0 {
		stop = time.AfterFunc(wait, func() {
			before()
			cancel(cause)
		}).Stop
	}
	release := context.CancelFunc(func() {})
	if p.deadline > 0 {
		ctx, release = context.WithTimeout(ctx, p.deadline)
	}
	return ctx, func() {
		stop()
		release()
		cancel(nil)
	}
}

// requester is the connection, or the subroute, that a call is to.
func (c *call) requester() requester {
	return c.requesterOver(c.conn)
}

type requester interface {
	grid.Requester
	grid.Streamer
}

// requesterOver is that over another connection.
func (c *call) requesterOver(conn *grid.Connection) requester {
	options := grid.CallOptions{Metadata: c.tag()}
	sub := conn.Subroute(routes[c.route])
	switch routes[c.route] {
	case "":
		if options.Metadata != nil {
			return conn.With(options)
		}
		return conn
	case "pool/disk2":
		sub = conn.Subroute("pool").Subroute("disk2")
	}
	if options.Metadata != nil {
		return sub.With(options)
	}
	return sub
}

// single makes a single request.
func (c *client) single(call *call) error {
	call.what, call.id = "request", single
	payload := call.encode(c.size())
	isTyped := c.rng.IntN(4) == 0
	if isTyped {
		call.what, call.id = "typed request", typedSingle
	}
	return c.cluster.send(call, payload, isTyped)
}

// send makes a single request with a payload from the pool, which it gives back.
func (c *cluster) send(call *call, payload []byte, isTyped bool) error {
	m := c.model
	m.tally.calls.Add(1)
	call.largest = max(len(payload), int(call.size))
	m.beginCall(call)
	var answer []byte
	var err error
	if isTyped {
		req := grid.NewBytesWith(payload)
		var resp *grid.Bytes
		resp, err = intercepted(func() (*grid.Bytes, error) { return typedCall.Call(call.ctx, call.requester(), req) })
		if resp != nil {
			answer = *resp
			defer typedCall.PutResponse(resp)
		}
		req.Recycle()
	} else {
		answer, err = intercepted(func() ([]byte, error) { return call.requester().SingleRequest(call.ctx, call.id, payload) })
		defer grid.PutByteBuffer(answer)
		grid.PutByteBuffer(payload)
	}
	m.judge(call, err)
	if err != nil {
		m.failed(call)
		return err
	}
	if err := call.follows(answer, true, 0); err != nil {
		m.violation("the answer to %v: %v", call, err)
	}
	return nil
}

// request makes a plain request with a payload of that size.
func (c *cluster) request(ctx context.Context, from, to, size int) error {
	m := c.model
	call := &call{
		note: note{call: m.begin(), from: uint8(from), to: uint8(to)},
		what: "plain request",
		id:   single,
		conn: c.conn(from, to),
		ctx:  ctx,
	}
	defer m.end(call.call)
	return c.send(call, call.encode(size), false)
}

// sleep returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
