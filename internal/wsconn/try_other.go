//go:build !unix

package wsconn

import "net"

// tryer stands for what these systems lack.
type tryer struct{}

func newTryer(net.Conn) *tryer { return nil }

func (*tryer) write([]byte) int { return 0 }
