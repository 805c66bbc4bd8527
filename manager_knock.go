package grid

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gridrpc/grid/internal/clip"
)

// What the side that dials answers to those who ask for it (section 10).

// isKnock reports whether r asks to be dialled.
func isKnock(r *http.Request) bool {
	return r.Method == http.MethodPost && r.Header.Get(knockHeader) != ""
}

// knockError is a knock that is refused.
type knockError struct {
	status int
	reason string
}

func (e *knockError) Error() string { return e.reason }

func refuseKnock(status int, format string, a ...any) error {
	return &knockError{status, fmt.Sprintf(format, a...)}
}

// answerKnock answers a request to dial.
func (m *Manager) answerKnock(w http.ResponseWriter, r *http.Request, a *arrival, authReq []func(*http.Request) error) {
	connected, err := m.takeKnock(r, a, authReq)
	var refused *knockError
	switch {
	case err == nil && connected:
		fmt.Fprintln(w, "grid: connected")
		return
	case err == nil:
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintln(w, "grid: dialling")
		return
	case errors.As(err, &refused):
		http.Error(w, "grid: "+refused.reason, refused.status)
	case errors.Is(err, errTooManyHandshakes):
		respondUnavailable(w, err)
	case err == errWithdrawn:
		return // nobody waits for an answer
	case err == errShuttingDown, err == errRegistering:
		respondUnavailable(w, err)
		return // which is no fault of anybody's
	default:
		respondForbidden(w, err)
	}
	m.forbidden.WarnReason(m.opts.Logger.With("addr", addrOf(r)), "grid: knock refused", err)
}

// takeKnock checks a knock and does what it asks for, unless there is a connection. Of an error
// that is no knockError a stranger is told nothing.
func (m *Manager) takeKnock(r *http.Request, a *arrival, authReq []func(*http.Request) error) (connected bool, err error) {
	// Also once the manager is closed, of which a stranger learns nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), m.opts.HandshakeTimeout)
	defer cancel()
	if m.hold.isRegistering() {
		return false, errRegistering // so the host knocks again; nobody is asked about it before
	}
	c, err := m.checkKnock(r, a, m.opts.newProgress(ctx), authReq)
	if err != nil {
		return false, err
	}
	if m.draining.Load() || m.ctx.Err() != nil {
		return false, errShuttingDown
	}
	if r.Context().Err() != nil {
		return false, errWithdrawn
	}
	asked := time.Now()
	// It says that it has no connection; but that may be made in this moment. Who has got it
	// withdraws the knock.
	if s := c.session.Load(); s != nil {
		switch alive := s.watch.probe(min(probeTime, m.opts.HandshakeTimeout/2)); {
		case alive && r.Header.Get(knockIDHeader) == fmt.Sprintf("%x", s.peerID):
			return true, nil
		case alive:
			return false, refuseKnock(http.StatusConflict, "two processes use one host name: another is connected as %s, from %v, and alive", c.remote, s.ws.RemoteAddr())
		}
		if r.Context().Err() != nil {
			return false, errWithdrawn
		}
		s.close(errKnocked)
	}
	c.stats.knocks.Add(1)
	c.redial.restart(asked)
	return false, nil
}

var errKnocked = errors.New("the host has lost the connection, and answers no ping on it")

// checkKnock returns whom a knock is from. Nothing comes behind it that proves more, so all is
// checked that an upgrade and its handshake have to show.
func (m *Manager) checkKnock(r *http.Request, a *arrival, at *progress, authReq []func(*http.Request) error) (*Connection, error) {
	bearer := bearerToken(r)
	if err := checkTokenSize(bearer); err != nil {
		return nil, err
	}
	if len(authReq) > 0 {
		if err := m.askHandlers(r, a, at, authReq); err != nil {
			return nil, cleanError(err, bearer)
		}
	}
	from := r.Header.Get(knockHeader)
	known := m.peer(from)
	if secret := m.secret.Load(); secret != nil {
		now := time.Now()
		signer, nonce, err := secret.CheckKnockPass(bearer, m.opts.Local, now)
		if err != nil {
			return nil, err
		}
		if !isSameHost(from, signer) {
			return nil, errors.New("knock in another name than its token's")
		}
		if err := m.addPass(known, signer, nonce, now); err != nil {
			return nil, err
		}
	} else if err := m.askAuthToken(bearer, a, at); err != nil {
		return nil, cleanError(err, bearer)
	}
	name := func(said string) string { return clip.Name(clean(said, bearer)) }
	if to := r.Header.Get(knockToHeader); !isSameHost(to, m.opts.Local) {
		return nil, refuseKnock(http.StatusMisdirectedRequest, "this is %s, not %s", m.opts.Local, name(to))
	}
	who, err := m.claimant(from, at)
	switch {
	case err != nil:
		return nil, refuseKnock(http.StatusForbidden, "%s is not accepted: %v", name(from), err)
	case who == nil:
		return nil, refuseKnock(http.StatusNotFound, "%s: %s", unknownHost, name(from))
	}
	defer who.leave()
	if !shouldDial(m.opts.Local, who.name) {
		return nil, refuseKnock(http.StatusConflict, "%s is to dial %s, not the reverse", who.name, m.opts.Local)
	}
	if m.opts.VerifyPeer != nil {
		at.enter("in VerifyPeer")
		shown := a.show(r)
		if err := who.ask(a, at, func() error { return m.opts.VerifyPeer(who.name, shown) }); err != nil {
			return nil, refuseKnock(http.StatusForbidden, "%s is not accepted: %s", who.name, clean(err.Error(), bearer))
		}
	}
	if who.conn == nil {
		at.enter("in AcceptHost")
		if err := m.takeIn(who, r, a, at); err != nil {
			return nil, refuseKnock(http.StatusForbidden, "%s is not accepted: %s", who.name, clean(err.Error(), bearer))
		}
	}
	return who.conn, nil
}
