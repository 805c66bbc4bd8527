package grid

import (
	"context"
	"errors"
	"io"
)

// What the client of a stream receives, and how it is consumed.

// results calls next with every message, which is next's from then on, and returns how the stream
// ended.
func (m *muxClient) results(next func([]byte) error) error {
	returned := false
	defer func() {
		if !returned {
			_ = m.stopConsuming(m.name.error(errConsumerLeft))
		}
	}()
	err := m.consume(next)
	returned = true
	return err
}

// errConsumerLeft ends a stream whose consumer was left by a panic, or ended its goroutine.
var errConsumerLeft = errors.New("grid: the consumer of the stream has panicked, or ended its goroutine")

func (m *muxClient) consume(next func([]byte) error) error {
	for {
		b, ok, err := m.take(context.Background())
		if !ok {
			return err
		}
		if err := notNilRemote(next(b)); err != nil {
			return m.stopConsuming(err)
		}
	}
}

// take returns the next message, which is the caller's, waiting for one until the stream ends, or
// ctx. With ok false there is none, and err is how the stream has ended, or the error of ctx.
func (m *muxClient) take(ctx context.Context) (b []byte, ok bool, err error) {
	done := ctx.Done()
	if done != nil && ctx.Err() != nil {
		return nil, false, m.name.error(doneError(ctx))
	}
	for {
		msg, grant, ok, ended, err := m.in.take()
		switch {
		case ok && m.caller.Err() != nil:
			msg.drop()
			return nil, false, m.stopConsuming(m.name.error(contextError(m.caller)))
		case ok:
			m.grant(grant)
			return msg.join(), true, nil
		case ended && err == nil && m.skipped.Load():
			return nil, false, m.name.error(errSkipped)
		case ended:
			return nil, false, err
		default:
			if !m.in.await(done) {
				return nil, false, m.name.error(doneError(ctx))
			}
		}
	}
}

// errSkipped is the end of a stream that has ended well, for a consumer that has not had all of it.
var errSkipped = errors.New("grid: messages of the stream were thrown away")

// skip throws away what has arrived, and is not to be taken for the rest of a stream that ends
// well.
func (m *muxClient) skip(cause error) {
	m.skipped.Store(true)
	m.in.drop(cause)
}

// recv is take with io.EOF for an end that is good, and for no other.
func (m *muxClient) recv(ctx context.Context) ([]byte, error) {
	b, ok, err := m.take(ctx)
	switch {
	case ok:
		return b, nil
	case err == nil:
		return nil, io.EOF
	}
	return nil, notEOF(err)
}

// drain ends the input, throws away what arrives, and returns how the stream has ended. The end of
// ctx ends it.
func (m *muxClient) drain(ctx context.Context) error {
	if ctx.Done() != nil {
		if err := contextError(ctx); err != nil {
			m.cancel(err)
		}
		defer context.AfterFunc(ctx, func() { m.cancel(doneError(ctx)) })()
	}
	m.finishing.Store(true)
	if m.sendUsed.Load() {
		_ = m.closeSend() // the end of the stream tells
	} else {
		m.endRequests()
	}
	for {
		msg, grant, ok, ended, err := m.in.take()
		switch {
		case ok:
			m.skipped.Store(true)
			m.grant(grant)
			msg.drop()
		case ended:
			return err
		default:
			<-m.in.signal
		}
	}
}

// stopConsuming drops what has arrived, also where the stream itself has ended.
func (m *muxClient) stopConsuming(cause error) error {
	m.finish(cause, dropWaiting|tellPeer|asIs)
	m.in.drop(cause)
	return cause
}

// grant returns credits to the handler.
func (m *muxClient) grant(n int) {
	if n == 0 {
		return
	}
	msg := message{MuxID: m.id, Op: opUnblockSrvMux, Payload: creditPayload(&m.grantBuf, n)}
	// If it can't be sent the stream is over, and the next take says so.
	_ = m.host.send(m.done, msg, &m.sendSeq)
}
