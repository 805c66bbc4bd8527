package wsconn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/gridrpc/grid/internal/clip"
)

// maxAnswer is how many bytes the answer to an upgrade request may have.
const maxAnswer = 64 << 10

var errAnswerTooLarge = fmt.Errorf("answer to the upgrade request has more than %d bytes", maxAnswer)

// DialOptions says how to reach a server.
type DialOptions struct {
	// Token is sent as the bearer token of the upgrade request. HTTP must be able to carry it as it
	// is: see [CheckToken].
	Token string
	// Header goes with it, as [CheckHeader] has returned it.
	Header http.Header
	// Dial makes the connection; nil uses a [net.Dialer].
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS is for wss URLs; nil is the zero configuration.
	TLS *tls.Config
	// Limit is the largest message that may be read, in bytes.
	Limit int64
	// Stage, if not nil, is told what begins, in words that go behind "timed out" and the like. It
	// may be called on any goroutine, but once at a time, and not after Dial has returned.
	Stage func(stage string)
	Counters
}

// maxRefusal is how much of a text of a refusal ends up in the error.
const maxRefusal = 256

// errAnswer stands for what net/http says of an answer that it can't read: that quotes the answer,
// which may repeat the token.
var errAnswer = errors.New("malformed answer to the upgrade request")

// Dial upgrades a new connection to url (ws or wss), and returns the header of the answer. ctx must
// have a deadline and bounds the whole; once Dial has returned it has no more effect.
func Dial(ctx context.Context, url string, o DialOptions) (*Conn, http.Header, error) {
	var l *link
	release := func() bool { return true }
	// The handshake reads without a context, so the end of ctx closes the socket under it.
	guard := func(c net.Conn) net.Conn {
		l = &link{Conn: c, counters: o.Counters, left: maxAnswer, tooCostly: errAnswerTooLarge}
		release = context.AfterFunc(ctx, func() { l.Close() })
		return l
	}
	dial := o.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	at := stages{tell: o.Stage}
	d := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := at.dial(ctx, dial, network, addr)
			if err != nil {
				return nil, err
			}
			at.upgrade()
			return guard(c), nil
		},
		NetDialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := at.dial(ctx, dial, network, addr)
			if err != nil {
				return nil, err
			}
			if c, err = at.secure(ctx, c, clientTLS(o.TLS, addr), addr); err != nil {
				return nil, err
			}
			at.upgrade()
			return guard(c), nil
		},
		ReadBufferSize:  readBufferSize,
		WriteBufferPool: &writeBuffers,
	}
	finished := false
	defer func() {
		if !finished && l != nil { // a function of the application's has panicked, or ended the goroutine
			release()
			l.Close()
		}
	}()
	header := http.Header{"Authorization": {"Bearer " + o.Token}}
	maps.Copy(header, o.Header)
	ws, resp, err := d.DialContext(ctx, url, header)
	finished = true
	if err != nil {
		err = dialError(err, resp, o.Secrets(), l != nil)
	}
	// If ctx ended meanwhile, the socket is closed or about to be.
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && len(resp.Header.Values("Sec-Websocket-Extensions")) > 0 {
		err = errors.New("server chose a websocket extension that was not offered")
	}
	if err == nil {
		l.leaveMessage()
		return newConn(ws, l, o.Limit, true), resp.Header, nil
	}
	if l != nil {
		l.Close()
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if deadline, _ := ctx.Deadline(); !time.Now().Before(deadline) {
		err = context.DeadlineExceeded // the socket has heard of it first
	}
	return nil, nil, err
}

// Secrets are what is sent to the server, which may repeat it, and is nobody else's business.
func (o *DialOptions) Secrets() (all []string) {
	all = append(all, o.Token)
	for _, values := range o.Header {
		all = append(all, values...)
	}
	return all
}

// said is what a server has said, without what it was sent that is secret.
func said(text string, secrets []string) string {
	text = strings.TrimSpace(text)
	for _, s := range secrets {
		text = Redact(text, s)
	}
	return clip.To(text, maxRefusal)
}

// dialError is the error of a dial, without what the server has said in an odd place, which may be
// a secret. connected says that there was a server.
func dialError(err error, resp *http.Response, secrets []string, connected bool) error {
	switch {
	case errors.Is(err, websocket.ErrBadHandshake):
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // gorilla has kept 1 KiB
		said := func(text string) string { return said(text, secrets) }
		return refusedError(resp.StatusCode, said(resp.Header.Get("Location")), said(string(body)))
	case connected && !isOfTheSocket(err):
		return errAnswer
	}
	return err
}

// isOfTheSocket reports whether err says what has happened to a socket, rather than what has come
// over it.
func isOfTheSocket(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, errAnswerTooLarge)
}

// clientTLS completes a configuration for addr. A websocket needs HTTP/1.1.
func clientTLS(c *tls.Config, addr string) *tls.Config {
	if c == nil {
		c = new(tls.Config)
	}
	c = c.Clone()
	c.NextProtos = []string{"http/1.1"}
	if c.ServerName == "" {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			c.ServerName = host
		}
	}
	return c
}
