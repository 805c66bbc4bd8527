package grid

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync/atomic"

	"github.com/gridrpc/grid/internal/fifo"
)

// StreamServeFn serves a stream without channels: it receives and sends by s, on its own goroutine.
// That makes it faster than a [StreamHandlerFn], and tells it of each message whether it was sent.
//
// It owns payload. ctx ends, with the causes that are told there, when the stream is aborted and
// when the function has returned. A nil return ends the stream well, after everything sent before
// was delivered; an error arrives as *[RemoteErr]. A panic is answered with an error.
//
// A goroutine that it leaves behind gets errors from s; a Send of it that is under way may still be
// delivered.
type StreamServeFn func(ctx context.Context, payload []byte, s *ServerStream) *RemoteErr

// ServerStream is the serving end of a stream, for a [StreamServeFn]. One goroutine may receive,
// with Recv, RecvContext, All or Reader, while others send.
//
// Its methods are those of [Stream] by the same names, but for Send, which takes a context as
// SendContext does there: a handler has one. The end is the handler's return.
type ServerStream struct{ serverEnd }

// Recv returns the next message from the client, which is the caller's from then on; a buffer of it
// may be given to [PutByteBuffer]. It waits for one until the stream ends.
//
// After the last message, where the client has closed its input, it returns [io.EOF], and at once
// for a stream without input. Where the stream was aborted it never does, unless all of the input
// was received: then it returns the reason, which is the [context.Cause] of the handler's context,
// and what still waited is thrown away. So a handler that acts at io.EOF has had the whole of its
// input.
func (s *ServerStream) Recv() ([]byte, error) {
	return s.RecvContext(context.Background())
}

// RecvContext is Recv that waits no longer than ctx. If that ends first, or has ended before, it
// returns the error of it; nothing was received, and the stream lives on: the next Recv goes on
// with the next message. ctx may be the handler's, whose end is that of the stream: then it is
// Recv.
func (s *ServerStream) RecvContext(ctx context.Context) ([]byte, error) {
	msg, err := s.take(ctx, false)
	if err != nil {
		return nil, err
	}
	return msg.join(), nil
}

// All is Recv as an iterator. An end other than io.EOF is yielded last, with a nil message.
// Breaking off ends nothing: another loop goes on with the next message.
func (s *ServerStream) All() iter.Seq2[[]byte, error] { return received(s.Recv) }

// Send sends one message to the client, waiting while that has not kept up, and while the link has
// no room. b stays the caller's, and nil arrives as empty.
//
// It returns nil once the message is queued, which is before it has arrived. If ctx ends first, it
// returns the error of that, nothing was sent, and the stream lives on; a message above 64 KiB that
// has got its credit goes on until the stream ends. If the stream was aborted it returns the reason,
// as Recv does. A message above the size limit is refused with [ErrMessageTooLarge], and the stream
// lives on.
//
// ctx is that of the handler, or one of the caller's. Send may be called concurrently.
func (s *ServerStream) Send(ctx context.Context, b []byte) error { return s.send(ctx, b) }

// received makes an iterator of a Recv method.
func received[T any](recv func() (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			v, err := recv()
			if err == io.EOF || !yield(v, err) || err != nil {
				return
			}
		}
	}
}

var errHandlerReturned = errors.New("grid: the stream's handler has returned")

// serverEnd is a served stream as its handler has it.
type serverEnd struct {
	m *muxServer
	// sending is taken while a message is sent: fragments of it stay together, and nothing follows
	// the result.
	sending fifo.Lock
	broken  atomic.Pointer[error] // with which a StreamWriter has failed first; nil if none has
}

// serve runs a handler that takes and sends by itself, and then ends the stream. Each step of that
// is taken also where the one before has ended the goroutine, as code of the application's may.
func (e *serverEnd) serve(m *muxServer, handle func(ctx context.Context, payload []byte) *RemoteErr) {
	e.m = m
	if m.handler.inputDecodes > 0 {
		m.in.setHolder(nil, m.handler.inputDecodes)
	}
	defer m.freeSlot()
	defer func() { m.seen.endServed(m.outcome()) }()
	defer m.in.discharge()
	defer e.finish()
	defer func() { m.handled(recover()) }()
	if ctx, payload, ok := m.beginHandling(); ok {
		if m.result = handle(ctx, payload); m.result == nil {
			m.result = e.unwritten()
		}
	}
}

// unwritten is the result of a handler that has returned nil, and has not written all.
func (e *serverEnd) unwritten() *RemoteErr {
	if err := e.broken.Load(); err != nil {
		return NewRemoteErrf("grid: handler %s has written a part only: %w", e.m.handler.label, *err)
	}
	return nil
}

// finish sends the handler's result, behind what is being sent.
func (e *serverEnd) finish() {
	m := e.m
	m.handlerReturned()
	m.dropInput()
	_ = e.sending.Take(context.Background()) // for good
	e.sending.Close(errHandlerReturned)
	m.sendResult()
}

// take returns the next message, waiting for one until the stream ends, or ctx. If held is set, it
// counts as held until handedOn is called.
func (e *serverEnd) take(ctx context.Context, held bool) (msg arrived, err error) {
	m := e.m
	var done <-chan struct{}
	if ctx != m.ctx { // which ends with the stream
		if done = ctx.Done(); done != nil && ctx.Err() != nil {
			return arrived{}, e.endedWait(ctx, errSendCancelled)
		}
	}
	for {
		if m.hasReturned() {
			return arrived{}, errHandlerReturned
		}
		if !m.hasInput {
			return arrived{}, io.EOF
		}
		var (
			ok, ended bool
			grant     int
		)
		if held {
			msg, ok, ended, err = m.in.hold()
		} else {
			msg, grant, ok, ended, err = m.in.take()
		}
		switch {
		case ok:
			m.grant(grant)
			return msg, nil
		case m.hasReturned():
			// It is that which has ended the input.
		case ended && err == nil:
			return arrived{}, io.EOF
		case ended:
			return arrived{}, err
		case err != nil:
			m.refuse(err)
			return arrived{}, err
		default:
			if !m.in.await(done) {
				return arrived{}, e.endedWait(ctx, errSendCancelled)
			}
		}
	}
}

// send sends b, which stays the caller's.
func (e *serverEnd) send(ctx context.Context, b []byte) error {
	m := e.m
	if err := m.sendSize.check(len(b)); err != nil {
		return err
	}
	if ctx != m.ctx && ctx.Err() != nil {
		return contextError(ctx)
	}
	if err := e.sending.Take(ctx); err != nil {
		return e.endedWait(ctx, err)
	}
	defer e.sending.Leave()
	if err := e.awaitCredit(ctx); err != nil {
		return err
	}
	m.seen.sent(len(b))
	msg := message{MuxID: m.id, Op: opMuxServerMsg}
	msg.setPayload(notNil(b))
	if err := e.queue(ctx, msg); err != nil {
		_ = m.credits.Add(1) // for the next one, if the stream goes on
		return e.endedWait(ctx, err)
	}
	return nil
}

// awaitCredit takes a credit, waiting for one until ctx ends, the stream, or its handler.
func (e *serverEnd) awaitCredit(ctx context.Context) error {
	m := e.m
	for {
		if m.hasReturned() {
			return errHandlerReturned
		}
		credit := m.credits.Ready()
		if credit == nil {
			return m.credits.Reserve(context.Background())
		}
		select {
		case <-credit:
		case <-ctx.Done():
			return e.endedWait(ctx, errSendCancelled)
		case <-m.returned:
		}
	}
}

// queue queues a message, waiting for room until ctx ends or the stream.
func (e *serverEnd) queue(ctx context.Context, msg message) error {
	m := e.m
	// The context of the handler ends with the stream. What is sent in fragments can't be left off.
	if ctx == m.ctx || ctx.Done() == nil || len(msg.Payload) > wholeSize {
		return m.host.send(m.dead, msg, &m.sendSeq)
	}
	if full, err := m.host.trySend(msg, &m.sendSeq); !full {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	return m.host.send(ctx.Done(), msg, &m.sendSeq)
}

// endedWait is why a message was not sent, or received, where a wait has ended with err.
func (e *serverEnd) endedWait(ctx context.Context, err error) error {
	switch aborted := e.m.abortCause(); {
	case aborted != nil && aborted != errStreamOver:
		return aborted
	case e.m.hasReturned():
		return errHandlerReturned
	case ctx.Err() != nil:
		return contextError(ctx)
	}
	return err
}
