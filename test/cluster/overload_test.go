package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Honest traffic that makes the other side answer a lot at once is no flood: the link, and what
// else is on it, lives.

// flow sends as long as it may.
func flow(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
	for ctx.Err() == nil {
		out <- []byte{1}
	}
	return nil
}

func TestOverload_ManyRefusalsAtOnceKeepTheLink(t *testing.T) {
	const calls = 5000
	g := rig.NewTCP(t, 2, nil)
	c := g.Conn(0, 1)
	other, err := c.NewStream(t.Context(), rig.Block, nil)
	require.NoError(t, err)
	defer close(other.Requests)
	var wg sync.WaitGroup
	var remote atomic.Int64
	gate := make(chan struct{})
	for range calls {
		wg.Go(func() {
			<-gate
			if _, err := c.SingleRequest(t.Context(), rig.Unused, nil); grid.IsRemoteErr(err) {
				remote.Add(1)
			}
		})
	}
	close(gate)
	wg.Wait()
	require.EqualValues(t, calls, remote.Load())
	require.NoError(t, other.Err())
}

func TestOverload_StreamThatIsLeftInFullFlowKeepsTheLink(t *testing.T) {
	rig.Long(t)
	g := rig.NewTCP(t, 2, nil)
	g.Stream(rig.MaxCapacity, 0, flow)
	c := g.Conn(0, 1)
	enough := errors.New("enough")
	for range 30 {
		st := rig.OpenStream(t, t.Context(), c)
		n := 0
		require.ErrorIs(t, st.Results(func([]byte) error {
			if n++; n == 1000 {
				return enough
			}
			return nil
		}), enough)
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
	}
	require.Zero(t, c.Stats().Reconnects)
}

func TestOverload_StreamWhoseHandlerReturnsInFullFlowKeepsTheLink(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	g.Stream(1, rig.MaxCapacity, func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
		for range 1000 {
			<-in
		}
		return nil
	})
	c := g.Conn(0, 1)
	for range 10 {
		st := rig.OpenStream(t, t.Context(), c)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for st.Send([]byte{1}) == nil {
				}
			})
		}
		require.NoError(t, st.Results(func([]byte) error { return nil }))
		wg.Wait()
	}
	require.Zero(t, c.Stats().Reconnects)
}

func TestOverload_ManyStreamsCancelledInFullFlowKeepTheLink(t *testing.T) {
	rig.Long(t)
	g := rig.NewTCP(t, 2, nil)
	g.Stream(4096, 0, flow)
	c := g.Conn(0, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var flowing, ended sync.WaitGroup
	for range 200 {
		flowing.Add(1)
		ended.Go(func() {
			n := 0
			st, err := c.NewStream(ctx, rig.Handler, nil)
			if err != nil {
				flowing.Done()
				return
			}
			_ = st.Results(func(b []byte) error {
				if n++; n == 10 {
					flowing.Done()
				}
				grid.PutByteBuffer(b)
				return nil
			})
		})
	}
	flowing.Wait()
	cancel()
	ended.Wait()
	_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
	require.NoError(t, err)
	require.Zero(t, c.Stats().Reconnects)
}

// All pings of idle streams are due at once.
func TestStream_ManyIdleOnesLiveAndAreCancelledAtOnce(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	const streams = 8000
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opened := make([]*grid.Stream, streams)
		var wg sync.WaitGroup
		for w := range 64 {
			wg.Go(func() {
				for i := w; i < streams; i += 64 {
					opened[i], _ = c.NewStream(ctx, rig.Handler, nil)
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Minute)
		for _, st := range opened {
			require.NotNil(t, st)
			require.NoError(t, st.Err())
		}
		cancel()
		time.Sleep(time.Second)
		require.Zero(t, c.Stats().Reconnects)
		require.Equal(t, grid.StateConnected, c.State())
	})
}

// Who has its answer finds a slot for the next request.
func TestLimits_SlotIsFreeOnceTheAnswerHasArrived(t *testing.T) {
	g := rig.NewTCP(t, 2, func(_ int, o *grid.ManagerOptions) { o.MaxHandlers = 1 })
	c := g.Conn(0, 1)
	for range 1000 {
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
		st, err := c.NewStream(t.Context(), rig.Stream, []byte("x"))
		require.NoError(t, err)
		_, err = rig.Collect(st, 0)
		require.NoError(t, err)
	}
}

// rateConn writes so many bytes a second.
type rateConn struct {
	net.Conn
	rate int
}

func (c *rateConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.Conn.Write(p[done:min(done+4096, len(p))])
		if done += n; err != nil {
			return done, err
		}
		time.Sleep(time.Duration(n) * time.Second / time.Duration(c.rate))
	}
	return done, nil
}

func TestStream_IdleOneLivesBesideALargeMessageThatMoves(t *testing.T) {
	t.Parallel()
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			return &rateConn{c, 100 << 10}, err
		}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		if !c.Stats().Dials { // who dials writes slowly
			c = g.Conn(1, 0)
		}
		st, err := c.NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		defer close(st.Requests)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		start := time.Now()
		b, err := c.SingleRequest(ctx, rig.Echo, make([]byte, 10<<20))
		require.NoError(t, err)
		grid.PutByteBuffer(b)
		require.Greater(t, time.Since(start), 90*time.Second)
		require.NoError(t, st.Err())
	})
}

// badRecycler panics when it is put back.
type badRecycler struct{ grid.Bytes }

func (r *badRecycler) Recycle() { panic("boom in Recycle") }

// The application's code runs on goroutines of grid as well: a panic there must not end the
// process.
func TestTyped_PanicsOfConstructorsAndRecyclersEndTheStreamOnly(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		newBad := func() *badRecycler { return new(badRecycler) }
		h := grid.NewStream[*badRecycler](rig.Handler, nil, newBad, newBad)
		require.NoError(t, h.RegisterNoPayload(g.Manager(1), func(ctx context.Context, in <-chan *badRecycler, out chan<- *badRecycler) *grid.RemoteErr {
			out <- newBad()
			<-ctx.Done()
			return nil
		}))
		st, err := h.Call(t.Context(), c, nil)
		require.NoError(t, err)
		require.ErrorContains(t, st.Results(func(*badRecycler) error { return nil }), "boom in Recycle")
		close(st.Requests)
		st, err = h.Call(t.Context(), c, nil)
		require.NoError(t, err)
		st.Requests <- newBad()
		require.ErrorContains(t, st.Results(func(*badRecycler) error { return nil }), "boom in Recycle")
		close(st.Requests)

		made := grid.NewStream[*grid.Bytes](rig.Handler+1, nil, func() *grid.Bytes { panic("boom in the constructor") }, grid.NewBytes)
		require.NoError(t, made.RegisterNoPayload(g.Manager(1), func(ctx context.Context, in <-chan *grid.Bytes, _ chan<- *grid.Bytes) *grid.RemoteErr {
			<-in
			return grid.NewRemoteErr(context.Cause(ctx))
		}))
		s, err := made.Call(t.Context(), c, nil)
		require.NoError(t, err)
		require.NoError(t, s.Send(new(grid.Bytes)))
		require.ErrorContains(t, s.Results(func(*grid.Bytes) error { return nil }), "boom in the constructor")
		s.CloseSend()
	})
}

// Calls that the remote has let in are answered, however many are made while it shuts down. With
// one caller whoever sends writes as well.
func TestShutdown_UnderLoadAnswersWhatItLetIn(t *testing.T) {
	for i := range 20 {
		callers := []int{1, 8}[i%2]
		g := rig.NewTCP(t, 2, nil)
		var ran, answered atomic.Int64
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { ran.Add(1); return b, nil })
		started := make(chan struct{}, callers)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for i := 0; ; i++ {
					b, err := g.Conn(0, 1).SingleRequest(context.Background(), rig.Handler, []byte("x"))
					if err != nil {
						return
					}
					grid.PutByteBuffer(b)
					if answered.Add(1); i == 40 {
						started <- struct{}{}
					}
				}
			})
		}
		<-started
		require.NoError(t, g.Manager(1).Shutdown(context.Background()))
		wg.Wait()
		require.Equal(t, ran.Load(), answered.Load())
		g.StopAll()
	}
}

// The time that a request waits for room is not there for its handler.
func TestDeadline_SentIsWhatIsLeftWhenItIsSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		n.SetBuffer(1 << 10)
		s := rig.ListenLone(t, n, rawpeer.Config{Unread: true})
		g, raw := rig.NewLone(t, n, false, nil)
		peer := s.Accept()
		conn := g.Manager(0).Connection(raw)
		require.NoError(t, conn.WaitForConnect(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done := make(chan error)
		const calls = 20
		for range calls {
			go func() {
				_, err := conn.SingleRequest(ctx, rig.Echo, make([]byte, 60_000))
				done <- err
			}()
		}
		synctest.Wait()
		time.Sleep(4 * time.Second)
		peer.StartReading()
		late := 0
		for range calls {
			m := peer.Expect(rawpeer.OpRequest)
			if m.DeadlineMS <= 6000 {
				late++
			}
			peer.Send(rawpeer.Msg{MuxID: m.MuxID, Op: rawpeer.OpResponse, Flags: rig.CRCEOF})
		}
		for range calls {
			require.NoError(t, <-done)
		}
		require.GreaterOrEqual(t, late, calls/2)
	})
}
