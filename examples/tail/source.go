package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
)

const (
	chunkSize = 32 << 10 // of a file, in a message; a longer line comes as several
	headSize  = 256      // what a file is told apart by, with its length
)

var (
	errNoFile = errors.New("tail: this node has no file")
	// errLeaving is what followers are told when the link that they came over is to end.
	errLeaving = errors.New("tail: the link is about to end, come again by the next")
)

// position is a place in a log file. Its zero value is the beginning of any.
type position struct {
	Offset int64
	Head   uint64 // hash of the first headSize bytes, or of those up to Offset
}

// chunk is a piece of a file: whole lines, unless one is too long.
type chunk struct {
	Data []byte
	Next position // behind Data
}

var (
	positions = grid.NewJSONPool[position]()
	chunks    = grid.NewJSONPool[chunk]()
	tails     = grid.NewStream[*grid.JSON[position], grid.NoPayload, *grid.JSON[chunk]](
		1, positions.NewJSON, nil, chunks.NewJSON).WithOutCapacity(4)
)

// source is the log file of a node, which the others follow. Its file may be missing, be truncated
// or replaced at any time.
type source struct {
	path string        // empty if the node has none
	poll time.Duration // how often to look for more
	ends chan error    // if not nil and not full, takes why each handler has ended
	sent atomic.Int64  // bytes that handlers have handed to grid
}

func (s *source) register(m *grid.Manager) error { return tails.RegisterServe(m, s.serve) }

// serve sends the file from a position on, and what is appended, until ctx ends or one of the two
// nodes shuts down, which would otherwise wait for it.
func (s *source) serve(ctx context.Context, from *grid.JSON[position], follower *grid.TypedServerStream[grid.NoPayload, *grid.JSON[chunk]]) *grid.RemoteErr {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-grid.Draining(ctx):
			stop(errLeaving)
		case <-ctx.Done():
		}
	}()
	r := &reader{path: s.path}
	err := r.run(ctx, from.ValueOrZero(), s.poll, func(c *chunk) error {
		v := chunks.NewJSONWith(c)
		defer tails.PutResponse(v)
		if err := follower.Send(ctx, v); err != nil { // waits while the follower does not keep up
			return cmp.Or(context.Cause(ctx), err)
		}
		s.sent.Add(int64(len(c.Data)))
		return nil
	})
	select {
	case s.ends <- err:
	default:
	}
	return grid.NewRemoteErr(err)
}

// reader reads a file for one follower.
type reader struct {
	path   string
	f      *os.File // nil if there is none now
	offset int64
	head   []byte // what the file began with
	buf    [chunkSize]byte
}

// run returns only with an error: that of send, ctx, or the file.
func (r *reader) run(ctx context.Context, from position, poll time.Duration, send func(*chunk) error) error {
	if r.path == "" {
		return errNoFile
	}
	defer func() { r.reset(nil) }()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	if err := r.open(); err != nil {
		return err
	}
	r.resume(from)
	for {
		replaced := r.replaced() // before the last look at the old one
		c, err := r.next(replaced)
		switch {
		case err != nil:
			return err
		case c != nil:
			if err := send(c); err != nil {
				return err
			}
			continue
		case replaced:
			if err := r.open(); err != nil {
				return err
			}
			if r.f != nil {
				continue
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// reset goes to the beginning of f.
func (r *reader) reset(f *os.File) {
	if r.f != nil && r.f != f {
		r.f.Close()
	}
	r.f, r.offset, r.head = f, 0, nil
}

// open goes to the beginning of the file that has the name now, if any has.
func (r *reader) open() error {
	f, err := os.Open(r.path)
	if err != nil {
		r.reset(nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	r.reset(f)
	return nil
}

// replaced reports whether another file has the name now. One that is only gone may be about to be.
func (r *reader) replaced() bool {
	now, err := os.Stat(r.path)
	if err != nil {
		return false
	}
	if r.f == nil {
		return true
	}
	was, err := r.f.Stat()
	return err == nil && !os.SameFile(was, now)
}

// resume goes to a position, if it is one in this file.
func (r *reader) resume(from position) {
	if r.f == nil || from.Offset <= 0 {
		return
	}
	head := make([]byte, min(from.Offset, headSize))
	if _, err := r.f.ReadAt(head, 0); err != nil || hash(head) != from.Head {
		return
	}
	r.offset, r.head = from.Offset, head
	if !r.intact() {
		r.reset(r.f)
	}
}

// intact reports whether the file still has what was read from it, as far as can be seen.
func (r *reader) intact() bool {
	st, err := r.f.Stat()
	if err != nil || st.Size() < r.offset {
		return false
	}
	head := make([]byte, len(r.head))
	_, err = r.f.ReadAt(head, 0)
	return (err == nil || errors.Is(err, io.EOF)) && bytes.Equal(head, r.head)
}

// next is what has been appended: as many whole lines as fit, or all if nothing will come after it.
// It is nil if there is nothing.
func (r *reader) next(last bool) (*chunk, error) {
	if r.f == nil {
		return nil, nil
	}
	buf := r.buf[:]
	n, err := r.f.ReadAt(buf, r.offset)
	if !r.intact() { // afterwards, so that nothing is taken from what came in its place
		r.reset(r.f)
		n, err = r.f.ReadAt(buf, 0)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if end := bytes.LastIndexByte(buf[:n], '\n') + 1; end > 0 || n < len(buf) && !last {
		n = end
	}
	if n == 0 {
		return nil, nil
	}
	r.head = append(r.head, buf[:min(n, headSize-len(r.head))]...)
	r.offset += int64(n)
	return &chunk{Data: bytes.Clone(buf[:n]), Next: position{r.offset, hash(r.head)}}, nil
}

func hash(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}
