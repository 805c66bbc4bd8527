package gridstatus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// kept is a value that is made anew, on a goroutine of its own, when somebody asks and it is older
// than good. Who asks meanwhile waits for the same one.
type kept[T any] struct {
	good time.Duration

	mu   sync.Mutex // guards what follows
	last *made[T]   // nil before the first
}

// made is a value, once done is closed.
type made[T any] struct {
	done  chan struct{}
	value T
	at    time.Time
}

// isDone reports whether it has been made.
func (m *made[T]) isDone() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// get calls newValue with the value of before, which is the zero value at first. The error is
// that of ctx, with the text of its cause, which may be the error of another call; it ends the
// waiting and not the making.
func (k *kept[T]) get(ctx context.Context, newValue func(before T) T) (T, error) {
	m := k.current(newValue)
	select {
	case <-m.done:
		return m.value, nil
	case <-ctx.Done():
		var none T
		err := ctx.Err()
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %v", err, cause)
		}
		return none, err
	}
}

func (k *kept[T]) current(newValue func(before T) T) *made[T] {
	k.mu.Lock()
	defer k.mu.Unlock()
	var before T
	if k.last != nil {
		if !k.last.isDone() || time.Since(k.last.at) < k.good {
			return k.last
		}
		before = k.last.value
	}
	m := &made[T]{done: make(chan struct{})}
	k.last = m
	go func() {
		defer close(m.done)
		m.value = newValue(before)
		m.at = time.Now()
	}()
	return m
}
