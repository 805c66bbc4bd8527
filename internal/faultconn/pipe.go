package faultconn

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const networkName = "faultconn"

// hostAddr is a host:port of a Network.
type hostAddr string

func (hostAddr) Network() string  { return networkName }
func (a hostAddr) String() string { return string(a) }

// pipe is one connection: two ends, each with a buffer of what the other has
// sent it.
type pipe struct {
	dialler, acceptor end
	link              direction // from the dialler to the acceptor
	limit             int       // bytes that a buffer takes
	ended             func()    // called when both ends are closed

	// mu guards what follows and the state of both ends.
	mu      sync.Mutex
	changed sync.Cond // any of it
	cut     bool
}

// end is one end of a pipe, a net.Conn.
type end struct {
	p             *pipe
	peer          *end
	local, remote hostAddr

	// The rest is guarded by p.mu.
	in            bytes.Buffer // from the peer, not yet read
	silent        bool         // nothing from the peer arrives
	writing       bool         // a Write has its turn
	closed        bool
	aborted       bool // closed with a reset
	noLinger      bool
	readDeadline  deadline
	writeDeadline deadline
}

func newPipe(limit int, dialler, acceptor hostAddr) *pipe {
	p := &pipe{limit: limit}
	p.changed.L = &p.mu
	p.dialler = end{p: p, peer: &p.acceptor, local: dialler, remote: acceptor}
	p.acceptor = end{p: p, peer: &p.dialler, local: acceptor, remote: dialler}
	return p
}

func (p *pipe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.changed.Broadcast()
}

// stall says which of the directions are silent: that from the dialler, and
// that to it.
func (p *pipe) stall(fromDialler, toDialler bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acceptor.silent, p.dialler.silent = fromDialler, toDialler
	p.changed.Broadcast()
}

func (p *pipe) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, e := range []*end{&p.dialler, &p.acceptor} {
		if !e.closed {
			n++
		}
	}
	return n
}

func (e *end) Read(b []byte) (int, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	for {
		switch err := e.failureLocked("read", &e.readDeadline); {
		case err != nil:
			return 0, e.opError("read", err)
		case len(b) == 0:
			return 0, nil
		case e.silent:
		case e.in.Len() > 0:
			n, _ := e.in.Read(b) // fails only when empty
			e.p.changed.Broadcast()
			return n, nil
		case e.peer.closed:
			return 0, io.EOF
		}
		e.p.changed.Wait()
	}
}

// Write returns when the peer's buffer has taken all of b. Like that of a
// socket it never mixes the bytes of two calls.
func (e *end) Write(b []byte) (n int, _ error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			e.writing = false
			e.p.changed.Broadcast()
		}
	}()
	for {
		err := e.failureLocked("write", &e.writeDeadline)
		if err == nil && e.peer.closed && !e.silent && !e.peer.silent {
			err = os.NewSyscallError("write", syscall.EPIPE)
		}
		if err != nil {
			return n, e.opError("write", err)
		}
		if mine || !e.writing {
			mine, e.writing = true, true
			if k := min(len(b)-n, e.p.limit-e.peer.in.Len()); k > 0 {
				e.peer.in.Write(b[n : n+k])
				n += k
				e.p.changed.Broadcast()
			}
			if n == len(b) {
				return n, nil
			}
		}
		e.p.changed.Wait()
	}
}

// failureLocked says why e can neither read nor write now, if so.
func (e *end) failureLocked(call string, d *deadline) error {
	switch {
	case e.closed:
		return net.ErrClosed
	case e.p.cut, e.peer.aborted && !e.silent:
		return os.NewSyscallError(call, syscall.ECONNRESET)
	case d.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close ends the connection: the peer reads what it was sent, then io.EOF, and
// its writes fail with EPIPE.
func (e *end) Close() error {
	last, err := e.shut()
	if last {
		e.p.ended()
	}
	return err
}

func (e *end) shut() (last bool, _ error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return false, e.opError("close", net.ErrClosed)
	}
	e.closed = true
	e.aborted = e.noLinger
	e.in = bytes.Buffer{}
	e.readDeadline.stop()
	e.writeDeadline.stop()
	e.p.changed.Broadcast()
	return e.peer.closed, nil
}

// SetLinger follows [net.TCPConn.SetLinger]: with 0, Close resets the
// connection. Other values mean the default.
func (e *end) SetLinger(seconds int) error {
	return e.set(func() { e.noLinger = seconds == 0 })
}

func (e *end) SetDeadline(t time.Time) error {
	return e.set(func() {
		e.readDeadline.set(&e.p.changed, t)
		e.writeDeadline.set(&e.p.changed, t)
	})
}

func (e *end) SetReadDeadline(t time.Time) error {
	return e.set(func() { e.readDeadline.set(&e.p.changed, t) })
}

func (e *end) SetWriteDeadline(t time.Time) error {
	return e.set(func() { e.writeDeadline.set(&e.p.changed, t) })
}

func (e *end) set(f func()) error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return e.opError("set", net.ErrClosed)
	}
	f()
	return nil
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: networkName, Source: e.local, Addr: e.remote, Err: err}
}
