package grid

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// newSlowGrid starts two nodes; what the first returned sends to the other goes
// at rate bytes per second.
func newSlowGrid(t testing.TB, rate int, edit func(o *ManagerOptions)) (g *testGrid, from, to int) {
	t.Helper()
	g = newTestGrid(t, 2, func(_ int, o *ManagerOptions) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			w := faultconn.Wrap(c)
			w.WriteLimit(rate)
			return w, nil
		}
		if edit != nil {
			edit(o)
		}
	})
	if g.conn(0, 1).dials {
		return g, 0, 1
	}
	return g, 1, 0
}

// Lesson 25: a message takes longer than the write timeout and two ping
// intervals, on the way there as a request, on the way back as a response.
func TestMessageBiggerThanTheWriteTimeoutsWorthGetsThrough(t *testing.T) {
	const rate = 16 << 10
	for name, backwards := range map[string]bool{"request": false, "response": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, from, to := newSlowGrid(t, rate, nil)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				payload := make([]byte, 45*rate)
				for i := range payload {
					payload[i] = byte(i >> 8)
				}
				// Another message waits behind it, and is not lost.
				calls := make([]<-chan error, 2)
				begin := time.Now()
				for i := range calls {
					calls[i] = inBackground(func() error {
						c := g.conn(from, to)
						if backwards {
							c = g.conn(to, from)
						}
						b, err := c.SingleRequest(ctx, testEcho, payload)
						if err == nil && string(b) != string(payload) {
							t.Errorf("%d bytes came back, or others", len(b))
						}
						return err
					})
				}
				for _, call := range calls {
					require.NoError(t, <-call)
				}
				require.Greater(t, time.Since(begin), 85*time.Second)
				require.Less(t, time.Since(begin), 100*time.Second)
				for i := range 2 {
					require.Zero(t, g.conn(i, 1-i).Stats().Reconnects)
				}
				g.requireWorks()
			})
		})
	}
}

// Lesson 25: the other side answers as if it were alive, but takes nothing.
func TestWriteWithoutProgressEndsTheLink(t *testing.T) {
	for _, timeout := range []time.Duration{20 * time.Second, 3 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, func(o *ManagerOptions) { o.WriteTimeout = timeout })
			c := g.nodes[0].Connection(raw)
			p := g.dialLone(raw, rawConfig{Unread: true})
			pongs := inBackground(func() error {
				for {
					pong, err := rawPong(rawPing(time.Now()))
					if err != nil {
						return err
					}
					if err := p.trySend(pong); err != nil {
						return nil
					}
					time.Sleep(time.Second)
				}
			})
			time.Sleep(5 * time.Minute)
			require.Equal(t, StateConnected, c.State(), "idle is not stuck")
			require.Zero(t, c.Stats().Reconnects)

			begin := time.Now()
			call := inBackground(func() error {
				ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				_, err := c.SingleRequest(ctx, testEcho, make([]byte, 2*faultconn.DefaultBuffer))
				return err
			})
			err := <-call
			require.ErrorIs(t, err, ErrDisconnected)
			require.ErrorContains(t, err, "has read nothing for "+timeout.String())
			require.InDelta(t, timeout.Seconds(), time.Since(begin).Seconds(), 2)
			require.NotEqual(t, StateConnected, c.State())
			require.NoError(t, <-pongs)
		})
	}
}

// A peer that reads now and then is kept, and one that stops in the middle of a
// message is not.
func TestPeerThatReadsNowAndThenIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		c := g.nodes[0].Connection(raw)
		p := g.dialLone(raw, rawConfig{Unread: true})
		call := inBackground(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			_, err := c.SingleRequest(ctx, testEcho, make([]byte, 4<<20))
			return err
		})
		buf := make([]byte, 100<<10)
		for range 20 {
			time.Sleep(15 * time.Second)
			_, err := io.ReadFull(p.ws.NetConn(), buf)
			require.NoError(t, err)
			require.Empty(t, call)
		}
		begin := time.Now()
		require.ErrorIs(t, <-call, ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), noticeTime)
	})
}

// Pings overtake the data that waits, and a saturated link is not
// taken for a dead one.
func TestPingsAreNotStarvedByData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 64 << 10
		g, from, to := newSlowGrid(t, rate, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var senders sync.WaitGroup
		for range 60 { // what they have to send takes far longer than a ping may
			senders.Go(func() {
				for ctx.Err() == nil {
					b, err := g.conn(from, to).SingleRequest(ctx, testEcho, make([]byte, 16<<10))
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					PutByteBuffer(b)
				}
			})
		}
		// The batch that has begun must end first, at 64 KiB a second.
		const most = (pendingLimit + 64<<10) / rate * time.Second
		var worst time.Duration
		for range 5 {
			time.Sleep(10 * time.Second)
			for i := range 2 {
				st := g.conn(i, 1-i).Stats()
				require.Equal(t, StateConnected, st.State)
				worst = max(worst, st.RoundTrip)
			}
		}
		senders.Wait()
		require.Positive(t, worst)
		require.LessOrEqual(t, worst, most)
		for i := range 2 {
			require.Zero(t, g.conn(i, 1-i).Stats().Reconnects)
		}
		t.Logf("worst round trip of a ping: %v", worst)
	})
}
