package grid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
)

// fuzzCall is a single request beside the streams, with what its handler has to do. Its fields are
// read when all is quiet.
type fuzzCall struct {
	r          *streamsRun
	i, client  int // client is the host that makes it
	hasContext bool
	size       int
	deadline   time.Duration
	metadata   map[string]string
	cancel     context.CancelCauseFunc
	answers    chan int // how its handler answers
	began      time.Time

	runs      int
	returned  atomic.Bool
	how       int
	aborted   atomic.Bool // the handler's context has ended before it has returned
	silent    bool        // because it was cancelled, which was known when it returned
	cancelled bool        // by the program
	over      bool
	got       []byte
	err       error
}

const (
	maxFuzzCalls = 8
	// The handlers of calls, without a context and with one.
	plainCalls, contextCalls HandlerID = 100, 101
	// Their HandlerOptions.
	maxRunningCalls = 2
	callsTimeout    = 5 * time.Second
)

// registerCalls registers the handlers at host i.
func (r *streamsRun) registerCalls(i int) {
	h := r.hosts[i]
	require.NoError(r.t, h.RegisterSingleHandler(plainCalls, func(b []byte) ([]byte, *RemoteErr) {
		return r.calls[b[0]].serve(context.Background(), b)
	}))
	require.NoError(r.t, h.RegisterSingleHandlerContext(contextCalls, func(ctx context.Context, b []byte) ([]byte, *RemoteErr) {
		return r.calls[b[0]].serve(ctx, b)
	}))
}

// call makes a single request.
func (r *streamsRun) call() {
	if len(r.calls) == maxFuzzCalls {
		return
	}
	p := r.p
	c := &fuzzCall{r: r, i: len(r.calls), answers: make(chan int, 1), began: time.Now()}
	forms := p.n(4)
	c.client, c.hasContext = forms&1, forms&2 != 0
	c.size = 1 + size(p)
	c.deadline = pick(p, 0, 0, 200*time.Millisecond, 3*time.Second, 30*time.Second)
	c.metadata = drawMetadata(p, c.i)
	r.calls = append(r.calls, c)
	var ctx context.Context
	ctx, c.cancel = context.WithCancelCause(r.t.Context())
	go func() {
		if c.deadline > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.deadline)
			defer cancel()
		}
		caller := r.hosts[c.client].conn.With(CallOptions{Metadata: c.metadata})
		b, err := caller.SingleRequest(ctx, c.handler(), c.payload(c.size))
		r.quiet.pass()
		c.over, c.got, c.err = true, b, err
	}()
}

func (c *fuzzCall) handler() HandlerID {
	if c.hasContext {
		return contextCalls
	}
	return plainCalls
}

// payload is that of the request, or the answer.
func (c *fuzzCall) payload(size int) []byte {
	return append([]byte{byte(c.i)}, bytes.Repeat([]byte{byte(size)}, size-1)...)
}

const largeAnswer = 3 * wholeSize

// failure is with what the handler fails.
func (c *fuzzCall) failure() *RemoteErr {
	switch c.how {
	case 1:
		return NewRemoteErrCode("failed", fmt.Errorf("call %d: %w", c.i, errFuzzFailed))
	case 2:
		return NewRemoteErrString(fmt.Sprintf("grid: handler %d panicked: call %d", c.handler(), c.i))
	}
	return nil
}

// serve is the handler. It returns when it is told to, whether or not its context has ended.
func (c *fuzzCall) serve(ctx context.Context, b []byte) ([]byte, *RemoteErr) {
	r := c.r
	r.quiet.pass()
	c.runs++
	if c.runs > 1 || !bytes.Equal(b, c.payload(c.size)) {
		r.t.Errorf("call %d runs %d times, with %.20q of %d bytes", c.i, c.runs, b, len(b))
	}
	running := &r.running[1-c.client][c.handler()-plainCalls]
	if n := running.Add(1); n > maxRunningCalls {
		r.t.Errorf("%d calls of handler %d run", n, c.handler())
	}
	defer running.Add(-1)
	stop := func() bool { return true }
	if c.hasContext {
		r.checkMetadata(ctx, c.metadata)
		stop = context.AfterFunc(ctx, func() { c.aborted.Store(true) })
	}
	how := <-c.answers
	stop()
	r.quiet.pass()
	c.how = how
	c.silent = c.hasContext && context.Cause(ctx) == context.Canceled && c.cancelled
	c.returned.Store(true)
	switch {
	case how == 2:
		panic(fmt.Sprintf("call %d", c.i))
	case how == 3:
		return c.payload(largeAnswer), nil
	}
	return c.payload(c.size), c.failure()
}

func (c *fuzzCall) answer(how int) { offer(c.answers, 1, how) }

func (c *fuzzCall) giveUp() {
	c.cancelled = true
	c.cancel(errFuzzCancel)
}

// isLate reports whether the call has had the time, less what a server may be early by.
func (c *fuzzCall) isLate(after time.Duration) bool {
	return after > 0 && time.Since(c.began) >= after-deadlineSlack
}

// check is what holds of a call when all is quiet. With settled, all has arrived that was sent.
func (c *fuzzCall) check(settled bool) {
	t, r := c.r.t, c.r
	lost := r.isLost()
	if c.aborted.Load() {
		late := c.isLate(c.deadline) || c.isLate(callsTimeout)
		require.True(t, lost || late || c.cancelled && r.caps&capCancel != 0, "call %d: the context of its handler has ended", c.i)
	}
	if settled && !lost && c.cancelled && c.runs > 0 && !c.returned.Load() {
		require.True(t, c.over, "call %d does not end", c.i)
		require.True(t, c.aborted.Load() || !c.hasContext || r.caps&capCancel == 0 || !errors.Is(c.err, errFuzzCancel),
			"the handler of call %d does not know that it was cancelled", c.i)
	}
}

// checkEnd looks at how a call has ended.
func (c *fuzzCall) checkEnd() {
	t, r := c.r.t, c.r
	require.True(t, c.over, "call %d does not end", c.i)
	require.Equal(t, c.runs > 0, c.returned.Load(), "the handler of call %d is stuck", c.i)
	require.False(t, c.runs > 0 && CanRetry(c.err), "call %d has run, and ended with %v", c.i, c.err)
	failure := c.failure()
	switch deadline := c.deadline; {
	case c.err == nil:
		want := c.size
		if c.how == 3 {
			want = largeAnswer
		}
		require.True(t, c.runs == 1 && failure == nil && bytes.Equal(c.got, c.payload(want)), "call %d", c.i)
	case failure != nil && c.err.Error() == failure.Error():
		require.True(t, c.runs == 1 && IsRemoteErr(c.err))
		details := r.caps&capErrors != 0 && c.how == 1
		require.Equal(t, details, errors.Is(c.err, errFuzzFailed), "call %d", c.i)
		require.Equal(t, details, ErrorCode(c.err) == "failed", "call %d", c.i)
	case errors.Is(c.err, errFuzzCancel):
		require.True(t, c.cancelled)
	case errors.Is(c.err, context.DeadlineExceeded):
		if deadline == 0 {
			deadline = time.Minute
		}
		require.True(t, c.isLate(deadline), "call %d ended with %v", c.i, c.err)
	case errors.Is(c.err, ErrMessageTooLarge):
		require.True(t, isTooLarge(c.metadata) || c.size > fuzzMaxMessage)
		require.Zero(t, c.runs)
	case errors.Is(c.err, ErrOverloaded):
		require.True(t, CanRetry(c.err) && c.runs == 0)
	default:
		require.True(t, r.isLost() && errors.Is(c.err, ErrDisconnected), "call %d ended with %v", c.i, c.err)
	}
}

// requestRules is what two hosts say to each other on a request against the protocol.
type requestRules struct {
	call            *fuzzCall
	whole, dropped  bool // by its client
	answered, other bool // in whole; by a refusal
}

// request is told what a host has written, and reports whether it belongs to a request.
func (w *wireRules) request(from int, m rawpeer.Msg) bool {
	caps := w.r.caps
	switch m.Op {
	case rawpeer.OpRequest:
		key := wireMux{from, m.MuxID}
		q := w.requests[key]
		if q == nil {
			require.NotNil(w.t, m.Payload)
			q = &requestRules{call: w.r.calls[m.Payload[0]]}
			require.Equal(w.t, q.call.metadata != nil && caps&capMetadata != 0, m.Flags&rawpeer.FlagMetadata != 0, "%v", m)
			w.requests[key] = q
		}
		require.False(w.t, q.whole || q.dropped, "%v", m)
		q.whole = m.Flags&rawpeer.FlagMore == 0
		require.True(w.t, q.whole || caps&capFragments != 0, "%v", m)
		return true
	case rawpeer.OpDisconnectServerMux:
		q := w.requests[wireMux{from, m.MuxID}]
		if q == nil {
			return false
		}
		require.False(w.t, q.dropped, "%v twice", m)
		require.True(w.t, !q.whole || caps&capCancel != 0 && q.call.cancelled, "%v", m)
		require.True(w.t, m.Payload == nil && m.Seq == 0 && m.Flags&^rawpeer.FlagCRC == 0, "%v", m)
		q.dropped = true
		return true
	case rawpeer.OpResponse, rawpeer.OpMuxConnectError, rawpeer.OpDisconnectClientMux:
		q := w.requests[wireMux{1 - from, m.MuxID}]
		if q == nil {
			require.NotEqual(w.t, uint8(rawpeer.OpResponse), m.Op, "%v to nobody", m)
			return false
		}
		require.False(w.t, q.answered || q.other, "%v after the answer", m)
		if m.Op != rawpeer.OpResponse {
			q.other = true
			return true
		}
		if m.Flags&rawpeer.FlagDetails != 0 {
			require.True(w.t, caps&capErrors != 0 && m.Flags&rawpeer.FlagPayloadIsErr != 0, "%v", m)
			_, err := rawpeer.DecodeErrorDetails(m.Payload)
			require.NoError(w.t, err)
		}
		require.False(w.t, q.call.silent, "%v for a request that was cancelled", m)
		require.Equal(w.t, 1, q.call.runs, "%v without a run", m)
		q.answered = m.Flags&rawpeer.FlagMore == 0
		return true
	}
	return false
}
