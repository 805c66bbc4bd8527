package grid_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestLimits_StreamsThatNobodyReadsAreRefusedBeyondMaxStreams(t *testing.T) {
	const more, capacity, size = 1000, 4, 100
	limit := rig.Scaled(2000)
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxStreams, o.MaxHandlers = limit, limit+10 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(capacity, 0, rig.Pour(size))
		for range 2 { // the slots come back
			ctx, cancel := context.WithCancel(t.Context())
			var open []*grid.Stream
			for i := range limit + more {
				s, err := c.NewStream(ctx, rig.Handler, nil)
				if i < limit {
					require.NoError(t, err)
					open = append(open, s)
					continue
				}
				require.ErrorIs(t, err, grid.ErrOverloaded)
				require.True(t, grid.IsRemoteErr(err))
				require.EqualError(t, err, fmt.Sprintf("grid: overloaded: handler %d refused: %d streams are running for this host, the limit of MaxStreams (%s)", rig.Handler, limit, c.HostName()))
			}
			synctest.Wait()
			_, err := c.SingleRequest(ctx, rig.Echo, nil)
			require.NoError(t, err, "streams leave room for requests")
			require.Equal(t, limit, g.Conn(1, 0).Stats().StreamsServed)
			require.LessOrEqual(t, c.Stats().KeptBytes, int64(limit*capacity*(size+rig.MessageCost)))
			for _, s := range open {
				require.Equal(t, capacity, grid.InboxLen(s))
				require.NoError(t, s.Err())
			}
			cancel()
			g.RequireNothingKept()
		}
	})
}

// A request that has waited past its deadline, here or there, is not worked on.
func TestDeadline_ExpiredRequestIsNotRun(t *testing.T) {
	rig.InWire(t, rawpeer.Config{}, nil, func(r *rig.Wire) {
		ran := make(chan []byte, 10)
		require.NoError(r, r.Node.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { ran <- b; return b, nil }))
		grid.SessionOf(r.Conn).RunLate(rig.Unused, []byte("late"))
		synctest.Wait()
		require.Empty(r, ran)
		require.Zero(r, r.Conn.Stats().Handlers)
		r.Alive()
	})
}

// A request that has waited for too long where others are lost is answered at once, and leaves
// nothing behind.
func TestOverload_RequestThatHasWaitedIsRefused(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		defer close(release)
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		failed := make(chan error)
		go func() {
			_, err := c.SingleRequest(ctx, rig.Handler, nil)
			failed <- err
		}()
		synctest.Wait()
		served := g.Conn(1, 0)
		refused := served.Stats().Refused
		grid.SessionOf(served).RefuseWaiting(rig.Handler, grid.LastMux(c), []byte("it waits"))
		err := <-failed
		require.ErrorIs(t, err, grid.ErrOverloaded)
		require.True(t, grid.IsRemoteErr(err))
		require.ErrorContains(t, err, "it has waited for")
		require.Equal(t, refused+1, served.Stats().Refused)
		require.EqualValues(t, 1, served.Stats().Handlers)
		require.Zero(t, served.Stats().KeptBytes)
	})
}

func TestStream_ErrorTextsAreCopiedBeforeTheirBufferIsReused(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		long := strings.Repeat("a long text ", 30)
		g.Stream(1, 1, func(ctx context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			if len(payload) > 0 {
				return grid.NewRemoteErrString(string(payload))
			}
			<-ctx.Done()
			return nil
		})
		var errs []error
		keep := func(err error) { require.Error(t, err); errs = append(errs, err) }
		_, err := c.SingleRequest(t.Context(), rig.Fail, []byte(long))
		keep(err)
		keep(rig.OpenStream(t, t.Context(), c, []byte(long)...).Results(nil))
		_, err = c.Subroute("nowhere").NewStream(t.Context(), rig.Handler, nil)
		keep(err)
		// Dropped by the server, with a reason.
		s := rig.OpenStream(t, t.Context(), c)
		grid.PostOutOfSequence(s)
		keep(s.Results(nil))

		before := errors.Join(errs...).Error()
		for range 200 { // every buffer of the pool is reused
			answer, err := c.SingleRequest(t.Context(), rig.Echo, []byte(strings.Repeat("Z", 300)))
			require.NoError(t, err)
			grid.PutByteBuffer(answer)
		}
		require.Equal(t, before, errors.Join(errs...).Error())
		require.Equal(t, 2, strings.Count(before, long))
		require.Contains(t, before, "under that subroute")
		require.Contains(t, before, "out of sequence")
	})
}

// A window that has grown for small messages shrinks when they become large, at whatever moment
// that is.
func TestWindow_MessagesThatBecomeLargeDoNotStallTheStream(t *testing.T) {
	for _, size := range []int{rig.MaxWindowBytes / 2, rig.MaxWindowBytes / 3, rig.MaxWindowBytes / 10} {
		large := make([]byte, size)
		for small := range 150 {
			b := grid.NewInbox(1)
			credits := 1
			push := func(msg []byte) {
				for credits == 0 { // the consumer takes until the sender can go on
					grant, ok := b.Take()
					if !ok {
						require.Fail(t, "stuck", "by messages of %d bytes after %d small ones", size, small)
					}
					credits += grant
				}
				require.NoError(t, b.Push(msg))
				credits--
			}
			for range small {
				push([]byte("x"))
				grant, _ := b.Take()
				credits += grant
			}
			for range 100 {
				push(large)
			}
		}
	}

	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		const small, largeOnes = 54, 12
		large := make([]byte, rig.MaxWindowBytes/3)
		g.Stream(1, 1, func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				grid.PutByteBuffer(b)
			}
			for range small {
				out <- []byte("x")
			}
			for range largeOnes {
				out <- make([]byte, len(large))
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := rig.OpenStream(t, ctx, c)
		for range small {
			require.NoError(t, s.Send([]byte("x")))
		}
		for range largeOnes {
			require.NoError(t, s.Send(large))
		}
		s.CloseSend()
		n := 0
		require.NoError(t, s.Results(func(b []byte) error { n++; return nil }))
		require.Equal(t, small+largeOnes, n)
	})
}

// No fragment may follow the disconnect of an opening: its server would wait for the rest.
func TestFragments_OfAnOpeningWhoseContextEndsBeforeTheFirst(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ctx, cancel := context.WithCancel(t.Context())
		err := grid.OpenLate(ctx, c, rig.Block, make([]byte, 4<<20), func() { cancel(); synctest.Wait() })
		require.Equal(t, context.Canceled, err)
		time.Sleep(time.Second)
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
	})
}
