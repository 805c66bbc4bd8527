package offload

import (
	"context"
	"errors"
	"sync"
)

var (
	// ErrLeft is returned by [Call] where the function was left behind.
	ErrLeft = errors.New("the function has not returned")
	// ErrExited is returned by [Call] where the function has ended its goroutine.
	ErrExited = errors.New("the function has ended its goroutine")
)

// Call calls f on a goroutine of g, and returns what that does. If ctx ends before, f is left
// behind, and late, unless it is nil, is told what it returns after all.
func Call[T any](ctx context.Context, g *Group, f func() (T, error), late func(T, error)) (T, error) {
	var (
		mu     sync.Mutex // guards what follows
		v      T
		err    error
		isLate bool
		done   = make(chan struct{})
	)
	g.Go(func() {
		result, failure := *new(T), ErrExited
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			if !isLate {
				v, err = result, failure
				close(done)
			} else if late != nil {
				late(result, failure)
			}
		}()
		result, failure = f()
	})
	select {
	case <-done:
		return v, err
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	select {
	case <-done:
		return v, err
	default:
		isLate = true
		return *new(T), ErrLeft
	}
}
