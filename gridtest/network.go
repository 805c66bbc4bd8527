package gridtest

import (
	"context"
	"fmt"
	"net"

	"github.com/gridrpc/grid/internal/faultconn"
)

// network joins the nodes. All methods may be called concurrently.
type network interface {
	addr(i int) string // host:port
	listen(i int) (net.Listener, error)
	dialer(i int) dialFunc

	// cut resets all connections between two nodes, also on a link that is broken.
	cut(a, b int)
	// setBroken silences the link between two nodes, or lets it go again: nothing
	// arrives, nor that the other end was closed, and dials wait.
	setBroken(a, b int, broken bool)

	// open is how many connections, or ends of them, nobody has closed.
	open() int
	// close is called when all nodes are stopped, perhaps more than once.
	close()
}

// newNetwork makes one of n nodes.
func newNetwork(n int, sockets bool) (network, error) {
	if sockets {
		return newTCP(n)
	}
	return memory{faultconn.NewNetwork()}, nil
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// gated is dial once all gates are closed.
func gated(dial dialFunc, gates ...<-chan struct{}) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		for _, gate := range gates {
			select {
			case <-gate:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return dial(ctx, network, addr)
	}
}

// memory is a network in memory.
type memory struct{ net *faultconn.Network }

func (memory) addr(i int) string                    { return fmt.Sprintf("node%d:9000", i) }
func (m memory) listen(i int) (net.Listener, error) { return m.net.Listen(m.addr(i)) }
func (m memory) dialer(i int) dialFunc              { return m.net.Dialer(m.addr(i)) }
func (m memory) cut(a, b int)                       { m.net.Cut(m.addr(a), m.addr(b)) }
func (m memory) open() int                          { return m.net.Conns() }
func (m memory) close()                             {}

func (m memory) setBroken(a, b int, broken bool) {
	if broken {
		m.net.Partition(m.addr(a), m.addr(b))
	} else {
		m.net.Heal(m.addr(a), m.addr(b))
	}
}
