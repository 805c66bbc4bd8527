package wsconn

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

var noDeadline time.Time

// IsUpgrade reports whether r asks for a websocket.
func IsUpgrade(r *http.Request) bool { return websocket.IsWebSocketUpgrade(r) }

// Upgrade turns r into a websocket whose messages are bounded by limit bytes. If it fails it has
// answered the request: with 403 where r carries the origin of another site, else with a 4xx or 5xx
// that says why. header is sent with the answer. Deadlines that the HTTP server set are gone
// afterwards; the handshake must be written by deadline.
func Upgrade(w http.ResponseWriter, r *http.Request, header http.Header, limit int64, deadline time.Time, counters Counters) (*Conn, error) {
	h := hijacker{ResponseWriter: w, counters: counters, deadline: deadline}
	u := websocket.Upgrader{
		ReadBufferSize:  readBufferSize,
		WriteBufferPool: &writeBuffers,
		// CheckOrigin is left at its default: same origin, or none.
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			w.Header().Set("Sec-Websocket-Version", "13")
			http.Error(w, reason.Error(), status) // ends up in the dialler's log
		},
	}
	ws, err := u.Upgrade(&h, r, header)
	if err == nil {
		err = h.link.SetDeadline(noDeadline)
	}
	if err != nil {
		if h.link != nil {
			h.link.Close()
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			err = context.DeadlineExceeded // whatever became of the socket then
		}
		return nil, err
	}
	return newConn(ws, h.link, limit, false), nil
}

// hijacker puts the counting link between the websocket and the socket.
type hijacker struct {
	http.ResponseWriter
	counters Counters
	deadline time.Time
	link     *link
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w := http.NewResponseController(h.ResponseWriter)
	// To hand over its connection, package http sets a deadline to end a read of its own. Without,
	// that would wait for the client, who waits for us.
	if err := w.SetReadDeadline(noDeadline); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, nil, errors.New("the listener's connections have no read deadlines, which package http needs: " + err.Error())
	}
	c, brw, err := w.Hijack()
	if err != nil {
		return nil, nil, errors.New("grid needs a ResponseWriter that can be hijacked (HTTP/1.1): " + err.Error())
	}
	h.link = &link{Conn: c, counters: h.counters}
	return handshakeConn{h.link, h.deadline}, brw, nil
}

// handshakeConn keeps a deadline on the socket that the upgrader would clear.
type handshakeConn struct {
	*link
	deadline time.Time
}

func (c handshakeConn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		t = c.deadline
	}
	return c.link.SetDeadline(t)
}
