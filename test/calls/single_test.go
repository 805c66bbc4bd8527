package calls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestRequest_NilAndEmptyArriveAsSuch(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var got []byte
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { got = bytes.Clone(b); return b, nil })
		for _, payload := range [][]byte{nil, {}, {0}} {
			answer, err := c.SingleRequest(t.Context(), rig.Handler, payload)
			require.NoError(t, err)
			require.Equal(t, payload, got)
			require.Equal(t, payload, answer)
		}
	})
}

func TestRequest_PayloadsOfAllSizes(t *testing.T) {
	const limit = 2 * rig.PendingLimit
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		sizes := []int{limit - 1, limit}
		for _, edge := range []int{1, 1 << 7, 1 << 8, 4 << 10, 1 << 16, rig.PendingLimit} {
			sizes = append(sizes, edge-1, edge, edge+1)
		}
		payload := make([]byte, limit)
		for i := range payload {
			payload[i] = byte(i * 31)
		}
		before := bytepool.Out()
		for _, n := range sizes {
			sent := bytes.Clone(payload[:n])
			answer, err := c.SingleRequest(t.Context(), rig.Echo, sent)
			require.NoError(t, err, n)
			require.True(t, bytes.Equal(payload[:n], answer), n)
			require.True(t, bytes.Equal(payload[:n], sent), "the payload is the caller's")
			grid.PutByteBuffer(answer)
		}
		synctest.Wait()
		require.LessOrEqual(t, bytepool.Out(), before)
	})
}

func TestRequest_AboveTheSizeLimitIsRefusedAndNothingElseLost(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil })
		other := make(chan error)
		go func() { _, err := c.SingleRequest(t.Context(), rig.Handler, nil); other <- err }()
		synctest.Wait()

		for name, call := range map[string]func() error{
			"single": func() error { _, err := c.SingleRequest(t.Context(), rig.Echo, make([]byte, limit+1)); return err },
			"stream": func() error { _, err := c.NewStream(t.Context(), rig.Stream, make([]byte, limit+1)); return err },
			"subroute": func() error {
				_, err := c.Subroute("a").SingleRequest(t.Context(), rig.Echo, make([]byte, limit+1))
				return err
			},
		} {
			err := call()
			require.ErrorIs(t, err, grid.ErrMessageTooLarge, name)
			require.ErrorContains(t, err, "100001 bytes", name)
			require.ErrorContains(t, err, "100000 bytes", name)
			require.False(t, grid.IsRemoteErr(err), name)
		}
		close(release)
		require.NoError(t, <-other)
		require.Zero(t, c.Stats().Reconnects)
	})
}

func TestRequest_ResponseAboveTheSizeLimitIsAnErrorAndNothingElseLost(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { return make([]byte, limit+len(b)), nil })
		_, err := c.SingleRequest(t.Context(), rig.Handler, []byte("x"))
		require.True(t, grid.IsRemoteErr(err), err)
		require.ErrorContains(t, err, "100001 bytes")
		require.ErrorContains(t, err, "100000 bytes")
		answer, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		require.Len(t, answer, limit)
		require.Zero(t, c.Stats().Reconnects)
	})
}

func TestRequest_DefaultDeadlineIsAMinute(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil })
		took := rig.Elapsed(func() {
			_, err := c.SingleRequest(context.Background(), rig.Handler, []byte("late"))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, grid.ErrDisconnected)
		})
		require.GreaterOrEqual(t, took, time.Minute)
		require.Less(t, took, time.Minute+2*time.Second)

		// The late answer reaches nobody.
		close(release)
		for range 10 {
			answer, err := c.SingleRequest(context.Background(), rig.Echo, []byte("other"))
			require.NoError(t, err)
			require.Equal(t, "other", string(answer))
		}
		require.Zero(t, c.Stats().Calls)
	})
}

func TestRequest_LongerDeadlineThanTheDefaultHolds(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { time.Sleep(3 * time.Minute); return b, nil })
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		answer, err := c.SingleRequest(ctx, rig.Handler, []byte("slow"))
		require.NoError(t, err)
		require.Equal(t, "slow", string(answer))
	})
}

func TestRequest_DeadlineTravels(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		peer := g.DialLone(raw, rawpeer.Config{})
		c := g.Manager(0).Connection(raw)
		for _, test := range []struct {
			left time.Duration // 0 for no deadline
			want uint32
		}{
			{0, 60_000},
			{1500 * time.Millisecond, 1500},
			{time.Microsecond, 1},
			{2*time.Millisecond - 1, 1},
			{60 * 24 * time.Hour, math.MaxUint32},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			if test.left > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), test.left)
			}
			ended := make(chan error)
			go func() { _, err := c.SingleRequest(ctx, rig.Handler, nil); ended <- err }()
			request := peer.Expect(rawpeer.OpRequest)
			require.Equal(t, test.want, request.DeadlineMS)
			require.Equal(t, uint8(rawpeer.FlagEOF|rawpeer.FlagCRC), request.Flags)
			peer.Send(rawpeer.Msg{Op: rawpeer.OpResponse, MuxID: request.MuxID, Flags: rawpeer.FlagEOF})
			require.NoError(t, <-ended)
			cancel()
		}
	})
}

func TestRequest_IsNotAnsweredAfterItsDeadline(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		require.NoError(t, g.Manager(0).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			time.Sleep(time.Duration(len(b)) * time.Millisecond)
			return b, nil
		}))
		peer := g.DialLone(raw, rawpeer.Config{})
		send := func(id uint64, took int) {
			peer.Send(rawpeer.Msg{
				Op: rawpeer.OpRequest, MuxID: id, Handler: uint8(rig.Handler), Flags: rawpeer.FlagEOF,
				DeadlineMS: 100, Payload: make([]byte, took),
			})
			time.Sleep(200 * time.Millisecond)
		}
		send(1, 99)
		require.Equal(t, uint64(1), peer.Expect(rawpeer.OpResponse).MuxID)
		send(2, 100)
		require.Empty(t, peer.Pending())
	})
}

func TestRequest_ReturnsAtOnceWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		defer close(release)
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil })
		why := errors.New("changed my mind")

		require.Zero(t, rig.Elapsed(func() {
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() { synctest.Wait(); cancel(why) }()
			_, err := c.SingleRequest(ctx, rig.Handler, nil)
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, why)
			require.ErrorContains(t, err, "context canceled: changed my mind")
		}))
		require.Zero(t, rig.Elapsed(func() {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := c.SingleRequest(ctx, rig.Handler, nil)
			require.ErrorIs(t, err, context.Canceled)
		}), "ended before")
		require.Equal(t, time.Second, rig.Elapsed(func() {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
			defer cancel()
			_, err := c.SingleRequest(ctx, rig.Handler, nil)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorIs(t, err, why)
			require.ErrorContains(t, err, "context deadline exceeded: changed my mind (handler ")
		}))
		require.Zero(t, c.Stats().Calls)
	})
}

// A caller that waits for room in the queue, because the peer reads nothing, is as free to go as
// one that waits for its answer.
func TestRequest_ReturnsAtOnceAlsoWhileThePeerReadsNothing(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() {
				_, err := c.SingleRequest(ctx, rig.Echo, make([]byte, rig.PendingLimit/2))
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		require.Equal(t, time.Second, rig.Elapsed(callers.Wait))
		g.Net.Stall(g.Addr(0), g.Addr(1), false)
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
	})
}

// Answers that arrive as their callers go away: none reaches another caller, and no buffer is used
// twice (the pool checks, with the race detector).
func TestRequest_AnswersThatComeAsTheCallerLeavesAreNeverMixedUp(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	c := g.Conn(0, 1)
	calls := 6000
	if bytepool.Strict {
		calls = 1000
	}
	var callers sync.WaitGroup
	var gaveUp, answered atomic.Int64
	for caller := range 4 {
		callers.Go(func() {
			for i := range calls {
				ctx, cancel := context.WithCancel(t.Context())
				payload := fmt.Sprint(caller, " ", i)
				if i%2 == 0 {
					go cancel()
				}
				answer, err := c.SingleRequest(ctx, rig.Echo, []byte(payload))
				switch err {
				case nil:
					answered.Add(1)
					if string(answer) != payload {
						t.Errorf("%q was answered %q", payload, answer)
					}
					grid.PutByteBuffer(answer)
				default:
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					gaveUp.Add(1)
				}
				cancel()
			}
		})
	}
	callers.Wait()
	require.Positive(t, gaveUp.Load())
	require.Greater(t, answered.Load(), int64(calls))
	require.Zero(t, c.Stats().Calls)
}
