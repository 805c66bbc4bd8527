//go:build !linux

package wsconn

import "net"

func tune(net.Conn) {}
