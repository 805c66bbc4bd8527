package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/gridrpc/grid/internal/errlog"
	"github.com/puzpuzpuz/xsync/v4"
)

// SingleHandlerFn answers a single request.
//
// It owns payload, and may keep it, return it, or give it to [PutByteBuffer]. The buffer that it
// returns is grid's from then on; nil and empty arrive as such. A non-nil error is what the caller
// gets, as *[RemoteErr]; the buffer is ignored then. A panic is answered with an error, and logged
// with its stack: of each handler the first, and then one an hour.
//
// It never runs on the goroutine that reads the connection, so it may block, and it runs
// concurrently with others: of two requests that are under way at the same time, the second may be
// handled first. It is not told that the caller gives up; a [SingleHandlerContextFn] is. If the
// caller's deadline has passed when it returns, nothing is sent; if it has passed before there was
// time to call it, it is not called.
type SingleHandlerFn func(payload []byte) ([]byte, *RemoteErr)

// StreamHandlerFn serves a stream.
//
// It owns payload and what it receives from in. What it sends to out is grid's from then on.
// Sending blocks while the client has not kept up, but never after the stream has ended; what is
// sent then is thrown away. It must not close out, nor send to it after it has returned: nobody
// reads it then, so a goroutine that it leaves behind must select on ctx.Done() as well.
//
// in is closed when the client has ended its input; it is closed from the start if the stream has
// none. When the stream is aborted ctx ends first, then in is closed: so a handler that acts at the
// end of its input checks ctx.Err() before. [context.Cause] of ctx is [context.Canceled] if the
// client gave up or the handler has returned, [context.DeadlineExceeded] after the client's
// deadline, wraps [ErrDisconnected] if the connection was lost, or is an error of the protocol.
//
// A nil return ends the stream well, after everything sent before was delivered; an error arrives
// as *[RemoteErr]. A panic is answered with an error.
type StreamHandlerFn func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr

// StreamHandler is a function that serves streams, of one of two forms, and how to serve it.
type StreamHandler struct {
	// Serve serves the stream. One of Serve and Handle must be set, and only one.
	Serve StreamServeFn
	// Handle serves it over channels. That takes another goroutine, which stands between them and
	// the stream.
	Handle StreamHandlerFn
	// Subroute, if not empty, is where the handler is registered: the subroute as a whole, its parts
	// joined with "/". It is for those who keep StreamHandlers in a table; else give the parts to
	// RegisterStreamingHandler, as to all that registers.
	Subroute string
	// OutCapacity is how many messages may be on their way to the client at first, from 1 to 65536;
	// the default is 1. Between two peers of this implementation it grows with a client that keeps
	// up. As many again, 64 at most, fit into the channel of Handle. A handler that is further
	// ahead waits; a host that sends more all the same has its stream ended with [ErrFlowControl], but
	// for one of version 1 where this is 65536 (protocol section 5).
	OutCapacity int
	// InCapacity is the same for the client's messages. 0 means that the handler takes no input.
	InCapacity int
}

// SingleHandlerContextFn is a [SingleHandlerFn] with a context.
//
// The context ends at the caller's deadline, when the connection is lost or closed, by either side,
// when the caller gives up, and when the handler has returned; [context.Cause] is
// [context.DeadlineExceeded], an error that wraps [ErrDisconnected], or for the last two
// [context.Canceled]. Where the caller has given up nothing is sent when the handler returns. If it
// has before there was time to call the handler, that is not called. A caller of version 1 does not
// say that it gives up before its deadline (protocol section 8, extension 128).
//
// [GetCaller], which says how far its answer is proved, [GetSubroute], [Metadata] and [Draining]
// work on it.
type SingleHandlerContextFn func(ctx context.Context, payload []byte) ([]byte, *RemoteErr)

// singleEntry is a registered handler of single requests.
type singleEntry struct {
	// One of the two.
	fn        func(t *singleTask, payload []byte) ([]byte, *RemoteErr)
	contextFn func(ctx context.Context, t *singleTask, payload []byte) ([]byte, *RemoteErr)

	subroute string
	decodes  int    // see decodedCost
	label    string // of the handler, for people; set by add
	panics   errlog.Log
	calls    handlerCalls
}

// streamEntry is a registered stream handler.
type streamEntry struct {
	serve                   func(m *muxServer)
	subroute                string
	outCapacity, inCapacity int
	retired                 *atomic.Int64 // that of the registry; set by add
	decodes, inputDecodes   int           // see decodedCost: of the payload, and of each message
	label                   string        // of the handler, for people; set by add
	panics                  errlog.Log
	calls                   handlerCalls
}

// before is the largest InCapacity of the handlers that were unregistered so far: clients may still
// go by one of them, until they have an ack. An entry that asked when it was added would not know
// of one that was taken out of its way a moment later.
func (e *streamEntry) before() int {
	if e.retired == nil {
		return 0
	}
	return int(e.retired.Load())
}

// newStreamEntry checks the capacities and fills in their defaults.
func newStreamEntry(subroute string, outCapacity, inCapacity int, serve func(m *muxServer)) (*streamEntry, error) {
	if outCapacity == 0 {
		outCapacity = 1
	}
	if outCapacity < 0 || outCapacity > maxCapacity {
		return nil, fmt.Errorf("grid: OutCapacity is %d, must be 1 to %d", outCapacity, maxCapacity)
	}
	if inCapacity < 0 || inCapacity > maxCapacity {
		return nil, fmt.Errorf("grid: InCapacity is %d, must be 0 to %d", inCapacity, maxCapacity)
	}
	return &streamEntry{serve: serve, subroute: subroute, outCapacity: outCapacity, inCapacity: inCapacity}, nil
}

// rawStreamEntry is the entry of an untyped handler.
func rawStreamEntry(h StreamHandler) (*streamEntry, error) {
	switch {
	case h.Serve == nil && h.Handle == nil:
		return nil, errors.New("grid: StreamHandler without Serve or Handle")
	case h.Serve != nil && h.Handle != nil:
		return nil, errors.New("grid: StreamHandler with both Serve and Handle")
	case h.Serve != nil:
		return newStreamEntry(h.Subroute, h.OutCapacity, h.InCapacity, func(m *muxServer) {
			s := new(ServerStream)
			s.serve(m, func(ctx context.Context, payload []byte) *RemoteErr { return h.Serve(ctx, payload, s) })
		})
	}
	raw := func(b []byte) ([]byte, error) { return b, nil }
	noInput := closedChan[[]byte]()
	return newStreamEntry(h.Subroute, h.OutCapacity, h.InCapacity, func(m *muxServer) {
		serveStream(m, noInput, raw, raw, h.Handle)
	})
}

// registry holds the handlers of a manager. Reading it takes no lock.
type registry struct {
	// Set once.
	opts   *ManagerOptions
	limits *totals
	// Those without a subroute, and those with one.
	plain [256]atomic.Pointer[handler]
	sub   *xsync.Map[subHandlerID, handler]
	// retired is the largest InCapacity of the handlers that were unregistered.
	retired atomic.Int64
}

// handler is one of the two kinds.
type handler struct {
	single *singleEntry
	stream *streamEntry
}

// serves reports whether the handler is for what op opens.
func (h handler) serves(o op) bool {
	if o == opConnectMux {
		return h.stream != nil
	}
	return h.single != nil
}

// wantsMetadata reports whether the handler can ask for the metadata of a call: it has a context.
func (h handler) wantsMetadata() bool { return h.stream != nil || h.single.contextFn != nil }

// decodes is the decodedCost of the payload.
func (h handler) decodes() int {
	if h.single != nil {
		return h.single.decodes
	}
	return h.stream.decodes
}

// calls are those of the handler.
func (h handler) calls() *handlerCalls {
	if h.single != nil {
		return &h.single.calls
	}
	return &h.stream.calls
}

// label is what the handler is called, for people.
func (h handler) label() string {
	if h.single != nil {
		return h.single.label
	}
	return h.stream.label
}

// subroute is where the handler is registered; empty for none.
func (h handler) subroute() string {
	if h.single != nil {
		return h.single.subroute
	}
	return h.stream.subroute
}

func (r *registry) init(o *ManagerOptions, limits *totals) {
	r.opts, r.limits = o, limits
	r.sub = xsync.NewMap[subHandlerID, handler]()
}

// lookup returns the handler of a message; its zero value if there is none.
func (r *registry) lookup(id HandlerID, sub *subHandlerID) handler {
	if sub != nil {
		h, _ := r.sub.Load(*sub)
		return h
	}
	if h := r.plain[id].Load(); h != nil {
		return *h
	}
	return handler{}
}

func (r *registry) add(id HandlerID, subroute string, h handler) error {
	if id == 0 {
		return fmt.Errorf("%w: ID 0 is reserved", ErrUnknownHandler)
	}
	label := r.opts.handlerText(id, subroute)
	if h.single != nil {
		h.single.label = label
	} else {
		h.stream.label = label
		h.stream.retired = &r.retired
	}
	own := r.opts.handlerOptions(id, subroute)
	calls := h.calls()
	calls.timeout = own.Timeout
	calls.bound(own.MaxRunning)
	r.limits.addCalls(calls)
	if !r.publish(id, subroute, h) {
		r.limits.removeCalls(calls)
		if subroute == "" {
			return fmt.Errorf("%w: ID %s", ErrHandlerAlreadyExists, label)
		}
		return fmt.Errorf("%w: ID %s, subroute %q", ErrHandlerAlreadyExists, label, subroute)
	}
	return nil
}

// publish makes a handler that is complete one that is found, unless there is one.
func (r *registry) publish(id HandlerID, subroute string, h handler) bool {
	if subroute == "" {
		return r.plain[id].CompareAndSwap(nil, &h)
	}
	_, taken := r.sub.LoadOrStore(newSubHandlerID(id, subroute), h)
	return !taken
}

// remove takes a handler away. It reports whether there was one.
func (r *registry) remove(id HandlerID, subroute string) bool {
	if subroute == "" {
		old := r.plain[id].Load()
		for ; old != nil; old = r.plain[id].Load() {
			r.retire(*old)
			if r.plain[id].CompareAndSwap(old, nil) {
				return true
			}
		}
		return false
	}
	had := false
	r.sub.Compute(newSubHandlerID(id, subroute), func(old handler, loaded bool) (handler, xsync.ComputeOp) {
		if had = loaded; had {
			r.retire(old)
		}
		return old, xsync.DeleteOp
	})
	return had
}

// retire is called before the handler is taken away, so that all of its successors know of it.
func (r *registry) retire(h handler) {
	r.limits.removeCalls(h.calls())
	if h.stream == nil {
		return
	}
	for in := int64(h.stream.inCapacity); ; {
		if most := r.retired.Load(); most >= in || r.retired.CompareAndSwap(most, in) {
			return
		}
	}
}

func nilHandlerError(m *Manager, id HandlerID) error {
	return fmt.Errorf("grid: nil handler for ID %s", m.opts.handlerText(id, ""))
}

// registeredSubroute joins the subroute parts of a registration.
func registeredSubroute(parts []string) (string, error) {
	if slices.Contains(parts, "") {
		return "", fmt.Errorf("grid: empty subroute in %q", parts)
	}
	return joinSubroutes(parts...), nil
}

// RegisterSingleHandler makes h answer single requests to id, under the subroute whose parts are
// given, joined with "/"; without any, requests that name no subroute. It may be called at any
// time, also while serving, and concurrently.
//
// It returns [ErrHandlerAlreadyExists] if there is a handler of either kind for that ID and
// subroute, [ErrUnknownHandler] for ID 0, and an error for an empty subroute or a nil h.
func (m *Manager) RegisterSingleHandler(id HandlerID, h SingleHandlerFn, subroute ...string) error {
	if h == nil {
		return nilHandlerError(m, id)
	}
	return m.registerSingle(id, &singleEntry{fn: func(_ *singleTask, b []byte) ([]byte, *RemoteErr) { return h(b) }}, subroute)
}

func (m *Manager) registerSingle(id HandlerID, e *singleEntry, subroute []string) (err error) {
	if e.subroute, err = registeredSubroute(subroute); err != nil {
		return err
	}
	return m.handlers.add(id, e.subroute, handler{single: e})
}

// RegisterSingleHandlerContext is [Manager.RegisterSingleHandler] for a handler that wants a
// context: it costs a few allocations for each call.
func (m *Manager) RegisterSingleHandlerContext(id HandlerID, h SingleHandlerContextFn, subroute ...string) error {
	if h == nil {
		return nilHandlerError(m, id)
	}
	return m.registerSingle(id, &singleEntry{contextFn: func(ctx context.Context, _ *singleTask, b []byte) ([]byte, *RemoteErr) {
		return h(ctx, b)
	}}, subroute)
}

// RegisterStreamingHandler makes h serve streams to id, under the subroute whose parts are given,
// as [Manager.RegisterSingleHandler] has it, or under StreamHandler.Subroute. It may be called at
// any time, also while serving, and concurrently.
//
// It returns [ErrHandlerAlreadyExists] if there is a handler of either kind for that ID and
// subroute, [ErrUnknownHandler] for ID 0, and an error for bad capacities, an empty subroute or two
// that differ, or where not one of Serve and Handle is set.
func (m *Manager) RegisterStreamingHandler(id HandlerID, h StreamHandler, subroute ...string) error {
	route, err := registeredSubroute(subroute)
	if err != nil {
		return err
	}
	if route != "" && h.Subroute != "" && route != h.Subroute {
		return fmt.Errorf("grid: handler %s: subroute %q is given, and StreamHandler.Subroute is %q", m.opts.handlerText(id, ""), route, h.Subroute)
	}
	h.Subroute = cmp.Or(route, h.Subroute)
	e, err := rawStreamEntry(h)
	if err != nil {
		return err
	}
	return m.handlers.add(id, h.Subroute, handler{stream: e})
}

// Unregister takes away the handler of an ID, of either kind, under the subroute whose parts are
// given. Calls that come from then on get [ErrNoHandler] there, or are answered by the one that is
// registered next; those that run, streams among them, go on. It reports whether there was one.
//
// A call that was on its way while Unregister was called may still start the handler.
func (m *Manager) Unregister(id HandlerID, subroute ...string) bool {
	route, err := registeredSubroute(subroute)
	return err == nil && m.handlers.remove(id, route)
}
