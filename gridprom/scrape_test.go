package gridprom

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
)

func TestScrape_OverTCP(t *testing.T) {
	r := newRig(t, 3, gridtest.TCP())
	one, two := r.Host(1), r.Host(2)
	began := float64(time.Now().Add(-time.Minute).Unix())

	for range 3 {
		require.NoError(t, r.request(t.Context(), echo, make([]byte, 1000)))
	}
	require.NoError(t, r.stream(make([]byte, 10), make([]byte, 20), make([]byte, 30)))
	require.Error(t, r.request(t.Context(), fail, nil))
	require.ErrorIs(t, r.request(t.Context(), echo, make([]byte, maxMessage+1)), grid.ErrMessageTooLarge)
	r.waitEnds()

	s := r.scrape(0)
	call := []string{"side", "call", "kind", "request", "handler", "echo"}
	h := s.find("grid_handler_duration_seconds", call...).GetHistogram()
	require.EqualValues(t, 4, h.GetSampleCount())
	require.Positive(t, h.GetSampleSum())
	require.Len(t, h.GetBucket(), len(DefaultBuckets())+1)
	require.Equal(t, 3.0, s.value("grid_handler_results_total", append(call, "result", "ok")...))
	require.Equal(t, 1.0, s.value("grid_handler_results_total", append(call, "result", "message_too_large")...))
	require.Equal(t, 0.0, s.value("grid_handler_results_total", append(call, "result", "disconnected")...))
	require.Equal(t, 3000.0, s.value("grid_handler_received_bytes_total", call...))
	require.Equal(t, 3.0, s.value("grid_handler_received_messages_total", call...))
	require.Equal(t, 1.0, s.value("grid_handler_results_total", "side", "call", "kind", "request", "handler", "fail", "result", "remote_error"))
	stream := []string{"side", "call", "kind", "stream", "handler", "repeat"}
	require.Equal(t, 1.0, s.value("grid_handler_results_total", append(stream, "result", "ok")...))
	require.Equal(t, 60.0, s.value("grid_handler_sent_bytes_total", stream...))
	require.Equal(t, 60.0, s.value("grid_handler_received_bytes_total", stream...))
	require.Equal(t, 3.0, s.value("grid_handler_received_messages_total", stream...))

	require.ElementsMatch(t, []string{one, two}, s.remotes())
	for state, want := range map[string]float64{"connected": 1, "unconnected": 0, "connecting": 0, "connection error": 0, "shutdown": 0} {
		require.Equal(t, want, s.value("grid_connection_state", "remote", one, "state", state))
	}
	require.Equal(t, 0.0, s.value("grid_connection_reconnects_total", "remote", one))
	require.Greater(t, s.value("grid_connection_last_connect_timestamp_seconds", "remote", one), began)
	require.Zero(t, s.value("grid_connection_last_disconnect_timestamp_seconds", "remote", one))
	require.Greater(t, s.value("grid_connection_sent_bytes_total", "remote", one), 3060.0)
	require.Greater(t, s.value("grid_connection_received_bytes_total", "remote", one), 3060.0)
	require.GreaterOrEqual(t, s.value("grid_connection_sent_messages_total", "remote", one), 8.0)
	require.Equal(t, 0.0, s.value("grid_connection_refused_total", "remote", one))

	s = r.scrape(1)
	serve := []string{"side", "serve", "kind", "request", "handler", "echo"}
	require.Equal(t, 3.0, s.value("grid_handler_results_total", append(serve, "result", "ok")...))
	require.Equal(t, 1.0, s.value("grid_handler_results_total", "side", "serve", "kind", "request", "handler", "fail", "result", "handler_error"))
	require.Equal(t, 1.0, s.value("grid_handler_results_total", "side", "serve", "kind", "stream", "handler", "repeat", "result", "ok"))
	require.Equal(t, 1.0,
		s.value("grid_connection_dials", "remote", r.Host(0))+r.scrape(0).value("grid_connection_dials", "remote", one))

	// A link is lost under a call, and comes back.
	lost := make(chan error)
	go func() { lost <- r.request(context.Background(), block, nil) }()
	<-r.blocked
	s = r.scrape(0)
	require.Equal(t, 1.0, s.value("grid_connection_calls", "remote", one))
	require.Equal(t, 1.0, r.scrape(1).value("grid_connection_handlers", "remote", r.Host(0)))
	r.Cut(0, 1)
	require.ErrorIs(t, <-lost, grid.ErrDisconnected)
	r.WaitConnected()
	r.waitEnds()
	before, s := s, r.scrape(0)
	require.Equal(t, 1.0, s.value("grid_handler_results_total", "side", "call", "kind", "request", "handler", "block", "result", "disconnected"))
	require.Equal(t, 1.0, s.value("grid_connection_reconnects_total", "remote", one))
	require.Equal(t, 0.0, s.value("grid_connection_reconnects_total", "remote", two))
	require.Greater(t, s.value("grid_connection_last_disconnect_timestamp_seconds", "remote", one), began)
	require.Equal(t, 0.0, s.value("grid_connection_calls", "remote", one))
	require.GreaterOrEqual(t, s.value("grid_connection_sent_bytes_total", "remote", one),
		before.value("grid_connection_sent_bytes_total", "remote", one))

	// A host is removed.
	require.NoError(t, r.Manager(0).RemoveHost(two))
	require.Equal(t, []string{one}, r.scrape(0).remotes())
	require.NoError(t, r.Manager(0).AddHost(two))
	require.ElementsMatch(t, []string{one, two}, r.scrape(0).remotes())
}

func TestScrape_RoundTripsAreThereOnceTheyAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		names := []string{"grid_connection_round_trip_seconds", "grid_connection_round_trip_mean_seconds", "grid_connection_round_trip_deviation_seconds"}
		s := r.scrape(0)
		for _, name := range names {
			require.NotContains(t, s.families, name)
		}
	})
	r := newRig(t, 2, gridtest.TCP(), gridtest.WithOptions(shortPings))
	require.Eventually(t, func() bool { return r.Conn(0, 1).Stats().RoundTrip != 0 }, 10*time.Second, 10*time.Millisecond)
	s := r.scrape(0)
	require.Positive(t, s.value("grid_connection_round_trip_seconds", "remote", r.Host(1)))
	require.Positive(t, s.value("grid_connection_round_trip_mean_seconds", "remote", r.Host(1)))
	s.value("grid_connection_round_trip_deviation_seconds", "remote", r.Host(1))
}

func TestScrape_OfLimitsAndContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		// All handlers there may be, two of which are given up by their callers.
		var wg sync.WaitGroup
		timeout := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			require.ErrorIs(t, r.request(ctx, block, nil), context.DeadlineExceeded)
		}
		wg.Go(func() { timeout(2 * time.Second) })
		wg.Go(func() { timeout(5 * time.Second) })
		wg.Go(func() { timeout(5 * time.Second) })
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { require.ErrorIs(t, r.request(ctx, block, nil), context.Canceled) })
		synctest.Wait()
		require.ErrorIs(t, r.request(t.Context(), echo, nil), grid.ErrOverloaded)
		s := r.scrape(1)
		require.Equal(t, 1.0, s.value("grid_connection_refused_total", "remote", r.Host(0)))
		require.Equal(t, 1.0, s.value("grid_connection_limits_reached_total", "remote", r.Host(0), "limit", "MaxHandlers"))
		require.Equal(t, 0.0, s.value("grid_connection_limits_reached_total", "remote", r.Host(0), "limit", "MaxPings"))
		require.Equal(t, 4.0, s.value("grid_connection_handlers", "remote", r.Host(0)))
		require.Equal(t, 4.0, r.scrape(0).value("grid_connection_calls", "remote", r.Host(1)))

		cancel()
		wg.Wait()
		s = r.scrape(0)
		block := []string{"side", "call", "kind", "request", "handler", "block"}
		require.Equal(t, 3.0, s.value("grid_handler_results_total", append(block, "result", "deadline_exceeded")...))
		require.Equal(t, 1.0, s.value("grid_handler_results_total", append(block, "result", "canceled")...))
		h := s.find("grid_handler_duration_seconds", block...).GetHistogram()
		require.InDelta(t, 12, h.GetSampleSum(), 0.1)
		for _, b := range h.GetBucket() {
			switch b.GetUpperBound() {
			case 1:
				require.EqualValues(t, 1, b.GetCumulativeCount())
			case 2.5:
				require.EqualValues(t, 2, b.GetCumulativeCount())
			case 10:
				require.EqualValues(t, 4, b.GetCumulativeCount())
			}
		}
		require.Equal(t, 1.0, s.value("grid_handler_results_total", "side", "call", "kind", "request", "handler", "echo", "result", "overloaded"))
	})
}

func TestScrape_OfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		st, err := r.Conn(0, 1).NewStream(t.Context(), repeat, []byte("begin"))
		require.NoError(t, err)
		defer st.CloseSend()
		require.NoError(t, st.Send([]byte("a")))
		synctest.Wait()
		s := r.scrape(0)
		require.Equal(t, 1.0, s.value("grid_connection_streams", "remote", r.Host(1)))
		require.Equal(t, 0.0, s.value("grid_connection_streams_served", "remote", r.Host(1)))
		call := []string{"side", "call", "kind", "stream", "handler", "repeat"}
		require.EqualValues(t, 0, s.find("grid_handler_duration_seconds", call...).GetHistogram().GetSampleCount(), "it has not ended")
		s = r.scrape(1)
		require.Equal(t, 1.0, s.value("grid_connection_streams_served", "remote", r.Host(0)))
		require.Equal(t, 1.0, s.value("grid_connection_handlers", "remote", r.Host(0)))

		// The consumer has enough.
		for b, err := range st.All() {
			require.NoError(t, err)
			require.Equal(t, "a", string(b))
			break
		}
		synctest.Wait()
		s = r.scrape(0)
		require.Equal(t, 1.0, s.value("grid_handler_results_total", append(call, "result", "error")...))
		require.Equal(t, 6.0, s.value("grid_handler_sent_bytes_total", call...))
		require.Equal(t, 0.0, s.value("grid_connection_streams", "remote", r.Host(1)))
		serve := []string{"side", "serve", "kind", "stream", "handler", "repeat"}
		require.Equal(t, 1.0, r.scrape(1).value("grid_handler_results_total", append(serve, "result", "canceled")...))
	})
}

// Counters never fall, whatever goes on between and during scrapes.
func TestScrape_SeveralAtOnce(t *testing.T) {
	r := newRig(t, 3, gridtest.TCP(), gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.MaxHandlers = 0 }))
	ctx, cancel := context.WithCancel(t.Context())
	var callers, wg sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range 50 {
				_ = r.request(ctx, echo, make([]byte, 100))
				_ = r.stream(make([]byte, 100))
			}
		})
	}
	for node := range 2 {
		wg.Go(func() {
			last := 0.0
			for ctx.Err() == nil {
				s := r.scrape(node)
				now := s.value("grid_connection_sent_bytes_total", "remote", r.Host(1-node))
				if now < last {
					t.Errorf("sent bytes have fallen from %v to %v", last, now)
				}
				last = now
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = r.Manager(0).RemoveHost(r.Host(2))
			_ = r.Manager(0).AddHost(r.Host(2))
		}
	})
	r.Cut(0, 1)
	callers.Wait()
	cancel()
	wg.Wait()
	r.waitEnds()
	total := 0.0
	for _, res := range results(false) {
		total += r.scrape(0).value("grid_handler_results_total", "side", "call", "kind", "request", "handler", "echo", "result", res)
	}
	require.Equal(t, 200.0, total)
}
