package grid

import (
	"context"
	"errors"
	"time"
)

// CallInfo says which request or stream an interceptor is told of.
type CallInfo struct {
	Handler HandlerID
	// Name is what ManagerOptions.HandlerOptions or HandlerNames call the handler, or its ID in
	// digits.
	Name string
	// Subroute is empty where there is none.
	Subroute string
	// Host is the base URL of the other side.
	Host string
	// Stream tells a stream from a single request.
	Stream bool
	// PayloadBytes is the size of the payload with which it begins.
	PayloadBytes int

	// Metadata goes with the call. A [CallInterceptor] finds there what the caller has given it, and
	// may add to it, or replace it; a [ServeInterceptor] finds there what came, and the handler by
	// [Metadata]. It is for what describes a call, such as its place in a trace: keys and
	// values together may have 2 KiB, with 10 bytes more for each pair, or the call fails with
	// [ErrMessageTooLarge]. Peers that do not know the extension get none of it (protocol section
	// 8). It is nil if there is none; it must not be kept.
	Metadata map[string]string
}

// AddMetadata adds a pair to Metadata. It is for InterceptCall, until that returns, and not to be
// called concurrently.
func (c *CallInfo) AddMetadata(key, value string) {
	if c.Metadata == nil {
		c.Metadata = make(map[string]string)
	}
	c.Metadata[key] = value
}

// CallResult is how a request or a stream has ended.
type CallResult struct {
	// Err is what the caller gets, or the handler has returned; nil if all went well. A stream that
	// was given up has the reason, and so has, on the serving side, an answer that was not sent.
	// The text of a handler's error may be as long as a message: see RemoteErr.
	Err error
	// Duration is from the begin to the end. On the calling side that of a stream ends when it
	// does, although messages may still wait to be consumed.
	Duration time.Duration
	// Sent and received, by this side: payloads, without what is around them.
	SentBytes, ReceivedBytes       int64
	SentMessages, ReceivedMessages int64
}

// Status is Err in a word, for metrics and traces, of which there are not many: "ok", "overloaded",
// "remote_error", "disconnected", "deadline_exceeded", "canceled", "message_too_large",
// "protocol_error", or "error" for any other.
func (r CallResult) Status() string {
	switch err := r.Err; {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	case IsRemoteErr(err):
		return "remote_error"
	case errors.Is(err, ErrDisconnected):
		return "disconnected"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline_exceeded"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, ErrMessageTooLarge):
		return "message_too_large"
	case errors.Is(err, ErrProtocol), errors.Is(err, ErrIncorrectSequence), errors.Is(err, ErrFlowControl):
		return "protocol_error"
	}
	return "error"
}

// CallInterceptor is told of all requests and streams that this host begins, and may refuse them.
//
// Its method, and the functions that it returns, are called concurrently for different calls.
type CallInterceptor interface {
	// InterceptCall is called before anything is sent, on the caller's goroutine: what it takes,
	// the call takes, whatever its context says. It returns the context with which the call goes
	// on, ctx or one derived from it, and a function, or nil, to be called once when the call has
	// ended. An error ends the call at once, and is what the caller gets. So is a panic.
	//
	// The end of a request is told on the caller's goroutine, before that gets the answer. The end
	// of a stream is told on a goroutine of its own, perhaps after the consumer has heard of it:
	// nothing waits for it but Shutdown, and Close for a second. While as many ends are being told
	// as MaxStreams, further streams to that host are refused with [ErrOverloaded]. A panic of an
	// end is logged, and the other interceptors hear of the end all the same.
	InterceptCall(ctx context.Context, info *CallInfo) (context.Context, func(CallResult), error)
}

// ServeInterceptor is told of all requests and streams that handlers of this host serve, and may
// refuse them. It is not told of those that were refused before, because of a limit or because
// there is no such handler.
//
// Its method, and the functions that it returns, are called concurrently for different calls.
type ServeInterceptor interface {
	// InterceptServe is called before the handler, on its goroutine, and like it: in its slot, and
	// with its panic as the caller's error. It returns the context that the handler gets, if that
	// takes one: ctx or one derived from it; and a function, or nil, to be called once when the
	// handler has returned and, of a stream, all that it sent is on its way. An error takes the
	// place of the handler's result, and the handler is not called.
	//
	// The end is told on a goroutine that has served the call, perhaps after the caller has the
	// answer: nothing waits for it but Shutdown. While as many ends are being told as MaxHandlers,
	// further calls of that host are refused with [ErrOverloaded]. A panic of an end is logged, and
	// the other interceptors hear of the end all the same.
	InterceptServe(ctx context.Context, info *CallInfo) (context.Context, func(CallResult), error)
}
