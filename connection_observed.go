package grid

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tinylib/msgp/msgp"
)

// observed is a request or stream that interceptors are told of. It is nil where there are none,
// and its methods may be called then.
type observed struct {
	conn  *Connection
	start time.Time
	ends  []func(CallResult)
	ended atomic.Bool

	sentBytes, receivedBytes       atomic.Int64
	sentMessages, receivedMessages atomic.Int64
}

func newObserved(c *Connection) *observed { return &observed{conn: c, start: time.Now()} }

// begin tells n interceptors of a call, by calling intercept with the number of each. After an
// error those that were told before have been told of the end.
func (o *observed) begin(ctx context.Context, n int, intercept func(ctx context.Context, i int) (context.Context, func(CallResult), error)) (context.Context, error) {
	told := false
	defer func() {
		if !told { // one has panicked
			o.end(errInterceptorPanicked)
		}
	}()
	for i := range n {
		next, end, err := intercept(ctx, i)
		if err = notNilRemote(err); err != nil {
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

// tell calls a function of the application's, whose panic is not grid's. It must not end its
// goroutine.
func (o *observed) tell(end func(CallResult), r CallResult) {
	defer func() {
		if p := recover(); p != nil {
			o.conn.panics.Panicked(o.conn.log, "grid: interceptor panicked", p)
		}
	}()
	end(r)
}

// intercepts reports whether there is anybody to be told of calls.
func (c *Connection) intercepts() bool { return len(c.opts.CallInterceptors) > 0 }

// beginCall tells the interceptors of a call, and returns the metadata that goes with it, encoded.
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
func (c *Connection) observe(payload int) *observed {
	if len(c.opts.ServeInterceptors) == 0 {
		return nil
	}
	o := newObserved(c)
	o.received(payload, true)
	return o
}

// beginServe tells the interceptors of a call that is served. It returns the context that its
// handler gets.
func (c *Connection) beginServe(ctx context.Context, o *observed, info *CallInfo, metadata []byte) (context.Context, error) {
	if o == nil {
		return ctx, nil
	}
	var err error
	if info.Metadata, err = decodeMetadata(metadata); err != nil {
		o.end(err)
		return ctx, err
	}
	info.Name, info.Host = c.opts.handlerName(info.Handler), c.remote
	return o.begin(ctx, len(c.opts.ServeInterceptors), func(ctx context.Context, i int) (context.Context, func(CallResult), error) {
		return c.opts.ServeInterceptors[i].InterceptServe(ctx, info)
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
	if err := decode(&m, b, maxOwnNesting); err != nil {
		return nil, protocolErrorf("metadata: %v", err)
	}
	return m, nil
}
