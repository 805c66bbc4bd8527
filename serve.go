package grid

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/gridrpc/grid/internal/bytepool"
)

// serveStream runs a handler over channels of any type: the raw and the typed
// ones are this, with different ways to decode and encode. decode and encode
// own the buffer that they are given, and give away the one that they return.
func serveStream[In, Out any](m *muxServer, decode func([]byte) (In, error), encode func(Out) ([]byte, error),
	handle func(ctx context.Context, payload []byte, in <-chan In, out chan<- Out) *RemoteErr,
) {
	out := make(chan Out, min(m.handler.outCapacity, maxOutBuffer))
	in := make(chan In)
	if m.hasInput {
		m.host.start(taskFunc(func() { feedInput(m, in, decode) }))
	} else {
		close(in)
	}
	m.host.start(taskFunc(func() { pumpOutput(m, out, encode) }))

	defer close(m.returned)
	defer func() { m.result = handlerResult(recover(), m.result, m.handlerID, m.host.logger()) }()
	m.result = errHandlerExited // stays if the handler ends its goroutine
	payload := m.payload.take()
	m.payload = arrived{}
	m.result = handle(m.ctx, payload, in, out)
}

// maxOutBuffer bounds the buffer of a handler's output channel, in messages.
const maxOutBuffer = 64

// errHandlerExited is the result of a handler that called runtime.Goexit.
var errHandlerExited = NewRemoteErrString("handler ended its goroutine")

// handlerResult makes a panic of a handler its result.
func handlerResult(recovered any, result *RemoteErr, id HandlerID, log *slog.Logger) *RemoteErr {
	if recovered == nil {
		return result
	}
	log.Error("grid: handler panicked", "handler", id, "panic", recovered, "stack", string(debug.Stack()))
	return NewRemoteErrf("grid: handler %d panicked: %v", id, recovered)
}

// feedInput hands the client's messages to the handler, and returns a credit
// for each that it has taken. It closes in at the end of the input, and also
// when the stream is aborted; the handler's context has ended before then.
func feedInput[In any](m *muxServer, in chan<- In, decode func([]byte) (In, error)) {
	defer close(in)
	for {
		msg, ok, ended, _ := m.in.hold()
		switch {
		case ok:
			v, err := decode(msg.take())
			if err != nil {
				m.fail(err)
				return
			}
			select {
			case in <- v:
			default:
				select {
				case in <- v:
				case <-m.dead:
					return
				case <-m.returned:
					return
				}
			}
			if grant := m.in.passed(); grant > 0 {
				m.send(message{Op: opUnblockClMux, Payload: creditPayload(&m.grantBuf, grant)})
			}
		case ended:
			return
		default:
			select {
			case <-m.in.signal:
			case <-m.returned:
				return
			}
		}
	}
}

// pumpOutput sends what the handler sends, and then its result.
func pumpOutput[Out any](m *muxServer, out <-chan Out, encode func(Out) ([]byte, error)) {
	defer func() {
		if m.slot != nil {
			m.slot.release()
		}
	}()
	for {
		v, ok, more := nextOutput(m, out)
		if !more {
			break
		}
		if ok {
			sendOutput(m, v, encode)
		} else {
			out = nil // closed, which it must not be
		}
	}
	m.handlerReturned()
	// What was sent before the return, and no more: a goroutine that the
	// handler has left behind must not keep the stream going.
	for range len(out) {
		sendOutput(m, <-out, encode)
	}
	m.sendResult()
}

// nextOutput waits for what the handler sends next; more is false when it has
// returned. ok is that of a receive.
func nextOutput[Out any](m *muxServer, out <-chan Out) (v Out, ok, more bool) {
	select {
	case v, ok = <-out:
		return v, ok, true
	default: // the slow way
	}
	select {
	case v, ok = <-out:
		return v, ok, true
	case <-m.returned:
		return v, false, false
	}
}

func sendOutput[Out any](m *muxServer, v Out, encode func(Out) ([]byte, error)) {
	b, err := encode(v)
	if err != nil {
		m.fail(fmt.Errorf("grid: handler %d: encoding a message: %w", m.handlerID, err))
		return
	}
	defer bytepool.Put(b)
	if len(b) > m.maxMessage {
		m.fail(tooLargeError(len(b), m.maxMessage))
		return
	}
	if m.credits.Reserve(context.Background()) != nil {
		return // aborted
	}
	msg := message{Op: opMuxServerMsg}
	msg.setPayload(notNil(b))
	m.send(msg)
}
