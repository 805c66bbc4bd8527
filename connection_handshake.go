package grid

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/hostname"
	"github.com/gridrpc/grid/internal/token"
	"github.com/gridrpc/grid/internal/wsconn"
)

// maxClockSkew is how far the clocks of two hosts may be apart (section 3).
const maxClockSkew = 5 * time.Minute

// handshakeLimit is the largest message, in bytes, that is read from somebody who is not known yet.
const handshakeLimit = 64 << 10

// shouldDial reports whether local dials remote, rather than the reverse (section 1).
func shouldDial(local, remote string) bool {
	a, b := xxh3.HashString(local+remote), xxh3.HashString(remote+local)
	if a == b {
		return local < remote
	}
	return a < b
}

// rejectedError is a handshake that was refused, by either side.
type rejectedError struct{ reason string }

func (e *rejectedError) Error() string { return "handshake rejected: " + e.reason }

func rejectf(format string, a ...any) error { return &rejectedError{fmt.Sprintf(format, a...)} }

// challengeHeader is where the answer to an upgrade request has the acceptor's challenge.
const challengeHeader = "Grid-Challenge"

// bearer is the token of the upgrade request.
func (c *Connection) bearer() (string, error) {
	if secret := c.secret.Load(); secret != nil {
		return secret.Pass(c.local, c.remote), nil
	}
	return c.opts.bearer()
}

// greet is the dialler's side of the handshake. The socket has a deadline. header is that of the
// answer to the upgrade request, sent what that was: its token is sent again where there is no
// SharedSecret.
func (c *Connection) greet(ws *wsconn.Conn, header http.Header, sent *wsconn.DialOptions, at *progress) (*session, error) {
	tell := c.opts.tell()
	req := connectReq{
		ID: c.localID, Host: c.local, To: c.remote, Time: time.Now(), Caps: c.caps(),
		MaxSize: tell.maxSize, StreamPing: tell.streamPingMS, MaxPings: tell.maxPings,
	}
	meeting := token.Meeting{Dialler: c.local, Acceptor: c.remote, DiallerID: c.localID}
	var err error
	secret := c.secret.Load()
	if secret == nil {
		req.Token = sent.Token
	} else if meeting.Challenge, err = token.ParseNonce(header.Get(challengeHeader)); err == nil {
		req.Token = secret.Response(&meeting)
	} else {
		err = errNoChallenge
	}
	if err != nil {
		return nil, err
	}
	payload, err := req.MarshalMsg(nil)
	if err != nil {
		return nil, err
	}
	at.enter("in the handshake, sending Connect")
	if err := writeHandshake(ws, opConnect, payload); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	secrets := append(sent.Secrets(), req.Token)
	var resp connectResp
	at.enter("in the handshake, waiting for ConnectResponse")
	if err := readHandshake(ws, opConnectResponse, resp.UnmarshalMsg); err != nil {
		return nil, cleanError(fmt.Errorf("handshake: %w", err), secrets...)
	}
	if !resp.Accepted {
		return nil, c.rejected(clean(resp.RejectedReason, secrets...))
	}
	if resp.Host != "" && !isSameHost(resp.Host, c.remote) {
		return nil, fmt.Errorf("handshake: it was %s that answered", clip.Name(clean(resp.Host, secrets...)))
	}
	if secret != nil {
		meeting.AcceptorID = resp.ID
		if secret.CheckProof(&meeting, req.Token, resp.Proof) != nil {
			return nil, errNoProof
		}
	}
	return newSession(c, ws, peer{resp.ID, resp.Caps, told{resp.MaxSize, resp.StreamPing, resp.MaxPings}}), nil
}

// Why a dialler with a SharedSecret does not take who has answered.
var (
	errNoChallenge = errors.New("handshake: who has answered has no SharedSecret, or not this version of it")
	errNoProof     = errors.New("handshake: who has answered does not know the SharedSecret")
)

// isSameHost reports whether a name that came from a peer is another spelling of host, or host.
func isSameHost(name, host string) bool {
	if name == host {
		return true
	}
	normal, err := hostname.Normalize(name)
	return err == nil && normal == host
}

// answer is the acceptor's side of the handshake. The socket has a deadline. A refusal has been
// sent when it returns the reason.
func (m *Manager) answer(ws *wsconn.Conn, challenge token.Nonce, r *http.Request, a *arrival, at *progress) (*Connection, *session, error) {
	var req connectReq
	c, err := m.checkConnect(ws, &req, challenge, r, a, at)
	tell := m.opts.tell()
	resp := connectResp{
		ID: m.ID, Accepted: err == nil, Host: m.opts.Local,
		MaxSize: tell.maxSize, StreamPing: tell.streamPingMS, MaxPings: tell.maxPings,
	}
	var s *session
	if err == nil {
		resp.Caps = c.caps()
		if secret := m.secret.Load(); secret != nil {
			resp.Proof = secret.Proof(m.meeting(c.remote, &req, challenge), req.Token)
		}
		s = newSession(c, ws, peer{req.ID, req.Caps, told{req.MaxSize, req.StreamPing, req.MaxPings}})
		// The connection is taken before the answer is sent, so that what the peer sends upon it
		// finds a session.
		at.enter("in the handshake, asking whether the present connection is alive")
		err = c.adopt(s)
	}
	if err != nil {
		resp = connectResp{ID: m.ID, Host: m.opts.Local}
		var rejected *rejectedError
		if !errors.As(err, &rejected) {
			return c, nil, cleanError(err, req.Token, bearerToken(r)) // nobody is there to be told
		}
		resp.RejectedReason = clean(rejected.reason, req.Token, bearerToken(r))
		err = &rejectedError{resp.RejectedReason}
	}
	payload, merr := resp.MarshalMsg(nil)
	if merr == nil {
		at.enter("in the handshake, sending ConnectResponse")
		merr = writeHandshake(ws, opConnectResponse, payload)
	}
	if err == nil && merr != nil {
		err = at.explain(merr)
		s.close(err)
		c.knockAfterLoss() // that of before was withdrawn for s
	}
	return c, s, err
}

// meeting is what the proofs of a handshake are bound to.
func (m *Manager) meeting(dialler string, req *connectReq, challenge token.Nonce) *token.Meeting {
	return &token.Meeting{Dialler: dialler, Acceptor: m.opts.Local, Challenge: challenge, DiallerID: req.ID, AcceptorID: m.ID}
}

// checkConnect reads and checks a Connect, in the order of section 3.
func (m *Manager) checkConnect(ws *wsconn.Conn, req *connectReq, challenge token.Nonce, r *http.Request, a *arrival, at *progress) (*Connection, error) {
	at.enter("in the handshake, waiting for Connect")
	if err := readHandshake(ws, opConnect, req.UnmarshalMsg); err != nil {
		if errors.Is(err, ErrProtocol) {
			return nil, rejectf("%v", err)
		}
		return nil, err
	}
	name := func(said string) string { return clip.Name(clean(said, req.Token, bearerToken(r))) }
	if req.To != "" && !isSameHost(req.To, m.opts.Local) {
		return nil, rejectf("this is %s, not %s", m.opts.Local, name(req.To))
	}
	who, err := m.claimant(req.Host, at)
	switch {
	case err != nil:
		return nil, rejectf("%s is not accepted: %v", name(req.Host), err)
	case who == nil:
		return nil, rejectf("%s: %s", unknownHost, name(req.Host))
	}
	defer who.leave()
	if skew := time.Since(req.Time).Round(time.Second); skew > maxClockSkew || skew < -maxClockSkew {
		return who.conn, rejectf("clocks differ by %v, more than %v", skew.Abs(), maxClockSkew)
	}
	at.enter("in the handshake, in AuthToken")
	if err := m.checkToken(who, req, challenge, a, at); err != nil {
		return who.conn, rejectf("invalid token: %v", err)
	}
	if shouldDial(m.opts.Local, who.name) {
		return who.conn, rejectf("%s is to be dialled by %s, not the reverse", who.name, m.opts.Local)
	}
	if m.opts.VerifyPeer != nil {
		at.enter("in the handshake, in VerifyPeer")
		shown := a.show(r)
		if err := who.ask(a, at, func() error { return m.opts.VerifyPeer(who.name, shown) }); err != nil {
			return who.conn, rejectf("%s is not accepted: %v", who.name, err)
		}
	}
	if m.draining.Load() {
		return who.conn, rejectf("%v", errShuttingDown)
	}
	if who.conn == nil {
		at.enter("in the handshake, in AcceptHost")
		if err := m.takeIn(who, r, a, at); err != nil {
			return nil, rejectf("%s is not accepted: %v", who.name, err)
		}
	}
	return who.conn, nil
}

// unknownHost is what one that is not among the hosts is told.
const unknownHost = "unknown incoming host"

// rejected is the error of a Connect that the remote has refused for a reason.
func (c *Connection) rejected(reason string) error {
	err := rejectf("%s", reason)
	if strings.HasPrefix(reason, unknownHost) || strings.HasPrefix(reason, "invalid token") || strings.Contains(reason, " is not accepted: ") {
		return c.notAccepted(err)
	}
	return err
}

// notAccepted is ErrNotAccepted with the reason, and with what there is to do about it.
func (c *Connection) notAccepted(reason error) error {
	text := reason.Error()
	if strings.Contains(text, unknownHost) {
		text += ": it has to be one of the Hosts of " + c.remote + ", or to be taken in by its AcceptHost"
	}
	return &notAcceptedError{text}
}

// notAcceptedError is ErrNotAccepted with what the remote has said.
type notAcceptedError struct{ text string }

func (e *notAcceptedError) Error() string { return e.text }

// Is reports whether target is ErrNotAccepted.
func (e *notAcceptedError) Is(target error) bool { return target == ErrNotAccepted }

// checkToken checks what a Connect has to show.
func (m *Manager) checkToken(who *claimant, req *connectReq, challenge token.Nonce, a *arrival, at *progress) error {
	if err := checkTokenSize(req.Token); err != nil {
		return err
	}
	if secret := m.secret.Load(); secret != nil {
		return secret.CheckResponse(m.meeting(who.name, req, challenge), req.Token)
	}
	return who.ask(a, at, func() error { return m.opts.validate(req.Token) })
}

// ask asks a function of the application's about an arrival that claims to be the remote host.
// Where one was left behind, no other is called before that has returned: however often that host
// comes, it takes one place.
func (c *Connection) ask(a *arrival, at *progress, f func() error) error {
	if c.leftBehind.n.Load() > 0 {
		return fmt.Errorf("an earlier call still hangs %s", c.leftBehind.last.Load().reached())
	}
	err := a.run(at, func(p any) { c.attemptPanics.Panicked(c.log, "grid: panic while connecting", p) }, f,
		func() { c.leftBehind.n.Add(-1) })
	var left *leftError
	if errors.As(err, &left) {
		c.leftBehind.last.Store(at)
		c.leftBehind.n.Add(1) // perhaps after it has returned
	}
	return err
}

// leftBehind is the functions of the application's that were asked whether the remote may come in,
// and have not returned in time.
type leftBehind struct {
	n    atomic.Int32
	last atomic.Pointer[progress] // of them, if n is not 0
}

// clean makes a text fit for logs that somebody else has had a part in: tokens that it may repeat
// are taken out, and then it is clipped.
func clean(text string, tokens ...string) string {
	for _, t := range tokens {
		text = wsconn.Redact(text, t)
	}
	return clip.Text(text)
}

// cleanError is err, or where its text is not clean, an error with one that is.
func cleanError(err error, tokens ...string) error {
	text, ok := textOf(err)
	if !ok {
		return errNoText
	}
	clean := clean(text, tokens...)
	if clean == text {
		return err
	}
	var socket *socketError
	if errors.As(err, &socket) {
		return &socketError{errors.New(clean)}
	}
	return errors.New(clean)
}

// writeHandshake sends a message of the handshake, which has no checksum.
func writeHandshake(ws *wsconn.Conn, o op, payload []byte) error {
	m := message{Op: o, Payload: payload}
	if err := ws.WriteMessage(m.appendTo(make([]byte, wsconn.HeaderRoom))); err != nil {
		return &socketError{err}
	}
	return nil
}

// readHandshake reads the message of the handshake that must come next.
func readHandshake(ws *wsconn.Conn, want op, decode func([]byte) ([]byte, error)) error {
	b, err := ws.ReadMessage()
	if err != nil {
		return &socketError{err}
	}
	defer bytepool.Put(b)
	var m message
	if _, err := m.parse(b); err != nil {
		return err
	}
	if m.Op != want {
		return protocolErrorf("%v in place of %v", m.Op, want)
	}
	if err := unmarshal(decode, m.Payload); err != nil {
		return protocolErrorf("%v: %v", m.Op, err)
	}
	return nil
}
