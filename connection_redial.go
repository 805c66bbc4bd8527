package grid

import (
	"context"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/monotime"
)

// When the side that dials does so, and what has it do so early.

// earlyInterval is how often, at most, somebody who wants a connection has an attempt made early,
// and how often the other side has.
const earlyInterval = time.Second

// redial has the side that dials do so before its pause is over.
type redial struct {
	// Set once.
	wanted chan struct{} // the present pause is over; has room for one
	anew   chan struct{} // likewise, and the next ones begin with the least

	hastened monotime.Stamp // when somebody last did
	pause    pause          // of the goroutine that dials now

	mu      sync.Mutex
	asked   time.Time               // when the other side last asked to be dialled
	giveUp  context.CancelCauseFunc // of the attempt under way that may be given up
	overdue *time.Timer             // calls it
}

func (r *redial) init(o *ManagerOptions) {
	r.pause.backoff = backoff.New(o.MinBackoff, o.MaxBackoff)
	r.wanted, r.anew = make(chan struct{}, 1), make(chan struct{}, 1)
	r.hastened.Store(monotime.Now() - monotime.Time(earlyInterval))
}

// notify has whoever waits for c go on. It does not wait.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget drops what c was notified of.
func forget(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// hasten has an attempt made to get a connection that is missing: at once on the side that dials,
// by a knock on the other. It may be heard before there is a pause to be cut short. It is for every
// call that finds none, so it costs a look at the clock.
func (c *Connection) hasten() {
	now, last := monotime.Now(), c.redial.hastened.Load()
	switch {
	case now.Sub(last) < earlyInterval || !c.redial.hastened.CompareAndSwap(last, now):
	case c.dials:
		notify(c.redial.wanted)
	default:
		c.knock(0)
	}
}

// pause is that between two attempts. A goroutine that takes over from another one goes on with it,
// so that a peer which always has another one dial gains nothing by it.
type pause struct {
	backoff backoff.Backoff
	end     time.Time // of the present one; zero before the first
	urged   time.Time // from when on the other side may have it cut short
}

// keepDialling connects, again and again, until ctx ends, or until a connection that it has made is
// on its way out: then another goroutine does, see setAside.
func (c *Connection) keepDialling(ctx context.Context) {
	if !c.hold.wait(ctx) {
		return
	}
	p := &c.redial.pause
	for patient := false; c.wait(ctx, p) && !c.draining.Load(); {
		s, err := c.try(ctx, patient)
		// Or a host that is slow, and knocks, would never be reached.
		_, hangs := err.(*hangingError)
		patient = err == errGivenUp || patient && hangs
		if err != nil {
			c.attemptFailed(err)
			if !time.Now().Before(p.end) {
				p.begin()
			} // else it was an early one, after which the pause goes on
			continue
		}
		made := time.Now()
		forget(c.redial.wanted)
		lived := c.serve(s)
		if s.leaving.Load() { // and p is another goroutine's
			if s.isOld() && c.session.Load() == nil {
				// The process is gone, so its successor is all that is waited for.
				c.redial.restart(time.Now())
			}
			return
		}
		c.redial.forgetBefore(made)
		p.beginAfter(lived)
	}
}

func (p *pause) begin() { p.end = time.Now().Add(p.backoff.Next()) }

// beginAfter begins the pause after a link: where that had lived, as if there had been none before.
func (p *pause) beginAfter(lived bool) {
	if lived {
		p.backoff.Reset()
		p.urged = time.Time{}
	}
	p.begin()
}

// wait waits until the pause is over. It reports false once ctx has ended.
func (c *Connection) wait(ctx context.Context, p *pause) bool {
	for left := time.Until(p.end); left > 0 && ctx.Err() == nil; left = time.Until(p.end) {
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-c.redial.wanted:
			timer.Stop()
			return ctx.Err() == nil
		case <-c.redial.anew:
			p.restart(time.Now())
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return ctx.Err() == nil
}

// restart makes the pauses begin with the least, and ends the present one: at once, but for those
// that are cut short too often.
func (p *pause) restart(now time.Time) {
	p.backoff.Reset()
	switch {
	case !now.Before(p.urged):
		p.end, p.urged = now, now.Add(earlyInterval)
	case p.urged.Before(p.end):
		p.end, p.urged = p.urged, p.urged.Add(earlyInterval)
	}
}

// try makes an attempt to connect. One that hangs, perhaps at an address that the host has left, is
// given up soon once the host knocks, unless it is to be patient.
func (c *Connection) try(ctx context.Context, patient bool) (*session, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	forget(c.redial.wanted)
	forget(c.redial.anew) // what comes from here on may be a host that is there only now
	c.state.set(StateConnecting, nil)
	c.stats.attempts.Add(1)
	if !patient {
		c.redial.attempt(giveUp)
	}
	s, err := c.dial(ctx)
	c.redial.attempt(nil)
	if err != nil && context.Cause(ctx) == errGivenUp {
		err = errGivenUp
	}
	return s, err
}

// attempt sets what gives up the attempt under way; nil for none.
func (r *redial) attempt(giveUp context.CancelCauseFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.giveUp = giveUp
	if r.overdue != nil {
		r.overdue.Stop()
		r.overdue = nil
	}
}

// restart has the side that dials do so at once, since the other is there, and had no connection at
// the time asked.
func (r *redial) restart(asked time.Time) {
	r.mu.Lock()
	r.asked = asked
	if r.giveUp != nil && r.overdue == nil {
		giveUp := r.giveUp
		r.overdue = time.AfterFunc(earlyInterval, func() { giveUp(errGivenUp) })
	}
	r.mu.Unlock()
	notify(r.anew)
}

// forgetBefore forgets that the other side has asked before a time, if it has not since: it was for
// the connection that was made then.
func (r *redial) forgetBefore(made time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked.After(made) {
		forget(r.anew)
	}
}

// attemptFailed tells of an attempt to connect that has failed. While the peer is shutting down
// that is no fault: it is its successor that is tried.
func (c *Connection) attemptFailed(err error) {
	c.mu.Lock()
	leaving := c.left != nil
	c.mu.Unlock()
	switch {
	case leaving:
		c.log.Debug("grid: cannot connect to a successor of the host, which is shutting down", "error", err)
	case err == errGivenUp: // for one that is likely to succeed
		c.log.Debug("grid: cannot connect", "error", err)
	default:
		c.cannotConnect(err)
	}
	// Who hears of it finds the error in the statistics.
	c.state.set(StateConnectionError, err)
}
