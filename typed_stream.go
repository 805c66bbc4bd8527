package grid

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
)

// StreamTypeHandler is a stream with typed messages, for both sides: one Registers it, the other
// Calls it. Make it with [NewStream], usually as a package variable; once configured it is safe for
// concurrent use, and may be registered with several managers.
type StreamTypeHandler[Payload, Req, Resp RoundTripper] struct {
	// WithPayload says that a payload goes with the opening of the stream. It is set if NewStream
	// was given a constructor for one.
	WithPayload bool
	// OutCapacity and InCapacity are those of [StreamHandler]. They begin as 1; InCapacity as 0 if
	// NewStream was given no constructor for requests.
	OutCapacity, InCapacity int

	id         HandlerID
	payloads   valuePool[Payload]
	reqs       valuePool[Req]
	resps      valuePool[Resp]
	sharedResp bool
	// Set by RegisterNoInput and RegisterNoPayload, perhaps while calls are made.
	noInput, noPayload atomic.Bool
}

// NewStream makes a typed stream. The functions make the values to decode into, and may be called
// concurrently. newPayload and newReq may be nil for streams without a payload, or without messages
// from the client.
func NewStream[Payload, Req, Resp RoundTripper](id HandlerID, newPayload func() Payload, newReq func() Req, newResp func() Resp) *StreamTypeHandler[Payload, Req, Resp] {
	h := &StreamTypeHandler[Payload, Req, Resp]{id: id, WithPayload: newPayload != nil, OutCapacity: 1}
	if newReq != nil {
		h.InCapacity = 1
	}
	h.payloads.init(newPayload)
	h.reqs.init(newReq)
	h.resps.init(newResp)
	return h
}

// WithOutCapacity sets OutCapacity and returns h.
func (h *StreamTypeHandler[Payload, Req, Resp]) WithOutCapacity(n int) *StreamTypeHandler[Payload, Req, Resp] {
	h.OutCapacity = n
	return h
}

// WithInCapacity sets InCapacity and returns h.
func (h *StreamTypeHandler[Payload, Req, Resp]) WithInCapacity(n int) *StreamTypeHandler[Payload, Req, Resp] {
	h.InCapacity = n
	return h
}

// WithSharedResponse says that the values which the handler sends are held by others as well, and
// so must not be reused. It returns h.
func (h *StreamTypeHandler[Payload, Req, Resp]) WithSharedResponse() *StreamTypeHandler[Payload, Req, Resp] {
	h.sharedResp = true
	return h
}

// NewRequest returns a value to send to the handler, new or reused. It is the caller's.
func (h *StreamTypeHandler[Payload, Req, Resp]) NewRequest() Req { return h.reqs.get() }

// NewResponse returns a value to send to the client, new or reused. It is the caller's.
func (h *StreamTypeHandler[Payload, Req, Resp]) NewResponse() Resp { return h.resps.get() }

// PutRequest gives back a value that the handler has received, or that was given to
// [TypedStream.Send]. Nothing of it may be used afterwards. It is optional.
func (h *StreamTypeHandler[Payload, Req, Resp]) PutRequest(r Req) { h.reqs.put(r) }

// PutResponse gives back a value that the client has received. Nothing of it may be used
// afterwards. It is optional.
func (h *StreamTypeHandler[Payload, Req, Resp]) PutResponse(r Resp) { h.resps.put(r) }

// Register makes handle serve the stream on m, under the subroute whose parts are given. What
// [StreamHandlerFn] says of in, out, the context and the result holds here too; the errors are
// those of [Manager.RegisterStreamingHandler].
//
// handle owns the payload and what it receives. What it sends is grid's from then on, unless
// WithSharedResponse says otherwise. A payload or a message that can't be decoded, and one that
// can't be encoded, ends the stream with an error on both sides.
func (h *StreamTypeHandler[Payload, Req, Resp]) Register(m *Manager, handle func(ctx context.Context, p Payload, in <-chan Req, out chan<- Resp) *RemoteErr, subroute ...string) error {
	if handle == nil {
		return nilHandlerError(m, h.id)
	}
	return h.register(m, h.inCapacity(), h.withPayload(), handle, subroute)
}

func (h *StreamTypeHandler[Payload, Req, Resp]) register(m *Manager, in int, withPayload bool, handle func(ctx context.Context, p Payload, in <-chan Req, out chan<- Resp) *RemoteErr, subroute []string) error {
	noInput, decodes := closedChan[Req](), h.decoder(m, subroute)
	return h.add(m, in, withPayload, subroute, func(s *muxServer) {
		serveStream(s, noInput, decodes.request, h.encodeResponse, func(ctx context.Context, payload []byte, in <-chan Req, out chan<- Resp) *RemoteErr {
			p, ok, err := decodes.payload(s, withPayload, payload)
			if !ok {
				return err
			}
			return handle(ctx, p, in, out)
		})
	})
}

// RegisterServe makes serve serve the stream on m, without channels; what [StreamServeFn] says of
// the context and the result holds here too. The rest is as with Register.
func (h *StreamTypeHandler[Payload, Req, Resp]) RegisterServe(m *Manager, serve func(ctx context.Context, p Payload, s *TypedServerStream[Req, Resp]) *RemoteErr, subroute ...string) error {
	if serve == nil {
		return nilHandlerError(m, h.id)
	}
	withPayload, decodes := h.withPayload(), h.decoder(m, subroute)
	return h.add(m, h.inCapacity(), withPayload, subroute, func(m *muxServer) {
		s := &TypedServerStream[Req, Resp]{decode: decodes.request}
		s.serve(m, func(ctx context.Context, payload []byte) *RemoteErr {
			p, ok, err := decodes.payload(m, withPayload, payload)
			if !ok {
				return err
			}
			return serve(ctx, p, s)
		})
	})
}

// add registers a handler, which is run by run.
func (h *StreamTypeHandler[Payload, Req, Resp]) add(m *Manager, in int, withPayload bool, subroute []string, run func(*muxServer)) error {
	if in > 0 && h.reqs.newFn == nil {
		return fmt.Errorf("grid: handler %s has InCapacity %d, but no constructor for requests", m.opts.handlerText(h.id, ""), in)
	}
	if withPayload && h.payloads.newFn == nil {
		return fmt.Errorf("grid: handler %s has WithPayload, but no constructor for it", m.opts.handlerText(h.id, ""))
	}
	route, err := registeredSubroute(subroute)
	if err != nil {
		return err
	}
	e, err := newStreamEntry(route, h.OutCapacity, in, run)
	if err != nil {
		return err
	}
	if e.inputDecodes = decodedCost[Req](); withPayload {
		e.decodes = decodedCost[Payload]()
	}
	return m.handlers.add(h.id, route, handler{stream: e})
}

// streamDecoder decodes what a handler gets.
type streamDecoder[Payload, Req, Resp RoundTripper] struct {
	h       *StreamTypeHandler[Payload, Req, Resp]
	label   string
	nesting int
}

func (h *StreamTypeHandler[Payload, Req, Resp]) decoder(m *Manager, subroute []string) *streamDecoder[Payload, Req, Resp] {
	return &streamDecoder[Payload, Req, Resp]{h, m.opts.handlerText(h.id, joinSubroutes(subroute...)), m.opts.MaxNesting}
}

// request decodes a message. It owns b.
func (d *streamDecoder[Payload, Req, Resp]) request(b []byte) (Req, error) {
	v, err := decodeNext(&d.h.reqs, b, d.nesting)
	if err != nil {
		err = fmt.Errorf("grid: handler %s: %w", d.label, err)
	}
	return v, err
}

// payload decodes that of a stream, if it has one. It owns b. With ok false err is the result of
// the stream; if that is nil as well, it has ended.
func (d *streamDecoder[Payload, Req, Resp]) payload(m *muxServer, has bool, b []byte) (p Payload, ok bool, err *RemoteErr) {
	if !has {
		return p, true, nil
	}
	p = d.h.payloads.get()
	failed := decode(p, b, d.nesting)
	n := len(b)
	PutByteBuffer(b)
	if failed != nil {
		return p, false, NewRemoteErrf("grid: handler %s: payload: %w", d.label, failed)
	}
	return p, m.hold(heldBytes(p, n)), nil
}

// TypedServerStream is the serving end of a stream with typed messages: see
// [StreamTypeHandler.RegisterServe]. What [ServerStream] says holds here too.
type TypedServerStream[Req, Resp RoundTripper] struct {
	serverEnd
	decode func([]byte) (Req, error)
}

// Recv is [ServerStream.Recv]. The value is the caller's from then on, who may give it to
// PutRequest. A message that can't be decoded ends the stream with an error on both sides.
func (s *TypedServerStream[Req, Resp]) Recv() (Req, error) {
	return s.RecvContext(context.Background())
}

// RecvContext is [ServerStream.RecvContext]; the rest is as with Recv.
func (s *TypedServerStream[Req, Resp]) RecvContext(ctx context.Context) (Req, error) {
	var zero Req
	m := s.m
	counts := m.handler.inputDecodes > 0
	msg, err := s.take(ctx, counts)
	if err != nil {
		return zero, err
	}
	n := msg.size()
	v, err := s.decode(msg.join())
	if err != nil {
		m.fail(err)
		return zero, err
	}
	if counts {
		if err := m.in.holdMore(heldBytes(v, n)); err != nil {
			m.refuse(err)
			return zero, err
		}
		m.grant(m.in.handedOn(1, true))
	}
	return v, nil
}

// All is [ServerStream.All]: Recv as an iterator.
func (s *TypedServerStream[Req, Resp]) All() iter.Seq2[Req, error] { return received(s.Recv) }

// Send is [ServerStream.Send]. v stays the caller's, who may give it to PutResponse. One that can't
// be encoded is refused, and the stream lives on.
func (s *TypedServerStream[Req, Resp]) Send(ctx context.Context, v Resp) error {
	b, err := encode(v)
	if err != nil {
		return fmt.Errorf("grid: handler %s: encoding a message: %w", s.m.handler.label, err)
	}
	defer PutByteBuffer(b)
	return s.send(ctx, b)
}

// RegisterNoInput is Register for a handler that takes no messages. From then on h is as if its
// InCapacity were 0.
func (h *StreamTypeHandler[Payload, Req, Resp]) RegisterNoInput(m *Manager, handle func(ctx context.Context, p Payload, out chan<- Resp) *RemoteErr, subroute ...string) error {
	if handle == nil {
		return nilHandlerError(m, h.id)
	}
	err := h.register(m, 0, h.withPayload(), func(ctx context.Context, p Payload, _ <-chan Req, out chan<- Resp) *RemoteErr {
		return handle(ctx, p, out)
	}, subroute)
	if err == nil {
		h.noInput.Store(true)
	}
	return err
}

// RegisterNoPayload is Register for a handler without a payload. From then on h is as if
// WithPayload were false.
func (h *StreamTypeHandler[Payload, Req, Resp]) RegisterNoPayload(m *Manager, handle func(ctx context.Context, in <-chan Req, out chan<- Resp) *RemoteErr, subroute ...string) error {
	if handle == nil {
		return nilHandlerError(m, h.id)
	}
	err := h.register(m, h.inCapacity(), false, func(ctx context.Context, _ Payload, in <-chan Req, out chan<- Resp) *RemoteErr {
		return handle(ctx, in, out)
	}, subroute)
	if err == nil {
		h.noPayload.Store(true)
	}
	return err
}

func (h *StreamTypeHandler[Payload, Req, Resp]) inCapacity() int {
	if h.noInput.Load() {
		return 0
	}
	return h.InCapacity
}

// withPayload reports whether streams begin with a payload.
func (h *StreamTypeHandler[Payload, Req, Resp]) withPayload() bool {
	return h.WithPayload && !h.noPayload.Load()
}

func (h *StreamTypeHandler[Payload, Req, Resp]) encodeResponse(v Resp) ([]byte, error) {
	if h.sharedResp {
		return encode(v)
	}
	return encodeLast(&h.resps, v)
}

// encodeLast encodes v and puts it back. It runs on goroutines of grid: a panic of the
// application's becomes an error.
func encodeLast[T RoundTripper](p *valuePool[T], v T) (b []byte, err error) {
	defer recovered(&err, "putting back", v)
	b, err = encode(v)
	p.put(v)
	return b, err
}

// decodeNext decodes a message of a stream. It owns b. It runs on goroutines of grid: a panic of
// the application's becomes an error.
func decodeNext[T RoundTripper](p *valuePool[T], b []byte, nesting int) (v T, err error) {
	defer recovered(&err, "making", v)
	v = p.get()
	err = decode(v, b, nesting)
	PutByteBuffer(b)
	if err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

// Call opens the stream over conn, such as a [*Connection]. payload stays the caller's, and is not
// looked at without WithPayload. The rest is as with [Connection.NewStream], and a local
// error for a payload that can't be encoded.
func (h *StreamTypeHandler[Payload, Req, Resp]) Call(ctx context.Context, conn Streamer, payload Payload) (*TypedStream[Req, Resp], error) {
	return h.open(ctx, conn, payload, false)
}

// Start is Call without the wait for the remote, as [Connection.StartStream] is
// [Connection.NewStream] without it.
func (h *StreamTypeHandler[Payload, Req, Resp]) Start(ctx context.Context, conn Streamer, payload Payload) (*TypedStream[Req, Resp], error) {
	return h.open(ctx, conn, payload, true)
}

func (h *StreamTypeHandler[Payload, Req, Resp]) open(ctx context.Context, conn Streamer, payload Payload, early bool) (*TypedStream[Req, Resp], error) {
	if isNil(conn) {
		return nil, errNoConnection
	}
	var b []byte
	if h.withPayload() {
		var err error
		if b, err = encode(payload); err != nil {
			return nil, nameOf(conn, h.id).error(fmt.Errorf("grid: handler %s: payload: %w", handlerLabel(conn, h.id), err))
		}
		defer PutByteBuffer(b)
	}
	m, err := openThrough(ctx, conn, h.id, b, h.options(early))
	if err != nil {
		return nil, err
	}
	s := &TypedStream[Req, Resp]{mux: m, resps: &h.resps}
	if m.takesData {
		reqs := make(chan Req)
		s.Requests = reqs
		go forwardRequests(s, m, reqs, m.forwarding(), func(v Req) ([]byte, error) { return encodeLast(&h.reqs, v) })
	}
	return s, nil
}

// TypedStream is the opening end of a stream with typed messages. What [Stream] says holds here
// too.
type TypedStream[Req, Resp RoundTripper] struct {
	// Requests takes the messages for the handler; nil if it takes none. Like [Stream].Requests it
	// must be closed when there are no more. A value sent to it is grid's from then on.
	Requests chan<- Req

	mux   *muxClient
	resps *valuePool[Resp]
}

// Send is [Stream.Send]. req stays the caller's. One that can't be encoded is refused, and the
// stream lives on.
func (s *TypedStream[Req, Resp]) Send(req Req) error {
	return s.SendContext(context.Background(), req)
}

// SendContext is [Stream.SendContext]; the rest is as with Send.
func (s *TypedStream[Req, Resp]) SendContext(ctx context.Context, req Req) error {
	b, err := encode(req)
	if err != nil {
		s.mux.sendUsed.Store(true)
		return s.mux.name.error(fmt.Errorf("grid: handler %s: %w", s.mux.name.label(), err))
	}
	defer PutByteBuffer(b)
	return s.mux.sendInput(ctx, b)
}

// CloseSend is [Stream.CloseSend].
func (s *TypedStream[Req, Resp]) CloseSend() { _ = s.mux.closeInput() }

// Finish is [Stream.Finish]. What it throws away is not decoded.
func (s *TypedStream[Req, Resp]) Finish(ctx context.Context) error { return s.mux.drain(ctx) }

// Recv is [Stream.Recv]. The value is the caller's from then on, who may give it to PutResponse. A
// message that can't be decoded ends the stream with an error on both sides.
func (s *TypedStream[Req, Resp]) Recv() (Resp, error) {
	return s.RecvContext(context.Background())
}

// RecvContext is [Stream.RecvContext]; the rest is as with Recv.
func (s *TypedStream[Req, Resp]) RecvContext(ctx context.Context) (Resp, error) {
	b, err := s.mux.recv(ctx)
	if err != nil {
		var zero Resp
		return zero, err
	}
	return s.decode(b)
}

// decode decodes a message. It owns b.
func (s *TypedStream[Req, Resp]) decode(b []byte) (Resp, error) {
	v, err := decodeNext(s.resps, b, s.mux.name.nesting())
	if err != nil {
		err = fmt.Errorf("grid: handler %s: %w", s.mux.name.label(), err)
		s.mux.fail(err)
		err = s.mux.name.error(err)
		s.mux.skip(err)
	}
	return v, err
}

// Results is [Stream.Results]. The value is next's from then on, who may give it to PutResponse. A
// message that can't be decoded ends the stream with an error on both sides.
func (s *TypedStream[Req, Resp]) Results(next func(resp Resp) error) error {
	return s.mux.results(func(b []byte) error {
		v, err := s.decode(b)
		if err != nil {
			return err
		}
		return next(v)
	})
}

// All is [Stream.All]: Results as an iterator.
func (s *TypedStream[Req, Resp]) All() iter.Seq2[Resp, error] { return allOf(s.Results) }

// Draining is [Stream.Draining].
func (s *TypedStream[Req, Resp]) Draining() <-chan struct{} { return s.mux.host.drains() }

// Done is [Stream.Done].
func (s *TypedStream[Req, Resp]) Done() <-chan struct{} { return s.mux.done }

// Err is [Stream.Err].
func (s *TypedStream[Req, Resp]) Err() error { return s.mux.endError() }
