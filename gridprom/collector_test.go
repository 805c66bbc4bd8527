package gridprom

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

func TestCollector_StatesAreComplete(t *testing.T) {
	for i, s := range states {
		require.EqualValues(t, i, s)
	}
	next := grid.State(len(states))
	require.True(t, strings.HasPrefix(next.String(), "state "), "there is a state %v", next)
}

func TestCollector_LimitsAreOptions(t *testing.T) {
	for _, limit := range limits {
		_, ok := reflect.TypeFor[grid.ManagerOptions]().FieldByName(limit)
		require.True(t, ok, limit)
	}
}

// Each number is that of the right field: no two of them are the same.
func TestCollector_NumbersAreThoseOfTheirFields(t *testing.T) {
	c := &collector{stats: func() grid.ManagerStats {
		return grid.ManagerStats{StateChangesMissed: 23, Connections: []grid.ConnectionStats{{
			HostName: "http://a", State: grid.StateConnectionError, Dials: true,
			LastConnect: time.Unix(100, 5e8), LastDisconnect: time.Unix(200, 0), Reconnects: 2,
			RoundTrip: 3 * time.Second, RoundTripMean: 4 * time.Second, RoundTripDeviation: 5 * time.Second,
			Traffic: grid.Traffic{BytesIn: 6, BytesOut: 7, MessagesIn: 8, MessagesOut: 9, BatchesIn: 10, BatchesOut: 11},
			Calls:   12, Streams: 13, Handlers: 14, StreamsServed: 15, SlowConsumers: 16, KeptBytes: 17,
			QueuedBytes: 18, QueuedSenders: 19, Refused: 20, Attempts: 24, Knocks: 25,
			LimitsReached: map[string]int64{"MaxStreams": 21, "MaxOfTomorrow": 22},
		}}}
	}, handlers: noHandlers}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	require.NoError(t, err)
	var got strings.Builder
	for _, f := range families {
		_, err = expfmt.MetricFamilyToText(&got, f)
		require.NoError(t, err)
	}
	var lines []string
	for line := range strings.Lines(got.String()) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.ReplaceAll(line, `remote="http://a"`, "R"))
		}
	}
	require.Equal(t, `grid_connection_attempts_total{R} 24
grid_connection_calls{R} 12
grid_connection_dials{R} 1
grid_connection_handlers{R} 14
grid_connection_kept_bytes{R} 17
grid_connection_knocks_total{R} 25
grid_connection_last_connect_timestamp_seconds{R} 100.5
grid_connection_last_disconnect_timestamp_seconds{R} 200
grid_connection_limits_reached_total{limit="MaxHandlers",R} 0
grid_connection_limits_reached_total{limit="MaxHostBytes",R} 0
grid_connection_limits_reached_total{limit="MaxOfTomorrow",R} 22
grid_connection_limits_reached_total{limit="MaxPings",R} 0
grid_connection_limits_reached_total{limit="MaxStreamBytes",R} 0
grid_connection_limits_reached_total{limit="MaxStreams",R} 21
grid_connection_limits_reached_total{limit="MaxTotalBytes",R} 0
grid_connection_limits_reached_total{limit="MaxTotalHandlers",R} 0
grid_connection_limits_reached_total{limit="MaxTotalStreams",R} 0
grid_connection_queued_bytes{R} 18
grid_connection_queued_senders{R} 19
grid_connection_received_batches_total{R} 10
grid_connection_received_bytes_total{R} 6
grid_connection_received_messages_total{R} 8
grid_connection_reconnects_total{R} 2
grid_connection_refused_total{R} 20
grid_connection_round_trip_deviation_seconds{R} 5
grid_connection_round_trip_mean_seconds{R} 4
grid_connection_round_trip_seconds{R} 3
grid_connection_sent_batches_total{R} 11
grid_connection_sent_bytes_total{R} 7
grid_connection_sent_messages_total{R} 9
grid_connection_slow_consumers{R} 16
grid_connection_state{R,state="connected"} 0
grid_connection_state{R,state="connecting"} 0
grid_connection_state{R,state="connection error"} 1
grid_connection_state{R,state="shutdown"} 0
grid_connection_state{R,state="unconnected"} 0
grid_connection_streams{R} 13
grid_connection_streams_served{R} 15
grid_state_changes_missed_total 23
`, strings.Join(lines, ""))
}

func TestScrape_AsksOnce(t *testing.T) {
	asked := 0
	c := &collector{stats: func() grid.ManagerStats {
		asked++
		return grid.ManagerStats{Connections: make([]grid.ConnectionStats, 1)}
	}, handlers: func() []grid.HandlerStats {
		asked++
		return nil
	}}
	require.NotZero(t, testutil.CollectAndCount(c))
	require.Equal(t, 2, asked)
}

func noHandlers() []grid.HandlerStats { return nil }
