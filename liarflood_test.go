package grid

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// Two hosts that write as much as they can to each other, over sockets that take
// next to nothing: if either waited for the other to read before it reads itself,
// both would for ever.

// flood has everybody call everybody, both ways at once.
func (g *testGrid) flood(calls, size int) {
	g.t.Helper()
	var users sync.WaitGroup
	for i := range 2 {
		c := g.conn(i, 1-i)
		for range 4 {
			users.Go(func() {
				for range calls {
					b, err := c.SingleRequest(context.Background(), testEcho, make([]byte, size))
					if err != nil || len(b) != size {
						g.t.Errorf("%d bytes, %v", len(b), err)
						return
					}
					PutByteBuffer(b)
				}
			})
			users.Go(func() {
				s, err := c.NewStream(context.Background(), testHandler, make([]byte, size))
				if err != nil {
					g.t.Error(err)
					return
				}
				users.Go(func() {
					for range calls {
						if err := s.Send(make([]byte, size)); err != nil {
							g.t.Error(err)
						}
					}
					s.CloseSend()
				})
				n := 0
				if err := s.Results(func(b []byte) error { n++; PutByteBuffer(b); return nil }); err != nil || n != 2*calls {
					g.t.Errorf("%d messages, %v", n, err)
				}
			})
		}
	}
	users.Wait()
	for i := range 2 {
		require.Zero(g.t, g.conn(i, 1-i).Stats().Reconnects)
	}
}

// answerTwice registers a stream that sends each message back twice.
func (g *testGrid) answerTwice() {
	g.t.Helper()
	for _, n := range g.nodes {
		require.NoError(g.t, n.RegisterStreamingHandler(testHandler, StreamHandler{
			OutCapacity: 3, InCapacity: 3,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
				for b := range in {
					out <- append(GetByteBufferCap(len(b)), b...)
					out <- b
				}
				return nil
			},
		}))
	}
}

func TestFloodBothWaysThroughTinyBuffers(t *testing.T) {
	for _, c := range []struct{ buffer, calls, size int }{{1, 2, 20}, {7, 3, 300}, {64, 3, 5000}, {64, 1, 70 << 10}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				n.SetBuffer(c.buffer)
				g := &testGrid{t: t, net: n, hosts: []string{"http://node0:9000", "http://node1:9000"}}
				g.startAll()
				g.answerTwice()
				g.flood(c.calls, c.size)
				g.requireNothingKept()
			})
		})
	}
}

// tightListener accepts sockets with little room: with less than a segment of the
// loopback it is the kernel's timers that carry the data.
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

func TestFloodBothWaysThroughTightSockets(t *testing.T) {
	g := &testGrid{t: t, edit: func(_ int, o *ManagerOptions) {
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				tighten(c)
			}
			return c, err
		}
	}}
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		g.addrs = append(g.addrs, tightListener{l})
		g.hosts = append(g.hosts, "http://"+l.Addr().String())
	}
	g.startAll()
	g.answerTwice()
	g.flood(scaled(50), 2000)
	g.flood(2, 100<<10)
}
