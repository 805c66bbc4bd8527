package grid

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/gridrpc/grid/internal/asynclog"
	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/hostname"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/offload"
	"github.com/gridrpc/grid/internal/token"
	"github.com/gridrpc/grid/internal/wheel"
	"github.com/gridrpc/grid/internal/wsconn"
)

// Manager is this host's end of the grid: it holds one [Connection] to every other host, and the
// handlers that they may call. All methods may be called concurrently.
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
	ended     chan struct{}   // closed at the end of close
	unwatch   func() bool     // ends the watch on the context of NewManager
	hold      holdBack        // of what would connect
	draining  atomic.Bool     // set by Shutdown: nothing is taken from other hosts any more
	noLocal   atomic.Bool     // nor from this one
	noCalls   atomic.Bool     // and no call is made
	unknown   errlog.Log      // handshakes of hosts that are not known, or too many
	forbidden errlog.Log      // upgrades that were refused
	incoming  incoming
	strangers strangers
	limits    totals
	secret    atomic.Pointer[token.Secret] // nil without SharedSecret
	passes    token.Used                   // of hosts that dialled
	callbacks offload.Group                // runs functions of the application's
	untold    limit.Slots                  // calls that interceptors were told of, but not of the end; no limit
	attempts  attempts                     // to connect to the others
	ticks     wheel.Wheel                  // of all sessions
	traffic   wsconn.Counters              // Incoming and Outgoing
	panics    errlog.Log                   // of these

	hosts   atomic.Pointer[hostSet]
	hostsMu sync.Mutex // serialises changes of hosts

	closeOnce sync.Once

	mu     sync.Mutex // guards closed, so that nothing starts after Close waits
	closed bool
	work   sync.WaitGroup // goroutines of dialling, accepting and of sessions
}

// NewManager checks the options, calls Register of them, and begins to connect to the other hosts,
// at once or when BlockConnect is closed. Mount [Manager.Handler] so that they can reach this one.
// The end of ctx closes the Manager, as [Manager.Close] does.
//
// An error names the option that is wrong, or wraps that of Register.
func NewManager(ctx context.Context, o ManagerOptions) (*Manager, error) {
	opts, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Manager{ID: uuid.New(), opts: opts, ended: make(chan struct{})}
	opts.Logger = asynclog.New(&m.callbacks, opts.Logger.Handler(), slog.String("local", opts.Local))
	if opts.SharedSecret != nil {
		if err := m.setSecret(opts.SharedSecret); err != nil {
			return nil, err
		}
		opts.SharedSecret = nil // the keys are kept in one place
	}
	m.ctx, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	m.closing = m.ctx.Done()
	m.handlers.init(opts, &m.limits)
	m.limits.init(opts)
	m.ticks.Init(tickPeriod(opts, opts.StreamPingInterval))
	m.untold.Init("", "", math.MaxInt, nil, nil)
	if opts.OnStateChange != nil {
		m.stateHook = newStateHook(&m.callbacks, opts.OnStateChange, opts.Logger)
	}
	m.traffic.Read = m.newMeter("Incoming", opts.Incoming)
	m.traffic.Written = m.newMeter("Outgoing", opts.Outgoing)
	m.hosts.Store(&hostSet{})
	m.hold.init(opts)
	if opts.LocalCalls {
		m.self = newSelfLink(m)
	}
	if opts.AcceptHost != nil && opts.ForgetAfter > 0 {
		m.start(m.keepForgetting)
	}
	m.unwatch = context.AfterFunc(ctx, m.close)
	if err := m.open(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// open makes the connections, has the application register its handlers, and lets the connections
// connect.
func (m *Manager) open() error {
	if err := m.SetHosts(m.opts.Hosts); err != nil {
		return err
	}
	if err := m.register(); err != nil {
		return fmt.Errorf("grid: Register: %w", err)
	}
	if m.self != nil {
		if err := m.startSelf(); err != nil && !m.draining.Load() && m.ctx.Err() == nil {
			return fmt.Errorf("grid: LocalCalls: %w", err)
		}
	}
	return nil
}

// newMeter makes the meter of a function of the application's, nil for none.
func (m *Manager) newMeter(name string, tell func(n int64)) *offload.Meter {
	if tell == nil {
		return nil
	}
	return offload.NewMeter(&m.callbacks, func(n int64) {
		defer func() {
			if p := recover(); p != nil {
				m.panics.Panicked(m.opts.Logger, "grid: "+name+" panicked", p)
			}
		}()
		tell(n)
	})
}

// HostName returns the base URL of this host.
func (m *Manager) HostName() string { return m.opts.Local }

// MaxMessageSize is the largest payload, in bytes, that this host sends and takes: that of the
// options, or its default. [Connection.MaxMessageSize] is the largest that one host takes.
func (m *Manager) MaxMessageSize() int { return m.opts.MaxMessageSize }

// Done returns a channel that is closed when the Manager is: by [Manager.Close], at the end of
// [Manager.Shutdown], and by the end of the context of [NewManager]. Calls fail from then on. Close
// may still wait for what it has ended.
func (m *Manager) Done() <-chan struct{} { return m.ended }

// Targets returns the base URLs of the other hosts, sorted. The slice is the caller's.
func (m *Manager) Targets() []string { return slices.Clone(m.hosts.Load().targets) }

// Connection returns the connection to host, by its base URL in any spelling; nil for one that is
// not known, and for the local host unless ManagerOptions.LocalCalls is set. The methods of a nil
// *Connection return [ErrDisconnected]. [Manager.Lookup] says why there is none.
func (m *Manager) Connection(host string) *Connection {
	if c := m.peer(host); c != nil {
		return c
	}
	if m.self != nil {
		if normal, err := hostname.Normalize(host); err == nil && normal == m.opts.Local {
			return m.self.near
		}
	}
	return nil
}

// Requesters returns the connections to hosts, in their order, for a call to many such as
// [SingleHandler.CallEach]; for all other hosts, give it those of [Manager.Targets]. Each is what
// [Manager.Connection] returns, which is nil for a host that is not known. Without any hosts it
// returns none, so that an empty list never stands for everybody.
func (m *Manager) Requesters(hosts ...string) []Requester {
	all := make([]Requester, len(hosts))
	for i, host := range hosts {
		all[i] = m.Connection(host)
	}
	return all
}

// RequestersWith is Requesters for calls with options: each is what [Connection.With] returns, so
// that Timeout, say, holds for each host alone.
func (m *Manager) RequestersWith(o CallOptions, hosts ...string) []Requester {
	all := make([]Requester, len(hosts))
	for i, host := range hosts {
		all[i] = m.Connection(host).With(o)
	}
	return all
}

// Lookup is Connection with an error in place of nil, which says that host is not among the hosts,
// and which of them may be meant, or that it is the local host.
func (m *Manager) Lookup(host string) (*Connection, error) {
	if c := m.Connection(host); c != nil {
		return c, nil
	}
	normal, err := normalHost(host)
	if err == nil && normal == m.opts.Local {
		return nil, fmt.Errorf("grid: %s is the local host, and LocalCalls is not set", clip.Name(host))
	}
	if meant := hostname.Suggest(host, append(m.Targets(), m.opts.Local)); meant != "" {
		return nil, fmt.Errorf("grid: %s is not among the hosts (did you mean %s?)", clip.Name(host), meant)
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("grid: %s is not among the hosts", clip.Name(host))
}

// begin registers a goroutine that Close waits for, with m.work.Done to be called at its end. It
// reports whether that may start: not once the manager is closed.
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

// Close closes all connections: calls and streams that are under way end with [ErrDisconnected],
// also those of the remote hosts, and the contexts of handlers end. It waits for everything that
// grid itself has started, but not for handlers, and for functions of the application's, such as
// the Logger, OnStateChange and the ends of interceptors, no longer than a second. It may be called
// more than once, from a handler and from any of these functions, and always returns nil.
func (m *Manager) Close() error {
	m.callbacks.Go(func() { m.unwatch() }) // which may call a context of the application's
	m.close()
	m.work.Wait()
	m.traffic.Flush()
	m.callbacks.Wait(callbackTime)
	return nil
}

// callbackTime is how long Close waits for functions of the application's: so that the last lines
// are written, and the last changes told, where nothing is stuck.
const callbackTime = time.Second

// close ends all that there is. It waits for nothing but a call of it that is under way, which may
// be for the end of the context of NewManager: when any returns, all has been told.
func (m *Manager) close() { m.closeOnce.Do(m.closeAll) }

func (m *Manager) closeAll() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel(errClosed)
	m.hostsMu.Lock() // none is added any more
	all := m.connections()
	m.hostsMu.Unlock()
	for _, c := range all {
		c.shutdown(errClosed)
	}
	m.stateHook.close()
	close(m.ended)
}
