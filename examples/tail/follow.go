package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/gridrpc/grid"
)

// The pauses between two streams: from the one, after a stream that has brought something, to the
// other.
const (
	minPause = 10 * time.Millisecond
	maxPause = time.Second
)

// follower follows the file of one host. One goroutine uses it.
type follower struct {
	conn    *grid.Connection
	at      position // behind the last chunk whose lines were all taken
	streams int      // begun so far
}

// run calls line with each line, without its end, until ctx ends, this host shuts down, line returns
// an error or the host says that it has no file. When the link is lost, or the host shuts down, it
// goes on where it was, once there is a new one.
// A line is valid until the call returns; while it runs, the handler on the other side is held up,
// after a few chunks.
func (f *follower) run(ctx context.Context, line func([]byte) error) error {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		if err := f.conn.WaitForConnect(ctx); err != nil {
			return err
		}
		from := f.at
		ended, err := f.stream(ctx, line)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case ended, errors.Is(err, errNoFile), errors.Is(err, grid.ErrShutdown):
			return err
		case f.at != from:
			pause = minPause
		}
		// Whatever else it was, a lost link or a file that can't be read, may be better the next time.
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stream is one stream. ended says that it is line's error that it returns.
func (f *follower) stream(ctx context.Context, line func([]byte) error) (ended bool, err error) {
	from := f.at
	s, err := tails.Call(ctx, f.conn, positions.NewJSONWith(&from))
	if err != nil {
		return false, err
	}
	f.streams++
	err = s.Results(func(j *grid.JSON[chunk]) error {
		defer tails.PutResponse(j)
		c := j.ValueOrZero()
		for l := range bytes.Lines(c.Data) {
			if err := line(bytes.TrimSuffix(l, []byte("\n"))); err != nil {
				ended = true
				return err
			}
		}
		f.at = c.Next
		return nil
	})
	return ended, err
}
