package grid

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/gridrpc/grid/internal/offload"
)

// errTooManyHandshakes is why a host is turned away at the door.
var errTooManyHandshakes = errors.New("too many handshakes are in progress")

// incoming bounds how many hosts are on their way in at a time (MaxHandshakes): anybody can begin,
// so what they take before they have shown who they are must not add up. An honest handshake lasts
// a round trip; so where there are too many it is the oldest that gives way, and those who say
// nothing do not keep others out.
type incoming struct {
	mu    sync.Mutex // guards what follows, and the state of all arrivals
	limit int
	n     int
	queue []*arrival // those that can be turned away, the oldest first
}

// arrival is a host on its way in. While a function of the application's looks at it, which nothing
// can end, it can't be turned away, and has its place also where the function was left behind.
type arrival struct {
	in     *incoming
	group  *offload.Group  // runs the functions
	ctx    context.Context // ends when it is turned away
	cancel context.CancelCauseFunc
	shown  *http.Request // what the functions see of the request; nil before the first
	busy   bool          // a function has not returned
	left   bool
	gone   bool
}

// enter takes one more in, who can't be turned away until it has been in run once. It fails if
// nobody can give way. leave must be called at the end. ctx bounds that of the arrival.
func (i *incoming) enter(ctx context.Context, g *offload.Group) (*arrival, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.n >= i.limit {
		if len(i.queue) == 0 {
			return nil, i.full()
		}
		oldest := i.queue[0]
		oldest.removeLocked()
		oldest.cancel(i.full())
	}
	i.n++
	a := &arrival{in: i, group: g}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	return a, nil
}

func (i *incoming) setLimit(n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.limit = n
}

// room is how many may be on their way in.
func (i *incoming) room() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.limit
}

func (i *incoming) full() error {
	return fmt.Errorf("%w: MaxHandshakes is %d", errTooManyHandshakes, i.limit)
}

// show returns r as the functions see it: one that was left behind may still change it, while grid
// and package http look at theirs.
func (a *arrival) show(r *http.Request) *http.Request {
	if a.shown == nil {
		a.shown = r.Clone(r.Context())
	}
	return a.shown
}

func (a *arrival) leave() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	if a.left = true; !a.busy {
		a.removeLocked()
	}
	a.cancel(nil)
}

func (a *arrival) removeLocked() {
	if a.gone {
		return
	}
	a.gone = true
	a.in.n--
	a.dequeueLocked()
}

func (a *arrival) dequeueLocked() {
	if at := slices.Index(a.in.queue, a); at >= 0 {
		a.in.queue = slices.Delete(a.in.queue, at, at+1)
	}
}

// run calls f, a function of the application's, unless the arrival was turned away. at says which
// one it is, and bounds it: past that it is left behind, and late is called when it has returned.
// Its panic is an error, which log is told about; but that by which an HTTP handler aborts goes on.
func (a *arrival) run(at *progress, log func(p any), f func() error, late func()) error {
	if err := a.begin(); err != nil {
		return err
	}
	_, err := offload.Call(at.ctx, a.group, func() (_ struct{}, err error) {
		defer a.end()
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				err = http.ErrAbortHandler
			default:
				log(p)
				err = fmt.Errorf("panic %s", at.reached()) // may be told to who has arrived
			}
		}()
		return struct{}{}, onlyText(f()) // before anybody looks into it
	}, func(struct{}, error) { late() })
	switch err {
	case offload.ErrLeft:
		return &leftError{at.gaveUp()}
	case offload.ErrExited:
		return fmt.Errorf("goroutine ended %s", at.reached())
	case http.ErrAbortHandler:
		panic(err)
	}
	return err
}

// leftError is of a function that was left behind.
type leftError struct{ error }

func (e *leftError) Unwrap() error { return e.error }

func (a *arrival) begin() error {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	a.dequeueLocked()
	if a.gone {
		return context.Cause(a.ctx)
	}
	a.busy = true
	return nil
}

func (a *arrival) end() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	a.busy = false
	switch {
	case a.left:
		a.removeLocked()
	case !a.gone:
		a.in.queue = append(a.in.queue, a)
	}
}
