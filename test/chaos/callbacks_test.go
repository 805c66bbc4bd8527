package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/gridrpc/grid"
)

// callback is a function of the application's that a manager calls.
type callback int

const (
	logging callback = iota
	authFn
	authToken
	verifyPeer
	dialer
	upgradeHeader
	incoming
	outgoing
	stateChange
	callBegin
	callEnd
	serveBegin
	serveEnd
	callbacks
)

var callbackNames = [callbacks]string{
	"Logger", "AuthFn", "AuthToken", "VerifyPeer", "Dialer", "UpgradeHeader", "Incoming", "Outgoing",
	"OnStateChange", "InterceptCall", "the end of InterceptCall", "InterceptServe",
	"the end of InterceptServe",
}

func (c callback) String() string { return callbackNames[c] }

var everyCallback = []callback{
	logging, authFn, authToken, verifyPeer, dialer, upgradeHeader, incoming, outgoing,
	stateChange, callBegin, callEnd, serveBegin, serveEnd,
}

// harmless are those whose block holds up nothing, for however long.
var harmless = []callback{logging, incoming, outgoing, stateChange}

func drawFrom(rng *rand.Rand, some []callback) callback { return some[rng.IntN(len(some))] }

// connects reports whether there is no link without it.
func (c callback) connects() bool { return c < stateChange }

// planned is with what a callback panics.
type planned struct{ callback }

func (p planned) String() string { return fmt.Sprintf("%v panics as it should", p.callback) }

// trouble is what has come over a callback.
type trouble struct {
	panics bool
	over   chan struct{} // closed when it is
}

// hooks are the callbacks of a node, whichever manager runs there.
type hooks [callbacks]atomic.Pointer[trouble]

// begin lets a callback block or panic, until the end is called.
func (h *hooks) begin(c callback, panics bool) (end func()) {
	t := &trouble{panics: panics, over: make(chan struct{})}
	h[c].Store(t)
	return func() {
		h[c].Store(nil)
		close(t.over)
	}
}

// call is what each callback does.
func (h *hooks) call(c callback) {
	switch t := h[c].Load(); {
	case t == nil:
	case t.panics:
		panic(plannedError{planned{c}})
	default:
		<-t.over
	}
}

// options sets all callbacks. Interceptors make a difference to what is tested, so half of the
// hosts have none.
func (h *hooks) options(host int, o *grid.ManagerOptions) {
	o.Logger = slog.New(logHook{h})
	auth, check, dial := o.AuthFn, o.AuthToken, o.Dialer
	o.AuthFn = func() string { h.call(authFn); return auth() }
	o.AuthToken = func(token string) error { h.call(authToken); return check(token) }
	o.VerifyPeer = func(string, *http.Request) error { h.call(verifyPeer); return nil }
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		h.call(dialer)
		return dial(ctx, network, addr)
	}
	o.UpgradeHeader = func(string) http.Header { h.call(upgradeHeader); return nil }
	o.Incoming = func(int64) { h.call(incoming) }
	o.Outgoing = func(int64) { h.call(outgoing) }
	o.OnStateChange = func(grid.StateChange) { h.call(stateChange) }
	if host%2 == 1 {
		// One that was removed comes back before it is added again.
		o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
	}
	if host%2 == 0 {
		o.CallInterceptors = []grid.CallInterceptor{interceptor{h}}
		o.ServeInterceptors = []grid.ServeInterceptor{interceptor{h}}
	}
}

// logHook is a log that nobody reads.
type logHook struct{ *hooks }

func (l logHook) Enabled(context.Context, slog.Level) bool  { return true }
func (l logHook) Handle(context.Context, slog.Record) error { l.call(logging); return nil }
func (l logHook) WithAttrs([]slog.Attr) slog.Handler        { return l }
func (l logHook) WithGroup(string) slog.Handler             { return l }

type interceptor struct{ *hooks }

func (i interceptor) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	i.call(callBegin)
	return ctx, func(grid.CallResult) { i.call(callEnd) }, nil
}

func (i interceptor) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	i.call(serveBegin)
	return ctx, func(grid.CallResult) { i.call(serveEnd) }, nil
}

// intercepted makes a call whose interceptor may panic.
func intercepted[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		var why plannedError // perhaps in that of one of many calls
		if e, ok := p.(error); !ok || !errors.As(e, &why) {
			panic(p)
		}
		err = why
	}()
	return f()
}

type plannedError struct{ planned }

func (p plannedError) Error() string { return p.String() }
