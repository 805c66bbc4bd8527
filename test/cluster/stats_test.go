package cluster

import (
	"context"
	"encoding/json"
	"expvar"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestStats_OfTraffic(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		back := g.Conn(1, 0)
		synctest.Wait() // until a knock that has crossed the link is answered, for which that is pinged
		before := c.Stats()
		for range 3 {
			_, err := c.SingleRequest(t.Context(), rig.Echo, make([]byte, 1000))
			require.NoError(t, err)
		}
		synctest.Wait()
		here, there := c.Stats(), back.Stats()
		require.EqualValues(t, 3, here.MessagesOut-before.MessagesOut)
		require.EqualValues(t, 3, here.MessagesIn-before.MessagesIn)
		require.EqualValues(t, 3, here.BatchesOut-before.BatchesOut)
		require.Greater(t, here.BytesOut, int64(3000))
		require.InDelta(t, here.BytesOut, there.BytesIn, 500, "an upgrade request is read by the HTTP server")
		require.InDelta(t, here.BytesIn, there.BytesOut, 500)
		there.BytesIn, there.BytesOut = here.BytesOut, here.BytesIn
		require.Equal(t, grid.Traffic{
			BytesIn: here.BytesOut, BytesOut: here.BytesIn, MessagesIn: here.MessagesOut,
			MessagesOut: here.MessagesIn, BatchesIn: here.BatchesOut, BatchesOut: here.BatchesIn,
		}, there.Traffic)

		// What is sent at once goes together.
		for range 10 {
			go func() { _, _ = c.SingleRequest(t.Context(), rig.Echo, nil) }()
		}
		synctest.Wait()
		now := c.Stats()
		require.EqualValues(t, 13, now.MessagesOut-before.MessagesOut)
		require.Less(t, now.BatchesOut-before.BatchesOut, int64(13))

		// It goes on over the next session.
		require.Zero(t, now.LastDisconnect)
		g.Cut(0, 1)
		synctest.Wait()
		lost := c.Stats()
		require.Equal(t, now.MessagesOut, lost.MessagesOut)
		require.Equal(t, time.Now(), lost.LastDisconnect)
		require.NotEmpty(t, lost.LastError)
		g.WaitConnected()
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
		synctest.Wait() // until the writer has counted it
		again := c.Stats()
		require.Equal(t, now.MessagesOut+1, again.MessagesOut)
		require.Equal(t, 1, again.Reconnects)
		require.Equal(t, lost.LastError, again.LastError)

		all := g.Manager(0).Stats()
		require.Equal(t, again.Traffic, all.Traffic)
		require.Equal(t, 1, all.Reconnects)
		require.Equal(t, g.Manager(0).ID.String(), all.ID)
	})
}

func TestStats_OfRoundTrips(t *testing.T) {
	t.Parallel()
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.PingInterval = time.Second }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		delay := func(d time.Duration) {
			for i := range 2 {
				g.Net.Delay(g.Addr(i), g.Addr(1-i), d)
			}
			time.Sleep(time.Minute)
		}
		delay(10 * time.Millisecond)
		st := c.Stats()
		require.Equal(t, 20*time.Millisecond, st.RoundTrip)
		require.InDelta(t, 20*time.Millisecond, st.RoundTripMean, float64(time.Millisecond))
		require.Less(t, st.RoundTripDeviation, time.Millisecond)
		g.Net.Delay(g.Addr(0), g.Addr(1), 110*time.Millisecond)
		time.Sleep(2 * time.Second)
		st = c.Stats()
		require.Equal(t, 120*time.Millisecond, st.RoundTrip)
		require.Less(t, st.RoundTripMean, 60*time.Millisecond)
		require.Greater(t, st.RoundTripDeviation, 20*time.Millisecond)
	})
}

func TestStats_OfWhatWaits(t *testing.T) {
	t.Parallel()
	rig.InPair(t, func(i int, o *grid.ManagerOptions) { o.MaxQueuedBytes = 4 << 10 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.NewStream(ctx, rig.Block, nil) // which takes nothing
		require.NoError(t, err)
		go func() {
			for s.Send(make([]byte, 10)) == nil {
			}
		}()
		synctest.Wait()
		require.Equal(t, 1, g.Conn(1, 0).Stats().SlowConsumers)
		require.Zero(t, c.Stats().SlowConsumers)
		require.Equal(t, 1, g.Manager(1).Stats().SlowConsumers)
		cancel()
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().SlowConsumers)

		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		g.Net.SetBuffer(1)
		ctx, cancel = context.WithCancel(t.Context())
		for range 400 {
			go func() { _, _ = c.SingleRequest(ctx, rig.Echo, make([]byte, 1000)) }()
		}
		synctest.Wait()
		st := c.Stats()
		require.InDelta(t, 4<<10, st.QueuedBytes, 1<<10+64, "no further message fits")
		require.Positive(t, st.QueuedSenders)
		require.Equal(t, 400, st.Calls)
		require.Equal(t, st.QueuedBytes, g.Manager(0).Stats().QueuedBytes)
		cancel()
	})
}

// A client is slow as well, once what may be on its way to it waits: its window, be that the
// capacity or what it has grown to.
func TestStats_CountAClientThatIsSlow(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 4, 3 * rig.MaxWindow} {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			g.Stream(capacity, 0, rig.Pour(1))
			ctx, cancel := context.WithCancel(t.Context())
			s := rig.OpenStream(t, ctx, c)
			requireSlow := func(waiting int) {
				t.Helper()
				synctest.Wait()
				require.Equal(t, 1, c.Stats().SlowConsumers)
				require.Equal(t, 1, g.Manager(0).Stats().SlowConsumers)
				require.EqualValues(t, waiting*(1+rig.MessageCost), c.Stats().KeptBytes)
				require.Zero(t, g.Conn(1, 0).Stats().SlowConsumers, "the server is not")
			}
			requireSlow(capacity)
			took, goOn := 0, make(chan struct{})
			ended := rig.InBackground(func() error {
				return s.Results(func(b []byte) error {
					grid.PutByteBuffer(b)
					if took++; took == 20*rig.MaxWindow {
						<-goOn
					}
					return nil
				})
			})
			synctest.Wait()
			window := int(c.Stats().KeptBytes) / (1 + rig.MessageCost)
			requireSlow(window)
			require.GreaterOrEqual(t, window, max(capacity, rig.MaxWindow)/2, "what is owed was not returned yet")
			require.LessOrEqual(t, window, max(capacity, rig.MaxWindow))
			cancel()
			close(goOn)
			require.ErrorIs(t, <-ended, context.Canceled)
			synctest.Wait()
			require.Zero(t, c.Stats().SlowConsumers)
		})
	}
}

func TestStats_OfRefusals(t *testing.T) {
	t.Parallel()
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxHandlers = 1 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		for range 3 {
			_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
			require.ErrorIs(t, err, grid.ErrOverloaded)
		}
		_, err = c.SingleRequest(t.Context(), rig.Unused, nil)
		require.Error(t, err)
		st := g.Conn(1, 0).Stats()
		require.EqualValues(t, 4, st.Refused)
		require.Equal(t, map[string]int64{"MaxHandlers": 3}, st.LimitsReached)
		require.EqualValues(t, 4, g.Manager(1).Stats().Refused)
		require.Zero(t, c.Stats().Refused)
		close(s.Requests)
	})
}

func TestStats_AsJSON(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		st := g.Manager(0).Stats()
		text := expvar.Func(func() any { return g.Manager(0).Stats() }).String()
		require.Contains(t, text, `"State":"connected"`)
		require.Contains(t, text, `"BytesIn":`)
		var back grid.ManagerStats
		require.NoError(t, json.Unmarshal([]byte(text), &back))
		require.True(t, st.Connections[0].LastConnect.Equal(back.Connections[0].LastConnect))
		back.Connections[0].LastConnect = st.Connections[0].LastConnect
		require.Equal(t, st, back)
		var state grid.State
		require.ErrorContains(t, state.UnmarshalText([]byte("odd")), `unknown state "odd"`)
	})
}

// What has gone over a link that is left, because its peer is shutting down, counts on when another
// one like it takes its place.
func TestStats_OfTrafficNeverFall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := rig.NewWire(t, true, rawpeer.Config{Caps: rig.AllCaps}, nil)
		var last grid.Traffic
		check := func() {
			synctest.Wait()
			now := r.Conn.Stats().Traffic
			require.GreaterOrEqual(t, now.BytesIn, last.BytesIn)
			require.GreaterOrEqual(t, now.MessagesIn, last.MessagesIn)
			require.GreaterOrEqual(t, now.BatchesOut, last.BatchesOut)
			last = now
		}
		for range 3 {
			peer := r.Peer
			go func() { _, _ = r.Conn.SingleRequest(t.Context(), rig.Handler, nil) }()
			peer.Expect(rawpeer.OpRequest) // and has no answer
			peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
			check()
			r.Peer = r.Next()
			check()
		}
		require.Positive(t, last.MessagesIn)
	})
}
