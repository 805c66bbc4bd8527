package faultconn

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const networkName = "memory"

// hostAddr is a host:port of a Network.
type hostAddr string

func (hostAddr) Network() string  { return networkName }
func (a hostAddr) String() string { return string(a) }

// pipe is one connection: two ends, each with a buffer of what the other has sent it.
type pipe struct {
	dialler, acceptor end
	link              direction // from the dialler to the acceptor
	serial            uint64    // which connection of the network it is
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
	in            flow     // from the peer
	hangup        deadline // passes when the peer's close arrives
	finish        deadline // passes when the end of what it writes does
	finished      bool     // writes no more
	dead          bool     // has lost the connection, of which the peer is not told
	orphaned      bool     // the peer is dead
	writing       bool     // a Write has its turn
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

// joins reports whether the pipe is between two hosts, in either order.
func (p *pipe) joins(a, b string) bool {
	d := direction{a, b}
	return p.link == d || p.link == d.back()
}

func (p *pipe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.changed.Broadcast()
}

// halfOpen takes the connection from one end without a word to the other.
func (p *pipe) halfOpen(dead *end) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !dead.orphaned {
		dead.dead, dead.peer.orphaned = true, true
	}
	p.changed.Broadcast()
}

// set sets the faults of what the dialler sends, and of what it is sent.
func (p *pipe) set(fromDialler, toDialler faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, e := range []*end{&p.acceptor, &p.dialler} {
		e.in.faults = fromDialler
		if i == 1 {
			e.in.faults = toDialler
		}
		e.in.flips.set(e.in.corrupt, 2*p.serial+uint64(i))
	}
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
		if err := e.failureLocked("read", &e.readDeadline); err != nil {
			return 0, e.opError("read", err)
		}
		if len(b) == 0 {
			return 0, nil
		}
		if !e.orphaned {
			if n := e.in.readable(&e.p.changed); n > 0 {
				n = e.in.read(b[:min(n, len(b))])
				e.p.changed.Broadcast()
				return n, nil
			}
			if e.in.buf.Len() == 0 && (e.peerGoneLocked() || e.finish.passed && !e.in.silent) {
				return 0, io.EOF
			}
		}
		e.p.changed.Wait()
	}
}

// Write returns when the peer's buffer has taken all of b. Like that of a socket it never mixes the
// bytes of two calls.
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
		if err == nil && (e.finished || e.peerGoneLocked() && !e.peer.in.silent) {
			err = os.NewSyscallError("write", syscall.EPIPE)
		}
		if err != nil {
			return n, e.opError("write", err)
		}
		if mine || !e.writing {
			mine, e.writing = true, true
			if k := min(len(b)-n, e.p.limit-e.peer.in.buf.Len()); k > 0 {
				e.peer.in.send(b[n : n+k])
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
	case e.p.cut, e.dead, e.peer.aborted && e.peerGoneLocked():
		return os.NewSyscallError(call, syscall.ECONNRESET)
	case d.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// peerGoneLocked reports whether the peer's close has arrived.
func (e *end) peerGoneLocked() bool { return e.hangup.passed && !e.in.silent && !e.orphaned }

// Close ends the connection: the peer reads what it was sent, then io.EOF, and its writes fail with
// EPIPE.
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
	e.in.drop()
	e.readDeadline.stop()
	e.writeDeadline.stop()
	e.hangup.stop()
	e.finish.stop()
	if !e.peer.closed {
		e.peer.hangup.set(&e.p.changed, e.peer.in.last())
	}
	e.p.changed.Broadcast()
	return e.peer.closed, nil
}

// CloseWrite follows [net.TCPConn.CloseWrite]: the peer reads what it was sent, then io.EOF, and may
// go on writing.
func (e *end) CloseWrite() error {
	return e.set(func() {
		if !e.finished && !e.peer.closed {
			e.finished = true
			e.peer.finish.set(&e.p.changed, e.peer.in.last())
			e.p.changed.Broadcast()
		}
	})
}

// SetLinger follows [net.TCPConn.SetLinger]: with 0, Close resets the connection. Other values mean
// the default.
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
