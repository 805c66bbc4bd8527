package main

import (
	"context"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// work is what each increment takes, so that two at a time would go wrong.
const work = time.Millisecond

// counter is a number in a file, which only the lock keeps from being lost.
type counter struct {
	file    string
	midway  int64         // so many increments
	reached chan struct{} // closed then

	done   atomic.Int64 // increments
	inside atomic.Int32 // who is at it
	clash  atomic.Int32 // how often somebody was not alone
}

func (c *counter) read() (int64, error) {
	b, err := os.ReadFile(c.file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(b), 10, 64)
}

func (c *counter) write(n int64) error {
	return os.WriteFile(c.file, strconv.AppendInt(nil, n, 10), 0o600)
}

// increment reads the number, and writes it again, unless ctx ends in between.
func (c *counter) increment(ctx context.Context) error {
	if c.inside.Add(1) > 1 {
		c.clash.Add(1)
	}
	defer c.inside.Add(-1)
	n, err := c.read()
	if err != nil {
		return err
	}
	time.Sleep(work)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.write(n + 1); err != nil {
		return err
	}
	if c.done.Add(1) == c.midway {
		close(c.reached)
	}
	return nil
}

// worker increments the counter times times, from one node. A lock that is lost is taken again.
func (c *counter) worker(ctx context.Context, m *Mutex, times int) error {
	for range times {
		for {
			held, err := m.Lock(ctx)
			if err != nil {
				return err
			}
			err = c.increment(held.Context())
			lost := held.Context().Err() != nil
			held.Unlock()
			if err == nil {
				break
			}
			if !lost {
				return err
			}
		}
	}
	return nil
}
