package grid

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"sync"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/wellformed"
)

// Requester makes single requests: a [*Connection], a [*Subroute], a [*Caller] or a [*Retrier], or
// one of the application's, such as a test's stand-in.
type Requester interface {
	SingleRequest(ctx context.Context, id HandlerID, payload []byte) ([]byte, error)
}

// SingleHandler is a single request with typed arguments, for both sides: one Registers it, the
// other Calls it. Make it with [NewSingleHandler], usually as a package variable; once configured
// it is safe for concurrent use, and may be registered with several managers.
type SingleHandler[Req, Resp RoundTripper] struct {
	id            HandlerID
	reqs          valuePool[Req]
	resps         valuePool[Resp]
	sharedResp    bool
	poolRequests  bool
	ignoreNilConn bool
}

// NewSingleHandler makes a typed single request. newReq and newResp make the values to decode into;
// they must not be nil, and may be called concurrently.
func NewSingleHandler[Req, Resp RoundTripper](id HandlerID, newReq func() Req, newResp func() Resp) *SingleHandler[Req, Resp] {
	h := &SingleHandler[Req, Resp]{id: id}
	h.reqs.init(newReq)
	h.resps.init(newResp)
	return h
}

// WithSharedResponse says that the values which the handler returns are held by others as well, and
// so must not be reused. It returns h.
func (h *SingleHandler[Req, Resp]) WithSharedResponse() *SingleHandler[Req, Resp] {
	h.sharedResp = true
	return h
}

// AllowCallRequestPool says whether Call may reuse the requests that it is given, as if by a
// Recycle of its own; by default they stay the caller's. It returns h.
func (h *SingleHandler[Req, Resp]) AllowCallRequestPool(b bool) *SingleHandler[Req, Resp] {
	h.poolRequests = b
	return h
}

// IgnoreNilConn makes a Call on a nil connection do nothing and return no error, for loops over
// hosts that include the local one. By default it returns [ErrDisconnected]. It returns h.
func (h *SingleHandler[Req, Resp]) IgnoreNilConn() *SingleHandler[Req, Resp] {
	h.ignoreNilConn = true
	return h
}

// NewRequest returns a value for a request, new or reused. It is the caller's.
func (h *SingleHandler[Req, Resp]) NewRequest() Req { return h.reqs.get() }

// NewResponse returns a value for a response, new or reused. It is the caller's.
func (h *SingleHandler[Req, Resp]) NewResponse() Resp { return h.resps.get() }

// PutResponse gives back a response that Call has returned. Nothing of it may be used afterwards.
// It is optional.
func (h *SingleHandler[Req, Resp]) PutResponse(r Resp) { h.resps.put(r) }

// Register makes handle answer the request on m, under the subroute whose parts are given; see
// [Manager.RegisterSingleHandler], also for the errors.
//
// The request is handle's until it returns; what it returns is grid's from then on, unless
// WithSharedResponse says otherwise. It may return the request itself. The zero value of Resp
// arrives as such. A request that can't be decoded is answered with an error, and handle is not
// called.
func (h *SingleHandler[Req, Resp]) Register(m *Manager, handle func(req Req) (Resp, *RemoteErr), subroute ...string) error {
	if handle == nil {
		return nilHandlerError(m, h.id)
	}
	return m.registerSingle(h.id, &singleEntry{decodes: decodedCost[Req](), fn: func(t *singleTask, payload []byte) ([]byte, *RemoteErr) {
		return h.serve(t, payload, handle)
	}}, subroute)
}

// RegisterContext is Register for a handler that wants a context; see [SingleHandlerContextFn].
func (h *SingleHandler[Req, Resp]) RegisterContext(m *Manager, handle func(ctx context.Context, req Req) (Resp, *RemoteErr), subroute ...string) error {
	if handle == nil {
		return nilHandlerError(m, h.id)
	}
	return m.registerSingle(h.id, &singleEntry{decodes: decodedCost[Req](), contextFn: func(ctx context.Context, t *singleTask, payload []byte) ([]byte, *RemoteErr) {
		return h.serve(t, payload, func(req Req) (Resp, *RemoteErr) { return handle(ctx, req) })
	}}, subroute)
}

// serve decodes a request, and encodes what handle answers. It owns payload.
func (h *SingleHandler[Req, Resp]) serve(t *singleTask, payload []byte, handle func(req Req) (Resp, *RemoteErr)) ([]byte, *RemoteErr) {
	label := t.entry.label
	req := h.reqs.get()
	err := decode(req, payload, t.s.opts.MaxNesting)
	n := len(payload)
	PutByteBuffer(payload)
	if err != nil {
		return nil, NewRemoteErrf("grid: handler %s: request: %w", label, err)
	}
	if !t.hold(heldBytes(req, n)) {
		h.reqs.put(req)
		return nil, nil
	}
	resp, rerr := handle(req)
	b, rerr := h.encodeResponse(label, resp, rerr)
	// A handler may return its request: that is put back once.
	if any(req) != any(resp) {
		h.reqs.put(req)
	}
	if !h.sharedResp {
		h.resps.put(resp)
	}
	return b, rerr
}

func (h *SingleHandler[Req, Resp]) encodeResponse(label string, resp Resp, rerr *RemoteErr) ([]byte, *RemoteErr) {
	if rerr != nil || isZero(resp) {
		return nil, rerr
	}
	b, err := encode(resp)
	if err != nil {
		return nil, NewRemoteErrf("grid: handler %s: response: %w", label, err)
	}
	return b, nil
}

// Call makes the request over conn, such as a [*Connection]. req stays the caller's,
// unless AllowCallRequestPool says otherwise; the response is the caller's, who may give it to
// PutResponse.
//
// The errors are those of [Connection.SingleRequest], and a local one for a request that can't be
// encoded or a response that can't be decoded. With an error the response is the zero value.
func (h *SingleHandler[Req, Resp]) Call(ctx context.Context, conn Requester, req Req) (Resp, error) {
	var zero Resp
	if isNil(conn) {
		if h.ignoreNilConn {
			return zero, nil
		}
		return zero, errNoConnection
	}
	payload, err := encode(req)
	if err != nil {
		return zero, nameOf(conn, h.id).error(fmt.Errorf("grid: handler %s: request: %w", handlerLabel(conn, h.id), err))
	}
	answer, err := conn.SingleRequest(ctx, h.id, payload)
	PutByteBuffer(payload)
	if h.poolRequests {
		h.reqs.put(req)
	}
	if err != nil {
		return zero, err
	}
	return h.response(conn, answer)
}

// response decodes an answer that has come by conn. It owns answer.
func (h *SingleHandler[Req, Resp]) response(conn Requester, answer []byte) (Resp, error) {
	var zero Resp
	if answer == nil {
		return zero, nil
	}
	resp := h.resps.get()
	err := decode(resp, answer, maxNesting(conn))
	PutByteBuffer(answer)
	if err != nil {
		return zero, nameOf(conn, h.id).error(fmt.Errorf("grid: handler %s: response: %w", handlerLabel(conn, h.id), err))
	}
	return resp, nil
}

// optionsOf are those of a connection that is not nil; nil for a Requester of the application's.
func optionsOf(conn any) *ManagerOptions {
	switch c := conn.(type) {
	case *Connection:
		return c.opts
	case *Subroute:
		return c.conn.opts
	case *Caller:
		if c.conn != nil {
			return c.conn.opts
		}
	case *Retrier:
		return c.opts.Load()
	}
	return nil
}

// handlerLabel is what a handler is called where conn calls it.
func handlerLabel(conn any, id HandlerID) string {
	if o := optionsOf(conn); o != nil {
		return o.handlerText(id, routeOf(conn))
	}
	return strconv.Itoa(int(id))
}

// routeOf is the name of the subroute that conn calls; empty for none.
func routeOf(conn any) string {
	switch c := conn.(type) {
	case *Subroute:
		return c.route
	case *Caller:
		return c.sub.Name()
	}
	return ""
}

// maxNesting bounds the answers that come by conn.
func maxNesting(conn any) int {
	if o := optionsOf(conn); o != nil {
		return o.MaxNesting
	}
	return defaultNesting
}

// isNil reports whether a connection is missing, with or without a type.
func isNil(conn any) bool {
	switch c := conn.(type) {
	case nil:
		return true
	case *Connection:
		return c == nil
	case *Subroute:
		return c == nil
	case *Caller:
		return c == nil || c.conn == nil
	case *Retrier:
		return c == nil
	}
	return false
}

// isZero reports whether v is the zero value.
func isZero[T comparable](v T) bool {
	var zero T
	return v == zero
}

// encode marshals v into a buffer of the pool. It is user code, and runs on goroutines of grid: a
// panic becomes an error.
func encode[T RoundTripper](v T) (b []byte, err error) {
	defer recovered(&err, "encoding", v)
	b, err = v.MarshalMsg(GetByteBufferCap(v.Msgsize()))
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, clip.Error(err))
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// decode unmarshals b, all of it, into v. b stays the caller's. It has looked through all of b
// before: generated code makes room for what a header claims, and calls itself for what is nested,
// which no recover helps against. A panic becomes an error. What the code says is clipped, since it
// may repeat what the peer has sent, as encoding/json does.
func decode[T RoundTripper](v T, b []byte, nesting int) (err error) {
	defer recovered(&err, "decoding", v)
	if err := wellformed.Check(b, nesting); err != nil {
		return fmt.Errorf("decoding %T: %w", v, err)
	}
	rest, err := v.UnmarshalMsg(b)
	if err != nil {
		return fmt.Errorf("decoding %T: %w", v, clip.Error(notEOF(err)))
	}
	if len(rest) > 0 {
		return fmt.Errorf("decoding %T: %d bytes are left over", v, len(rest))
	}
	return nil
}

func recovered(err *error, doing string, v any) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s %T: panic: %s", doing, v, clip.Text(fmt.Sprint(p)))
	}
}

// decodedCost is how many times its size a payload that is decoded to a T counts besides it towards
// MaxHostBytes.
func decodedCost[T RoundTripper]() int {
	var v T
	switch any(v).(type) {
	case NoPayload, *Bytes: // nothing, or no more than was sent
		return 0
	}
	return 3
}

// valuePool keeps payload values for reuse: those with a Recycle method by that, others by itself.
type valuePool[T RoundTripper] struct {
	pool    sync.Pool
	newFn   func() T
	recycle bool
}

func (p *valuePool[T]) init(newFn func() T) {
	p.newFn = newFn
	var zero T
	_, p.recycle = any(zero).(Recycler)
}

func (p *valuePool[T]) get() T {
	if v, ok := p.pool.Get().(T); ok {
		return v
	}
	return p.newFn()
}

func (p *valuePool[T]) put(v T) {
	switch {
	case isZero(v):
	case p.recycle:
		any(v).(Recycler).Recycle()
	default:
		// What a decoder leaves out must not be what the last one read.
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer {
			r.Elem().SetZero()
			p.pool.Put(v)
		}
	}
}
