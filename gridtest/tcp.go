package gridtest

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gridrpc/grid/internal/faultconn"
)

// tcp is a network of loopback sockets. Of each socket between two nodes the end that has dialled
// is wrapped, which is enough to cut and to silence both.
type tcp struct {
	ports []*port
	nodes map[string]int // by address

	mu    sync.Mutex
	links map[pair]*tcpLink // made when they are needed
}

// tcpLink is the sockets between two nodes. It is guarded by tcp.mu.
type tcpLink struct {
	healed chan struct{} // nil if the link is not broken; closed by the end of that
	wires  map[*wire]struct{}
	// kept were closed while the link was broken, of which the other end must not be told.
	kept []*net.TCPConn
}

// wire is the end of a socket that has dialled.
type wire struct {
	*faultconn.Conn
	socket *socket
}

// socket is what a wire wraps.
type socket struct {
	*net.TCPConn
	net  *tcp
	link *tcpLink
	wire *wire
	cut  bool // guarded by tcp.mu
}

func newTCP(n int) (*tcp, error) {
	t := &tcp{nodes: make(map[string]int), links: make(map[pair]*tcpLink)}
	for i := range n {
		p, err := newPort()
		if err != nil {
			t.close()
			return nil, err
		}
		t.ports = append(t.ports, p)
		t.nodes[t.addr(i)] = i
	}
	return t, nil
}

func (t *tcp) addr(i int) string                  { return t.ports[i].Addr().String() }
func (t *tcp) listen(i int) (net.Listener, error) { return t.ports[i].listen(), nil }

func (t *tcp) dialer(from int) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, ok := t.nodes[addr]
		if !ok { // no node of the grid
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		c, err := t.dial(ctx, from, to)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: t.ports[to].Addr(), Err: err}
		}
		return c, nil
	}
}

func (t *tcp) dial(ctx context.Context, from, to int) (net.Conn, error) {
	var d net.Dialer
	for {
		if healed := t.healed(from, to); healed != nil {
			select {
			case <-healed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if t.ports[to].listener() == nil {
			return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
		}
		c, err := d.DialContext(ctx, "tcp", t.addr(to))
		var op *net.OpError
		if errors.As(err, &op) {
			return nil, op.Err
		}
		if err != nil {
			return nil, err
		}
		if w := t.wrap(c.(*net.TCPConn), pairOf(from, to)); w != nil {
			return w, nil
		}
	}
}

// wrap returns nil, and closes c, where the link was broken meanwhile.
func (t *tcp) wrap(c *net.TCPConn, p pair) *wire {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.linkLocked(p)
	if l.healed != nil {
		reset(c)
		return nil
	}
	s := &socket{TCPConn: c, net: t, link: l}
	s.wire = &wire{faultconn.Wrap(s), s}
	l.wires[s.wire] = struct{}{}
	return s.wire
}

func (t *tcp) linkLocked(p pair) *tcpLink {
	l := t.links[p]
	if l == nil {
		l = &tcpLink{wires: make(map[*wire]struct{})}
		t.links[p] = l
	}
	return l
}

// healed is closed when the link is not broken any more; nil if it is not.
func (t *tcp) healed(a, b int) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.linkLocked(pairOf(a, b)).healed
}

func (t *tcp) cut(a, b int) {
	wires, kept := t.beginCut(pairOf(a, b))
	for _, w := range wires {
		w.Cut()
	}
	for _, c := range kept {
		reset(c)
	}
}

func (t *tcp) beginCut(p pair) (wires []*wire, kept []*net.TCPConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.linkLocked(p)
	for w := range l.wires {
		w.socket.cut = true
		wires = append(wires, w)
	}
	kept, l.kept = l.kept, nil
	return wires, kept
}

func (t *tcp) setBroken(a, b int, broken bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.linkLocked(pairOf(a, b))
	if broken == (l.healed != nil) {
		return
	}
	for w := range l.wires {
		w.Stall(broken)
	}
	if broken {
		l.healed = make(chan struct{})
		return
	}
	close(l.healed)
	l.healed = nil
	l.releaseLocked()
}

// releaseLocked lets the other ends know of what was closed.
func (l *tcpLink) releaseLocked() {
	for _, c := range l.kept {
		_ = c.Close() // nobody reads what it has not sent
	}
	l.kept = nil
}

func (t *tcp) open() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.links {
		n += len(l.wires) + len(l.kept)
	}
	return n
}

func (t *tcp) close() {
	for _, p := range t.ports {
		p.close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.links {
		l.releaseLocked()
	}
}

// Close implements net.Conn, for the wire.
func (s *socket) Close() error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	delete(s.link.wires, s.wire)
	if s.link.healed == nil || s.cut {
		return s.TCPConn.Close()
	}
	s.link.kept = append(s.link.kept, s.TCPConn)
	return s.SetDeadline(time.Unix(1, 0)) // whoever reads or writes now returns
}

// CloseWrite is that of the socket; it fails where the other end must not be told.
func (w *wire) CloseWrite() error {
	s := w.socket
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.link.healed != nil {
		return errors.New("gridtest: the link is broken")
	}
	return s.CloseWrite()
}
