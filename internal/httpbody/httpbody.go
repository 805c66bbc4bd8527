// Package httpbody bounds how long a server of package http waits for the bodies of requests, which
// it does for ever by itself: also for one that no handler reads, at the end of the request.
package httpbody

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// leftTime is how long what comes of a body may take that nobody reads.
const leftTime = time.Second

// Unread bounds the wait for the body of a request whose handler does not read it. It does nothing
// where there is no body, as a read deadline would then end the context of the request.
//
// A ResponseWriter that has no read deadlines is left to its server.
func Unread(w http.ResponseWriter, r *http.Request) {
	if hasBody(r) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(leftTime))
	}
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// Serve has h answer a request, of whose body each part must come within pause, and what h has not
// read when it returns within a second.
func Serve(h http.Handler, w http.ResponseWriter, r *http.Request, pause time.Duration) {
	if !hasBody(r) {
		h.ServeHTTP(w, r)
		return
	}
	b := &body{ReadCloser: r.Body, c: http.NewResponseController(w), pause: pause, keeps: r.ProtoMajor < 2}
	if b.keeps {
		// An answer that is longer than package http buffers waits for a body that h has not read.
		b.bound(time.Now().Add(pause))
	}
	shown := r.WithContext(r.Context()) // package http looks at the type of the body of its own
	shown.Body = b
	defer func() {
		r.MultipartForm = shown.MultipartForm // whose files package http removes
		b.end()
		Unread(w, r)
	}()
	h.ServeHTTP(w, shown)
}

// body is that of a request, with a deadline for each read.
type body struct {
	io.ReadCloser
	c     *http.ResponseController
	pause time.Duration
	// keeps is whether the deadline stays between reads: in HTTP/1, where it is looked at only in
	// one, and not in HTTP/2, where it would end a body that is not read meanwhile.
	keeps bool

	mu   sync.Mutex
	over bool // the handler has returned: the connection is the next request's
}

func (b *body) bound(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		_ = b.c.SetReadDeadline(t)
	}
}

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

func (b *body) Read(p []byte) (int, error) {
	b.bound(time.Now().Add(b.pause))
	n, err := b.ReadCloser.Read(p)
	if err != nil || !b.keeps {
		// In HTTP/1 package http now reads on, so as to notice when the client goes.
		b.bound(time.Time{})
	}
	return n, err
}
