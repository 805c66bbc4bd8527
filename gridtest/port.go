package gridtest

import (
	"errors"
	"net"
	"sync"
	"time"
)

// port is the listening socket of a node. It stays open while the node is stopped, so that nobody
// else can get it; who connects meanwhile is reset.
type port struct {
	*net.TCPListener
	done chan struct{} // closed when run has returned

	mu      sync.Mutex
	present *portListener // nil while the node is stopped
}

func newPort() (*port, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	p := &port{TCPListener: l, done: make(chan struct{})}
	go p.run()
	return p, nil
}

// run hands what arrives to the present listener.
func (p *port) run() {
	defer close(p.done)
	for {
		c, err := p.AcceptTCP()
		switch {
		case err == nil:
			if l := p.listener(); l == nil || !l.offer(c) {
				reset(c)
			}
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(10 * time.Millisecond) // too many files are open
		}
	}
}

// listener is nil while the node is stopped.
func (p *port) listener() *portListener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.present
}

// listen makes a listener of the node, whose last one was closed.
func (p *port) listen() net.Listener {
	l := &portListener{port: p, arrived: make(chan *net.TCPConn), closed: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.present = l
	return l
}

// close closes the socket for good.
func (p *port) close() {
	_ = p.TCPListener.Close() // fails only if it is closed
	<-p.done
}

// portListener is what the HTTP server of a node listens to.
type portListener struct {
	port    *port
	arrived chan *net.TCPConn
	closed  chan struct{}
}

// offer hands a connection over, and reports whether it was taken: it is not once the listener is
// closed.
func (l *portListener) offer(c *net.TCPConn) (taken bool) {
	select {
	case l.arrived <- c:
		return true
	case <-l.closed:
		return false
	}
}

// Accept implements net.Listener.
func (l *portListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.arrived:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *portListener) Close() error {
	l.port.mu.Lock()
	defer l.port.mu.Unlock()
	if l.port.present != l {
		return net.ErrClosed
	}
	l.port.present = nil
	close(l.closed)
	return nil
}

// Addr implements net.Listener.
func (l *portListener) Addr() net.Addr { return l.port.Addr() }

// reset closes a socket so that the other end fails with ECONNRESET.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // both fail only if it is closed
	_ = c.Close()
}
