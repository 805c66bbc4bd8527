package calls

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// startEcho registers an echo with capacities.
func startEcho(g *rig.Grid, outCapacity, inCapacity int) {
	serve(g, outCapacity, inCapacity, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
		for b, err := range s.All() {
			if err == nil {
				err = s.Send(ctx, b)
			}
			if err != nil {
				return grid.NewRemoteErr(err)
			}
		}
		return nil
	})
}

// startAndSend starts a stream, sends n messages, and collects what comes back.
func startAndSend(t *testing.T, c *grid.Connection, n int) ([]string, error) {
	t.Helper()
	s, err := c.StartStream(t.Context(), rig.Handler, nil)
	require.NoError(t, err)
	go func() {
		defer s.CloseSend()
		for _, text := range numbered(n) {
			if s.Send([]byte(text)) != nil {
				return // Collect tells why
			}
		}
	}()
	return rig.Collect(s, 0)
}

func TestStart_EchoesWhateverIsKnown(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		startEcho(g, 3, 5)
		for _, n := range []int{0, 1, 5, 6, 200} {
			for range 3 {
				got, err := startAndSend(t, c, n)
				require.NoError(t, err)
				require.Equal(t, numbered(n), got)
			}
		}
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
		got, err := startAndSend(t, c, 20)
		require.NoError(t, err)
		require.Equal(t, numbered(20), got)
	})
}

// A refusal comes from the stream where it was not waited for, and the next one is waited for.
func TestStart_RefusalComesFromResults(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		_, err := c.StartStream(t.Context(), rig.Handler, nil)
		require.ErrorContains(t, err, "no stream handler", "nothing is known yet")
		startEcho(g, 1, 50)
		_, err = startAndSend(t, c, 1)
		require.NoError(t, err)
		require.True(t, g.Manager(1).Unregister(rig.Handler))
		got, err := startAndSend(t, c, 50)
		require.ErrorContains(t, err, "no stream handler")
		require.True(t, grid.IsRemoteErr(err))
		require.Empty(t, got)
		_, err = c.StartStream(t.Context(), rig.Handler, nil)
		require.ErrorContains(t, err, "no stream handler")
		startEcho(g, 1, 50)
		for range 2 {
			got, err = startAndSend(t, c, 100)
			require.NoError(t, err)
			require.Len(t, got, 100)
		}
		require.Zero(t, c.Stats().Reconnects)
	})
}

// What a client knows of a handler may be out of date: its stream does not fail for that.
func TestStart_HandlerThatWasReplaced(t *testing.T) {
	t.Parallel()
	for _, outOfDate := range []int{1, 5, 40} {
		for _, now := range []int{1, 4, 5, 39, 1000} {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				startEcho(g, 2, outOfDate)
				_, err := startAndSend(t, c, 1)
				require.NoError(t, err)
				require.True(t, g.Manager(1).Unregister(rig.Handler))
				startEcho(g, 2, now)
				for range 2 {
					got, err := startAndSend(t, c, 120)
					require.NoError(t, err, "%d messages, now %d", outOfDate, now)
					require.Equal(t, numbered(120), got)
				}
			})
		}
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			startEcho(g, 2, outOfDate)
			_, err := startAndSend(t, c, 1)
			require.NoError(t, err)
			require.True(t, g.Manager(1).Unregister(rig.Handler))
			startEcho(g, 2, 0)
			got, err := startAndSend(t, c, outOfDate)
			require.NoError(t, err, "one that takes no input any more")
			require.Empty(t, got)
			s, err := c.StartStream(t.Context(), rig.Handler, nil)
			require.NoError(t, err)
			require.Nil(t, s.Requests)
		})
	}
}

// Who still sends to a handler that takes no input any more is told so, rather than to wait for
// credits until the stream ends.
func TestStart_SendToAHandlerThatTakesNoInputAnyMore(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		startEcho(g, 2, 3)
		_, err := startAndSend(t, c, 1)
		require.NoError(t, err)
		require.True(t, g.Manager(1).Unregister(rig.Handler))
		serve(g, 2, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, err := c.StartStream(ctx, rig.Handler, nil)
		require.NoError(t, err)
		for range 4 { // there were credits for three
			err = s.Send([]byte("a"))
		}
		require.ErrorContains(t, err, "takes no input")
		s.CloseSend()
		require.NoError(t, s.Err())
		cancel()
		require.ErrorIs(t, s.Results(nil), context.Canceled)
	})
}

// What was sent by an old capacity leaves a debt. The credits for it come back, however many
// messages have waited at once.
func TestStart_HandlerThatWasReplacedGivesAllCreditsBack(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		const before = 2 * rig.MaxWindow
		startEcho(g, 1, before)
		_, err := startAndSend(t, c, 1)
		require.NoError(t, err)
		require.True(t, g.Manager(1).Unregister(rig.Handler))
		arrived := make(chan struct{})
		serve(g, 1, 1, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			<-arrived
			for _, err := range s.All() {
				if err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, err := c.StartStream(ctx, rig.Handler, nil)
		require.NoError(t, err)
		sent := rig.InBackground(func() error {
			defer s.CloseSend()
			for range 2 * before { // most of the first half before the ack has come
				if err := s.Send([]byte("a")); err != nil {
					return err
				}
			}
			return nil
		})
		synctest.Wait()
		close(arrived)
		require.NoError(t, s.Results(nil))
		require.NoError(t, <-sent)
	})
}

func TestStart_UnderASubrouteAndTyped(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewStream(rig.Handler, grid.NewBytes, grid.NewBytes, grid.NewBytes)
		require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, p *grid.Bytes, s *grid.TypedServerStream[*grid.Bytes, *grid.Bytes]) *grid.RemoteErr {
			return grid.NewRemoteErr(s.Send(ctx, p))
		}, "a"))
		for range 3 {
			s, err := h.Start(t.Context(), c.Subroute("a"), grid.NewBytesWith([]byte("payload")))
			require.NoError(t, err)
			n := 0
			require.NoError(t, s.Results(func(b *grid.Bytes) error { n += len(*b); return nil }))
			require.Equal(t, 7, n)
			s.CloseSend()
			raw, err := c.Subroute("a").StartStream(t.Context(), rig.Handler, make([]byte, 70_000))
			require.NoError(t, err)
			raw.CloseSend()
			require.Error(t, raw.Results(nil), "it decodes nothing of that")
		}
		_, err := c.Subroute("").StartStream(t.Context(), rig.Handler, nil)
		require.ErrorContains(t, err, "empty subroute")
		_, err = (*grid.Connection)(nil).StartStream(t.Context(), rig.Handler, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
	})
}
