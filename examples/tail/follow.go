package main

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/gridrpc/grid"
)

// retry is how long to wait after a stream has failed for another reason than its connection.
const retry = time.Second

// errLinkEnds is a stream whose link has ended, or is about to.
var errLinkEnds = errors.New("tail: the link has ended")

// follower follows the file of one host. One goroutine uses it.
type follower struct {
	conn    *grid.Connection
	at      position // behind the last chunk whose lines were all taken
	streams int      // begun so far
}

// run calls line with each line, without its end, until ctx ends, line returns an error or the host
// says that it has no file. When the link is lost, or the host shuts down, it goes on where it was,
// once there is a new one.
// A line is valid until the call returns; while it runs, the handler on the other side is held up,
// after a few chunks.
func (f *follower) run(ctx context.Context, line func([]byte) error) error {
	for {
		if err := f.conn.WaitForConnect(ctx); err != nil {
			return err
		}
		ended, err := f.stream(ctx, line)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case ended, errors.Is(err, errNoFile):
			return err
		case errors.Is(err, errLinkEnds), errors.Is(err, grid.ErrDisconnected):
			continue // with the next connection, which there is no earlier than it may be
		}
		select {
		case <-time.After(retry):
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
	if !ended {
		select {
		case <-s.Draining():
			err = errLinkEnds
		default:
		}
	}
	return ended, err
}
