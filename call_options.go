package grid

import (
	"context"
	"maps"
	"time"
)

// CallOptions are how a [Caller] makes its calls. With their zero value it does as the
// [Connection] itself.
type CallOptions struct {
	// Timeout is the longest that a single request may take, whatever the deadline of its context:
	// where that is later, or there is none, the request has Timeout, which travels along, and after
	// it [context.DeadlineExceeded] is its error. That comes up to Timeout/32 late, or 2 ms if that
	// is more; never early. It costs next to nothing, while a context with a deadline for each call
	// costs a timer, a channel and several allocations.
	//
	// Of a stream it bounds the opening, and not the life: after it a stream that the remote has not
	// taken on ends with the same error, also one that StartStream has returned before. Below 0 all
	// calls fail; 0 is no timeout but that of the context, and RequestTimeout.
	Timeout time.Duration

	// WaitForLink has a call wait for a link where there is none, rather than fail at once with
	// [ErrDisconnected]. The wait is part of the call: it ends with the call's context, after
	// Timeout, and, of a single request that has neither deadline nor Timeout, after
	// RequestTimeout, with the error of [Connection.WaitForConnect]. Where no link will come any
	// more, because the Manager shuts down or the host was removed, the call fails at once. A link
	// that is lost during the call ends it as always.
	//
	// It is for calls that have to go to one host. Where another would do, let the call fail, and
	// go there: see [NewRetrier].
	WaitForLink bool

	// Metadata are pairs that go with each call, for its handler and the interceptors of both
	// sides, whose own win where a key is the same. Keys and values together may have 2 KiB, with
	// 10 bytes more for each pair, or calls fail with [ErrMessageTooLarge]. Peers that do not know
	// the extension get none of it (protocol section 8). It is copied; nil is none.
	Metadata map[string]string
}

// Caller makes calls over a [Connection], or a [Subroute] of it, in the way that [CallOptions] say.
// It is a [Requester] and a [Streamer], so typed handlers take it as well, and it is safe for
// concurrent use. Keep it where calls have the same options. To make one costs an allocation of 48
// bytes, and with Metadata a copy of the map, so make one for each call where its metadata or its
// timeout are its own: that is little beside a call over the network.
type Caller struct {
	// Set once.
	conn    *Connection // nil for a host that can't be reached
	sub     *Subroute   // nil for none
	options callOptions
}

// callOptions are [CallOptions] on their way.
type callOptions struct {
	timeout  time.Duration     // of a request, or of the opening of a stream; 0 for none
	waits    bool              // for a link
	metadata map[string]string // is not changed
}

// With returns what makes calls with the given options. It is of this Connection, and of no use any
// more once that is: see [ErrHostRemoved].
func (c *Connection) With(o CallOptions) *Caller { return newCaller(c, nil, o) }

// With is [Connection.With] for calls to handlers under the subroute.
func (s *Subroute) With(o CallOptions) *Caller {
	if s == nil {
		return newCaller(nil, nil, o)
	}
	return newCaller(s.conn, s, o)
}

// WithTimeout is [Connection.With] for the option Timeout alone, but that with a d of 0 or less all
// calls fail. Like that it is of this Connection, and ends with the host.
func (c *Connection) WithTimeout(d time.Duration) *Caller { return c.With(timeoutAlone(d)) }

// WithTimeout is [Connection.WithTimeout] for calls to handlers under the subroute.
func (s *Subroute) WithTimeout(d time.Duration) *Caller { return s.With(timeoutAlone(d)) }

func timeoutAlone(d time.Duration) CallOptions {
	if d <= 0 {
		d = -1
	}
	return CallOptions{Timeout: d}
}

func newCaller(c *Connection, s *Subroute, o CallOptions) *Caller {
	return &Caller{conn: c, sub: s, options: callOptions{
		timeout: o.Timeout, waits: o.WaitForLink, metadata: maps.Clone(o.Metadata),
	}}
}

// SingleRequest is [Connection.SingleRequest] with the options of the Caller.
func (c *Caller) SingleRequest(ctx context.Context, id HandlerID, payload []byte) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, nameOf(c, id).error(err)
	}
	if c.sub != nil {
		return c.sub.request(ctx, id, payload, c.options)
	}
	return c.conn.request(ctx, id, "", nil, payload, c.options)
}

// NewStream is [Connection.NewStream] with the options of the Caller.
func (c *Caller) NewStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error) {
	return rawStream(c.openStream(ctx, id, payload, capacities{}))
}

// StartStream is [Connection.StartStream] with the options of the Caller.
func (c *Caller) StartStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error) {
	return rawStream(c.openStream(ctx, id, payload, capacities{early: true}))
}

func (c *Caller) openStream(ctx context.Context, id HandlerID, payload []byte, caps capacities) (*muxClient, error) {
	if err := c.check(); err != nil {
		return nil, nameOf(c, id).error(err)
	}
	caps.options = c.options
	if c.sub != nil {
		return c.sub.openStream(ctx, id, payload, caps)
	}
	return c.conn.openStream(ctx, id, payload, caps)
}

// check returns why a call can't be made with the options.
func (c *Caller) check() error {
	switch {
	case c == nil:
		return errNoConnection
	case c.options.timeout < 0:
		return context.DeadlineExceeded
	}
	return nil
}

// String returns the base URL of the remote host, and the subroute, if there is one.
func (c *Caller) String() string {
	switch {
	case c == nil:
		return (*Connection)(nil).String()
	case c.sub != nil:
		return c.sub.String()
	}
	return c.conn.String()
}

// requestTimeout is RequestTimeout, also of a nil Connection.
func (c *Connection) requestTimeout() time.Duration {
	if c == nil {
		return 0
	}
	return c.opts.RequestTimeout
}

// awaitReady is ready for a call that has found no link because of err, and waits for one. It takes
// the time that it has waited from o.
func (c *Connection) awaitReady(ctx context.Context, id HandlerID, payload []byte, o *callOptions, err error) (*session, error) {
	if c == nil {
		return nil, err
	}
	var end time.Time
	if o.timeout > 0 {
		var cancel context.CancelFunc
		end = time.Now().Add(o.timeout)
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	var s *session
	for isUnsent(err) && !c.draining.Load() {
		if err := c.WaitForConnect(ctx); err != nil {
			return nil, err
		}
		s, err = c.ready(id, payload)
	}
	if err == nil && !end.IsZero() {
		if o.timeout = time.Until(end); o.timeout <= 0 {
			return nil, context.DeadlineExceeded
		}
	}
	return s, err
}
