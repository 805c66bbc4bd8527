package chaos

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/faultconn"
)

// tcp is a fabric of loopback sockets. Each host has an address of its own, which on Linux is there
// without further ado, and by which a socket's other end is known. So both ends are wrapped, and
// the faults of a direction are those of the end that it leads to.
type tcp struct {
	ports [hosts]int

	mu    sync.Mutex
	links [hosts][hosts]*tcpLink // by either order
	opens int
}

// tcpLink is guarded by tcp.mu.
type tcpLink struct {
	wires       map[*wire]bool
	partitioned chan struct{} // closed by its end; nil if it is not
	ways        [hosts]way    // by receiver
}

// way is the faults of one direction.
type way struct {
	stalled bool
	rate    int
	delay   time.Duration
	corrupt faultconn.Corruption
}

// wire is one end of a socket.
type wire struct {
	*faultconn.Conn
	net        *tcp
	host, peer int
	socket     *net.TCPConn
	once       sync.Once
}

func newTCP() (*tcp, error) {
	t := new(tcp)
	for i := range hosts {
		for j := range i {
			l := &tcpLink{wires: make(map[*wire]bool)}
			t.links[i][j], t.links[j][i] = l, l
		}
	}
	for i := range hosts {
		l, err := net.Listen("tcp", t.ip(i).String()+":0")
		if err != nil {
			return nil, err
		}
		t.ports[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	return t, nil
}

func (t *tcp) ip(i int) net.IP { return net.IPv4(127, 0, byte(3*i+1), byte(3*i+1)) }

func (t *tcp) addr(i int) string   { return net.JoinHostPort(t.ip(i).String(), strconv.Itoa(t.ports[i])) }
func (t *tcp) name(i int) string   { return "http://" + t.addr(i) }
func (t *tcp) host(a net.Addr) int { return int(a.(*net.TCPAddr).IP.To4()[3]-1) / 3 }

func (t *tcp) listen(i int) (net.Listener, error) {
	l, err := net.Listen("tcp", t.addr(i))
	if err != nil {
		return nil, err
	}
	return &tcpListener{Listener: l, net: t, host: i}, nil
}

type tcpListener struct {
	net.Listener
	net  *tcp
	host int
}

func (l *tcpListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.net.wrap(c, l.host, l.net.host(c.RemoteAddr())), nil
}

func (t *tcp) dial(i int) func(context.Context, string, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: t.ip(i)}}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, err := net.ResolveTCPAddr(network, addr)
		if err != nil {
			return nil, err
		}
		peer := t.host(to)
		for {
			healed := t.healed(i, peer)
			if healed == nil {
				break
			}
			select {
			case <-healed:
			case <-ctx.Done():
				return nil, fmt.Errorf("dial %s: %w", addr, ctx.Err())
			}
		}
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return t.wrap(c, i, peer), nil
	}
}

func (t *tcp) wrap(c net.Conn, host, peer int) *wire {
	socket := c.(*net.TCPConn)
	if (host+peer)%2 == 0 {
		// So that there is something in the queues of the managers.
		_ = socket.SetReadBuffer(64 << 10)
		_ = socket.SetWriteBuffer(16 << 10)
	}
	w := &wire{Conn: faultconn.Wrap(c), net: t, host: host, peer: peer, socket: socket}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opens++
	l := t.links[host][peer]
	l.wires[w] = true
	l.apply(w)
	return w
}

// Close implements net.Conn.
func (w *wire) Close() error {
	w.once.Do(func() {
		w.net.mu.Lock()
		defer w.net.mu.Unlock()
		w.net.opens--
		delete(w.net.links[w.host][w.peer].wires, w)
	})
	return w.Conn.Close()
}

// CloseWrite is that of the socket.
func (w *wire) CloseWrite() error { return w.socket.CloseWrite() }

func (l *tcpLink) apply(w *wire) {
	out, in := l.ways[w.peer], l.ways[w.host]
	// Both directions of it: it can't be told which is meant.
	w.Stall(l.partitioned != nil || out.stalled || in.stalled)
	w.WriteLimit(out.rate)
	w.Delay(in.delay)
	w.Corrupt(in.corrupt)
}

// change changes the faults of a link, and brings its sockets up to date.
func (t *tcp) change(a, b int, f func(l *tcpLink)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.links[a][b]
	f(l)
	for w := range l.wires {
		l.apply(w)
	}
}

// each calls f for the ends of a link's sockets that are on host, or for all if that is below 0.
func (t *tcp) each(a, b, host int, f func(w *wire)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for w := range t.links[a][b].wires {
		if host < 0 || w.host == host {
			f(w)
		}
	}
}

func (t *tcp) cut(a, b int) { t.each(a, b, -1, func(w *wire) { w.Cut() }) }

// halfOpen closes the sockets of the living under their users, who do not notice.
func (t *tcp) halfOpen(dead, alive int) {
	t.each(dead, alive, alive, func(w *wire) { w.HalfOpen() })
}

// healed is closed when a partition ends; nil if there is none.
func (t *tcp) healed(a, b int) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.links[a][b].partitioned
}

func (t *tcp) partition(a, b int) {
	t.change(a, b, func(l *tcpLink) {
		if l.partitioned == nil {
			l.partitioned = make(chan struct{})
		}
	})
}

func (t *tcp) heal(a, b int) {
	t.change(a, b, func(l *tcpLink) {
		if l.partitioned != nil {
			close(l.partitioned)
			l.partitioned = nil
		}
	})
}

func (t *tcp) healAll() {
	for a := range hosts {
		for b := range a {
			t.heal(a, b)
			t.change(a, b, func(l *tcpLink) { l.ways = [hosts]way{} })
		}
	}
}

func (t *tcp) way(from, to int, f func(w *way)) {
	t.change(from, to, func(l *tcpLink) { f(&l.ways[to]) })
}

func (t *tcp) stall(from, to int, on bool) { t.way(from, to, func(w *way) { w.stalled = on }) }
func (t *tcp) rate(from, to, rate int)     { t.way(from, to, func(w *way) { w.rate = rate }) }

func (t *tcp) delay(from, to int, d time.Duration) {
	t.way(from, to, func(w *way) { w.delay = d })
}

func (t *tcp) corrupt(from, to int, c faultconn.Corruption) {
	t.way(from, to, func(w *way) { w.corrupt = c })
}

func (t *tcp) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opens
}
