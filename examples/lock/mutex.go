package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

// ErrLost is the cause with which the context of a holder ends that can't be sure any more to have
// the lock.
var ErrLost = errors.New("lock: lost")

// Mutex is a lock that all nodes share, by its name: for one writer, or any number of readers. It
// may be used concurrently, and has no state of its own.
//
// Nobody queues: who finds it held tries again, and readers that never cease keep writers out.
type Mutex struct {
	c    *Client
	name string
}

// Mutex returns the lock of that name.
func (c *Client) Mutex(name string) *Mutex { return &Mutex{c: c, name: name} }

// Lock waits until it is the only holder, or until ctx ends. More than half of the nodes must
// agree. The caller must Unlock what it gets.
func (m *Mutex) Lock(ctx context.Context) (*Held, error) {
	return m.lock(ctx, lockReq, writeQuorum(len(m.c.hosts)))
}

// RLock is Lock for a reader: other readers may hold the lock too. Half of the nodes must agree.
func (m *Mutex) RLock(ctx context.Context) (*Held, error) {
	return m.lock(ctx, rlockReq, readQuorum(len(m.c.hosts)))
}

// ForceUnlock takes the lock from all who hold it, on more than half of the nodes at least. They
// find out within [Options] Expiry; another may hold it before.
func (m *Mutex) ForceUnlock(ctx context.Context) error {
	_, err := m.c.ask(ctx, forceUnlockReq, &lockArgs{Name: m.name}, writeQuorum(len(m.c.hosts)), nil)
	if err != nil {
		return fmt.Errorf("lock: forcing %s open: %w", m.name, err)
	}
	return nil
}

func (m *Mutex) lock(ctx context.Context, req *request, need int) (*Held, error) {
	var why error
	for attempt := 0; ; attempt++ {
		// A UID of its own for each attempt: what is left of one is not taken for the next.
		a := &lockArgs{Name: m.name, UID: rand.Text(), Owner: m.c.m.HostName()}
		start := time.Now()
		r, err := m.c.ask(ctx, req, a, need, nil)
		if err == nil {
			return m.c.hold(ctx, a, need, r, start), nil
		}
		// Some have agreed, or will, and must not keep others out.
		m.c.calls.Go(func() { m.c.release(a, r) })
		if ctx.Err() == nil {
			why = err
		}
		select {
		case <-time.After(backoff(m.c.opts.retry(), attempt)):
		case <-ctx.Done():
			if why == nil {
				why = errors.New("no answers yet")
			}
			return nil, fmt.Errorf("lock: waiting for %s: %w (%w)", m.name, context.Cause(ctx), why)
		}
	}
}

// backoff is how long to wait after an attempt: longer after each, up to a point, and never as long
// as others who have failed at the same time.
func backoff(d time.Duration, attempt int) time.Duration {
	d <<= min(attempt, 4)
	return d/2 + mathrand.N(d)
}

// release takes back what an earlier round has asked for. It returns when no one who asks now needs
// to fail because of it.
func (c *Client) release(a *lockArgs, asked round) {
	// Should it fail, what is left expires.
	_, _ = c.ask(context.Background(), unlockReq, a, writeQuorum(len(c.hosts)), asked)
}

// Held is a lock that somebody has. Its methods may be called concurrently.
type Held struct {
	c      *Client
	args   *lockArgs
	need   int
	asked  round
	ctx    context.Context
	cancel context.CancelCauseFunc
	lease  *time.Timer // ends ctx
	once   sync.Once   // of Unlock
}

// hold is a lock that enough nodes have agreed to, asked from start on.
func (c *Client) hold(ctx context.Context, a *lockArgs, need int, asked round, start time.Time) *Held {
	h := &Held{c: c, args: a, need: need, asked: asked}
	h.ctx, h.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	h.lease = time.AfterFunc(time.Until(start.Add(c.opts.lease())), func() { h.cancel(ErrLost) })
	c.calls.Go(h.keep)
	return h
}

// Context ends when the lock is unlocked, or when it is lost: then with [ErrLost] as its cause.
// What is done under the lock should end with it. It has the values of the context given to Lock,
// but not its end.
func (h *Held) Context() context.Context { return h.ctx }

// Unlock gives the lock back, also where it was lost. Only the first call does anything.
func (h *Held) Unlock() {
	h.once.Do(func() {
		h.cancel(nil)
		h.lease.Stop()
		h.c.release(h.args, h.asked)
	})
}

// keep refreshes the lock while it is held, and whenever enough nodes have agreed begins the lease
// anew. So the lock outlives links that are lost for a moment.
func (h *Held) keep() {
	wait := h.c.opts.refresh()
	for {
		select {
		case <-time.After(wait):
		case <-h.ctx.Done():
			return
		}
		start := time.Now()
		_, err := h.c.ask(h.ctx, refreshReq, h.args, h.need, nil)
		var none *grid.QuorumError
		switch {
		case err == nil:
			h.lease.Reset(time.Until(start.Add(h.c.opts.lease())))
			wait = h.c.opts.refresh()
		// So many have forgotten that the others are too few.
		case errors.As(err, &none) && !slices.ContainsFunc(none.Errs, func(err error) bool { return !errors.Is(err, errUnknown) }):
			h.cancel(fmt.Errorf("%w: %w", ErrLost, err))
			return
		default: // they may come back before the lease ends
			wait = h.c.opts.retry()
		}
	}
}
