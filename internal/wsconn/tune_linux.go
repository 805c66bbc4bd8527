package wsconn

import (
	"crypto/tls"
	"net"
	"syscall"
)

const (
	tcpNotsentLowat = 25 // TCP_NOTSENT_LOWAT, which package syscall lacks
	// unsentLimit is how much the kernel may hold, in bytes, that the peer has not let it send.
	// Whatever is written next waits behind it, so a queue belongs in front of the socket, where
	// small messages get past large ones.
	unsentLimit = 64 << 10
)

// tune sets what it can of the socket under c. It is for speed only.
func tune(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	s, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, unsentLimit)
		})
	}
}
