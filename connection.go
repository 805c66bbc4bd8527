package grid

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/offload"
	"github.com/gridrpc/grid/internal/token"
	"github.com/gridrpc/grid/internal/wheel"
	"github.com/gridrpc/grid/internal/wsconn"
)

// Connection is the way to one remote host. It is made by [NewManager], dials or waits to be
// dialled, reconnects by itself, and lives as long as its Manager, or until its host is removed.
// From then on all calls over it fail with [ErrHostRemoved], also when the host is added again:
// that is another Connection. So who removes hosts asks [Manager.Connection] for each call, or
// after that error. All methods may be called concurrently, and on a nil *Connection, which is a
// host that can't be reached.
type Connection struct {
	// Set once.
	local, remote string
	localID       [16]byte
	dials         bool  // this side dials
	crc           flags // flagCRC, or 0 where the transport protects
	opts          *ManagerOptions
	secret        *atomic.Pointer[token.Secret] // the manager's
	handlers      *registry
	hold          *holdBack   // the manager's
	taken         *hostLimits // what the host takes up here
	log           *slog.Logger
	traffic       wsconn.Counters // Incoming and Outgoing
	callbacks     *offload.Group  // the manager's, and so is untold
	untold        *limit.Slots
	attempts      *attempts // the manager's, and so are ticks
	ticks         *wheel.Wheel
	phase         float64         // from 0 to 1, of ticks and pings
	caller        RemoteClient    // as handlers see the remote
	ctx           context.Context // ends with the manager, or when the host is removed
	cancel        context.CancelCauseFunc
	closing       <-chan struct{} // of ctx
	managerEnds   <-chan struct{} // closed when the manager is
	draining      *atomic.Bool    // the manager is shutting down: no new link
	refuses       *atomic.Bool    // nothing that the remote begins is taken any more
	ended         *atomic.Bool    // nothing is begun here any more
	hosts         *atomic.Pointer[hostSet]
	start         func(func()) // starts a goroutine that the manager's Close waits for
	began         time.Time

	lastMux atomic.Uint64 // see session.nextMuxID; never reset, so no ID is used twice

	accepted      atomic.Bool // it is a host only because AcceptHost has taken it in
	session       atomic.Pointer[session]
	attempt       atomic.Pointer[progress] // to connect, that is under way on this side
	redial        redial
	state         stateMachine
	errors        errlog.Log // of connections that were lost or could not be made
	refused       errlog.Log // of handshakes that were refused, perhaps beside a connection
	departures    errlog.Log // of peers that shut down
	twins         errlog.Log // of hosts that are one process
	panics        errlog.Log // of interceptors
	attemptPanics errlog.Log // of functions that take part in an attempt to connect
	leftBehind    leftBehind

	limitsMu sync.Mutex
	limits   map[string]*errlog.Log // of limits that were reached, by option

	// unknownOps are those that were logged, a bit each.
	unknownOps [4]atomic.Uint64
	stats      connectionCounters

	// mu makes the session and the state change together. It is not the state's own lock, which
	// those who wait for a state take.
	mu sync.Mutex
	// left is a session whose peer is shutting down: what is under way on it goes on.
	left *session
	// knocking is the knock that is under way, which there is none beside a session; nil for none.
	knocking *knocking
}

func newConnection(m *Manager, remote string, taken *hostLimits) *Connection {
	c := &Connection{
		local:     m.opts.Local,
		remote:    remote,
		localID:   m.ID,
		dials:     shouldDial(m.opts.Local, remote),
		crc:       flagCRC,
		opts:      m.opts,
		secret:    &m.secret,
		handlers:  &m.handlers,
		hold:      &m.hold,
		taken:     taken,
		log:       m.opts.Logger.With("remote", remote),
		traffic:   m.traffic,
		callbacks: &m.callbacks,
		untold:    &m.untold,
		attempts:  &m.attempts,
		ticks:     &m.ticks,
		phase:     float64(xxh3.HashString(m.opts.Local+" "+remote)) / (1 << 64),
		caller:    RemoteClient{Name: remote},
		draining:  &m.draining,
		refuses:   &m.draining,
		ended:     &m.noCalls,
		hosts:     &m.hosts,
		start:     m.start,
		limits:    make(map[string]*errlog.Log),
		began:     time.Now(),
	}
	c.redial.init(m.opts)
	c.ctx, c.cancel = context.WithCancelCause(m.ctx)
	c.closing, c.managerEnds = c.ctx.Done(), m.closing
	if isSecure(c.local) && isSecure(c.remote) {
		c.crc = 0
	}
	return c
}

// caps are the extensions that this side speaks on the connection.
func (c *Connection) caps() caps {
	if c.crc == 0 {
		return ourCaps &^ capFrameChecksum
	}
	return ourCaps
}

// SingleRequest calls handler id with payload and returns its answer.
//
// payload stays the caller's; the answer is the caller's, who may give it to [PutByteBuffer]. nil
// and empty arrive as such in both directions. The deadline of ctx travels along; without one it is
// RequestTimeout, after which the error is [context.DeadlineExceeded]. Where each call has a
// deadline, [Connection.WithTimeout] makes that cheap.
//
// Other errors: [ErrDisconnected] (wrapped), at once where there is no connection, and when it is
// lost meanwhile; [context.Canceled] or [context.DeadlineExceeded] with the text of the cause, at
// once when ctx ends; [ErrMessageTooLarge] and [ErrUnknownHandler], before anything is sent;
// [ErrProtocol], also for an answer that takes longer than MessageTimeout; [ErrOverloaded], which
// is a *[RemoteErr] as well unless it was a limit of this side that was reached; [ErrNoHandler],
// which is one as well; and *[RemoteErr] for whatever else the remote answered: the handler's error,
// or its panic.
//
// The error of a context that has ended is its cause as well, if that is the application's own:
// neither what a call may return, as a RemoteErr, nor the end of anything else. So the error with
// which a group of calls is cancelled is told from that of the call which has failed.
func (c *Connection) SingleRequest(ctx context.Context, id HandlerID, payload []byte) ([]byte, error) {
	return c.request(ctx, id, "", nil, payload, callOptions{})
}

// request makes a single request under a subroute, whose name is route; sub is nil for none.
func (c *Connection) request(ctx context.Context, id HandlerID, route string, sub *subHandlerID, payload []byte, o callOptions) ([]byte, error) {
	if c != nil && c.intercepts() {
		return c.interceptRequest(ctx, id, route, sub, payload, o)
	}
	metadata, err := encodeMetadata(o.metadata)
	if err == nil {
		var answer []byte
		if answer, err = c.single(ctx, id, sub, payload, metadata, o); err == nil {
			return answer, nil
		}
	}
	return nil, callName{c, route, id}.error(err)
}

// interceptRequest is request with interceptors, whose own errors it leaves as they are.
func (c *Connection) interceptRequest(ctx context.Context, id HandlerID, route string, sub *subHandlerID, payload []byte, o callOptions) (answer []byte, err error) {
	seen := new(observed)
	seen.init(c, time.Now())
	ctx, metadata, err := c.beginCall(ctx, seen, CallInfo{Handler: id, Subroute: route, PayloadBytes: len(payload), Metadata: maps.Clone(o.metadata)})
	if err != nil {
		return nil, err
	}
	answer, err = c.single(ctx, id, sub, payload, metadata, o)
	if err == nil {
		seen.received(len(answer), true)
	} else {
		err = callName{c, route, id}.error(err)
	}
	seen.end(err)
	return answer, err
}

// single makes a single request of which interceptors have been told.
func (c *Connection) single(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte, o callOptions) ([]byte, error) {
	s, err := c.ready(id, payload)
	if err != nil && o.waits {
		if _, ok := ctx.Deadline(); !ok && o.timeout == 0 {
			o.timeout = c.requestTimeout()
		}
		s, err = c.awaitReady(ctx, id, payload, &o, err)
	}
	if err != nil {
		return nil, err
	}
	return s.single(ctx, id, sub, payload, metadata, o.timeout)
}

// NewStream opens a stream to handler id, and waits until the remote has taken it on. payload stays
// the caller's. The end of ctx ends the stream and the context of the handler; its deadline travels
// along, and without one there is none.
//
// The errors are those of [Connection.SingleRequest].
func (c *Connection) NewStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error) {
	return rawStream(c.openStream(ctx, id, payload, capacities{}))
}

// StartStream is [Connection.NewStream] without the wait, once a stream to that handler has been
// started over the link before: what is sent goes with the opening, as far as the handler's
// InCapacity. That saves a way there and back. So an error of the remote, such as that it has no
// such handler or is overloaded, comes from Results, All and Send; what was sent then is lost. The
// errors that are found here are returned, and all of them are where it waits: the first time,
// where the handler takes no input, with a payload above 64 KiB, and with hosts that do not tell
// capacities.
func (c *Connection) StartStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error) {
	return rawStream(c.openStream(ctx, id, payload, capacities{early: true}))
}

func (c *Connection) openStream(ctx context.Context, id HandlerID, payload []byte, caps capacities) (*muxClient, error) {
	return c.open(ctx, id, "", nil, payload, caps)
}

func rawStream(m *muxClient, err error) (*Stream, error) {
	if err != nil {
		return nil, err
	}
	return newStream(m), nil
}

// open opens a stream under a subroute, whose name is route; sub is nil for none.
func (c *Connection) open(ctx context.Context, id HandlerID, route string, sub *subHandlerID, payload []byte, caps capacities) (*muxClient, error) {
	caps.name = callName{c, route, id}
	if c != nil && c.intercepts() {
		return c.interceptOpen(ctx, id, route, sub, payload, caps)
	}
	metadata, err := encodeMetadata(caps.options.metadata)
	if err == nil {
		var m *muxClient
		if m, err = c.openObserved(ctx, id, sub, payload, metadata, nil, caps); err == nil {
			return m, nil
		}
	}
	return nil, caps.name.error(err)
}

// interceptOpen is open with interceptors, whose own errors it leaves as they are.
func (c *Connection) interceptOpen(ctx context.Context, id HandlerID, route string, sub *subHandlerID, payload []byte, caps capacities) (*muxClient, error) {
	if err := c.taken.endings.checkStreams(c.opts); err != nil {
		c.overload(err)
		return nil, caps.name.error(err)
	}
	seen, caller := new(observed), ctx
	seen.init(c, time.Now())
	ctx, metadata, err := c.beginCall(ctx, seen, CallInfo{Handler: id, Subroute: route, Stream: true, PayloadBytes: len(payload), Metadata: maps.Clone(caps.options.metadata)})
	if err != nil {
		return nil, err
	}
	m, err := c.openObserved(ctx, id, sub, payload, metadata, seen, caps)
	if err != nil {
		err = caps.name.error(err)
		seen.end(err)
		return nil, err
	}
	m.caller = caller // an interceptor may end its own with the stream
	return m, nil
}

func (c *Connection) openObserved(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte, seen *observed, caps capacities) (*muxClient, error) {
	s, err := c.ready(id, payload)
	if err != nil && caps.options.waits {
		s, err = c.awaitReady(ctx, id, payload, &caps.options, err)
	}
	if err != nil {
		return nil, err
	}
	if !caps.known {
		// What is registered here under the same name tells a version 1 peer's capacities.
		if h := c.handlers.lookup(id, sub).stream; h != nil {
			caps.out, caps.in, caps.known = h.outCapacity, h.inCapacity, !s.caps.wide()
		}
	}
	return s.openStream(ctx, id, sub, payload, metadata, seen, caps)
}

// ready returns the session, after the checks that every call makes first.
func (c *Connection) ready(id HandlerID, payload []byte) (*session, error) {
	if c == nil {
		return nil, errNoConnection
	}
	if id == 0 {
		return nil, ErrUnknownHandler
	}
	if len(payload) > c.opts.MaxMessageSize {
		return nil, tooLargeError(len(payload), c.opts.MaxMessageSize)
	}
	s := c.session.Load()
	if s == nil {
		err := c.unavailable() // as it was before there is an attempt on its account
		c.hasten()
		return nil, err
	}
	if c.ended.Load() {
		return nil, unsent(c.disconnected(errShuttingDown))
	}
	if err := s.terms.sendSize.check(len(payload)); err != nil {
		return nil, err
	}
	return s, nil
}

// errNoConnection is what a nil Connection returns.
var errNoConnection = unsent(disconnected("", errors.New("nil Connection: its host was not among the Manager's hosts, or is the local one")))

func (c *Connection) disconnected(reason error) error { return disconnected(c.remote, reason) }

// unavailable is the error of a call for which there is no session.
func (c *Connection) unavailable() error { return unsent(c.disconnected(c.whyNone())) }

// whyNone is why there is no session.
func (c *Connection) whyNone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.isClosing():
		return context.Cause(c.ctx)
	case c.ended.Load():
		return errShuttingDown
	case c.left != nil:
		return errPeerShuttingDown
	case c.draining.Load():
		return errNoNewLinks
	}
	return c.absence()
}

// absence says for how long there has been no connection, and why. It is ErrNotAccepted where that
// is why.
func (c *Connection) absence() error {
	since, why, notAccepted := c.stats.lastFault()
	if since.IsZero() {
		since = c.began
	}
	text := "no connection for " + age(time.Since(since))
	attempt := c.attempt.Load()
	switch {
	case c.hold.isRegistering():
		text += ", Register has not returned"
	case !c.dials:
		text += ", waiting for it to dial"
	case attempt == nil && why == "" && c.state.get() == StateUnconnected:
		text += ", not dialled yet"
	}
	if why != "" {
		text += ": " + why
	}
	switch {
	case attempt == nil:
	case c.dials:
		text += ", connecting (" + attempt.reached() + ")"
	default:
		text += ", knocking (" + attempt.reached() + ")"
	}
	if notAccepted {
		return &notAcceptedError{text}
	}
	return errors.New(text)
}

// age is d as precise as it matters.
func age(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// Subroute returns the connection to handlers that are registered under a subroute; see [Subroute].
// An empty s gives calls that fail.
func (c *Connection) Subroute(s string) *Subroute {
	if c == nil {
		return nil
	}
	return newSubroute(c, s)
}

// HostName returns the base URL of the remote host; empty for nil.
func (c *Connection) HostName() string {
	if c == nil {
		return ""
	}
	return c.remote
}

// String returns the base URL of the remote host; "<nil>" for nil.
func (c *Connection) String() string {
	if c == nil {
		return "<nil>"
	}
	return c.remote
}

// MaxMessageSize is the largest payload, in bytes, that a call or a message of a stream may have:
// MaxMessageSize of this host, or that of the remote if it is less. The remote says it when the
// connection is made, so it may be less after that. It is 0 for nil.
func (c *Connection) MaxMessageSize() int {
	if c == nil {
		return 0
	}
	if s := c.session.Load(); s != nil {
		return s.terms.sendSize.bytes
	}
	return c.opts.MaxMessageSize
}

// State returns the present state; [StateUnconnected] for nil.
func (c *Connection) State() State {
	if c == nil {
		return StateUnconnected
	}
	return c.state.get()
}

// WaitForConnect waits until the state is [StateConnected]. Where it is not, an attempt to connect
// is made at once, or the other side is asked for one, at most once a second. If ctx ends before,
// it returns the error of that, as a call does, with the host and why it is not connected in the
// text. It returns an error that wraps [ErrDisconnected] at once where none will be made any more:
// once the Manager shuts down, for a host that was removed and for nil. The connection may be lost
// again by the time it returns.
func (c *Connection) WaitForConnect(ctx context.Context) error {
	if c == nil {
		return errNoConnection
	}
	if c.session.Load() == nil {
		c.hasten()
	}
	err := c.state.waitConnected(ctx)
	switch {
	case err == errEnded:
		return c.unavailable()
	case err != nil:
		return &waitError{err, c.remote, c.whyNone()}
	}
	return nil
}

// untilIdle returns nil if nothing is under way on the connection, else what is closed when that
// may have changed.
func (c *Connection) untilIdle() <-chan struct{} {
	if busy := c.taken.handlers.UntilIdle(); busy != nil {
		return busy
	}
	for _, s := range c.sessions() {
		if busy := s.untilIdle(); busy != nil {
			return busy
		}
	}
	return nil
}

// end makes the state the last one. What there is of sessions is for shutdown to close.
func (c *Connection) end(reason error) {
	c.cancel(reason)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.set(StateShutdown, reason)
}

// shutdown ends the connection for good.
func (c *Connection) shutdown(reason error) {
	c.end(reason)
	for _, s := range c.sessions() {
		s.close(reason)
	}
}

// lostLink logs why a connection was lost: the first time and then once an hour, counted together
// with failed attempts to make one.
func (c *Connection) lostLink(err error) {
	if c.isFaulty(err) {
		c.errors.Warn(c.log, "grid: connection lost", withoutHost(err))
	}
}

// cannotConnect logs a failed attempt to connect, of each reason the first and then one an hour.
func (c *Connection) cannotConnect(err error) {
	if c.isFaulty(err) {
		c.errors.WarnReason(c.log, "grid: cannot connect", err)
	}
}

// isFaulty notes what went wrong, and reports whether it is to be logged: not once this side ends.
func (c *Connection) isFaulty(err error) bool {
	if c.isClosing() || c.draining.Load() {
		return false
	}
	c.stats.fault(err)
	return true
}

// logRefused logs a failed handshake of the remote's, of each reason the first and then one an
// hour. It says nothing about a connection that there may be.
func (c *Connection) logRefused(addr string, err error) {
	if c.isClosing() {
		return
	}
	c.stats.fault(err)
	c.refused.WarnReason(c.log.With("addr", addr), "grid: handshake failed", err)
}

// overload logs that a limit was reached: of each the first time, and then once an hour.
func (c *Connection) overload(err error) {
	var limit *limitError
	if !errors.As(err, &limit) {
		return
	}
	c.stats.limitReached(limit.option)
	c.limitsMu.Lock()
	log := c.limits[limit.option]
	if log == nil {
		log = new(errlog.Log)
		c.limits[limit.option] = log
	}
	c.limitsMu.Unlock()
	log.Warn(c.log, "grid: limit reached", err)
}

// isClosing reports whether the connection has been shut down.
func (c *Connection) isClosing() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}
