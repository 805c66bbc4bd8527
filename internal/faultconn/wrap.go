package faultconn

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is a connection, usually a real socket, with faults of its own.
type Conn struct {
	net.Conn

	// mu is not held while the wrapped connection reads or writes.
	mu            sync.Mutex
	changed       sync.Cond // any of what follows
	stalled       bool
	cut           bool
	closed        bool
	rate          int       // bytes per second, 0 for no limit
	free          time.Time // when the limit lets the next piece go
	writing       bool      // a Write has its turn
	held          []byte    // read, but stalled until after the reader's deadline
	heldErr       error
	readDeadline  deadline
	writeDeadline deadline
}

// Wrap puts faults on the way between c and its user, who must use the result
// alone from then on. Wrapping one end is enough to disturb both directions.
func Wrap(c net.Conn) *Conn {
	w := &Conn{Conn: c}
	w.changed.L = &w.mu
	return w
}

// Cut breaks the connection. Both ends fail with ECONNRESET from then on,
// where c wraps a TCP connection or one of a [Network]; of another kind of
// connection the peer sees an ordinary close. The user still has to call Close.
func (c *Conn) Cut() {
	c.markCut()
	if l, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0) // fails only if c is closed already
	}
	_ = c.Conn.Close()
}

func (c *Conn) markCut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	c.changed.Broadcast()
}

// Stall holds the connection in both directions, or lets it go again. While it
// is held, writes wait and reads return nothing, not even the peer's close;
// deadlines and Close still end them. A write that is under way may go through.
func (c *Conn) Stall(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = on
	c.changed.Broadcast()
}

// WriteLimit makes writes no faster than that many bytes per second, let
// through in pieces of 10 ms' worth. 0 takes the limit away. A write under way
// keeps the limit it began with.
func (c *Conn) WriteLimit(bytesPerSecond int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate = bytesPerSecond
}

// Read reads from the wrapped connection. Only one call may run at a time.
func (c *Conn) Read(b []byte) (int, error) {
	if err := c.pass("read", &c.readDeadline); err != nil {
		return 0, err
	}
	if n, err, ok := c.takeHeld(b); ok {
		return n, err
	}
	n, err := c.Conn.Read(b)
	if late := c.pass("read", &c.readDeadline); late != nil {
		c.hold(b[:n], err)
		return 0, late
	}
	return n, err
}

// hold keeps the outcome of a read for the next one.
func (c *Conn) hold(b []byte, err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // the reader is told by its own deadline
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held, c.heldErr = bytes.Clone(b), err
}

func (c *Conn) takeHeld(b []byte) (_ int, _ error, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held) > 0 {
		n := copy(b, c.held)
		c.held = c.held[n:]
		return n, nil, true
	}
	err := c.heldErr
	c.heldErr = nil
	return 0, err, err != nil
}

// Write writes to the wrapped connection, never mixing the bytes of two calls.
func (c *Conn) Write(b []byte) (n int, _ error) {
	rate, err := c.beginWrite()
	if err != nil {
		return 0, err
	}
	defer c.endWrite()
	piece := len(b)
	if rate > 0 {
		piece = max(1, rate/100)
	}
	for {
		if err := c.pace(rate); err != nil {
			return n, err
		}
		k, err := c.Conn.Write(b[n:min(n+piece, len(b))])
		n += k
		if err != nil {
			return n, c.writeError(err)
		}
		c.spend(k, rate)
		if n == len(b) {
			return n, nil
		}
	}
}

// beginWrite waits for the turn to write and returns the limit to keep.
func (c *Conn) beginWrite() (rate int, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.passLocked("write", &c.writeDeadline, func() bool { return !c.writing })
	if err != nil {
		return 0, err
	}
	c.writing = true
	return c.rate, nil
}

func (c *Conn) endWrite() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing = false
	c.changed.Broadcast()
}

// pace waits until the limit lets the next piece go.
func (c *Conn) pace(rate int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var turn deadline
	defer turn.stop()
	if rate > 0 && !c.free.IsZero() {
		turn.set(&c.changed, c.free)
	} else {
		turn.passed = true
	}
	return c.passLocked("write", &c.writeDeadline, func() bool { return turn.passed })
}

// spend says that n bytes have gone.
func (c *Conn) spend(n, rate int) {
	if rate <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = time.Now().Add(time.Duration(n) * time.Second / time.Duration(rate))
}

// writeError is err of the wrapped connection, as a reset where Cut was the
// cause.
func (c *Conn) writeError(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return c.opError("write", resetBy("write"))
	}
	return err
}

func (c *Conn) pass(call string, d *deadline) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passLocked(call, d, func() bool { return true })
}

// passLocked waits until c is not stalled and ready says so too.
func (c *Conn) passLocked(call string, d *deadline, ready func() bool) error {
	for {
		switch {
		case c.closed:
			return c.opError(call, net.ErrClosed)
		case c.cut:
			return c.opError(call, resetBy(call))
		case d.passed:
			return c.opError(call, os.ErrDeadlineExceeded)
		case !c.stalled && ready():
			return nil
		}
		c.changed.Wait()
	}
}

// Close closes the wrapped connection; the peer is told even while c is
// stalled.
func (c *Conn) Close() error {
	if c.markClosed() {
		return nil
	}
	return c.Conn.Close()
}

// markClosed reports whether Cut has closed the wrapped connection before and
// this is the user's first close.
func (c *Conn) markClosed() (done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done = c.cut && !c.closed
	c.closed = true
	c.readDeadline.stop()
	c.writeDeadline.stop()
	c.changed.Broadcast()
	return done
}

// SetDeadline sets the deadlines of reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDeadline.set(&c.changed, t)
	c.writeDeadline.set(&c.changed, t)
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDeadline.set(&c.changed, t)
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeDeadline.set(&c.changed, t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func resetBy(call string) error { return os.NewSyscallError(call, syscall.ECONNRESET) }
