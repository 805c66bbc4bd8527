package wsconn

import (
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
	if raw := rawConn(c); raw != nil {
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, unsentLimit)
		})
	}
}

// maxWrapped is how many wrappers of a connection are looked through.
const maxWrapped = 16

// rawConn is the socket under c, which TLS, a dialer or a listener may have wrapped; nil for none
// that can be got at.
func rawConn(c net.Conn) syscall.RawConn {
	for range maxWrapped {
		switch w := c.(type) {
		case syscall.Conn:
			raw, err := w.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		case interface{ NetConn() net.Conn }:
			c = w.NetConn()
		default:
			return nil
		}
	}
	return nil
}
