// Package wsconn is grid's websocket: dial, upgrade, read a message under a limit, write a message.
// It is the only importer of gorilla/websocket.
//
// A [Conn] has one reader and, at a time, one writer, which may be different goroutines; Close and
// the counters may be called from anywhere at any time. It sets no deadlines after the handshake:
// who owns it watches the counters.
package wsconn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/offload"
)

const (
	readBufferSize = 8 << 10
	// writeStep is how much is written at once.
	writeStep = 64 << 10
	// readStep is the least room offered to a read of a message.
	readStep = 4 << 10
	// maxExpect is the most room offered to a message before it has come.
	maxExpect = 256 << 10
)

// writeBuffers has the websocket library make no buffers for writing, of which it does none.
var writeBuffers sync.Pool

// ErrEmptyFrames is returned by [Conn.ReadMessage] for a message that comes in far more bytes than
// it holds: in frames that are empty, or nearly so, or among endless control frames.
var ErrEmptyFrames = errors.New("websocket message in empty frames")

// maxOverhead is how many bytes may be read inside a message beyond those that it holds, and as
// many again for each that it does.
const (
	maxOverhead     = 64 << 10
	overheadPerByte = 16
)

// ErrTooLarge is returned by [Conn.ReadMessage] for a message above the limit.
var ErrTooLarge = errors.New("websocket message above the size limit")

// Conn is one websocket that carries binary messages.
type Conn struct {
	ws   *websocket.Conn
	link *link

	// pong holds the payload of a websocket ping that waits for its answer; a newer ping replaces
	// it.
	pong   atomic.Pointer[string]
	onPing func() bool

	expect int // size of the last message: the next is often like it; the reader's own

	inMessage atomic.Bool

	// The writer's own.
	masks   bool   // as a client must
	rest    []byte // of the last frame
	inWrite atomic.Bool
}

// newConn takes over a websocket whose handshake is over. client says on which side.
func newConn(ws *websocket.Conn, l *link, limit int64, client bool) *Conn {
	l.upgraded, l.try = true, newTryer(l.Conn)
	c := &Conn{ws: ws, link: l, masks: client, onPing: func() bool { return true }}
	c.SetLimit(limit)
	tune(l.Conn)
	// The library's own handlers write from the reader, and so would wait for a writer that is
	// stuck.
	ws.SetPingHandler(func(payload string) error {
		c.pong.Store(&payload)
		if !c.onPing() {
			c.pong.Store(nil)
		}
		return nil
	})
	ws.SetPongHandler(func(string) error { return nil })
	ws.SetCloseHandler(func(int, string) error { return nil })
	return c
}

// OnPing sets a function that the reader calls, and that must not block, when a websocket ping has
// come. If it returns true the ping waits to be answered by [Conn.WritePong]. It is set by the
// reader, between two reads.
func (c *Conn) OnPing(f func() bool) { c.onPing = f }

// ReadMessage reads the next binary message into a buffer from bytepool, which the caller owns. It
// blocks without holding a buffer. After an error the connection is of no further use.
func (c *Conn) ReadMessage() ([]byte, error) {
	typ, r, err := c.ws.NextReader()
	if err != nil {
		return nil, readError(err)
	}
	if typ != websocket.BinaryMessage {
		return nil, errors.New("websocket message is not binary")
	}
	c.inMessage.Store(true)
	defer c.inMessage.Store(false)
	c.link.enterMessage()
	defer c.link.leaveMessage()
	b := bytepool.Get(max(readStep, min(c.expect, maxExpect)))
	for {
		if len(b) == cap(b) {
			b = bytepool.Grow(b, readStep)
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		c.link.allow(n)
		if err == io.EOF {
			c.expect = len(b) + 1 // room to see the end
			return b, nil
		}
		if err != nil {
			bytepool.Put(b)
			return nil, readError(err)
		}
	}
}

func readError(err error) error {
	if errors.Is(err, websocket.ErrReadLimit) {
		return ErrTooLarge
	}
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		if closed.Code == websocket.CloseAbnormalClosure {
			return io.ErrUnexpectedEOF
		}
		// Without its text, which is the peer's and may be anything.
		return fmt.Errorf("the peer has closed the websocket with code %d", closed.Code)
	}
	return err
}

// SetLimit sets the size above which a message is not read. Only the reader may call it.
func (c *Conn) SetLimit(bytes int64) { c.ws.SetReadLimit(bytes) }

// SetDeadline bounds reads and writes, as [net.Conn.SetDeadline] does.
func (c *Conn) SetDeadline(t time.Time) error { return c.link.SetDeadline(t) }

// Close closes the socket at once; a blocked reader and writer return.
func (c *Conn) Close() error { return c.link.Close() }

// CloseWrite ends what the peer reads, once it has read all that was written, and goes on reading.
// It reports whether the connection can.
func (c *Conn) CloseWrite() bool { return c.link.closeWrite() == nil }

// Reading reports the bytes read so far, and whether the reader is inside a message.
func (c *Conn) Reading() (n int64, inMessage bool) { return c.link.read.Load(), c.inMessage.Load() }

// Writing reports the bytes written so far, and whether the writer is inside a write.
func (c *Conn) Writing() (n int64, inWrite bool) { return c.link.written.Load(), c.inWrite.Load() }

// RemoteAddr is the address of the other end of the socket; nil where that does not say.
func (c *Conn) RemoteAddr() net.Addr { return c.link.RemoteAddr() }

// Counters count the bytes that go over sockets. Those that are nil count nothing.
type Counters struct {
	Read, Written *offload.Meter
}

// Flush has what there is told now.
func (c Counters) Flush() {
	c.Read.Flush()
	c.Written.Flush()
}

// link counts what passes over a socket. That may be the application's own, whose panic must not end
// the process: it is an error of the link.
type link struct {
	net.Conn
	counters      Counters
	read, written atomic.Int64
	whole         expiry
	upgraded      bool   // only write writes any more
	try           *tryer // nil where none is possible

	// The reader's own: how many more bytes may be read for the present message, or the answer to
	// an upgrade request, and the error if there are more; nil for no limit.
	left      int64
	tooCostly error
}

func (l *link) enterMessage() { l.left, l.tooCostly = maxOverhead, ErrEmptyFrames }
func (l *link) leaveMessage() { l.tooCostly = nil }

// allow says that n bytes of the message have come.
func (l *link) allow(n int) { l.left += (1 + overheadPerByte) * int64(n) }

// guard is deferred around a method of the socket.
func (l *link) guard(method string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic in %s of a %T: %s", method, l.Conn, clip.Text(fmt.Sprint(p)))
	}
}

// RemoteAddr implements [net.Conn].
func (l *link) RemoteAddr() (a net.Addr) {
	var err error // nobody wants to know
	defer l.guard("RemoteAddr", &err)
	return l.Conn.RemoteAddr()
}

// SetWriteDeadline implements [net.Conn] for the websocket library, of which nothing is written.
func (l *link) SetWriteDeadline(t time.Time) (err error) {
	defer l.guard("SetWriteDeadline", &err)
	if l.upgraded {
		return errWriter
	}
	return l.Conn.SetWriteDeadline(t)
}

// SetDeadline bounds reads and writes, as that of [net.Conn] does. Where the socket has no
// deadlines it is closed when this one has passed.
func (l *link) SetDeadline(t time.Time) (err error) {
	defer l.guard("SetDeadline", &err)
	return l.whole.stand(l, l.Conn.SetDeadline(t), t)
}

// Close closes the socket under TLS as well, whose own way of closing writes to it and may wait.
func (l *link) Close() error {
	l.whole.stop()
	return l.close()
}

func (l *link) close() (err error) {
	defer l.guard("Close", &err)
	if t, ok := l.Conn.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return l.Conn.Close()
}

// closeWrite closes the sending side, if the socket can.
func (l *link) closeWrite() (err error) {
	defer l.guard("CloseWrite", &err)
	if w, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (l *link) Read(p []byte) (n int, err error) {
	if l.tooCostly != nil && l.left <= 0 {
		return 0, l.tooCostly
	}
	defer l.guard("Read", &err)
	n, err = l.Conn.Read(p)
	if n > 0 {
		l.left -= int64(n)
		l.read.Add(int64(n))
		l.counters.Read.Add(int64(n))
	}
	return n, err
}

// Write implements [net.Conn] for the websocket library: it writes a handshake, and nothing else.
func (l *link) Write(p []byte) (int, error) {
	if l.upgraded {
		return 0, errWriter
	}
	return l.write(p)
}

// write writes p in pieces, so that the counter shows progress inside a large message.
func (l *link) write(p []byte) (done int, err error) {
	defer l.guard("Write", &err)
	for {
		n, err := l.Conn.Write(p[done:min(done+writeStep, len(p))])
		l.wrote(n)
		done += max(n, 0)
		if err != nil {
			return done, err
		}
		if done == len(p) {
			return done, nil
		}
		if n <= 0 {
			return done, io.ErrShortWrite // a broken socket: it might do so for ever, even when closed
		}
	}
}

// tryWrite writes what it can of p without a wait.
func (l *link) tryWrite(p []byte) int {
	if l.try == nil {
		return 0
	}
	n := l.try.write(p)
	l.wrote(n)
	return n
}

// wrote counts what was written.
func (l *link) wrote(n int) {
	if n > 0 {
		l.written.Add(int64(n))
		l.counters.Written.Add(int64(n))
	}
}

// refusedError is a server's answer to a dial that was not an upgrade. The text of the status is
// HTTP's own: that of the answer may be anything.
func refusedError(status int, location, body string) error {
	text := strings.TrimSpace(fmt.Sprintf("upgrade refused: %d %s", status, http.StatusText(status)))
	if location != "" && status/100 == 3 {
		text += fmt.Sprintf(", to %q", location)
	}
	if body != "" {
		text += fmt.Sprintf(": %q", body)
	}
	if status == http.StatusForbidden {
		return &ForbiddenError{text}
	}
	return errors.New(text)
}

// ForbiddenError is a dial that was answered by a status of 403.
type ForbiddenError struct{ text string }

func (e *ForbiddenError) Error() string { return e.text }
