package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/gridrpc/grid/internal/bytepool"
)

// ioSize is the most bytes that a [StreamWriter], or the writer of WriterToChannel, puts into a
// message: the largest that is not sent in fragments, so that a context can end the wait for room.
// From 16 to 128 KiB all are as fast, and 256 KiB by a tenth faster.
const ioSize = wholeSize

// StreamReader reads what the other end of a stream sends, as the bytes of its messages one after
// the other: see [Stream.Reader] and [ServerStream.Reader]. One goroutine reads; Close may be called
// meanwhile.
//
// It returns [io.EOF] only where the other side has finished: a client by ending its input, a
// handler by returning nil. Whatever else ends the stream, such as a lost link, a deadline, a
// client that has given up or the handler's error, comes as an error that is [io.ErrUnexpectedEOF],
// and is what Recv would return as well, for [errors.Is] and [errors.As]. So half a file can't be
// taken for a whole one.
type StreamReader struct {
	// Set once.
	recv func() ([]byte, error)
	stop func() // may be nil

	closed, ended atomic.Bool // by Close, and by who reads

	// Of who reads.
	buf  []byte // the message; nil for none
	rest []byte // what was not read of it
	err  error
}

// Reader returns a reader of what the handler sends. It consumes the stream, as Recv does.
func (s *Stream) Reader() *StreamReader {
	return &StreamReader{recv: s.Recv, stop: func() { _ = s.mux.stopConsuming(errReaderClosed) }}
}

// Reader returns a reader of the client's input. It receives, as Recv does.
func (s *ServerStream) Reader() *StreamReader { return &StreamReader{recv: s.Recv} }

var errReaderClosed = fmt.Errorf("grid: the reader of the stream was closed: %w", io.ErrClosedPipe)

// Read implements [io.Reader]. It waits for a message while there is none, and returns no more than
// the rest of one.
func (r *StreamReader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	n = copy(p, r.rest)
	r.took(n)
	return n, nil
}

// WriteTo implements [io.WriterTo]: it writes each message to w as it is, and returns nil after the
// last one where Read would return io.EOF. What w has not taken stays for the next Read. Where w is
// a [StreamWriter], an end that is not good makes it fail as well.
func (r *StreamReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		switch err := r.next(); err {
		case nil:
		case io.EOF:
			return n, nil
		default:
			if next, ok := w.(*StreamWriter); ok {
				next.fail(err)
			}
			return n, err
		}
		size := len(r.rest)
		wrote, err := w.Write(r.rest)
		if wrote < 0 || wrote > size {
			wrote, err = 0, errors.Join(err, errInvalidWrite)
		}
		r.took(wrote)
		n += int64(wrote)
		switch {
		case err != nil:
			return n, err
		case wrote < size:
			return n, io.ErrShortWrite
		}
	}
}

var errInvalidWrite = errors.New("grid: a writer has returned an invalid count from Write")

// Close ends the reading: what follows is an error, but for an end that was read before. A stream
// that was opened here ends with it, and so does the context of its handler; a Read that waits
// returns. In a handler nothing ends with it: a Read that waits there goes on until a message comes,
// or the end.
func (r *StreamReader) Close() error {
	if !r.closed.Swap(true) && !r.ended.Load() && r.stop != nil {
		r.stop()
	}
	return nil
}

// next sees to it that there is something to read, if it returns nil.
func (r *StreamReader) next() error {
	if r.closed.Load() && r.err == nil {
		r.end(errReaderClosed)
	}
	for len(r.rest) == 0 {
		if r.err != nil {
			return r.err
		}
		b, err := r.recv()
		switch {
		case r.closed.Load() && err != io.EOF:
			bytepool.Put(b)
			r.end(errReaderClosed)
		case err == io.EOF:
			r.end(err)
		case err != nil:
			r.end(&cutShort{err})
		default:
			r.buf, r.rest = b, b
			r.took(0)
		}
	}
	return nil
}

// took says that n bytes of rest were read.
func (r *StreamReader) took(n int) {
	if r.rest = r.rest[n:]; len(r.rest) == 0 {
		bytepool.Put(r.buf)
		r.buf, r.rest = nil, nil
	}
}

// end has what is read from now on be err.
func (r *StreamReader) end(err error) {
	r.err = err
	r.ended.Store(true)
	r.took(len(r.rest))
}

// cutShort is why a reader has not come to the good end of a stream.
type cutShort struct{ cause error }

func (e *cutShort) Error() string { return e.cause.Error() }

// Is reports whether target is io.ErrUnexpectedEOF or the cause; it never is io.EOF.
func (e *cutShort) Is(target error) bool {
	return target == io.ErrUnexpectedEOF || target != io.EOF && errors.Is(e.cause, target)
}

// As finds the cause.
func (e *cutShort) As(target any) bool { return errors.As(e.cause, target) }

// writerEnd is the end of a stream that a StreamWriter sends through.
type writerEnd interface {
	sendPart(ctx context.Context, b []byte) error
	// partSize is how large a part may be.
	partSize() int
	// endParts says that the last part was sent. It returns how the stream has ended, if it has.
	endParts() error
	// breakParts says that the rest will not be sent, and why.
	breakParts(err error)
}

// StreamWriter writes to the other end of a stream, which gets what is written as messages of 64
// KiB at most: see [Stream.Writer] and [ServerStream.Writer]. It keeps nothing back, so for many
// small writes put a [bufio.Writer] before it. One goroutine uses it; what others send meanwhile
// may come between two of its messages.
//
// The other side takes what it has got for the whole only once it is told so. A client has to Close
// its writer: as long as that is not done the handler waits for more, and where the stream's
// context ends, or the link, it gets an error. The input is the stream's, whoever writes it: Finish,
// CloseSend and another writer's Close end it as well, whether this one has written all or not. So
// look at the errors of a writer before. For a handler the end is that it returns nil.
//
// A write that fails, and in ReadFrom a source that does, breaks off: a stream that was opened here
// is ended, so that its handler gets an error; of a handler the nil that it returns becomes an
// error. io.Copy has a writer know of its source, unless that has a WriteTo of its own which tells
// nothing. CloseWithError does in all cases: with what io.Copy has returned it is the best way to
// close a writer. A write after the input has ended is an error that is [io.ErrClosedPipe], and
// breaks nothing off.
type StreamWriter struct {
	end    writerEnd
	ctx    context.Context
	closed bool
	err    error // of what has failed first
}

// Writer returns a writer of the handler's input, which it sends as SendContext does with ctx. That
// may be the stream's own.
func (s *Stream) Writer(ctx context.Context) *StreamWriter {
	return &StreamWriter{end: s.mux, ctx: ctx}
}

// Writer returns a writer to the client, which sends as Send does with ctx. That may be the handler's
// own.
func (s *ServerStream) Writer(ctx context.Context) *StreamWriter {
	return &StreamWriter{end: &s.serverEnd, ctx: ctx}
}

// Write implements [io.Writer]: it returns once all of p is queued; see [Stream.Send]. Where the
// handler has returned nil before it was sent all, the error is [io.ErrClosedPipe], as after Close.
func (w *StreamWriter) Write(p []byte) (n int, err error) {
	if err := w.failure(); err != nil {
		return 0, err
	}
	for most := w.end.partSize(); len(p) > 0; {
		size := min(len(p), most)
		if err := w.end.sendPart(w.ctx, p[:size]); err != nil {
			return n, w.fail(err)
		}
		n, p = n+size, p[size:]
	}
	return n, nil
}

// ReadFrom implements [io.ReaderFrom]: it sends what it reads from r until io.EOF, each Read as a
// message.
func (w *StreamWriter) ReadFrom(r io.Reader) (n int64, err error) {
	if err := w.failure(); err != nil {
		return 0, err
	}
	most := w.end.partSize()
	buf := bytepool.Get(most)[:most]
	defer bytepool.Put(buf)
	for {
		got, readErr := r.Read(buf)
		if got > 0 {
			if err := w.end.sendPart(w.ctx, buf[:got]); err != nil {
				return n, w.fail(err)
			}
			n += int64(got)
		}
		switch readErr {
		case nil:
		case io.EOF:
			return n, nil
		default:
			return n, w.fail(readErr)
		}
	}
}

// Close ends what is written. For a client it is CloseSend, and returns nil once that is queued:
// that the handler has taken all is what Finish and Results tell. For a handler there is nothing to
// do, as its return is the end.
//
// Where something has failed before, or ctx of the writer has ended, it breaks off and returns that
// error. It also returns the error with which the stream has ended, if it has, unless it has ended
// well.
func (w *StreamWriter) Close() error { return w.CloseWithError(nil) }

// CloseWithError is Close where err is nil or [io.EOF], and otherwise breaks off because of err. On
// a writer that is closed it does nothing: so defer it with an error of your own, and no return on
// the way leaves behind a half that looks like the whole.
func (w *StreamWriter) CloseWithError(err error) error {
	if w.closed {
		return nil
	}
	w.closed = true
	if err == nil || err == io.EOF {
		err = contextError(w.ctx)
	}
	if err != nil {
		w.fail(err)
	}
	if w.err != nil {
		return w.err
	}
	return w.end.endParts()
}

// failure is why nothing is to be written any more, nil if it may be.
func (w *StreamWriter) failure() error {
	if w.err == nil && w.closed {
		return errWriterClosed
	}
	return w.err
}

// fail breaks off because of err, if that is the first failure, and returns it.
func (w *StreamWriter) fail(err error) error {
	if w.err == nil {
		w.err = err
		w.end.breakParts(err)
	}
	return err
}

var (
	errWriterClosed = fmt.Errorf("grid: write to a writer that was closed: %w", io.ErrClosedPipe)
	errWriteUnread  = fmt.Errorf("grid: the handler of the stream has returned before the end of its input: %w", io.ErrClosedPipe)
)

func (m *muxClient) sendPart(ctx context.Context, b []byte) error {
	err := m.sendInput(ctx, b)
	if err == io.EOF {
		err = errWriteUnread
	}
	return err
}

func (m *muxClient) partSize() int   { return min(ioSize, m.sendSize.bytes) }
func (m *muxClient) endParts() error { return m.closeInput() }

func (m *muxClient) breakParts(err error) {
	m.sendUsed.Store(true)
	if !errors.Is(err, errSendClosed) { // nothing was broken by a write that came too late
		m.finish(err, dropWaiting|tellPeer|asIs)
	}
}

func (e *serverEnd) sendPart(ctx context.Context, b []byte) error { return e.send(ctx, b) }
func (e *serverEnd) partSize() int                                { return min(ioSize, e.m.sendSize.bytes) }
func (e *serverEnd) breakParts(err error)                         { e.broken.Store(&err) }

func (e *serverEnd) endParts() error {
	switch aborted := e.m.abortCause(); {
	case aborted != nil && aborted != errStreamOver:
		return aborted
	case e.m.hasReturned():
		return errHandlerReturned
	}
	return nil
}

// WriterToChannel returns a writer for the channels of a stream: out of a [StreamHandlerFn], or
// [Stream].Requests. It sends a copy of what is written, in messages of 64 KiB at most, and waits
// no longer than ctx, whose cause it returns then; for out that is the context of the handler. It
// is an [io.ReaderFrom], and as safe for concurrent use as the channel.
//
// The end is what it is without a writer: the handler returns, or Requests is closed, once all was
// written and nothing has failed.
func WriterToChannel(ctx context.Context, out chan<- []byte) io.Writer {
	return &channelWriter{ctx, out}
}

type channelWriter struct {
	ctx context.Context
	out chan<- []byte
}

// Write implements [io.Writer].
func (w *channelWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		size := min(len(p), ioSize)
		if err := w.send(append(bytepool.Get(size), p[:size]...)); err != nil {
			return n, err
		}
		n, p = n+size, p[size:]
	}
	return n, nil
}

// ReadFrom implements [io.ReaderFrom].
func (w *channelWriter) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		buf := bytepool.Get(ioSize)[:ioSize]
		got, readErr := r.Read(buf)
		if got == 0 {
			bytepool.Put(buf)
		} else if err := w.send(buf[:got]); err != nil {
			return n, err
		}
		n += int64(got)
		switch readErr {
		case nil:
		case io.EOF:
			return n, nil
		default:
			return n, readErr
		}
	}
}

// send sends b, which it owns.
func (w *channelWriter) send(b []byte) error {
	if w.ctx.Err() == nil {
		select {
		case w.out <- b:
			return nil
		case <-w.ctx.Done():
		}
	}
	bytepool.Put(b)
	return cmp.Or(context.Cause(w.ctx), context.Canceled)
}
