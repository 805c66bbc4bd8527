package grid

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gridrpc/grid/internal/backoff"
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

// errWithdrawn ends a knock that has become needless. Who is asked sees its connection end, and
// leaves alone the link which was made meanwhile.
var errWithdrawn = errors.New("connected meanwhile")

// serveAccepted runs a session that the other side has made, and knocks when it is lost. The other
// side has the time of its first pause to notice that by itself; what takes its place, if it has
// shut down, has longer to come up.
func (c *Connection) serveAccepted(s *session) {
	c.serve(s)
	if s.leaving.Load() {
		c.knock(c.opts.MaxBackoff)
	} else {
		c.knockAfterLoss()
	}
}

func (c *Connection) knockAfterLoss() { c.knock(2 * c.opts.MinBackoff) }

// knocking is what asks the other side to dial, until there is a connection.
type knocking struct {
	withdraw context.CancelCauseFunc
	wanted   chan struct{} // the present pause is over; has room for one
}

// heardPause is after which time a knock is repeated that was answered well, and brought no
// connection: the host that has answered may have ended since, and its successor not know this one.
const heardPause = time.Minute

// knockAnswer is what is to follow a knock.
type knockAnswer uint8

const (
	knockOver  knockAnswer = iota // nothing: another knock would be answered alike
	knockAgain                    // another one: it has not come to whom it is for, or may be answered otherwise then
	knockHeard                    // the connection; where that does not come, another one
)

// knock asks the other side to dial, if there is no connection after the time given, or when
// somebody wants one before. Where it is not reached, or does not know this side, it is asked again,
// with pauses like those between attempts to dial: it may not dial by itself. One that has said that
// it dials is asked again after heardPause, or MaxBackoff if that is more. knock waits for nothing.
// While another knock is under way it ends the pause of that where after is 0, and does nothing
// else. One that was withdrawn is not under way, though it may still be returning: the connection
// that has withdrawn it may be gone already.
func (c *Connection) knock(after time.Duration) {
	c.mu.Lock()
	if k := c.knocking; k != nil || c.session.Load() != nil {
		c.mu.Unlock()
		if k != nil && after == 0 {
			notify(k.wanted)
		}
		return
	}
	ctx, withdraw := context.WithCancelCause(c.ctx)
	k := &knocking{withdraw, make(chan struct{}, 1)}
	c.knocking = k
	c.mu.Unlock()
	c.start(func() {
		defer c.endKnocking(k)
		if !c.hold.wait(ctx) {
			return
		}
		rest := max(heardPause, c.opts.MaxBackoff)
		pauses, heard := backoff.New(c.opts.MinBackoff, c.opts.MaxBackoff), backoff.New(rest, rest)
		for sleep(ctx, after, k.wanted) && !c.draining.Load() {
			answer, err := c.sendKnock(ctx)
			if err != nil && err != errWithdrawn {
				c.log.Debug("grid: knock failed", "error", err)
			}
			switch answer {
			case knockOver:
				return
			case knockAgain:
				after = pauses.Next()
			case knockHeard:
				pauses.Reset()
				after = heard.Next()
				if !sleep(ctx, earlyInterval, nil) { // the host dials now
					return
				}
			}
		}
	})
}

func (c *Connection) endKnocking(k *knocking) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.knocking == k {
		c.knocking = nil
	}
	k.withdraw(nil)
}

// withdrawKnockLocked ends the knock that is under way, if any.
func (c *Connection) withdrawKnockLocked() {
	if c.knocking != nil {
		c.knocking.withdraw(errWithdrawn)
		c.knocking = nil
	}
}

// sleep waits for a time, or until cut, which may be nil, cuts that short. It reports false once
// ctx has ended.
func sleep(ctx context.Context, d time.Duration, cut <-chan struct{}) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-cut:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// sendKnock knocks.
func (c *Connection) sendKnock(ctx context.Context) (knockAnswer, error) {
	answer, err := attemptTo(ctx, c, c.post, func(wsconn.Answer, error) {})
	if context.Cause(ctx) == errWithdrawn {
		return knockOver, errWithdrawn
	}
	if err != nil {
		return knockAgain, err
	}
	if answer.Status/100 == 2 {
		return knockHeard, nil
	}
	err = fmt.Errorf("knock refused: %d %s: %s", answer.Status, http.StatusText(answer.Status), clip.Text(answer.Text))
	// Others, which do not know what a knock is, say the like, but not so.
	knows := strings.HasPrefix(answer.Text, "grid: ")
	next := knockOver
	switch answer.Status {
	case http.StatusForbidden, http.StatusNotFound:
		if knows {
			next, err = knockAgain, c.notAccepted(err)
		}
	case http.StatusConflict, http.StatusMisdirectedRequest:
	default:
		if answer.Status/100 == 5 {
			next = knockAgain
		}
		return next, err
	}
	if knows && c.session.Load() == nil {
		c.stats.fault(err)
	}
	return next, err
}

// post sends the request that is a knock.
func (c *Connection) post(ctx context.Context, at *progress) (answer wsconn.Answer, err error) {
	o, err := c.outgoing(at, c.knockPass)
	if err != nil {
		return answer, err
	}
	c.stats.knocks.Add(1)
	answer, err = wsconn.Post(ctx, c.remote+c.opts.RoutePath, http.Header{
		knockHeader:   {c.local},
		knockToHeader: {c.remote},
		knockIDHeader: {fmt.Sprintf("%x", c.localID)},
	}, o)
	if err != nil {
		err = cleanError(at.explain(err), o.Secrets()...)
	}
	return answer, err
}

// knockPass is the token of a knock.
func (c *Connection) knockPass() (string, error) {
	if secret := c.secret.Load(); secret != nil {
		return secret.KnockPass(c.local, c.remote), nil
	}
	return c.opts.bearer()
}
