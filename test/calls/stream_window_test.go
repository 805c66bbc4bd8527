package calls

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// farConn is a connection over which everything takes a while, in both directions. It has no limit
// of its own to what is under way.
type farConn struct {
	net.Conn // writes and closes it
	delay    time.Duration
	out      chan farBytes
	in       chan farBytes
	rest     []byte // of in, not yet read
	err      error  // of the last read
	closed   chan struct{}
	once     sync.Once
}

type farBytes struct {
	b   []byte
	err error
	at  time.Time // when it arrives
}

func newFarConn(c net.Conn, delay time.Duration) *farConn {
	f := &farConn{
		Conn: c, delay: delay, closed: make(chan struct{}),
		out: make(chan farBytes, 1<<16), in: make(chan farBytes, 1<<16),
	}
	go func() {
		for {
			b := make([]byte, 64<<10)
			n, err := c.Read(b)
			f.in <- farBytes{b[:n], err, time.Now().Add(delay)}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		for {
			select {
			case m := <-f.out:
				time.Sleep(time.Until(m.at))
				if _, err := c.Write(m.b); err != nil {
					return
				}
			case <-f.closed:
				return
			}
		}
	}()
	return f
}

func (f *farConn) Write(b []byte) (int, error) {
	f.out <- farBytes{b: append([]byte(nil), b...), at: time.Now().Add(f.delay)}
	return len(b), nil
}

func (f *farConn) Read(b []byte) (int, error) {
	for len(f.rest) == 0 && f.err == nil {
		select {
		case m := <-f.in:
			time.Sleep(time.Until(m.at))
			f.rest, f.err = m.b, m.err
		case <-f.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(b, f.rest)
	f.rest = f.rest[n:]
	if n == 0 {
		return 0, f.err
	}
	return n, nil
}

func (f *farConn) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

// inFarPair is InPair with a network on which a round trip takes that long.
func inFarPair(t *testing.T, roundTrip time.Duration, f func(t *testing.T, g *rig.Grid, c *grid.Connection)) {
	t.Helper()
	edit := func(_ int, o *grid.ManagerOptions) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return newFarConn(c, roundTrip/2), nil
		}
	}
	rig.InPair(t, edit, f)
}

func TestWindow_DefaultIsNotStopAndWait(t *testing.T) {
	t.Parallel()
	const (
		roundTrip = 10 * time.Millisecond
		messages  = 10_000
		// Doubling to a window of 512, then 10,000/512 windows; twice that, and what opening and
		// ending take.
		most = 2*(10+messages/rig.MaxWindow)*roundTrip + 4*roundTrip
	)
	inFarPair(t, roundTrip, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(0, 1, func(_ context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for range in {
			}
			if len(payload) > 0 {
				for range messages {
					out <- []byte("x")
				}
			}
			return nil
		})
		require.GreaterOrEqual(t, rig.Elapsed(func() {
			s := rig.OpenStream(t, t.Context(), c)
			close(s.Requests)
			require.NoError(t, s.Results(nil))
		}), roundTrip, "the network is as slow as it should be")

		require.Less(t, rig.Elapsed(func() {
			s := rig.OpenStream(t, t.Context(), c, 'x')
			close(s.Requests)
			n := 0
			require.NoError(t, s.Results(func([]byte) error { n++; return nil }))
			require.Equal(t, messages, n)
		}), most, "from the handler")

		require.Less(t, rig.Elapsed(func() {
			s := rig.OpenStream(t, t.Context(), c)
			for range messages {
				require.NoError(t, s.Send([]byte("x")))
			}
			s.CloseSend()
			require.NoError(t, s.Results(nil))
		}), most, "to the handler, with Send")

		require.Less(t, rig.Elapsed(func() {
			s := rig.OpenStream(t, t.Context(), c)
			for range messages {
				s.Requests <- []byte("x")
			}
			close(s.Requests)
			require.NoError(t, s.Results(nil))
		}), most, "to the handler, through Requests")
	})
}

func TestWindow_StalledConsumerHoldsNoMore(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		capacity int
		size     int // of a message
		warmUp   int // messages consumed before the stall
		most     int // messages ahead of the consumer: the window
	}{
		{"from the start", 1, 1, 0, 1},
		{"from the start, larger capacity", 20, 1, 0, 20},
		{"after keeping up", 1, 1, 5000, rig.MaxWindow},
		{"after keeping up, large messages", 1, 100_000, 40, rig.MaxWindowBytes / 100_000},
	} {
		t.Run(test.name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				sent := 0 // by the handler
				g.Stream(test.capacity, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
					for ctx.Err() == nil {
						out <- make([]byte, test.size)
						sent++
					}
					return nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				s := rig.OpenStream(t, ctx, c)
				n := 0
				look := func() {
					synctest.Wait()
					// Beyond the window one is in the sender's hand, and some wait in the handler's
					// channel.
					require.LessOrEqual(t, sent-n, test.most+1+min(test.capacity, rig.MaxOutBuffer))
					require.GreaterOrEqual(t, sent-n, test.most/2, "the window has grown")
					cancel()
				}
				if test.warmUp == 0 {
					look()
				}
				require.ErrorIs(t, s.Results(func(b []byte) error {
					grid.PutByteBuffer(b)
					if n++; n == test.warmUp {
						look()
					}
					return nil
				}), context.Canceled)
			})
		})
	}
}

func TestWindow_StalledHandlerIsSentNoMore(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name                          string
		capacity, warmUp, least, most int
	}{
		{"from the start", 1, 0, 1, 1},
		{"from the start, larger capacity", 20, 0, 20, 20},
		// It grows while its sender runs out of credits, which at last it does no more.
		{"after keeping up", 1, 10 * rig.MaxWindow, 256, rig.MaxWindow},
	} {
		t.Run(test.name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				g.Stream(1, test.capacity, func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
					for range test.warmUp {
						<-in
					}
					<-ctx.Done()
					return nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				s := rig.OpenStream(t, ctx, c)
				sent := 0
				stopped := make(chan error)
				go func() {
					var err error
					for err == nil {
						if err = s.Send([]byte("x")); err == nil {
							sent++
						}
					}
					stopped <- err
				}()
				synctest.Wait()
				// One more is in the hand of the goroutine that feeds the handler.
				require.LessOrEqual(t, sent-test.warmUp, test.most+1)
				require.GreaterOrEqual(t, sent-test.warmUp, test.least)
				cancel()
				require.ErrorIs(t, <-stopped, context.Canceled)
			})
		})
	}
}

// Towards a version 1 peer a window never grows: it would take that for a breach.
func TestWindow_StaysAsItIsForAVersion1Server(t *testing.T) {
	t.Parallel()
	withPeer(t, rawpeer.Config{}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
		registerLocally(g, 2, 0)
		s, id := openToPeer(t, t.Context(), c, peer, 0)
		const messages = 50
		go func() {
			msgs := serverMsgs(id, numbered(messages)...)
			credits := 2
			for _, m := range msgs {
				for credits == 0 {
					if m, err := peer.TryRecv(); err != nil || m.Op != rawpeer.OpUnblockSrvMux || m.Payload != nil {
						t.Error(m, err)
						return
					}
					credits++
				}
				credits--
				if err := peer.TrySend(m); err != nil {
					t.Error(err)
				}
			}
		}()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, numbered(messages), got)
	})
}
