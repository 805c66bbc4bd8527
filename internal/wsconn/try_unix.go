//go:build unix

package wsconn

import (
	"net"
	"syscall"
)

// tryer writes to a socket without a wait.
type tryer struct {
	raw syscall.RawConn
	// What f, which is made once, writes, and how much of that it has.
	b []byte
	n int
	f func(fd uintptr) bool
}

// newTryer returns nil where c is not the socket itself.
func newTryer(c net.Conn) *tryer {
	socket, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	t := &tryer{raw: raw}
	t.f = func(fd uintptr) bool {
		t.n, _ = syscall.Write(int(fd), t.b) // a wait, or a write that waits, tells of the error
		return true
	}
	return t
}

// write writes what it can of b, and returns how much that was.
func (t *tryer) write(b []byte) int {
	t.b, t.n = b, 0
	_ = t.raw.Write(t.f)
	t.b = nil
	return max(t.n, 0)
}
