package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// openLoop makes calls that arrive at random times, whether others have been answered or not, as
// those of many independent clients do. A call's time counts from its arrival, whenever the
// generator came to it.
type openLoop struct {
	// call fails with errRefused where a limit of the server's was reached, and with
	// context.DeadlineExceeded where there was no answer in time.
	call     func(ctx context.Context) error
	deadline time.Duration
	// bound is how many calls may be under way. One that arrives beyond is not made.
	bound int64
	// footprint is what the ends of the call take.
	footprint func() (footprint, error)
}

// errRefused says that the server has not taken on a call.
var errRefused = errors.New("refused by the server")

// arrivals is a time with so many arrivals a second.
type arrivals struct {
	rate float64
	d    time.Duration
}

// run lets calls arrive, and waits until all have ended. The error is the first of those that
// should not be.
func (l openLoop) run(parts ...arrivals) (*tally, error) {
	total := time.Duration(0)
	for _, p := range parts {
		total += p.d
	}
	var (
		t        = newTally(total)
		rng      = rand.New(rand.NewPCG(1, 2))
		calls    sync.WaitGroup
		underway atomic.Int64
		first    sync.Once
		err      error
	)
	stop, sampled := make(chan struct{}), make(chan error, 1)
	go func() { sampled <- t.sample(l.footprint, stop) }()

	now, begin := time.Duration(0), time.Duration(0)
	for _, p := range parts {
		for due := begin; ; {
			due += time.Duration(rng.ExpFloat64() / p.rate * float64(time.Second))
			if due >= begin+p.d {
				break
			}
			if due > now {
				now = time.Since(t.start)
			}
			if due > now {
				time.Sleep(due - now)
				now = time.Since(t.start)
			}
			raise(&t.lag, now-due)
			if underway.Load() >= l.bound || now-due >= l.deadline {
				t.end(shed, now, 0)
				continue
			}
			underway.Add(1)
			calls.Add(1)
			go func() {
				defer calls.Done()
				if e := l.one(t, due); e != nil {
					first.Do(func() { err = e })
				}
				underway.Add(-1)
			}()
		}
		begin += p.d
	}
	calls.Wait()
	close(stop)
	return t, errors.Join(err, <-sampled)
}

// one makes the call that was due at a time after the start.
func (l openLoop) one(t *tally, due time.Duration) error {
	ctx, cancel := context.WithDeadline(context.Background(), t.start.Add(due+l.deadline))
	err := l.call(ctx)
	cancel()
	when := time.Since(t.start)
	took := when - due
	raise(&t.overdue, took-l.deadline)
	o := accepted
	switch {
	case errors.Is(err, errRefused):
		o = refused
	case took > l.deadline, errors.Is(err, context.DeadlineExceeded):
		o = late
	case err != nil:
		o = failed
	}
	t.end(o, when, took)
	if o != failed {
		err = nil
	}
	return err
}
