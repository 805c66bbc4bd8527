package grid

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/wsconn"
)

// maxClockSkew is how far the clocks of two hosts may be apart (section 3).
const maxClockSkew = 5 * time.Minute

// handshakeLimit is the largest message, in bytes, that is read from somebody who is not known yet.
const handshakeLimit = 64 << 10

// maxReason is how much of a peer's reason to refuse a handshake is kept, in bytes.
const maxReason = 1 << 10

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

// greet is the dialler's side of the handshake. The socket has a deadline. sent is the token that
// the peer has had already.
func (c *Connection) greet(ws *wsconn.Conn, sent string) (*session, error) {
	req := connectReq{ID: c.localID, Host: c.local, Time: time.Now(), Token: c.opts.token(), Caps: ourCaps}
	payload, err := req.MarshalMsg(nil)
	if err != nil {
		return nil, err
	}
	if err := writeHandshake(ws, opConnect, payload); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	var resp connectResp
	if err := readHandshake(ws, opConnectResponse, resp.UnmarshalMsg); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if !resp.Accepted {
		return nil, rejectf("%s", clipTo(redact(resp.RejectedReason, req.Token, sent), maxReason))
	}
	return newSession(c, ws, resp.ID, resp.Caps), nil
}

// answer is the acceptor's side of the handshake. The socket has a deadline. A refusal has been
// sent when it returns the reason.
func (m *Manager) answer(ws *wsconn.Conn, r *http.Request, a *arrival) (*Connection, *session, error) {
	var req connectReq
	c, err := m.checkConnect(ws, &req, r, a)
	resp := connectResp{ID: m.ID, Accepted: err == nil, Caps: ourCaps}
	var s *session
	if err == nil {
		s = newSession(c, ws, req.ID, req.Caps)
		// The connection is taken before the answer is sent, so that what the peer sends upon it
		// finds a session.
		err = c.adopt(s)
	}
	if err != nil {
		resp.Accepted, resp.Caps = false, 0
		var rejected *rejectedError
		if !errors.As(err, &rejected) {
			return c, nil, err // nobody is there to be told
		}
		resp.RejectedReason = rejected.reason
	}
	payload, merr := resp.MarshalMsg(nil)
	if merr == nil {
		merr = writeHandshake(ws, opConnectResponse, payload)
	}
	if err == nil && merr != nil {
		err = merr
		s.close(err)
	}
	return c, s, err
}

// checkConnect reads and checks a Connect, in the order of section 3.
func (m *Manager) checkConnect(ws *wsconn.Conn, req *connectReq, r *http.Request, a *arrival) (*Connection, error) {
	if err := readHandshake(ws, opConnect, req.UnmarshalMsg); err != nil {
		if errors.Is(err, ErrProtocol) {
			return nil, rejectf("%v", err)
		}
		return nil, err
	}
	c := m.peer(req.Host)
	if c == nil {
		return nil, rejectf("unknown incoming host: %s", clip(req.Host))
	}
	if skew := time.Since(req.Time).Round(time.Second); skew > maxClockSkew || skew < -maxClockSkew {
		return c, rejectf("clocks differ by %v, more than %v", skew.Abs(), maxClockSkew)
	}
	if err := a.run(func() error { return m.opts.validate(req.Token) }); err != nil {
		return c, rejectf("invalid token: %s", redact(err.Error(), req.Token, bearerToken(r)))
	}
	if c.dials {
		return c, rejectf("%s is to be dialled by %s, not the reverse", c.remote, c.local)
	}
	if m.opts.VerifyPeer != nil {
		if err := a.run(func() error { return m.opts.VerifyPeer(c.remote, r) }); err != nil {
			return c, rejectf("%s is not accepted: %s", c.remote, redact(err.Error(), req.Token, bearerToken(r)))
		}
	}
	if m.draining.Load() {
		return c, rejectf("%v", errShuttingDown)
	}
	return c, nil
}

// redact takes tokens out of a text that may repeat them, and that is for a log.
func redact(text string, tokens ...string) string {
	for _, t := range tokens {
		text = wsconn.Redact(text, t)
	}
	return text
}

// writeHandshake sends a message of the handshake, which has no checksum.
func writeHandshake(ws *wsconn.Conn, o op, payload []byte) error {
	m := message{Op: o, Payload: payload}
	return ws.WriteMessage(m.appendTo(nil))
}

// readHandshake reads the message of the handshake that must come next.
func readHandshake(ws *wsconn.Conn, want op, decode func([]byte) ([]byte, error)) error {
	b, err := ws.ReadMessage()
	if err != nil {
		return err
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

// clip shortens what a stranger has sent, for a log or an answer.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
