package chaos

import (
	"context"
	"maps"
	"time"

	"github.com/gridrpc/grid"
)

// What the hosts serve.
const (
	single grid.HandlerID = iota + 1
	typedSingle
	responses // a stream of answers
	requests  // a stream of inputs, and one answer
	twoWay    // a stream that answers each input
	typedTwoWay
	cancellable // single requests whose handler has a context
)

// handlers is how many these are.
const handlers = int(cancellable)

// routes are the subroutes under which each of them is registered.
var routes = [...]string{"", "disk1", "pool/disk2"}

var (
	typedCall   = grid.NewSingleHandler(typedSingle, grid.NewBytes, grid.NewBytes)
	typedStream = grid.NewStream(typedTwoWay, grid.NewBytes, grid.NewBytes, grid.NewBytes).
			WithInCapacity(4).WithOutCapacity(4)
)

// server is the handlers of one node. They do as the payload says, and check all that they see.
type server struct {
	model *model
	names []string
	host  int
}

func (s *server) register(m *grid.Manager) error {
	for route := range routes {
		for id := range grid.HandlerID(handlers) {
			if err := s.add(m, id+1, route); err != nil {
				return err
			}
		}
	}
	return nil
}

// parts are those of a route.
func (s *server) parts(route int) []string {
	if routes[route] == "" {
		return nil
	}
	return []string{routes[route]}
}

// add registers one handler.
func (s *server) add(m *grid.Manager, id grid.HandlerID, route int) error {
	parts := s.parts(route)
	switch id {
	case single:
		return m.RegisterSingleHandler(id, func(b []byte) ([]byte, *grid.RemoteErr) {
			defer grid.PutByteBuffer(b)
			return s.single(b, route)
		}, parts...)
	case cancellable:
		return m.RegisterSingleHandlerContext(id, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			defer grid.PutByteBuffer(b)
			return s.cancellable(ctx, b, route)
		}, parts...)
	case typedSingle:
		return typedCall.Register(m, func(req *grid.Bytes) (*grid.Bytes, *grid.RemoteErr) {
			b, err := s.single(*req, route)
			return grid.NewBytesWith(b), err
		}, parts...)
	case typedTwoWay:
		return typedStream.Register(m, func(ctx context.Context, payload *grid.Bytes, in <-chan *grid.Bytes, out chan<- *grid.Bytes) *grid.RemoteErr {
			defer payload.Recycle()
			return serve(s, ctx, id, route, *payload, in, out, typed)
		}, parts...)
	}
	return m.RegisterStreamingHandler(id, grid.StreamHandler{
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			defer grid.PutByteBuffer(payload)
			return serve(s, ctx, id, route, payload, in, out, raw)
		},
		Subroute:    routes[route],
		InCapacity:  capacities[id].in,
		OutCapacity: capacities[id].out,
	})
}

// capacities are those of the raw streams.
var capacities = map[grid.HandlerID]struct{ in, out int }{responses: {0, 16}, requests: {8, 1}, twoWay: {1, 2}}

// opening reads and checks the payload of a call, and notes that it runs.
func (s *server) opening(b []byte, route int) (n note, ok bool) {
	n, err := decode(b)
	if err != nil || n.answer || n.index != 0 {
		s.model.violation("host %d was called with %d bytes: %v, %+v", s.host, len(b), err, n)
		return n, false
	}
	if n.traits&toAny != 0 {
		// The number behind those of the hosts is that of all of them.
		if state, ok := s.model.run(n.call + hosts); ok && (state&runsMask > 1 || state&isRefused != 0) {
			s.model.violation("call %d from %d, to any host, runs %d times; its caller was told that it would not: %t",
				n.call, n.from, state&runsMask, state&isRefused != 0)
		}
	}
	if n.traits&toMany != 0 {
		n.call, n.to = n.call+uint64(s.host), uint8(s.host)
	}
	s.model.ran(n, s.host)
	if int(n.route) != route {
		s.model.violation("call %d to subroute %q runs under %q", n.call, routes[n.route], routes[route])
	}
	return n, true
}

// finish ends a handler as its call says.
func (s *server) finish(n note) *grid.RemoteErr {
	switch n.end {
	case endsInError:
		return grid.NewRemoteErrCode(plannedCode, handlerError{n.call})
	case endsInPanic:
		panic(failure(n.call))
	}
	s.model.mark(n.call, ranWell)
	return nil
}

// single answers a request, whose payload stays the caller's.
func (s *server) single(payload []byte, route int) ([]byte, *grid.RemoteErr) {
	n, ok := s.opening(payload, route)
	if !ok {
		return nil, grid.NewRemoteErrString("unusable payload")
	}
	pause(n)
	if s.model.mark(n.call, 0)&gaveUp != 0 {
		s.model.tally.wentOn.Add(1)
	}
	return s.answer(n)
}

func (s *server) answer(n note) ([]byte, *grid.RemoteErr) {
	if err := s.finish(n); err != nil {
		return nil, err
	}
	return n.message(true, 0), nil
}

// cancellable is single for a handler that has a context.
func (s *server) cancellable(ctx context.Context, payload []byte, route int) ([]byte, *grid.RemoteErr) {
	n, ok := s.opening(payload, route)
	if !ok {
		return nil, grid.NewRemoteErrString("unusable payload")
	}
	s.checkContext(ctx, n)
	if n.traits&waitsForEnd != 0 {
		late := time.NewTimer(2 * tooLong)
		defer late.Stop()
		select {
		case <-ctx.Done():
			if context.Cause(ctx) == context.Canceled {
				s.model.tally.cancelled.Add(1)
			}
		case <-late.C:
			if !s.model.corrupt(&call{note: n, began: time.Now()}) {
				s.model.violation("the handler of call %d from %d to %d was not told that its caller has gone", n.call, n.from, n.to)
			}
		}
	}
	pause(n)
	if ctx.Err() != nil {
		s.model.judgeCause(n, context.Cause(ctx))
	}
	return s.answer(n)
}

// checkContext looks at what the context of a handler says of its call.
func (s *server) checkContext(ctx context.Context, n note) {
	if caller := grid.GetCaller(ctx); caller == nil || caller.Name != s.names[n.from] {
		s.model.violation("call %d from %d has caller %v", n.call, n.from, caller)
	}
	if sub := grid.GetSubroute(ctx); sub != routes[n.route] {
		s.model.violation("call %d to subroute %q has %q", n.call, routes[n.route], sub)
	}
	if got := grid.Metadata(ctx); !maps.Equal(got, n.tag()) {
		s.model.violation("call %d has metadata %q in place of %q", n.call, got, n.tag())
	}
}

func pause(n note) {
	if n.pause > 0 {
		time.Sleep(time.Duration(n.pause) * time.Millisecond)
	}
}

// messages is how the messages of a stream are made of bytes: raw ones are bytes.
type messages[T any] struct {
	wrap  func([]byte) T
	bytes func(T) []byte
	free  func(T)
}

var (
	raw = messages[[]byte]{
		wrap:  func(b []byte) []byte { return b },
		bytes: func(b []byte) []byte { return b },
		free:  grid.PutByteBuffer,
	}
	typed = messages[*grid.Bytes]{
		wrap:  grid.NewBytesWith,
		bytes: func(b *grid.Bytes) []byte { return *b },
		free:  func(b *grid.Bytes) { b.Recycle() },
	}
)

// serve serves a stream of any shape.
func serve[T any](s *server, ctx context.Context, id grid.HandlerID, route int, payload []byte, in <-chan T, out chan<- T, kind messages[T]) *grid.RemoteErr {
	n, ok := s.opening(payload, route)
	if !ok {
		return grid.NewRemoteErrString("unusable payload")
	}
	s.checkContext(ctx, n)
	if id == responses {
		for i := range int(n.count) {
			pause(n)
			out <- kind.wrap(n.message(true, i))
		}
		return s.finish(n)
	}

	read := 0
	for read < int(n.count) {
		v, ok := <-in
		if !ok {
			break
		}
		if err := n.follows(kind.bytes(v), false, read); err != nil {
			s.model.violation("input %d of stream %d from %d to %d: %v", read, n.call, n.from, n.to, err)
		}
		kind.free(v)
		pause(n)
		if id != requests {
			out <- kind.wrap(n.message(true, read))
		}
		read++
	}
	if n.count < n.inputs { // it ends before its input
		return s.finish(n)
	}
	if read == int(n.count) {
		if _, ok := <-in; ok {
			s.model.violation("stream %d has more than %d inputs", n.call, n.inputs)
		}
	}
	if ctx.Err() != nil {
		s.model.judgeCause(n, context.Cause(ctx))
		return grid.NewRemoteErr(context.Cause(ctx))
	}
	if n.traits&endsShort != 0 {
		s.model.mark(n.call, hasInputs|uint32(read)<<inputsShift)
	} else if read != int(n.inputs) {
		s.model.violation("the input of stream %d from %d to %d ended well after %d of %d messages", n.call, n.from, n.to, read, n.inputs)
	}
	if id == requests {
		out <- kind.wrap(n.message(true, 0))
	}
	return s.finish(n)
}
