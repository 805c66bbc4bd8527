package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
)

// What the client of a stream sends.

// send sends one message, waiting for a credit and for room until ctx ends, or the stream. b stays
// the caller's.
func (m *muxClient) send(ctx context.Context, b []byte) error {
	if err := m.sendSize.check(len(b)); err != nil {
		return m.name.error(err)
	}
	switch {
	case m.sendEnded.Load():
		// Not by done, which is closed after the consumer has seen the end.
		if m.hasEnded() {
			return m.sendError(ctx, errSendCancelled)
		}
		return m.name.error(errSendClosed)
	case !m.takesData:
		return m.name.error(errNoInput)
	case ctx.Done() != nil && ctx.Err() != nil:
		return m.sendError(ctx, errSendCancelled)
	}
	if err := m.sending.Take(ctx); err != nil {
		return m.sendError(ctx, err)
	}
	defer m.sending.Leave()
	if err := m.credits.Reserve(ctx); err != nil {
		return m.sendError(ctx, err)
	}
	msg := message{MuxID: m.id, Op: opMuxClientMsg}
	msg.setPayload(notNil(b))
	m.seen.sent(len(b)) // before the answer, with which the stream may end
	if err := m.queue(ctx, msg); err != nil {
		_ = m.credits.Add(1) // for the next one, if the stream goes on
		return m.sendError(ctx, err)
	}
	return nil
}

var (
	errNoInput    = errors.New("grid: send on a stream whose handler takes no input")
	errSendClosed = fmt.Errorf("grid: send on a stream whose input was closed: %w", io.ErrClosedPipe)
)

// sendInput is send for input that does not come through a channel.
func (m *muxClient) sendInput(ctx context.Context, b []byte) error {
	m.sendUsed.Store(true)
	return m.send(ctx, b)
}

// closeInput is closeSend for such input.
func (m *muxClient) closeInput() error {
	m.sendUsed.Store(true)
	return m.closeSend()
}

// queue queues a message, waiting for room until ctx ends, or the stream.
func (m *muxClient) queue(ctx context.Context, msg message) error {
	ends := ctx.Done()
	// The context of the stream ends that. What is sent in fragments can't be left off.
	if ends == nil || ends == m.ctx.Done() || len(msg.Payload) > wholeSize {
		return m.host.send(m.done, msg, &m.sendSeq)
	}
	if full, err := m.host.trySend(msg, &m.sendSeq); !full {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-m.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return m.host.send(ctx.Done(), msg, &m.sendSeq)
}

// sendError is why a message could not be sent, where a wait has ended with err.
func (m *muxClient) sendError(ctx context.Context, err error) error {
	switch stopped := err == errSendCancelled || ctx.Err() != nil; {
	case stopped && m.hasEnded():
		return cmp.Or(m.endError(), io.EOF)
	case stopped:
		return m.name.error(doneError(ctx))
	}
	switch _, lost := err.(*disconnectError); {
	case lost, err == errSendClosed, err == errNoInput:
		return m.name.error(err)
	}
	return err // with which the stream has ended
}

// closeSend tells the handler that no more input comes. Who waits for a credit by then sends
// nothing any more; a message that is being sent goes before. The error is how the stream has ended
// where the handler was not told, unless it has ended well.
func (m *muxClient) closeSend() error {
	if !m.takesData || m.sendEnded.Swap(true) {
		return m.endError()
	}
	m.credits.Close(errSendClosed)
	if m.sending.Take(context.Background()) != nil {
		return m.endError() // nobody is there to be told
	}
	defer m.sending.Leave()
	msg := message{MuxID: m.id, Op: opMuxClientMsg, Flags: flagEOF}
	if err := m.host.send(m.done, msg, &m.sendSeq); err != nil {
		if err != errSendCancelled {
			return m.name.error(err)
		}
		return m.endError()
	}
	return nil
}

// forwarding returns what is closed when the goroutine that forwards requests is to look: after
// endRequests it ends the input, behind what it has in hand; or the stream has ended.
func (m *muxClient) forwarding() <-chan struct{} {
	over := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		close(over)
	} else {
		m.over = over
	}
	return over
}

// endRequests has the input ended behind what was sent through a channel.
func (m *muxClient) endRequests() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over != nil {
		close(m.over)
		m.over = nil
	}
}
