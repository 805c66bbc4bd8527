package grid

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/httpbody"
	"github.com/gridrpc/grid/internal/token"
	"github.com/gridrpc/grid/internal/wsconn"
)

// Handler returns the HTTP handler through which the other hosts connect. Mount it at RoutePath; it
// needs HTTP/1.1 and a ResponseWriter that can be hijacked. Where package http serves, that needs a
// listener whose connections have read deadlines; on any other an upgrade is answered 500.
//
// A request that is no websocket upgrade, and of no host that asks to be dialled, is answered 426.
// One whose bearer token SharedSecret or AuthToken refuses, or where one of authReq is given, that
// any of those refuses in their place, is answered 403, and so is one that a browser sends for a
// page of another origin. A host that asks to be dialled has to pass both. Upgrades are answered
// 503 once the Manager is shutting down, and while there are more than MaxHandshakes.
//
// The functions run on a goroutine of grid's, concurrently for different requests; a panic, or
// HandshakeTimeout without an answer, refuses the request.
//
// No host sends a body. One that is announced has a second to come, so that nobody keeps a
// connection by one that never does: by a read deadline of w, or of the ResponseWriter that it has
// an Unwrap method for. Where there is none the ReadTimeout of the server has to bound it.
func (m *Manager) Handler(authReq ...func(r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		httpbody.Unread(w, r)
		upgrade := wsconn.IsUpgrade(r)
		if !upgrade && !isKnock(r) {
			respondUpgradeRequired(w, r)
			return
		}
		a, err := m.incoming.enter(m.ctx, &m.callbacks)
		if err != nil {
			m.stranger(r, err)
			respondUnavailable(w, err)
			return
		}
		defer a.leave()
		if !upgrade {
			m.answerKnock(w, r, a, authReq)
			return
		}
		if err := m.authorise(r, a, authReq); err != nil {
			m.forbidden.WarnReason(m.opts.Logger.With("addr", addrOf(r)), "grid: upgrade refused", err)
			respondForbidden(w, err)
			return
		}
		if m.draining.Load() || !m.begin() {
			respondUnavailable(w, errShuttingDown)
			return
		}
		// Also where a function of the application has panicked.
		defer m.work.Done()
		if s := m.accept(w, r, a); s != nil {
			// The request ends here; the session goes on without what the HTTP server keeps for it.
			m.start(func() { s.conn.serveAccepted(s) })
		}
	}
}

// respondUpgradeRequired answers a request that is no upgrade. HTTP/2 has none, and forbids the
// headers that say which.
func respondUpgradeRequired(w http.ResponseWriter, r *http.Request) {
	text := "grid: a websocket upgrade is required here"
	if r.ProtoMajor < 2 {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
	} else {
		text += ", over HTTP/1.1"
	}
	http.Error(w, text, http.StatusUpgradeRequired)
}

// respondForbidden tells no stranger more than it must; but who has the key can't be told by the
// handshake that clocks differ.
func respondForbidden(w http.ResponseWriter, reason error) {
	text := "grid: forbidden"
	if errors.Is(reason, token.ErrTime) {
		text += ": " + reason.Error()
	}
	http.Error(w, text, http.StatusForbidden)
}

func respondUnavailable(w http.ResponseWriter, reason error) {
	http.Error(w, "grid: "+reason.Error(), http.StatusServiceUnavailable)
}

// authorise returns why a request is refused.
func (m *Manager) authorise(r *http.Request, a *arrival, authReq []func(*http.Request) error) error {
	// Also once the manager is closed, of which a stranger learns nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), m.opts.HandshakeTimeout)
	defer cancel()
	at := m.opts.newProgress(ctx)
	bearer := bearerToken(r)
	if err := checkTokenSize(bearer); err != nil {
		return err
	}
	var err error
	switch {
	case len(authReq) > 0:
		err = m.askHandlers(r, a, at, authReq)
	case m.secret.Load() != nil:
		if err := a.begin(); err != nil {
			return err
		}
		defer a.end()
		return m.checkPass(bearer)
	default:
		err = m.askAuthToken(bearer, a, at)
	}
	if err != nil {
		return cleanError(err, bearer)
	}
	return nil
}

// askHandlers asks the functions that were given to Handler about a request.
func (m *Manager) askHandlers(r *http.Request, a *arrival, at *progress, authReq []func(*http.Request) error) error {
	at.enter("in a function given to Handler")
	r = a.show(r)
	return a.run(at, m.panicked, func() error {
		for _, f := range authReq {
			if err := f(r); err != nil {
				return err
			}
		}
		return nil
	}, func() {})
}

// askAuthToken asks that function about a bearer token.
func (m *Manager) askAuthToken(bearer string, a *arrival, at *progress) error {
	at.enter("in AuthToken")
	return a.run(at, m.panicked, func() error { return m.opts.validate(bearer) }, func() {})
}

// panicked logs a panic of a function of the application's that somebody who has dialled is shown
// to.
func (m *Manager) panicked(p any) {
	m.panics.Panicked(m.opts.Logger, "grid: panic while somebody connects", p)
}

// checkTokenSize refuses what nobody who may come in has: it would take long to look for it in an
// error that repeats it.
func checkTokenSize(token string) error {
	if len(token) > wsconn.MaxToken {
		return fmt.Errorf("token has %d bytes, the limit is %d", len(token), wsconn.MaxToken)
	}
	return nil
}

// checkPass checks with what somebody who dials begins where there is a SharedSecret. It opens no
// more than the websocket: who dials has still to answer a challenge. Its errors are fixed texts,
// which repeat nothing of the pass: no stranger can have us look for it.
func (m *Manager) checkPass(pass string) error {
	now := time.Now()
	dialler, nonce, err := m.secret.Load().CheckPass(pass, m.opts.Local, now)
	if err != nil {
		return err
	}
	c := m.peer(dialler)
	if c == nil {
		return nil // the handshake tells why it is refused, or asks for more before it is taken in
	}
	return m.passes.Add(c.remote, nonce, now)
}

// bearerToken is the token of a request, empty for none.
func bearerToken(r *http.Request) string {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return token
}

// accept upgrades a request and performs the handshake. It returns nil if that failed.
func (m *Manager) accept(w http.ResponseWriter, r *http.Request, a *arrival) *session {
	waitCtx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	if !m.hold.wait(waitCtx) {
		reason := context.Cause(a.ctx)
		if m.ctx.Err() != nil {
			reason = errClosed
		} else if reason != nil {
			m.stranger(r, reason)
		} else {
			reason = context.Cause(waitCtx) // the client has gone
		}
		respondUnavailable(w, reason)
		return nil
	}
	// From here on the request's context means nothing: hijacking ends it.
	ctx, cancel := context.WithTimeout(a.ctx, m.opts.HandshakeTimeout)
	defer cancel()
	at := m.opts.newProgress(ctx)
	at.enter("sending the answer to the upgrade request")
	var challenge token.Nonce
	header := http.Header{}
	if m.secret.Load() != nil {
		challenge = token.NewNonce()
		header.Set(challengeHeader, challenge.String())
	}
	ws, err := wsconn.Upgrade(w, r, header, handshakeLimit, at.deadline, m.traffic)
	if err != nil {
		m.opts.Logger.Debug("grid: upgrade failed", "addr", addrOf(r), "error", clip.Error(at.explain(err)))
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
	s, err = handshake(ctx, ws, at, func() (s *session, err error) {
		c, s, err = m.answer(ws, challenge, r, a, at)
		return s, err
	})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errTooManyHandshakes) {
		err = cause
	}
	switch {
	case err == nil:
	case c != nil:
		c.logRefused(addrOf(r), err)
	default:
		m.stranger(r, err)
	}
	return s
}

// addrOf is where a request is from, for logs: what is in front of the Handler may have set it by a
// header.
func addrOf(r *http.Request) string { return clip.Text(r.RemoteAddr) }

// stranger logs the failed handshake of somebody who is not known, of each reason the first and
// then one an hour: they must not fill the log.
func (m *Manager) stranger(r *http.Request, err error) {
	m.unknown.WarnReason(m.opts.Logger.With("addr", addrOf(r)), "grid: handshake failed", err)
}
