package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/monotime"
)

// model is what must hold, and what was found not to.
type model struct {
	*ledger
	links [hosts][hosts]linkHistory // by sender and receiver
	nodes [hosts]nodeHistory
	tally tally

	mu     sync.Mutex // guards what follows
	broken int
	told   []string // the first violations
}

const maxTold = 20

func (m *model) violation(format string, a ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken++
	if len(m.told) < maxTold {
		m.told = append(m.told, fmt.Sprintf(format, a...))
	}
}

func (m *model) violations() (n int, told []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.broken, m.told
}

// linkHistory is what has happened to what one host sends to another.
type linkHistory struct {
	// losses is odd while nothing arrives, and nothing of what is sent then ever will: before it
	// becomes even every connection of the link is cut.
	losses atomic.Uint64
	// corrupted is when bits were last flipped.
	corrupted monotime.Stamp
}

// nodeHistory is what has happened to a host.
type nodeHistory struct {
	drained  monotime.Stamp            // when it last was shutting down gracefully
	panicked [callbacks]monotime.Stamp // when they last did
	absences [len(routes)][handlers + 1]absence
}

// absence says when there was no handler: while these are odd.
type absence struct{ possible, certain atomic.Uint64 }

// linger is how long a fault may be felt after its end: by when a dead link or stream has long been
// noticed.
const linger = 10 * time.Second

// felt reports whether something that last was at the time of last may have had an effect on a call
// that began when c did.
func (c *call) felt(last *monotime.Stamp) bool {
	at := last.Load()
	return at != 0 && monotime.Of(c.began.Add(-linger)) < at
}

// corrupt reports whether bits of a call's link were flipped.
func (m *model) corrupt(c *call) bool {
	return c.felt(&m.links[c.from][c.to].corrupted) || c.felt(&m.links[c.to][c.from].corrupted)
}

// ran notes that the handler of a call runs on a host.
//
// A call that was lost must not: it failed, and everything that its caller's link carried between
// its beginning and its failure was thrown away with the connection. If it runs all the same, then
// it was sent once more.
func (m *model) ran(n note, host int) {
	state, ok := m.run(n.call)
	switch {
	case !ok:
		m.violation("call %d from %d to %d runs though it ended more than %d s ago", n.call, n.from, n.to, pageLife)
	case state&runsMask > 1:
		m.violation("call %d from %d to %d runs %d times", n.call, n.from, n.to, state&runsMask)
	case state&isLost != 0:
		m.violation("call %d from %d to %d runs after it has failed, and was lost on its way", n.call, n.from, n.to)
	case state&isRefused != 0:
		m.violation("call %d from %d to %d runs, though its caller was told that it would not", n.call, n.from, n.to)
	}
	if int(n.to) != host {
		m.violation("call %d from %d to %d runs on %d", n.call, n.from, n.to, host)
	}
}

// call is one call, or stream, as its caller sees it.
type call struct {
	note
	what  string
	id    grid.HandlerID
	conn  *grid.Connection
	over  <-chan struct{} // closed before its manager is
	began time.Time
	ctx   context.Context

	finishes   atomic.Bool // its consumer has, by Finish
	inputEnded atomic.Bool // by a Finish, that of the clean-up as well
	largest    int         // of its payloads
	stopsEarly bool        // its consumer does
	calm       bool        // nothing is to go wrong with it

	absence           *absence // of its handler
	possible, certain uint64   // absence, when it began

	// Set if it began while all that it sends is lost.
	losing  bool
	loss    uint64    // linkHistory.losses
	session time.Time // when its connection was made
}

var (
	errGaveUp  = errors.New("the caller gave up")
	errHung    = errors.New("the caller has waited long enough")
	errStopped = errors.New("the consumer has seen enough")
)

func (c *call) String() string {
	return fmt.Sprintf("%s %d from %d to %d (after %v)", c.what, c.call, c.from, c.to, time.Since(c.began).Round(time.Millisecond))
}

// beginCall is called before anything of the call is sent.
func (m *model) beginCall(c *call) {
	c.began = time.Now()
	c.absence = &m.nodes[c.to].absences[c.route][c.id]
	c.possible, c.certain = c.absence.possible.Load(), c.absence.certain.Load()
	h := &m.links[c.from][c.to]
	if h.losses.Load()%2 == 0 {
		return
	}
	// In this order: the session was made before the loss ended, so that its connection was cut at
	// its end.
	c.session = c.conn.Stats().LastConnect
	c.loss = h.losses.Load()
	c.losing = c.loss%2 == 1
}

// failed is called when a call could not be made, or opened.
func (m *model) failed(c *call) {
	if !c.losing {
		return
	}
	// Either it failed within the loss, or while no other connection was there.
	if m.links[c.from][c.to].losses.Load() != c.loss && c.conn.Stats().LastConnect != c.session {
		return
	}
	m.tally.lost.Add(1)
	if m.mark(c.call, isLost)&runsMask > 0 {
		m.violation("%v ran, though it was lost on its way", c)
	}
}

// refused is called with the error of a call. One that may be made again must not run.
func (m *model) refused(c *call, err error) {
	if !grid.CanRetry(err) {
		return
	}
	m.tally.refused.Add(1)
	if m.mark(c.call, isRefused)&runsMask > 0 {
		m.violation("%v ran, and ended with %q, as if it had not", c, err)
	}
}

// judge checks how a call has ended: that err is one that it could have.
func (m *model) judge(c *call, err error) {
	m.refused(c, err)
	count, reason := m.outcome(c, err)
	if reason != "" {
		m.violation("%v ended with %T %q: %s", c, err, fmt.Sprint(err), reason)
		return
	}
	count.Add(1)
	if deadline, ok := c.ctx.Deadline(); ok && time.Since(deadline) > linger {
		m.violation("%v returned %v after its deadline", c, time.Since(deadline))
	}
}

// outcome is where an end of a call is counted, or why it could not end so.
func (m *model) outcome(c *call, err error) (count *atomic.Int64, reason string) {
	t := &m.tally
	expect := func(ok bool, count *atomic.Int64, reason string) (*atomic.Int64, string) {
		if ok {
			return count, ""
		}
		return nil, reason
	}
	var remote *grid.RemoteErr
	var hook plannedError
	switch {
	case c.largest > leastSize && err != nil && strings.Contains(err.Error(), grid.ErrMessageTooLarge.Error()):
		return &t.broken, ""
	case c.calm && err != nil && !errors.Is(err, grid.ErrDisconnected):
		return nil, "there was no reason for it"
	case err == nil && c.certain%2 == 1 && c.absence.certain.Load() == c.certain:
		return nil, "there was no handler for it"
	case err == nil:
		return expect(c.end == endsWell && m.mark(c.call, 0)&ranWell != 0, &t.good, "its handler did not end well")
	case errors.Is(err, grid.ErrOverloaded):
		return &t.broken, "" // some have low limits
	case errors.As(err, &hook):
		return expect(c.felt(&m.nodes[c.from].panicked[hook.callback]), &t.broken, "it was not to panic")
	case errors.As(err, &remote):
		if c.end == endsInError && remote.Error() == failure(c.call) {
			return expect(errors.Is(err, errPlanned) && grid.ErrorCode(err) == plannedCode, &t.failed, "it has lost what it wraps, or its code")
		}
		return m.answerOutcome(c, remote.Error())
	case errors.Is(err, grid.ErrDisconnected):
		return &t.disconnected, ""
	case c.finishes.Load() && errors.Is(err, io.ErrClosedPipe):
		return &t.ended, "" // what was sent through Requests behind Finish
	case errors.Is(err, errStopped):
		return expect(c.stopsEarly, &t.ended, "its consumer did not stop")
	case errors.Is(err, errGaveUp):
		return expect(c.ctx.Err() != nil, &t.ended, "its context has not ended")
	case errors.Is(err, errHung):
		// A flipped bit can make a websocket message one that nobody reads.
		return expect(m.corrupt(c), &t.ended, "it hung")
	case errors.Is(err, context.DeadlineExceeded):
		// The remote's clock is the same, but deadlines travel in milliseconds.
		deadline, ok := c.ctx.Deadline()
		return expect(ok && time.Until(deadline) <= 5*time.Millisecond, &t.ended, "its deadline has not passed")
	case errors.Is(err, grid.ErrIncorrectSequence), errors.Is(err, grid.ErrFlowControl), errors.Is(err, grid.ErrProtocol):
		return expect(m.corrupt(c), &t.broken, "nothing has corrupted its link")
	}
	return nil, "that is not documented"
}

// answerOutcome is the outcome of a call that the remote answered with an error.
func (m *model) answerOutcome(c *call, text string) (count *atomic.Int64, reason string) {
	t := &m.tally
	switch {
	case c.end == endsInError && text == failure(c.call),
		c.end == endsInPanic && strings.HasSuffix(text, "panicked: "+failure(c.call)):
		if m.mark(c.call, 0)&runsMask == 0 {
			return nil, "its handler did not run"
		}
		return &t.failed, ""
	case strings.HasPrefix(text, "grid: no "):
		if c.possible%2 == 0 && c.absence.possible.Load() == c.possible {
			return nil, "its handler was there"
		}
	case strings.HasSuffix(text, planned{serveBegin}.String()):
		if !c.felt(&m.nodes[c.to].panicked[serveBegin]) {
			return nil, "its interceptor was not to panic"
		}
	case text == "grid: the manager is shutting down":
		if !c.felt(&m.nodes[c.to].drained) {
			return nil, "the remote is not shutting down"
		}
	case text == "grid: disconnected: the client has not pinged its stream",
		text == "grid: gave up waiting for the rest of the payload":
		// The link was too slow for it.
	case strings.HasPrefix(text, grid.ErrIncorrectSequence.Error()),
		strings.HasPrefix(text, grid.ErrFlowControl.Error()),
		strings.HasPrefix(text, grid.ErrProtocol.Error()):
		if !m.corrupt(c) {
			return nil, "nothing has corrupted its link"
		}
	default:
		return nil, "that is not what its handler answers"
	}
	return &t.broken, ""
}

// judgeSend checks the error of a Send on a stream.
func (m *model) judgeSend(c *call, err error) {
	switch {
	case errors.Is(err, io.EOF): // it ended well
		return
	case c.stopsEarly && (err.Error() == "grid: the consumer of the stream broke off" || errors.Is(err, context.Canceled)):
		return
	case c.inputEnded.Load() && errors.Is(err, io.ErrClosedPipe):
		return
	}
	if _, reason := m.outcome(c, err); reason != "" {
		m.violation("a send on %v failed with %T %q: %s", c, err, fmt.Sprint(err), reason)
	}
}

// judgeCause checks why the context of a handler has ended.
func (m *model) judgeCause(n note, cause error) {
	if n.traits&waitsForEnd != 0 && cause == context.Canceled && m.mark(n.call, 0)&gaveUp == 0 {
		m.violation("the context of call %d was cancelled, though its caller has not given up", n.call)
	}
	for _, known := range []error{
		context.Canceled, context.DeadlineExceeded, grid.ErrDisconnected,
		grid.ErrIncorrectSequence, grid.ErrFlowControl, grid.ErrProtocol,
	} {
		if errors.Is(cause, known) {
			return
		}
	}
	if !grid.IsRemoteErr(cause) {
		m.violation("the context of call %d ended with %T %q, which is not documented", n.call, cause, fmt.Sprint(cause))
	}
}

// tally counts what happened.
type tally struct {
	calls, streams, cuts, restarts atomic.Int64

	good         atomic.Int64 // ended well
	failed       atomic.Int64 // as their handlers did
	ended        atomic.Int64 // by their callers
	disconnected atomic.Int64
	broken       atomic.Int64 // by corruption, slowness, a shutdown
	lost         atomic.Int64 // of which it is known that they can't have arrived
	refused      atomic.Int64 // of which their callers know that they have not run
	cancelled    atomic.Int64 // whose handlers were told so
	wentOn       atomic.Int64 // whose handlers could not be
	finished     atomic.Int64 // well, by Finish
	asked        atomic.Int64 // beside each other
	retried      atomic.Int64 // by a Retrier that has had an answer
	slowest      atomic.Int64 // until all pairs worked after a heal, in nanoseconds
}

// notGood is how many calls did not end well.
func (t *tally) notGood() int64 {
	return t.failed.Load() + t.ended.Load() + t.disconnected.Load() + t.broken.Load()
}

func (t *tally) String() string {
	return fmt.Sprintf("%d ended well, %d as their handlers failed, %d as their callers wished, %d disconnected, %d otherwise; %d were lost for certain, %d refused; "+
		"%d handlers were cancelled, %d could not be; %d streams were finished well; %d calls beside each other, %d by Retriers",
		t.good.Load(), t.failed.Load(), t.ended.Load(), t.disconnected.Load(), t.broken.Load(), t.lost.Load(), t.refused.Load(),
		t.cancelled.Load(), t.wentOn.Load(), t.finished.Load(), t.asked.Load(), t.retried.Load())
}
