package grid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/offload"
	"github.com/gridrpc/grid/internal/wsconn"
)

// dial makes one attempt to connect.
func (c *Connection) dial(ctx context.Context) (*session, error) {
	return attemptTo(ctx, c, c.connect, func(s *session, gaveUp error) {
		if s != nil {
			s.close(gaveUp)
		}
	})
}

// attemptTo has f reach the remote, bounded by HandshakeTimeout. f calls functions of the
// application's, which may not heed its context: then it is left behind, and there is no other
// attempt until it has returned. late is told what it returns after all, and why nobody waits for
// it.
func attemptTo[T any](ctx context.Context, c *Connection, f func(ctx context.Context, at *progress) (T, error), late func(v T, gaveUp error)) (v T, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.HandshakeTimeout)
	defer cancel()
	at := c.opts.newProgress(ctx)
	c.attempt.Store(at)
	defer c.attempt.CompareAndSwap(at, nil) // a knock that was withdrawn may return late
	end, err := c.attempts.begin(ctx, c.remote, at)
	if err != nil {
		return v, err
	}
	v, err = offload.Call(ctx, c.callbacks, func() (v T, err error) {
		defer end()
		defer func() {
			if p := recover(); p != nil {
				c.attemptPanics.Panicked(c.log, "grid: panic while connecting", p)
				err = fmt.Errorf("panic %s: %s", at.reached(), clip.Text(fmt.Sprint(p)))
			}
		}()
		v, err = f(ctx, at)
		return v, withFixedText(err)
	}, func(v T, _ error) { late(v, at.gaveUp()) })
	switch err {
	case offload.ErrLeft:
		err = at.gaveUp()
	case offload.ErrExited:
		err = fmt.Errorf("goroutine ended %s", at.reached())
	}
	return v, err
}

// outgoing is what goes with a request to the remote, but for its headers, whose token is made by
// pass.
func (c *Connection) outgoing(at *progress, pass func() (string, error)) (o wsconn.DialOptions, err error) {
	at.enter("in AuthFn")
	o.Token, err = pass()
	if err != nil {
		return o, err
	}
	at.enter("in UpgradeHeader")
	o.Header, err = c.opts.upgradeHeader(c.remote)
	o.Dial, o.TLS, o.Stage = c.opts.Dialer, c.opts.TLSConfig, at.enter
	if err == nil && at.ctx.Err() != nil {
		err = at.gaveUp() // while these were called, so the rest would be for nobody
	}
	return o, err
}

func (c *Connection) connect(ctx context.Context, at *progress) (s *session, err error) {
	o, err := c.outgoing(at, c.bearer)
	if err != nil {
		return nil, err
	}
	o.Limit, o.Counters = handshakeLimit, c.traffic
	ws, answer, err := wsconn.Dial(ctx, c.opts.dialURL(c.remote), o)
	if err != nil {
		forbidden := new(wsconn.ForbiddenError)
		isForbidden := errors.As(err, &forbidden)
		if err = cleanError(at.explain(err), o.Secrets()...); isForbidden {
			err = c.notAccepted(err)
		}
		return nil, err
	}
	defer func() {
		if s == nil {
			ws.Close()
		}
	}()
	return handshake(ctx, ws, at, func() (*session, error) {
		s, err := c.greet(ws, answer, &o, at)
		if err == nil {
			at.enter("in the handshake, asking whether the present connection is alive")
			err = c.adopt(s)
		}
		return s, err
	})
}

// attempts are those to connect that have not returned, by host: also those that were left behind,
// of which there is one for each host, however often that is dialled, or added again.
type attempts struct {
	mu sync.Mutex // guards m
	m  map[string]*attempt
}

type attempt struct {
	at       *progress
	returned chan struct{}
}

// shortWait is how long an attempt waits for the one before, which may just be returning.
const shortWait = 100 * time.Millisecond

// begin begins an attempt, unless one before it hangs. end must be called when it has returned.
func (a *attempts) begin(ctx context.Context, host string, at *progress) (end func(), err error) {
	next := &attempt{at, make(chan struct{})}
	before := a.enter(host, next)
	if before != nil {
		stage := before.at.reached()
		at.enter("waiting for an earlier attempt, which hangs " + stage)
		timeout := time.NewTimer(min(shortWait, at.timeout/10))
		defer timeout.Stop()
		select {
		case <-before.returned:
		case <-timeout.C:
		case <-ctx.Done():
		}
		if before = a.enter(host, next); before != nil {
			return nil, &hangingError{stage, time.Since(before.at.began)}
		}
	}
	return func() { a.leave(host, next) }, nil
}

// hangingError is an attempt that was not made, because one before it has not returned.
type hangingError struct {
	stage string
	since time.Duration
}

func (e *hangingError) Error() string {
	return fmt.Sprintf("an earlier attempt still hangs %s, after %s", e.stage, age(e.since))
}

// enter makes next the attempt of the host, or returns the one that there is.
func (a *attempts) enter(host string, next *attempt) (before *attempt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if before = a.m[host]; before == nil {
		if a.m == nil {
			a.m = make(map[string]*attempt)
		}
		a.m[host] = next
	}
	return before
}

func (a *attempts) leave(host string, last *attempt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.m, host)
	close(last.returned)
}

// handshake runs f, bounded by ctx, which has a deadline. It fails if ctx has ended meanwhile, also
// where f has not noticed.
func handshake(ctx context.Context, ws *wsconn.Conn, at *progress, f func() (*session, error)) (*session, error) {
	if err := ws.SetDeadline(at.deadline); err != nil {
		return nil, at.explain(&socketError{err})
	}
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	s, err := f()
	if err != nil {
		stop()
		return nil, at.explain(err)
	}
	if stop() {
		err = ws.SetDeadline(time.Time{})
	} else {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = at.explain(err)
		s.close(err)
		return nil, err
	}
	ws.SetLimit(s.opts.frameLimit())
	return s, nil
}

// progress is how far an attempt to connect has come, on either side.
type progress struct {
	ctx      context.Context // bounds the attempt
	began    time.Time
	deadline time.Time
	timeout  time.Duration

	mu    sync.Mutex
	stage string
}

// newProgress is that of an attempt which ctx bounds, by HandshakeTimeout at the latest.
func (o *ManagerOptions) newProgress(ctx context.Context) *progress {
	p := &progress{ctx: ctx, began: time.Now(), timeout: o.HandshakeTimeout}
	p.deadline, _ = ctx.Deadline()
	return p
}

// enter notes what begins, in words that go behind "timed out". What begins after the deadline is
// not what has taken the time.
func (p *progress) enter(stage string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.isLate() {
		p.stage = stage
	}
}

// reached is the stage that it is in.
func (p *progress) reached() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stage
}

func (p *progress) isLate() bool { return !time.Now().Before(p.deadline) }

// explain returns why the attempt failed with err. Where it was ended, by its time or by who gave
// it up, that is the reason, and not what became of the socket.
func (p *progress) explain(err error) error {
	var socket *socketError
	var timeout net.Error
	switch {
	case !errors.As(err, &socket) && !errors.Is(err, context.DeadlineExceeded) && (!errors.As(err, &timeout) || !timeout.Timeout()):
	case p.isLate():
		return &timeoutError{p.timeout, p.reached()}
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	}
	return err
}

// gaveUp is why the attempt was left behind: ctx has ended.
func (p *progress) gaveUp() error { return p.explain(context.DeadlineExceeded) }

// timeoutError is an attempt to connect that took too long.
type timeoutError struct {
	after time.Duration
	stage string
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("timed out after %v (HandshakeTimeout) %s", e.after, e.stage)
}

// Is reports whether target is [context.DeadlineExceeded].
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// socketError is what has happened to a socket, rather than what was said over it.
type socketError struct{ error }

func (e *socketError) Unwrap() error { return e.error }
