package hostile

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rig"
)

// Two hosts that write as much as they can to each other, over sockets that take next to nothing:
// if either waited for the other to read before it reads itself, both would for ever.

// flood has everybody call everybody, both ways at once.
func flood(g *rig.Grid, calls, size int) {
	g.T.Helper()
	var users sync.WaitGroup
	for i := range 2 {
		c := g.Conn(i, 1-i)
		for range 4 {
			users.Go(func() {
				for range calls {
					b, err := c.SingleRequest(context.Background(), rig.Echo, make([]byte, size))
					if err != nil || len(b) != size {
						g.T.Errorf("%d bytes, %v", len(b), err)
						return
					}
					grid.PutByteBuffer(b)
				}
			})
			users.Go(func() {
				s, err := c.NewStream(context.Background(), rig.Handler, make([]byte, size))
				if err != nil {
					g.T.Error(err)
					return
				}
				users.Go(func() {
					for range calls {
						if err := s.Send(make([]byte, size)); err != nil {
							g.T.Error(err)
						}
					}
					s.CloseSend()
				})
				n := 0
				if err := s.Results(func(b []byte) error { n++; grid.PutByteBuffer(b); return nil }); err != nil || n != 2*calls {
					g.T.Errorf("%d messages, %v", n, err)
				}
			})
		}
	}
	users.Wait()
	for i := range 2 {
		require.Zero(g.T, g.Conn(i, 1-i).Stats().Reconnects)
	}
}

// answerTwice registers a stream that sends each message back twice.
func answerTwice(g *rig.Grid) {
	g.T.Helper()
	for _, n := range g.Nodes() {
		require.NoError(g.T, n.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			OutCapacity: 3, InCapacity: 3,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				for b := range in {
					out <- append(grid.GetByteBufferCap(len(b)), b...)
					out <- b
				}
				return nil
			},
		}))
	}
}

func TestFlood_BothWaysThroughTinyBuffers(t *testing.T) {
	for _, c := range []struct{ buffer, calls, size int }{{1, 2, 20}, {7, 3, 300}, {64, 3, 5000}, {64, 1, 70 << 10}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				n.SetBuffer(c.buffer)
				g := rig.Setup{Net: n, Hosts: []string{"http://node0:9000", "http://node1:9000"}}.Start(t)
				answerTwice(g)
				flood(g, c.calls, c.size)
				g.RequireNothingKept()
			})
		})
	}
}

// tightListener accepts sockets with little room: with less than a segment of the loopback it is
// the kernel's timers that carry the data.
type tightListener struct{ net.Listener }

func (l tightListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		tighten(c)
	}
	return c, err
}

func tighten(c net.Conn) {
	_ = c.(*net.TCPConn).SetReadBuffer(32 << 10)
	_ = c.(*net.TCPConn).SetWriteBuffer(8 << 10)
}

func TestFlood_BothWaysThroughTightSockets(t *testing.T) {
	sockets := rig.NewLoopback(t, "http", 2)
	sockets.Wrap = func(l net.Listener) net.Listener { return tightListener{l} }
	g := rig.Setup{TCP: sockets, Edit: func(_ int, o *grid.ManagerOptions) {
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				tighten(c)
			}
			return c, err
		}
	}}.Start(t)
	answerTwice(g)
	flood(g, rig.Scaled(50), 2000)
	flood(g, 2, 100<<10)
}
