package wsconn

import (
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Answer is what a server says to [Post].
type Answer struct {
	Status int
	Text   string // what it says to it, clipped, without what is secret
}

// errMalformed stands for what net/http says of an answer that it can't read, as errAnswer does.
var errMalformed = errors.New("malformed answer, or more than 64 KiB of it")

// Post sends a request without a body to url (http or https), over a connection of its own that is
// reached like that of [Dial], and returns the answer whatever that is. No redirect is followed.
// ctx must have a deadline and bounds the whole. The Limit and the Counters of o mean nothing.
func Post(ctx context.Context, url string, header http.Header, o DialOptions) (a Answer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return a, err
	}
	req.Header = header.Clone()
	req.Header.Set("Authorization", "Bearer "+o.Token)
	maps.Copy(req.Header, o.Header)
	req.Close = true
	c, err := connect(ctx, req.URL, &o)
	if err == nil {
		l := &link{Conn: c, left: maxAnswer, tooCostly: errMalformed}
		defer l.Close()
		defer context.AfterFunc(ctx, func() { l.Close() })()
		a, err = exchange(l, req, o.Secrets())
	}
	if err == nil {
		return a, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if deadline, _ := ctx.Deadline(); !time.Now().Before(deadline) {
		err = context.DeadlineExceeded
	}
	return a, err
}

// connect reaches the server of a URL, through TLS where that says so.
func connect(ctx context.Context, u *url.URL, o *DialOptions) (c net.Conn, err error) {
	dial := o.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	addr, port := u.Host, "80"
	if u.Scheme == "https" {
		port = "443"
	}
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), port)
	}
	at := stages{tell: o.Stage}
	socket, err := at.dial(ctx, dial, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer func() {
		if c == nil { // also where a function of the application's has panicked
			socket.Close()
		}
	}()
	if u.Scheme == "https" {
		secured, err := at.secure(ctx, socket, clientTLS(o.TLS, addr), addr)
		if err != nil {
			return nil, err
		}
		socket = secured
	}
	at.enter("waiting for the answer")
	return socket, nil
}

// exchange sends a request over l and reads the answer.
func exchange(l *link, req *http.Request, secrets []string) (a Answer, err error) {
	if err := req.Write(l); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(l), req)
	if err != nil {
		if !isOfTheSocket(err) || errors.Is(err, errMalformed) {
			err = errMalformed // what net/http says of it quotes it
		}
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return a, err
	}
	a.Status = resp.StatusCode
	a.Text = said(string(text), secrets)
	return a, nil
}
