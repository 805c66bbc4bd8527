package grid

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/gridrpc/grid/internal/wsconn"
)

// Manager is this host's end of the grid: it holds one [Connection] to every
// other host, and the handlers that they may call. All methods may be called
// concurrently.
type Manager struct {
	// ID is new for every Manager, so that its peers can tell a restart.
	ID uuid.UUID

	// Set once.
	opts      *ManagerOptions
	self      *selfLink  // nil without LocalCalls
	stateHook *stateHook // nil without OnStateChange
	handlers  registry
	ctx       context.Context // ends with the manager
	cancel    context.CancelCauseFunc
	closing   <-chan struct{} // of ctx
	unwatch   func() bool     // ends the watch on the context of NewManager
	draining  atomic.Bool     // set by Shutdown
	unknown   errorLog        // handshakes of hosts that are not known, or too many
	forbidden errorLog        // upgrades that were refused
	incoming  incoming

	hosts   atomic.Pointer[hostSet]
	hostsMu sync.Mutex // serialises changes of hosts

	mu     sync.Mutex // guards closed, so that nothing starts after Close waits
	closed bool
	work   sync.WaitGroup // goroutines of dialling, accepting and of sessions
}

// NewManager checks the options and begins to connect to the other hosts, at
// once or when BlockConnect is closed. Mount [Manager.Handler] so that they can
// reach this one. The end of ctx closes the Manager, as [Manager.Close] does.
//
// An error names the option that is wrong.
func NewManager(ctx context.Context, o ManagerOptions) (*Manager, error) {
	opts, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Manager{ID: uuid.New(), opts: opts}
	m.ctx, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	m.closing = m.ctx.Done()
	m.handlers.init(opts)
	if opts.OnStateChange != nil {
		m.stateHook = newStateHook(opts.OnStateChange, opts.Logger)
		m.start(m.stateHook.run)
	}
	m.hosts.Store(&hostSet{})
	if opts.LocalCalls {
		if err := m.startSelf(); err != nil {
			m.close()
			return nil, fmt.Errorf("grid: LocalCalls: %w", err)
		}
	}
	if err := m.SetHosts(opts.Hosts); err != nil {
		return nil, err
	}
	m.unwatch = context.AfterFunc(ctx, m.close)
	return m, nil
}

// HostName returns the base URL of this host.
func (m *Manager) HostName() string { return m.opts.Local }

// Targets returns the base URLs of the other hosts, sorted. The slice is the
// caller's.
func (m *Manager) Targets() []string { return slices.Clone(m.hosts.Load().targets) }

// Connection returns the connection to host, by its base URL; nil for one that is not
// known, and for the local host unless ManagerOptions.LocalCalls is set. The methods
// of a nil *Connection return [ErrDisconnected].
func (m *Manager) Connection(host string) *Connection {
	if host == m.opts.Local && m.self != nil {
		return m.self.near
	}
	return m.peer(host)
}

// Handler returns the HTTP handler through which the other hosts connect. Mount
// it at RoutePath; it needs HTTP/1.1 and a ResponseWriter that can be hijacked.
//
// A request that is no websocket upgrade is answered 426. One whose bearer token
// AuthToken refuses, or where one of authReq is given, that any of those refuses
// in place of AuthToken, is answered 403, and so is one that a browser sends for
// a page of another origin. Upgrades are answered 503 once the Manager is shutting
// down, and while there are more than MaxHandshakes.
func (m *Manager) Handler(authReq ...func(r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !wsconn.IsUpgrade(r) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			http.Error(w, "grid: a websocket upgrade is required here", http.StatusUpgradeRequired)
			return
		}
		a, err := m.incoming.enter(m.ctx)
		if err != nil {
			m.stranger(r, err)
			unavailable(w, err)
			return
		}
		defer a.leave()
		if err := a.busy(func() error { return m.authorise(r, authReq) }); err != nil {
			m.forbidden.warn(m.opts.Logger.With("local", m.opts.Local, "addr", r.RemoteAddr), "grid: upgrade refused", err)
			http.Error(w, "grid: forbidden", http.StatusForbidden)
			return
		}
		if m.draining.Load() || !m.begin() {
			unavailable(w, errShuttingDown)
			return
		}
		// Also where a function of the application has panicked.
		defer m.work.Done()
		if s := m.accept(w, r, a); s != nil {
			// The request ends here; the session goes on without what the HTTP
			// server keeps for it.
			m.start(func() { s.conn.serve(s) })
		}
	}
}

func unavailable(w http.ResponseWriter, reason error) {
	http.Error(w, "grid: "+reason.Error(), http.StatusServiceUnavailable)
}

// authorise returns why a request is refused.
func (m *Manager) authorise(r *http.Request, authReq []func(*http.Request) error) error {
	check := func() error { return m.opts.validate(bearerToken(r)) }
	if len(authReq) > 0 {
		check = func() error {
			for _, f := range authReq {
				if err := f(r); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if err := check(); err != nil {
		return errors.New(redact(err.Error(), bearerToken(r)))
	}
	return nil
}

// bearerToken is the token of a request, empty for none.
func bearerToken(r *http.Request) string {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return token
}

// accept upgrades a request and performs the handshake. It returns nil if that
// failed.
func (m *Manager) accept(w http.ResponseWriter, r *http.Request, a *arrival) *session {
	waitCtx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	if !waitFor(waitCtx, m.opts.BlockConnect) {
		reason := context.Cause(a.ctx)
		if m.ctx.Err() != nil {
			reason = errClosed
		} else if reason != nil {
			m.stranger(r, reason)
		} else {
			reason = context.Cause(waitCtx) // the client has gone
		}
		unavailable(w, reason)
		return nil
	}
	// From here on the request's context means nothing: hijacking ends it.
	ctx, cancel := context.WithTimeout(a.ctx, m.opts.HandshakeTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	ws, err := wsconn.Upgrade(w, r, handshakeLimit, deadline, m.opts.counters())
	if err != nil {
		m.opts.Logger.Debug("grid: upgrade failed", "local", m.opts.Local, "addr", r.RemoteAddr, "error", err)
		return nil
	}

	var s *session
	defer func() {
		// Also where a function of the application has panicked.
		if s == nil {
			ws.Close()
		}
	}()
	var c *Connection
	s, err = handshake(ctx, ws, func() (s *session, err error) {
		c, s, err = m.answer(ws, r, a)
		return s, err
	})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errTooManyHandshakes) {
		err = cause
	}
	switch {
	case err == nil:
	case c != nil:
		c.refusal(r.RemoteAddr, err)
	default:
		m.stranger(r, err)
	}
	return s
}

// stranger logs the failed handshake of somebody who is not known, the first
// and then one an hour: they must not fill the log.
func (m *Manager) stranger(r *http.Request, err error) {
	m.unknown.warn(m.opts.Logger.With("local", m.opts.Local, "addr", r.RemoteAddr), "grid: handshake failed", err)
}

// begin registers a goroutine that Close waits for, with m.work.Done to be
// called at its end. It returns false once the manager is closed.
func (m *Manager) begin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.work.Add(1)
	}
	return !m.closed
}

// start runs f on a goroutine that Close waits for, unless it is closed.
func (m *Manager) start(f func()) {
	if m.begin() {
		go func() {
			defer m.work.Done()
			f()
		}()
	}
}

// Close closes all connections: calls and streams that are under way end with
// [ErrDisconnected], also those of the remote hosts, and the contexts of
// handlers end. It waits for everything that grid itself has started, but not
// for handlers. It may be called more than once and from a handler, and always
// returns nil.
func (m *Manager) Close() error {
	m.unwatch()
	m.close()
	m.work.Wait()
	return nil
}

func (m *Manager) close() {
	m.mu.Lock()
	closed := m.closed
	m.closed = true
	m.mu.Unlock()
	if closed {
		return
	}
	m.cancel(errClosed)
	m.hostsMu.Lock() // none is added any more
	all := m.connections()
	m.hostsMu.Unlock()
	for _, c := range all {
		c.shutdown(errClosed)
	}
	m.stateHook.close()
}
