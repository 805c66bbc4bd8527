package grid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/wsconn"
)

// The side that waits to be dialled asks for it (section 10).

// Headers of a knock: who knocks, at whom, and as which process.
const (
	knockHeader   = "Grid-Knock"
	knockToHeader = "Grid-Knock-To"
	knockIDHeader = "Grid-Knock-Id"
)

// errGivenUp is why an attempt is given up whose host has knocked meanwhile.
var errGivenUp = errors.New("given up, because the host is there anew")

// knocks sees to it that there is one knock at a time.
type knocks struct {
	// busy is 0 if none is under way, else how many goroutines have to do with it: a function of
	// the application's that hangs keeps others from piling up.
	busy atomic.Int32
}

// serveAccepted runs a session that the other side has made, and knocks when it is lost. The other
// side has the time of its first pause to notice that by itself.
func (c *Connection) serveAccepted(s *session) {
	c.serve(s)
	if !s.leaving.Load() {
		c.knock(2 * c.opts.MinBackoff)
	}
}

// knock asks the other side to dial, if there is no connection after the time given. It does
// nothing while another knock is under way, and waits for nothing.
func (c *Connection) knock(after time.Duration) {
	if !c.knocks.busy.CompareAndSwap(0, 1) {
		return
	}
	c.start(func() {
		defer c.knocks.busy.Add(-1)
		if !c.opts.waitUnblocked(c.ctx) || !sleep(c.ctx, after) || c.session.Load() != nil || c.draining.Load() {
			return
		}
		if err := c.sendKnock(); err != nil {
			c.log.Debug("grid: knock failed", "error", err)
		}
	})
}

// sleep reports false once ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func (c *Connection) sendKnock() error {
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.HandshakeTimeout)
	defer cancel()
	at := c.opts.newProgress(ctx)
	at.enter("in AuthFn")
	bearer, err := besides(ctx, &c.knocks, c.knockPass, func(string) {})
	if err != nil {
		return at.explain(err)
	}
	c.stats.knocks.Add(1)
	answer, err := wsconn.Post(ctx, c.remote+c.opts.RoutePath, http.Header{
		knockHeader:   {c.local},
		knockToHeader: {c.remote},
		knockIDHeader: {fmt.Sprintf("%x", c.localID)},
	}, wsconn.DialOptions{Token: bearer, Dial: c.knockDialer(), TLS: c.opts.TLSConfig, Stage: at.enter})
	if err != nil {
		return cleanError(at.explain(err), bearer)
	}
	if answer.Status/100 == 2 {
		return nil
	}
	err = fmt.Errorf("knock refused: %d %s: %s", answer.Status, http.StatusText(answer.Status), clip.Text(answer.Text))
	switch answer.Status {
	case http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusMisdirectedRequest:
		// Others, which do not know what a knock is, say the like, but not so.
		if strings.HasPrefix(answer.Text, "grid: ") && c.session.Load() == nil {
			c.stats.fault(err)
		}
	}
	return err
}

// knockPass is the token of a knock.
func (c *Connection) knockPass() (string, error) {
	if secret := c.secret.Load(); secret != nil {
		return secret.KnockPass(c.local, c.remote), nil
	}
	return c.opts.bearer()
}

// knockDialer is the Dialer of the options, nil for the default one.
func (c *Connection) knockDialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := c.opts.Dialer
	if dial == nil {
		return nil
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := besides(ctx, &c.knocks, func() (net.Conn, error) { return dial(ctx, network, addr) }, func(conn net.Conn) {
			if conn != nil {
				conn.Close()
			}
		})
		if err == nil && conn == nil {
			err = errors.New("Dialer returned neither a connection nor an error")
		}
		return conn, err
	}
}

// besides calls f, which calls the application, on a goroutine of its own, and gives it up when ctx
// ends. What it returns then is for late.
func besides[T any](ctx context.Context, k *knocks, f func() (T, error), late func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	results := make(chan result)
	k.busy.Add(1)
	go func() {
		defer k.busy.Add(-1)
		r := result{err: errors.New("a function of the application has ended its goroutine")}
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("a function of the application has panicked: %s", clip.Text(fmt.Sprint(p)))
			}
			select {
			case results <- r:
			case <-ctx.Done():
				late(r.v)
			}
		}()
		r.v, r.err = f()
	}()
	select {
	case r := <-results:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
