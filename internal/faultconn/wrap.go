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
	orphaned      bool // the wrapped connection is closed, which nobody may notice
	closed        bool
	rate          int       // bytes per second, 0 for no limit
	free          time.Time // when the limit lets the next piece go
	delay         time.Duration
	flips         flipper
	lost          int    // bytes written to a connection that is orphaned
	writing       bool   // a Write has its turn
	held          []byte // read, but stalled until after the reader's deadline
	heldErr       error
	readDeadline  deadline
	writeDeadline deadline
}

// Wrap puts faults on the way between c and its user, who must use the result alone from then on.
// One end is enough to cut or stall both directions; it makes slow what it writes, and late or
// corrupt what it reads.
func Wrap(c net.Conn) *Conn {
	w := &Conn{Conn: c}
	w.changed.L = &w.mu
	return w
}

// Read reads from the wrapped connection. Only one call may run at a time.
func (c *Conn) Read(b []byte) (int, error) {
	if err := c.beginRead(); err != nil {
		return 0, err
	}
	if n, err, ok := c.takeHeld(b); ok {
		return n, err
	}
	delay := c.currentDelay()
	n, err := c.Conn.Read(b)
	if late := c.arrive(b[:n], delay); late != nil {
		c.hold(b[:n], err)
		return 0, late
	}
	return n, err
}

func (c *Conn) currentDelay() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delay
}

// arrive corrupts what has been read, and waits until the user may have it.
func (c *Conn) arrive(b []byte, delay time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flips.flip(b)
	if delay == 0 {
		return c.passLocked("read", &c.readDeadline, c.readable)
	}
	var due deadline
	defer due.stop()
	due.set(&c.changed, time.Now().Add(delay))
	return c.passLocked("read", &c.readDeadline, func() bool { return due.passed && c.readable() })
}

// readable reports whether what the other end has sent may arrive. It is called under c.mu.
func (c *Conn) readable() bool { return !c.orphaned }

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
		if err != nil {
			k, err = c.failedWrite(b[n:], k, err)
			return n + k, err
		}
		n += k
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

// failedWrite is the outcome of a write of b that the wrapped connection has failed with err after
// n bytes: a reset where Cut was the cause. Where HalfOpen was, b is lost, and the writer not told.
func (c *Conn) failedWrite(b []byte, n int, err error) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cut:
		return n, c.opError("write", resetBy("write"))
	case !c.orphaned:
		return n, err
	}
	for {
		k := min(len(b)-n, DefaultBuffer-c.lost)
		n, c.lost = n+k, c.lost+k
		if n == len(b) {
			return n, nil
		}
		if err := c.passLocked("write", &c.writeDeadline, func() bool { return false }); err != nil {
			return n, err
		}
	}
}

func (c *Conn) beginRead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passLocked("read", &c.readDeadline, c.readable)
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

// Close closes the wrapped connection; the peer is told even while c is stalled.
func (c *Conn) Close() error {
	if c.markClosed() {
		return nil
	}
	return c.Conn.Close()
}

// markClosed reports whether a fault has closed the wrapped connection before and this is the
// user's first close.
func (c *Conn) markClosed() (done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done = (c.cut || c.orphaned) && !c.closed
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
	return c.deadlineError(c.Conn.SetDeadline(t))
}

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDeadline.set(&c.changed, t)
	return c.deadlineError(c.Conn.SetReadDeadline(t))
}

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeDeadline.set(&c.changed, t)
	return c.deadlineError(c.Conn.SetWriteDeadline(t))
}

// deadlineError is err of the wrapped connection, unless that is a secret.
func (c *Conn) deadlineError(err error) error {
	if c.orphaned && !c.closed {
		return nil
	}
	return err
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func resetBy(call string) error { return os.NewSyscallError(call, syscall.ECONNRESET) }
