package grid

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tinylib/msgp/msgp"
)

// CallInfo says which request or stream an interceptor is told of.
type CallInfo struct {
	Handler HandlerID
	// Name is what ManagerOptions.HandlerNames calls the handler, or its ID in digits.
	Name string
	// Subroute is empty where there is none.
	Subroute string
	// Host is the base URL of the other side.
	Host string
	// Stream tells a stream from a single request.
	Stream bool
	// PayloadBytes is the size of the payload with which it begins.
	PayloadBytes int

	// Metadata goes with the call. A [CallInterceptor] may add to it; a
	// [ServeInterceptor] finds there what came. It is for what describes a call, such
	// as its place in a trace: keys and values together may have 2 KiB, with 10
	// bytes more for each pair, or the call fails with [ErrMessageTooLarge]. Peers that do not know the extension get none
	// of it (protocol section 8). It is nil if there is none; it must not be kept.
	Metadata map[string]string
}

// AddMetadata adds a pair to Metadata. It is for InterceptCall, until that returns, and not
// to be called concurrently.
func (c *CallInfo) AddMetadata(key, value string) {
	if c.Metadata == nil {
		c.Metadata = make(map[string]string)
	}
	c.Metadata[key] = value
}

// CallResult is how a request or a stream has ended.
type CallResult struct {
	// Err is what the caller gets, or the handler has returned; nil if all went well.
	// A stream that was given up has the reason, and so has, on the serving side, an
	// answer that was not sent.
	Err error
	// Duration is from the begin to the end. On the calling side that of a stream ends
	// when it does, although messages may still wait to be consumed.
	Duration time.Duration
	// Sent and received, by this side: payloads, without what is around them.
	SentBytes, ReceivedBytes       int64
	SentMessages, ReceivedMessages int64
}

// Status is Err in a word, for metrics and traces, of which there are not many: "ok",
// "overloaded", "remote_error", "disconnected", "deadline_exceeded", "canceled",
// "message_too_large", "protocol_error", or "error" for any other.
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

// CallInterceptor is told of all requests and streams that this host begins, and may
// refuse them.
type CallInterceptor interface {
	// InterceptCall is called before anything is sent, on the caller's goroutine. It
	// returns the context with which the call goes on, ctx or one derived from it, and
	// a function, or nil, to be called once when the call has ended. An error ends the
	// call at once, and is what the caller gets. So is a panic.
	//
	// The end of a stream is called on a goroutine of grid's, and must neither block nor
	// end it by runtime.Goexit.
	InterceptCall(ctx context.Context, info *CallInfo) (context.Context, func(CallResult), error)
}

// ServeInterceptor is told of all requests and streams that handlers of this host
// serve, and may refuse them. It is not told of those that were refused before, because
// of a limit or because there is no such handler.
type ServeInterceptor interface {
	// InterceptServe is called before the handler, on its goroutine. It returns the
	// context that the handler gets, if that takes one: ctx or one derived from it; and
	// a function, or nil, to be called once when the handler has returned and, of a
	// stream, all that it sent is on its way. An error takes the place of the handler's
	// result, and the handler is not called.
	InterceptServe(ctx context.Context, info *CallInfo) (context.Context, func(CallResult), error)
}

// observed is a request or stream that interceptors are told of. It is nil where there
// are none, and its methods may be called then.
type observed struct {
	conn  *Connection
	start time.Time
	ends  []func(CallResult)
	ended atomic.Bool

	sentBytes, receivedBytes       atomic.Int64
	sentMessages, receivedMessages atomic.Int64
}

func newObserved(c *Connection) *observed { return &observed{conn: c, start: time.Now()} }

// begin tells n interceptors of a call, by calling intercept with the number of each.
// After an error those that were told before have been told of the end.
func (o *observed) begin(ctx context.Context, n int, intercept func(ctx context.Context, i int) (context.Context, func(CallResult), error)) (context.Context, error) {
	told := false
	defer func() {
		if !told { // one has panicked
			o.end(errInterceptorPanicked)
		}
	}()
	for i := range n {
		next, end, err := intercept(ctx, i)
		if err != nil {
			told = true
			o.end(err)
			return ctx, err
		}
		if next != nil {
			ctx = next
		}
		if end != nil {
			o.ends = append(o.ends, end)
		}
	}
	told = true
	return ctx, nil
}

var errInterceptorPanicked = errors.New("grid: an interceptor has panicked")

// sent counts a message.
func (o *observed) sent(bytes int) {
	if o != nil {
		o.sentBytes.Add(int64(bytes))
		o.sentMessages.Add(1)
	}
}

// received counts a message, or a part of one.
func (o *observed) received(bytes int, last bool) {
	if o == nil {
		return
	}
	o.receivedBytes.Add(int64(bytes))
	if last {
		o.receivedMessages.Add(1)
	}
}

// end tells of the end, the last that was told of the begin first.
func (o *observed) end(err error) {
	if o == nil || o.ended.Swap(true) {
		return
	}
	r := CallResult{
		Err:              err,
		Duration:         time.Since(o.start),
		SentBytes:        o.sentBytes.Load(),
		ReceivedBytes:    o.receivedBytes.Load(),
		SentMessages:     o.sentMessages.Load(),
		ReceivedMessages: o.receivedMessages.Load(),
	}
	for i := len(o.ends) - 1; i >= 0; i-- {
		o.tell(o.ends[i], r)
	}
}

// tell calls a function of the application's, whose panic is not grid's. It must not end
// its goroutine.
func (o *observed) tell(end func(CallResult), r CallResult) {
	defer func() {
		if p := recover(); p != nil {
			o.conn.panics.panicked(o.conn.log, "grid: interceptor panicked", p)
		}
	}()
	end(r)
}

// intercepts tells whether there is anybody to be told of calls.
func (c *Connection) intercepts() bool { return len(c.opts.CallInterceptors) > 0 }

// beginCall tells the interceptors of a call, and returns the metadata that goes with
// it, encoded.
func (c *Connection) beginCall(ctx context.Context, o *observed, info *CallInfo) (_ context.Context, metadata []byte, err error) {
	info.Name, info.Host = c.opts.handlerName(info.Handler), c.remote
	ctx, err = o.begin(ctx, len(c.opts.CallInterceptors), func(ctx context.Context, i int) (context.Context, func(CallResult), error) {
		return c.opts.CallInterceptors[i].InterceptCall(ctx, info)
	})
	if err == nil {
		if metadata, err = encodeMetadata(info.Metadata); err != nil {
			o.end(err)
		}
	}
	o.sent(info.PayloadBytes)
	return ctx, metadata, err
}

// observe returns what counts a call that is served, if anybody wants to know.
func (s *session) observe(payload int) *observed {
	if len(s.opts.ServeInterceptors) == 0 {
		return nil
	}
	o := newObserved(s.conn)
	o.received(payload, true)
	return o
}

// beginServe tells the interceptors of a call that is served. It returns the context
// that its handler gets.
func (s *session) beginServe(ctx context.Context, o *observed, info *CallInfo, metadata []byte) (context.Context, error) {
	if o == nil {
		return ctx, nil
	}
	var err error
	if info.Metadata, err = decodeMetadata(metadata); err != nil {
		o.end(err)
		return ctx, err
	}
	info.Name, info.Host = s.opts.handlerName(info.Handler), s.conn.remote
	return o.begin(ctx, len(s.opts.ServeInterceptors), func(ctx context.Context, i int) (context.Context, func(CallResult), error) {
		return s.opts.ServeInterceptors[i].InterceptServe(ctx, info)
	})
}

// maxMetadata is how large encoded metadata may be, in bytes.
const maxMetadata = 2 << 10

// encodeMetadata returns nil for none.
func encodeMetadata(m map[string]string) ([]byte, error) {
	if len(m) == 0 {
		return nil, nil
	}
	size := msgp.MapHeaderSize
	for k, v := range m {
		size += 2*msgp.StringPrefixSize + len(k) + len(v)
	}
	if size > maxMetadata {
		return nil, fmt.Errorf("%w: metadata of %d bytes, at most %d are allowed", ErrMessageTooLarge, size, maxMetadata)
	}
	return msgp.AppendMapStrStr(make([]byte, 0, size), m), nil
}

func decodeMetadata(b []byte) (map[string]string, error) {
	if b == nil {
		return nil, nil
	}
	var m MSS
	if err := decode(&m, b); err != nil {
		return nil, protocolErrorf("metadata: %v", err)
	}
	return m, nil
}
