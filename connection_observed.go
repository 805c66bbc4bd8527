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
	conn   *Connection
	start  time.Time
	info   CallInfo // what interceptors are told
	untold bool     // the end is waited for
	ends   []func(CallResult)
	few    [3]func(CallResult) // where ends begins
	ended  atomic.Bool

	sentBytes, receivedBytes       atomic.Int64
	sentMessages, receivedMessages atomic.Int64
}

// init begins to count for a call.
func (o *observed) init(c *Connection, now time.Time) { o.conn, o.start = c, now }

// begin tells n interceptors of a call, by calling intercept with the number of each. After an
// error those that were told before have been told of the end.
func (o *observed) begin(ctx context.Context, n int, intercept func(ctx context.Context, i int) (context.Context, func(CallResult), error)) (context.Context, error) {
	o.untold, o.ends = true, o.few[:0]
	o.conn.untold.Acquire()
	told := false
	defer func() {
		if !told { // one has panicked, or ended the goroutine
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

var errInterceptorPanicked = errors.New("grid: an interceptor has panicked, or ended its goroutine")

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

// end tells of the end, the last that was told of the begin first. It is for goroutines of the
// application's, and of handlers.
func (o *observed) end(err error) {
	if o != nil && !o.ended.Swap(true) {
		o.tell(o.result(err))
	}
}

// endServed is end for a call that was served, whose slot may be free again: so calls that are
// served count until interceptors have heard of the end.
func (o *observed) endServed(err error) {
	if o != nil {
		o.conn.taken.endings.served.Add(1)
		defer o.conn.taken.endings.served.Add(-1)
		o.end(err)
	}
}

// endApart is end for who must not wait, and must not be left by a function of the application's.
func (o *observed) endApart(err error) {
	if o == nil || o.ended.Swap(true) {
		return
	}
	r := o.result(err)
	o.conn.taken.endings.streams.Add(1)
	o.conn.callbacks.Go(func() {
		defer o.conn.taken.endings.streams.Add(-1)
		o.tell(r)
	})
}

func (o *observed) result(err error) CallResult {
	return CallResult{
		Err:              err,
		Duration:         time.Since(o.start),
		SentBytes:        o.sentBytes.Load(),
		ReceivedBytes:    o.receivedBytes.Load(),
		SentMessages:     o.sentMessages.Load(),
		ReceivedMessages: o.receivedMessages.Load(),
	}
}

func (o *observed) tell(r CallResult) {
	if o.untold {
		defer o.conn.untold.Release()
	}
	o.tellFrom(len(o.ends)-1, r)
}

// tellFrom tells the interceptors up to the last, which may end the goroutine.
func (o *observed) tellFrom(last int, r CallResult) {
	if last < 0 {
		return
	}
	defer o.tellFrom(last-1, r)
	defer func() {
		if p := recover(); p != nil {
			o.conn.panics.Panicked(o.conn.log, "grid: interceptor panicked", p)
		}
	}()
	o.ends[last](r)
}

// endings is how many calls have ended of which interceptors are being told: where these are slow
// they must not add up.
type endings struct {
	streams atomic.Int64 // that were opened here
	served  atomic.Int64
}

// none reports whether there are none.
func (e *endings) none() bool { return e.streams.Load() == 0 && e.served.Load() == 0 }

// checkStreams returns an error where a stream must not be opened.
func (e *endings) checkStreams(o *ManagerOptions) error {
	if n := e.streams.Load(); n >= int64(o.MaxStreams) {
		return unsent(overloadedf("MaxStreams", "interceptors have still to hear how %d streams to this host ended, the limit of MaxStreams", n))
	}
	return nil
}

// checkServed returns an error where a call must not be served.
func (e *endings) checkServed(o *ManagerOptions, label string) error {
	if n := e.served.Load(); n >= int64(o.MaxHandlers) {
		return overloadedf("MaxHandlers", "handler %s refused: interceptors have still to hear how %d calls of this host ended, the limit of MaxHandlers", label, n)
	}
	return nil
}

// intercepts reports whether there is anybody to be told of calls.
func (c *Connection) intercepts() bool { return len(c.opts.CallInterceptors) > 0 }

// beginCall tells the interceptors of a call, and returns the metadata that goes with it, encoded.
func (c *Connection) beginCall(ctx context.Context, o *observed, about CallInfo) (_ context.Context, metadata []byte, err error) {
	o.info = about
	info := &o.info
	info.Name, info.Host = c.opts.handlerName(info.Handler, info.Subroute), c.remote
	ctx, err = o.begin(ctx, len(c.opts.CallInterceptors), func(ctx context.Context, i int) (context.Context, func(CallResult), error) {
		return c.opts.CallInterceptors[i].InterceptCall(ctx, info)
	})
	if err == nil {
		if metadata, err = encodeMetadata(info.Metadata); err != nil {
			err = callName{c, info.Subroute, info.Handler}.error(err)
			o.end(err)
		}
	}
	o.sent(info.PayloadBytes)
	return ctx, metadata, err
}

// observe begins to count for a call that is served, and has arrived now.
func (c *Connection) observe(o *observed, now time.Time, payload int) {
	o.init(c, now)
	o.received(payload, true)
}

// beginServe tells the interceptors of a call that is served. It returns the context that its
// handler gets. Metadata that is none ends the call, also where there are no interceptors.
func (c *Connection) beginServe(ctx context.Context, o *observed, about CallInfo, metadata []byte) (_ context.Context, err error) {
	if o == nil {
		_, err = decodeMetadata(metadata)
		return ctx, err
	}
	o.info = about
	info := &o.info
	if info.Metadata, err = decodeMetadata(metadata); err != nil {
		o.end(err)
		return ctx, err
	}
	info.Name, info.Host = c.opts.handlerName(info.Handler, info.Subroute), c.remote
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
