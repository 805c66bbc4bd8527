package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/clip"
)

// CanRetry reports whether err says that a call has not run and will not, so that it may be made
// again, at the same host or at another, without the risk that its handler runs twice:
//
//   - [ErrDisconnected] where there was no link to begin with, or it was lost before the whole
//     request was queued for it;
//   - [ErrOverloaded] where a limit has refused the call before its handler ran;
//   - [ErrNoHandler], of a host that has no such handler;
//   - the answer of a host that refuses it because it is shutting down.
//
// It is false for nil and all else: after a link that was lost during the call nobody knows whether
// the handler has run. It is false for [ErrShutdown], since this host makes no call any more. It is
// also false for an error that stands for several, such as a [*QuorumError], or what [errors.Join]
// returns.
//
// A host of version 1 says neither that it has no such handler nor that a limit was reached, in
// words that are known here.
func CanRetry(err error) bool {
	for err = notNilRemote(err); err != nil; {
		switch e := err.(type) {
		case *disconnectError:
			return e.unsent && e.kind != ErrShutdown
		case *limitError:
			return e.unsent
		case *refusedRemote:
			return e.notRun
		}
		wraps, ok := err.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		err = notNilRemote(wraps.Unwrap())
	}
	return false
}

// unsent is err, of a call that has not been sent, or not in whole, so that CanRetry reports true
// where that is for the link or a limit.
func unsent(err error) error {
	switch e := err.(type) {
	case *disconnectError:
		return &disconnectError{host: e.host, reason: e.reason, unsent: true, kind: e.kind}
	case *limitError:
		return &limitError{e.option, e.text, true}
	case *callError:
		return &callError{name: e.name, err: unsent(e.err)}
	}
	return err
}

// isUnsent reports whether there was no link for a call.
func isUnsent(err error) bool {
	e, ok := err.(*disconnectError)
	return ok && e.unsent
}

// refusedCall is refusal for the text of a MuxConnectError, which stands in place of an answer: the
// handler has not run, unless it was the answer that there was no room for.
func refusedCall(text string) error {
	switch err := refusal(text).(type) {
	case *refusedRemote: // ErrOverloaded
		// The end of a text that was clipped is not known.
		err.notRun = len(text)+8 < clip.Most && !strings.HasSuffix(text, droppedText)
		return err
	case *RemoteErr:
		switch {
		case text == "grid: "+errShuttingDown.Error():
			return &refusedRemote{remote: err, notRun: true}
		case strings.HasPrefix(text, noRequestHandler), strings.HasPrefix(text, noStreamHandler):
			return &refusedRemote{remote: err, kind: ErrNoHandler, notRun: true}
		}
		return err
	default:
		return err
	}
}

// RetryOptions are those of a [Retrier]. The zero value of each is its documented default.
type RetryOptions struct {
	// Attempts is how many attempts a call may have, the first included. From 1 to 1000; the default
	// is 3, or one for each host that there is when the call begins, if that is more.
	Attempts int

	// Budget bounds the retries of what hosts have refused, as a part of all calls: 0.1 is one retry
	// for ten calls. All calls of the Retrier share it. Each call adds Budget, and each retry takes
	// 1; no more than 10 are saved up, which is also what there is at the beginning. A call that
	// finds less than 1 is not made again, and returns the refusal. So retries add no more than
	// that part to the load of hosts that have too much already. An attempt that found no link, or no
	// such handler, has cost no host anything to speak of, and the next one takes nothing of the
	// budget. From 0.001 to 1; the default is 0.1.
	Budget float64

	// MinBackoff and MaxBackoff are the pauses before a host is tried again, once all have been:
	// they double from the first to the last, each with up to a half more at random. From 1 ms to
	// 30 days; MinBackoff is by default 10 ms, or MaxBackoff if that is less, and MaxBackoff 1 s,
	// or MinBackoff if that is more.
	MinBackoff, MaxBackoff time.Duration
}

// Retrier makes requests to several hosts of which any will do, one after the other: where one has
// certainly not run a request, and only there, it goes to the next. It is a [Requester], so typed
// handlers take it as well. It is made by [NewRetrier] or [NewRetrierFunc], and safe for concurrent
// use, also on nil, which is a host that can't be reached.
type Retrier struct {
	// Set once.
	conns func() []Requester
	how   RetryOptions
	gain  int64 // of the budget, by each call

	budget atomic.Int64                   // in units of which a retry takes retryCost
	opts   atomic.Pointer[ManagerOptions] // of a host that was called, if it has some

	calls, retries, denied atomic.Int64
}

const (
	retryCost = 1000
	// maxRetries is how many retries the budget has at most.
	maxRetries  = 10
	maxAttempts = 1000
)

// NewRetrier returns a Requester over conns, each of which is a [*Connection] or another Requester
// to a host that will do. A request goes to the first of them; while [CanRetry] reports true for
// its error, to the others in turn, and after a pause to all of them again, until RetryOptions say
// that it is enough. One that has no such handler ([ErrNoHandler]) is not asked again by the same
// request. The error is then that of the last attempt. It is also returned, and no pause
// begins, where the deadline of the context would pass in the pause. Where the context ends in it,
// the error is that of the context, with the last attempt in its text.
//
// The error of an attempt is an [*AnswerError], which says which of conns it was: where CanRetry
// reports false, that is the one that may have run the request.
//
// To spread requests over hosts, give Retriers orders that differ. One over a single host repeats
// what that has refused. What [Connection.With] returns bounds each attempt; with WaitForLink a
// request would not go on to the next host. Where hosts are removed and added, use
// [NewRetrierFunc].
//
// An error names the option that is wrong, or says that conns are empty or have a nil interface in
// them. conns is copied.
func NewRetrier(o RetryOptions, conns ...Requester) (*Retrier, error) {
	if len(conns) == 0 {
		return nil, errors.New("grid: NewRetrier without a Requester")
	}
	for i, c := range conns {
		if c == nil {
			return nil, fmt.Errorf("grid: NewRetrier: Requester %d of %d is nil", i+1, len(conns))
		}
	}
	conns = slices.Clone(conns)
	return NewRetrierFunc(o, func() []Requester { return conns })
}

// NewRetrierFunc is [NewRetrier] for hosts that come and go: conns is called when a request begins,
// and after each pause, and returns those that will do then. So one Retrier with one budget goes on
// while they change:
//
//	r, err := grid.NewRetrierFunc(grid.RetryOptions{}, func() []grid.Requester {
//		return m.Requesters(m.Targets()...)
//	})
//
// conns must be safe for concurrent use, and what it returns is not to be changed; nil in it is a
// host that can't be reached. Where it returns none at first the request fails with an error that
// wraps [ErrDisconnected], and after a pause with that of the last attempt.
//
// An error names the option that is wrong, or says that conns is nil.
func NewRetrierFunc(o RetryOptions, conns func() []Requester) (*Retrier, error) {
	if conns == nil {
		return nil, errors.New("grid: NewRetrierFunc without a function")
	}
	if err := o.complete(); err != nil {
		return nil, err
	}
	r := &Retrier{conns: conns, how: o, gain: int64(math.Round(o.Budget * retryCost))}
	r.budget.Store(maxRetries * retryCost)
	return r, nil
}

// complete fills in the defaults, but for Attempts, and checks the rest.
func (o *RetryOptions) complete() error {
	if o.Budget == 0 {
		o.Budget = 0.1
	}
	least, longest := 10*time.Millisecond, time.Second
	if o.MinBackoff == 0 {
		o.MinBackoff = least
		if o.MaxBackoff != 0 {
			o.MinBackoff = min(least, o.MaxBackoff)
		}
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = max(longest, o.MinBackoff)
	}
	switch {
	case o.Attempts < 0 || o.Attempts > maxAttempts:
		return fmt.Errorf("grid: RetryOptions.Attempts is %d, must be 1 to %d, or 0 for the default", o.Attempts, maxAttempts)
	case !(0.001 <= o.Budget && o.Budget <= 1):
		return fmt.Errorf("grid: RetryOptions.Budget is %v, must be 0.001 to 1, or 0 for the default", o.Budget)
	case !isInterval(o.MinBackoff):
		return fmt.Errorf("grid: RetryOptions.MinBackoff is %v, must be %v to %v, or 0 for the default", o.MinBackoff, minInterval, maxInterval)
	case !isInterval(o.MaxBackoff):
		return fmt.Errorf("grid: RetryOptions.MaxBackoff is %v, must be %v to %v, or 0 for the default", o.MaxBackoff, minInterval, maxInterval)
	case o.MinBackoff > o.MaxBackoff:
		return fmt.Errorf("grid: RetryOptions.MinBackoff is %v, must be no more than MaxBackoff, which is %v", o.MinBackoff, o.MaxBackoff)
	}
	return nil
}

// SingleRequest is [Connection.SingleRequest] to the first host that does not refuse it.
func (r *Retrier) SingleRequest(ctx context.Context, id HandlerID, payload []byte) ([]byte, error) {
	if r == nil {
		return nil, errNoConnection
	}
	r.calls.Add(1)
	r.earn()
	conns := r.conns()
	if len(conns) == 0 {
		return nil, errNoHosts
	}
	attempts := cmp.Or(r.how.Attempts, min(max(3, len(conns)), maxAttempts))
	pauses := backoff.New(r.how.MinBackoff, r.how.MaxBackoff)
	var lacking []Requester // that have no such handler
	next := 0               // of conns
	for attempt := 1; ; attempt++ {
		answer, err := r.attempt(ctx, conns[next], id, payload)
		if err == nil || attempt == attempts || !CanRetry(err) {
			return answer, err
		}
		if ctx.Err() != nil {
			return nil, err
		}
		switch {
		case errors.Is(err, ErrNoHandler):
			lacking = append(lacking, conns[next])
			if allAmong(conns, lacking) {
				return nil, err
			}
		case errors.Is(err, ErrOverloaded) || IsRemoteErr(err): // sent
			if !r.spend() {
				r.denied.Add(1)
				return nil, err
			}
		}
		for next++; ; next++ {
			if next == len(conns) {
				if err := r.pause(ctx, pauses.Next(), err); err != nil {
					return nil, err
				}
				if next, conns = 0, r.conns(); allAmong(conns, lacking) {
					return nil, err
				}
			}
			if !isAmong(conns[next], lacking) {
				break
			}
		}
		r.retries.Add(1)
	}
}

func allAmong(conns, some []Requester) bool {
	return !slices.ContainsFunc(conns, func(c Requester) bool { return !isAmong(c, some) })
}

// isAmong reports whether conn asks what one of some asks.
func isAmong(conn Requester, some []Requester) bool {
	who, ok := identity(conn)
	return ok && slices.ContainsFunc(some, func(other Requester) bool {
		whose, ok := identity(other)
		return ok && whose == who
	})
}

// errNoHosts is for a function that has returned no hosts.
var errNoHosts = unsent(disconnected("", errors.New("the Retrier has no hosts at present")))

// attempt makes one attempt.
func (r *Retrier) attempt(ctx context.Context, conn Requester, id HandlerID, payload []byte) ([]byte, error) {
	if isNil(conn) {
		return nil, errNoConnection
	}
	if o := optionsOf(conn); o != r.opts.Load() {
		r.opts.Store(o)
	}
	answer, err := conn.SingleRequest(ctx, id, payload)
	if err != nil {
		return nil, answerError(conn, err)
	}
	return answer, nil
}

// String says which hosts it goes to at present, in their order; "<nil>" for nil.
func (r *Retrier) String() string {
	if r == nil {
		return (*Connection)(nil).String()
	}
	var names []string
	for _, conn := range r.conns() {
		names = append(names, nameOfRequester(conn))
	}
	return "one of " + strings.Join(names, ", ")
}

// pause waits between two rounds, of which the first has ended with last.
func (r *Retrier) pause(ctx context.Context, d time.Duration, last error) error {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return last
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: last attempt: %s", doneError(ctx), clip.Error(last))
	}
}

// earn adds to the budget for a call.
func (r *Retrier) earn() {
	for {
		have := r.budget.Load()
		if have == maxRetries*retryCost || r.budget.CompareAndSwap(have, min(have+r.gain, maxRetries*retryCost)) {
			return
		}
	}
}

// spend takes a retry of the budget, and reports whether there was one.
func (r *Retrier) spend() bool {
	for {
		have := r.budget.Load()
		if have < retryCost {
			return false
		}
		if r.budget.CompareAndSwap(have, have-retryCost) {
			return true
		}
	}
}

// RetryStats is what a [Retrier] has done so far.
type RetryStats struct {
	// Calls are those that were made, Retries the attempts beyond the first of each.
	Calls, Retries int64
	// Denied are the calls that were not made again because the budget was used up.
	Denied int64
}

// Stats returns the present statistics.
func (r *Retrier) Stats() RetryStats {
	if r == nil {
		return RetryStats{}
	}
	return RetryStats{Calls: r.calls.Load(), Retries: r.retries.Load(), Denied: r.denied.Load()}
}
