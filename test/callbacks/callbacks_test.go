package callbacks

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// callback is a function of the application's that grid calls.
type callback struct {
	// install puts it into the options; it calls act.
	install func(o *grid.ManagerOptions, act func())
	// prepare puts it into the server, if it is not an option.
	prepare func(n *rig.Node, act func())
	// trigger has it called; by default the link is cut.
	trigger func(r *room)
	// connects is where it takes part in an attempt to connect, in the words of errors; of this
	// side, or, with accepts, of the other.
	connects string
	accepts  bool
	// removes is set where the link is not lost, but the host removed, so that it is unknown when it
	// comes back.
	removes bool
	// panicsAreTheCallers says that whoever calls grid gets its panic.
	panicsAreTheCallers bool
	// stuckClose is set where Close does not wait for it at all.
	stuckClose bool
}

var callbacks = map[string]callback{
	"Logger":        {install: func(o *grid.ManagerOptions, act func()) { o.Logger = slog.New(logger{o.Logger.Handler(), act}) }, panicsAreTheCallers: true},
	"OnStateChange": {install: func(o *grid.ManagerOptions, act func()) { o.OnStateChange = func(grid.StateChange) { act() } }},
	"Incoming":      {install: func(o *grid.ManagerOptions, act func()) { o.Incoming = func(int64) { act() } }, trigger: request},
	"Outgoing":      {install: func(o *grid.ManagerOptions, act func()) { o.Outgoing = func(int64) { act() } }, trigger: request},
	"AuthFn":        {install: func(o *grid.ManagerOptions, act func()) { o.AuthFn = func() string { act(); return rig.Token } }, connects: "in AuthFn"},
	"UpgradeHeader": {install: func(o *grid.ManagerOptions, act func()) {
		o.UpgradeHeader = func(string) http.Header { act(); return nil }
	}, connects: "in UpgradeHeader"},
	"a function given to Handler": {prepare: func(n *rig.Node, act func()) {
		n.Server.Handler = n.Handler(func(*http.Request) error { act(); return nil })
	}, accepts: true},
	"AuthToken":                   {install: func(o *grid.ManagerOptions, act func()) { o.AuthToken = func(string) error { act(); return nil } }, accepts: true},
	"AuthToken, in the handshake": {install: func(o *grid.ManagerOptions, act func()) { o.AuthToken = inHandshake(act) }, accepts: true, connects: "in the handshake, in AuthToken"},
	"VerifyPeer": {install: func(o *grid.ManagerOptions, act func()) {
		o.VerifyPeer = func(string, *http.Request) error { act(); return nil }
	}, accepts: true, connects: "in the handshake, in VerifyPeer"},
	"AcceptHost":             {install: accepting, accepts: true, removes: true, connects: "in the handshake, in AcceptHost"},
	"AcceptHost, of a knock": {install: accepting, removes: true, connects: "in AcceptHost"},
	"Dialer": {install: func(o *grid.ManagerOptions, act func()) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			act()
			return dial(context.WithoutCancel(ctx), network, addr)
		}
	}, connects: "while dialling"},
	"InterceptCall":                    {install: calling(true), trigger: request, panicsAreTheCallers: true, stuckClose: true},
	"InterceptCall, end of a request":  {install: calling(false), trigger: request, stuckClose: true},
	"InterceptCall, end of a stream":   {install: calling(false), trigger: stream},
	"InterceptServe":                   {install: serving(true), trigger: served(request), stuckClose: true},
	"InterceptServe, of a stream":      {install: serving(true), trigger: served(stream), stuckClose: true},
	"InterceptServe, end of a request": {install: serving(false), trigger: served(request), stuckClose: true},
	"InterceptServe, end of a stream":  {install: serving(false), trigger: served(stream), stuckClose: true},
	"the function given to Ready": {trigger: func(r *room) {
		r.m.Ready(func([]grid.HostLink) bool { r.call(); return true })(httptest.NewRecorder(), httptest.NewRequest("GET", "/ready", nil))
	}, panicsAreTheCallers: true, stuckClose: true},
	"ServeOptions.Handler": {trigger: func(r *room) {
		l, err := r.Net.Listen("serves:1")
		require.NoError(r.t, err)
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = r.m.Serve(ctx, l, grid.ServeOptions{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { r.call() })})
		}()
		r.t.Cleanup(func() { stop(); <-ended })
		client := &http.Client{Transport: &http.Transport{DialContext: r.Net.Dialer("client:1"), DisableKeepAlives: true}}
		if resp, err := client.Get("http://serves:1/"); err == nil {
			resp.Body.Close()
		}
	}, stuckClose: true},
	"CodecOf, at the caller": {trigger: func(r *room) {
		h, codec := coded(func() { r.call() }, nil)
		_, _ = h.Call(context.Background(), r.Conn(r.it, r.peer), codec.NewWith(new(int)))
	}, panicsAreTheCallers: true, stuckClose: true},
	"CodecOf, at the handler": {trigger: func(r *room) {
		h, _ := coded(nil, func() { r.call() })
		require.NoError(r.t, h.Register(r.m, func(n *grid.Coded[int]) (*grid.Coded[int], *grid.RemoteErr) { return n, nil }))
		_, _ = r.Conn(r.peer, r.it).SingleRequest(context.Background(), rig.Handler, []byte{0xc4, 0}) // no bytes, as MessagePack
	}, panicsAreTheCallers: true, stuckClose: true},
}

// coded is a handler whose payloads have an encoding that calls these functions, which may be nil.
func coded(marshals, unmarshals func()) (*grid.SingleHandler[*grid.Coded[int], *grid.Coded[int]], *grid.Codec[int]) {
	call := func(f func()) {
		if f != nil {
			f()
		}
	}
	codec := grid.CodecOf(
		func(*int) ([]byte, error) { call(marshals); return nil, nil },
		func(*int, []byte) error { call(unmarshals); return nil })
	return grid.NewSingleHandler(rig.Handler, codec.New, codec.New), codec
}

// room is three nodes: the first has the callback, which is called because of the second, while the
// third has nothing to do with it.
type room struct {
	*rig.Grid
	t               *testing.T
	it, peer, other int
	log             *rig.LogBook
	m               *grid.Manager // of it

	armed atomic.Bool
	call  func() // the callback, where it is part of what triggers it
	stuck chan struct{}
	done  chan error // when the function has done what it does, if it returns
}

var errStuck = fmt.Errorf("does not return")

// behaviours are what a callback does, once.
var behaviours = map[string]func(r *room) error{
	"panic":  func(*room) error { panic("from inside") },
	"Goexit": func(*room) error { runtime.Goexit(); return nil },
	"block":  func(r *room) error { <-r.stuck; return errStuck },
	"call": func(r *room) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := r.m.Connection(r.Host(r.other)).SingleRequest(ctx, rig.Echo, []byte("x"))
		return err
	},
	"hosts": func(r *room) error {
		if err := r.m.RemoveHost(r.Host(r.other)); err != nil {
			return err
		}
		return r.m.AddHost(r.Host(r.other))
	},
	"Close": func(r *room) error { return r.m.Close() },
}

// act is what the callback calls.
func (r *room) act(do func(r *room) error) {
	if r.armed.CompareAndSwap(true, false) {
		r.done <- do(r)
	}
}

func newRoom(t *testing.T, c callback, do func(r *room) error) *room {
	hosts := rig.Names("http", 3)
	r := &room{t: t, stuck: make(chan struct{}), done: make(chan error, 1)}
	for r.peer = 1; rawpeer.DialOrder(hosts[r.it], hosts[r.peer]) == c.accepts; { // each is dialled, or dials
		if r.peer++; r.peer == len(hosts) {
			r.it, r.peer = r.it+1, 0
		}
		if r.peer == r.it {
			r.peer++
		}
	}
	r.other = 3 - r.it - r.peer
	act := func() { r.act(do) }
	r.call = act
	r.Grid = rig.Setup{Hosts: hosts, Edit: func(i int, o *grid.ManagerOptions) {
		if i == r.it {
			o.Logger, r.log = rig.NewLogBook()
			if c.install != nil {
				c.install(o, act)
			}
		}
	}, Prepare: func(n *rig.Node) {
		if n.HostName() == hosts[r.it] && c.prepare != nil {
			c.prepare(n, act)
		}
	}}.Start(t)
	r.m = r.Manager(r.it)
	return r
}

func request(r *room) {
	_, _ = r.Conn(r.it, r.peer).SingleRequest(r.t.Context(), rig.Echo, []byte("x"))
}

func stream(r *room) {
	s, err := r.Conn(r.it, r.peer).NewStream(r.t.Context(), rig.TwoWay, nil)
	if err != nil {
		return
	}
	s.CloseSend()
	_ = rig.Consume(s)
}

// served has the peer do what f does.
func served(f func(r *room)) func(r *room) {
	return func(r *room) {
		f(&room{Grid: r.Grid, t: r.t, it: r.peer, peer: r.it})
	}
}

// inHandshake is an AuthToken that acts in the handshake, not with an upgrade request or a knock.
func inHandshake(act func()) func(string) error {
	return func(string) error {
		if strings.Contains(string(debug.Stack()), "checkToken") {
			act()
		}
		return nil
	}
}

func accepting(o *grid.ManagerOptions, act func()) {
	o.AcceptHost = func(context.Context, string, *http.Request) error { act(); return nil }
}

// logger is a handler whose every method acts.
type logger struct {
	slog.Handler
	act func()
}

func (l logger) Handle(ctx context.Context, r slog.Record) error {
	l.act()
	return l.Handler.Handle(ctx, r)
}
func (l logger) WithAttrs(a []slog.Attr) slog.Handler { return logger{l.Handler.WithAttrs(a), l.act} }
func (l logger) WithGroup(n string) slog.Handler      { return logger{l.Handler.WithGroup(n), l.act} }

// interceptor acts at the begin of a call or at its end.
type interceptor struct {
	begin bool
	act   func()
}

func (i interceptor) tell(ctx context.Context) (context.Context, func(grid.CallResult), error) {
	if i.begin {
		i.act()
		return ctx, nil, nil
	}
	return ctx, func(grid.CallResult) { i.act() }, nil
}

func (i interceptor) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return i.tell(ctx)
}

func (i interceptor) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return i.tell(ctx)
}

func calling(begin bool) func(o *grid.ManagerOptions, act func()) {
	return func(o *grid.ManagerOptions, act func()) {
		o.CallInterceptors = []grid.CallInterceptor{interceptor{begin, act}}
	}
}

func serving(begin bool) func(o *grid.ManagerOptions, act func()) {
	return func(o *grid.ManagerOptions, act func()) {
		o.ServeInterceptors = []grid.ServeInterceptor{interceptor{begin, act}}
	}
}

// requireWorks requires that i can call j, at once.
func (r *room) requireWorks(i, j int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
	defer cancel()
	_, err := r.Conn(i, j).SingleRequest(ctx, rig.Echo, []byte("x"))
	require.NoError(r.t, err)
	s, err := r.Conn(i, j).NewStream(ctx, rig.TwoWay, nil)
	require.NoError(r.t, err)
	s.CloseSend()
	require.NoError(r.t, rig.Consume(s))
}

// start has the callback called, and waits until it has done what it does, or hangs.
func (r *room) start(c callback) (called <-chan struct{}) {
	ended := make(chan struct{})
	synctest.Wait() // until the knocks with which hosts begin are answered, which call it as well
	r.armed.Store(true)
	go func() {
		defer close(ended)
		defer func() { _ = recover() }()
		switch {
		case c.trigger != nil:
			c.trigger(r)
		case c.removes:
			_ = r.m.RemoveHost(r.Host(r.peer))
		default:
			r.Cut(r.it, r.peer)
		}
	}()
	time.Sleep(30 * time.Second) // an attempt to connect, and the time that it may take
	synctest.Wait()
	require.False(r.t, r.armed.Load(), "it was not called")
	return ended
}

// Whatever a function of the application's does: no link suffers but the one that it has to let in,
// which comes back afterwards, no call of others is held up, and Close returns.
func TestCallbacks_DoAsTheyLike(t *testing.T) {
	for name, c := range callbacks {
		for doing, do := range behaviours {
			t.Run(name+"/"+doing, func(t *testing.T) {
				rig.InBubble(t, func(t *testing.T) {
					r := newRoom(t, c, do)
					before := r.Conn(r.other, r.it).Stats().Reconnects
					connects := c.connects != "" || c.accepts
					called := r.start(c)
					switch doing {
					case "Close":
						require.NoError(t, <-r.done, "it returned")
						require.Equal(t, grid.StateShutdown, r.m.Connection(r.Host(r.other)).State())
						<-called
						return
					case "call", "hosts":
						require.NoError(t, <-r.done)
					case "block":
						require.Empty(t, r.done)
						require.Empty(t, r.log.About("grid: log lines dropped"))
					case "panic":
						require.Equal(t, !c.panicsAreTheCallers, len(r.log.About("panic")) > 0)
					}
					if doing != "block" {
						<-called
					}
					if hangs := doing == "block" && connects; hangs && c.removes {
						require.Nil(t, r.Conn(r.it, r.peer))
						why := r.Conn(r.peer, r.it).Stats().LastError
						require.Contains(t, why, "it is on its way in already, "+c.connects)
					} else if hangs && c.connects != "" {
						why := r.Conn(r.it, r.peer).Stats().LastError
						require.Contains(t, why, c.connects)
						// The other side has knocked, so nobody waits for HandshakeTimeout.
						require.NotEmpty(t, append(r.log.About("timed out after 10s (HandshakeTimeout) "+c.connects), r.log.About("an earlier attempt still hangs "+c.connects)...))
					} else if !hangs {
						r.WaitConnected()
						r.requireWorks(r.it, r.peer)
						r.requireWorks(r.peer, r.it)
					}
					// For longer than a link without a pong.
					time.Sleep(2 * time.Minute)
					r.requireWorks(r.it, r.other)
					r.requireWorks(r.other, r.it)
					if doing != "hosts" {
						require.Equal(t, before, r.Conn(r.other, r.it).Stats().Reconnects)
					}
					if doing == "block" {
						most := 2 * time.Second
						if c.stuckClose {
							most = 0
						}
						require.LessOrEqual(t, rig.Elapsed(func() { require.NoError(t, r.m.Close()) }), most)
						close(r.stuck)
						require.Equal(t, errStuck, <-r.done)
						<-called
					}
				})
			})
		}
	}
}

// When a callback that hung returns, the link that it has held up comes back.
func TestCallbacks_ThatHungLetTheLinkComeBack(t *testing.T) {
	for name, c := range callbacks {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				r := newRoom(t, c, behaviours["block"])
				called := r.start(c)
				time.Sleep(2 * time.Minute)
				close(r.stuck)
				require.Equal(t, errStuck, <-r.done)
				<-called
				r.WaitConnected()
				r.requireWorks(r.it, r.peer)
				r.requireWorks(r.peer, r.it)
			})
		})
	}
}
