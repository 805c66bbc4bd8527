package gridprom

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridrpc/grid"
)

// NewCollector returns a collector of the Stats of m, with a label for the remote host of each
// connection; of its HandlerStats, with labels for the handler's name and kind; and of one number of
// m itself. Every scrape calls [grid.Manager.Stats] and [grid.Manager.HandlerStats] once, so that
// the numbers of each are of one moment. What is exposed of a host vanishes when it is removed, and
// begins at zero if it is added again.
//
// Handlers that have the same name and kind, such as those of one ID under all its subroutes, are
// counted together, and so is what each of them counted before it was unregistered. Of more than
// 1000 names the ones that come later are counted under the name "other".
//
// It goes on to work after m was closed.
func NewCollector(m *grid.Manager) prometheus.Collector {
	return &collector{stats: m.Stats, handlers: m.HandlerStats}
}

// collector keeps what it needs for the counters of handlers never to fall.
type collector struct {
	stats    func() grid.ManagerStats
	handlers func() []grid.HandlerStats
	served   served
}

// connectionMetric is a metric with one number for each connection.
type connectionMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	// value returns false where there is nothing to tell yet.
	value func(c *grid.ConnectionStats) (float64, bool)
}

func connectionDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("grid_connection_"+name, help, append([]string{"remote"}, labels...), nil)
}

func gauge[T int | int64](name, help string, value func(c *grid.ConnectionStats) T) connectionMetric {
	return connectionMetric{connectionDesc(name, help), prometheus.GaugeValue, always(value)}
}

func counter[T int | int64](name, help string, value func(c *grid.ConnectionStats) T) connectionMetric {
	return connectionMetric{connectionDesc(name, help), prometheus.CounterValue, always(value)}
}

func always[T int | int64](value func(c *grid.ConnectionStats) T) func(c *grid.ConnectionStats) (float64, bool) {
	return func(c *grid.ConnectionStats) (float64, bool) { return float64(value(c)), true }
}

// timestamp is a gauge of a time, 0 for never.
func timestamp(name, help string, value func(c *grid.ConnectionStats) time.Time) connectionMetric {
	return connectionMetric{connectionDesc(name, help), prometheus.GaugeValue, func(c *grid.ConnectionStats) (float64, bool) {
		if t := value(c); !t.IsZero() {
			return float64(t.UnixNano()) / 1e9, true
		}
		return 0, true
	}}
}

// roundTrip is a gauge of something that the first ping tells: it isn't there before, since a zero
// would spoil averages.
func roundTrip(name, help string, value func(c *grid.ConnectionStats) time.Duration) connectionMetric {
	return connectionMetric{connectionDesc(name, help), prometheus.GaugeValue, func(c *grid.ConnectionStats) (float64, bool) {
		return value(c).Seconds(), c.RoundTrip != 0
	}}
}

var connectionMetrics = []connectionMetric{
	gauge("dials", "1 if this host dials the remote, 0 if it is dialled by it.",
		func(c *grid.ConnectionStats) int {
			if c.Dials {
				return 1
			}
			return 0
		}),
	counter("reconnects_total", "Connections made after the first.",
		func(c *grid.ConnectionStats) int { return c.Reconnects }),
	timestamp("last_connect_timestamp_seconds", "When the last connection was made, in Unix time; 0 for never.",
		func(c *grid.ConnectionStats) time.Time { return c.LastConnect }),
	timestamp("last_disconnect_timestamp_seconds", "When the last connection was lost or closed, in Unix time; 0 for never.",
		func(c *grid.ConnectionStats) time.Time { return c.LastDisconnect }),

	roundTrip("round_trip_seconds", "Round trip of the last ping of the present connection; absent before the first.",
		func(c *grid.ConnectionStats) time.Duration { return c.RoundTrip }),
	roundTrip("round_trip_mean_seconds", "Running average of the round trips; absent before the first.",
		func(c *grid.ConnectionStats) time.Duration { return c.RoundTripMean }),
	roundTrip("round_trip_deviation_seconds", "Running average of the distance of round trips from their mean; absent before the first.",
		func(c *grid.ConnectionStats) time.Duration { return c.RoundTripDeviation }),

	counter("received_bytes_total", "Bytes received over websockets, without TLS.",
		func(c *grid.ConnectionStats) int64 { return c.BytesIn }),
	counter("sent_bytes_total", "Bytes sent over websockets, without TLS.",
		func(c *grid.ConnectionStats) int64 { return c.BytesOut }),
	counter("received_messages_total", "Messages of the protocol received.",
		func(c *grid.ConnectionStats) int64 { return c.MessagesIn }),
	counter("sent_messages_total", "Messages of the protocol sent.",
		func(c *grid.ConnectionStats) int64 { return c.MessagesOut }),
	counter("received_batches_total", "Websocket messages received, in each of which messages of the protocol travel together.",
		func(c *grid.ConnectionStats) int64 { return c.BatchesIn }),
	counter("sent_batches_total", "Websocket messages sent, in each of which messages of the protocol travel together.",
		func(c *grid.ConnectionStats) int64 { return c.BatchesOut }),

	gauge("calls", "Single requests to the remote that are under way.",
		func(c *grid.ConnectionStats) int { return c.Calls }),
	gauge("streams", "Streams to the remote that are under way.",
		func(c *grid.ConnectionStats) int { return c.Streams }),
	gauge("handlers", "Handlers that run here for the remote, or whose answer waits to be sent.",
		func(c *grid.ConnectionStats) int { return c.Handlers }),
	gauge("streams_served", "Streams among the handlers that run here for the remote.",
		func(c *grid.ConnectionStats) int { return c.StreamsServed }),
	gauge("slow_consumers", "Streams whose sender must wait because the consumer here has not taken what came.",
		func(c *grid.ConnectionStats) int { return c.SlowConsumers }),
	gauge("kept_bytes", "Bytes of payloads that count towards MaxHostBytes.",
		func(c *grid.ConnectionStats) int64 { return c.KeptBytes }),
	gauge("queued_bytes", "Bytes that wait to be sent.",
		func(c *grid.ConnectionStats) int { return c.QueuedBytes }),
	gauge("queued_senders", "Senders that wait for room in the queue.",
		func(c *grid.ConnectionStats) int { return c.QueuedSenders }),
	counter("attempts_total", "Attempts to dial the remote.",
		func(c *grid.ConnectionStats) int64 { return c.Attempts }),
	counter("knocks_total", "Requests of the side that waits to be dialled, by which it asks for that.",
		func(c *grid.ConnectionStats) int64 { return c.Knocks }),
	counter("refused_total", "Calls and streams of the remote that were refused here, for whatever reason but the handler's own.",
		func(c *grid.ConnectionStats) int64 { return c.Refused }),
}

var (
	missedDesc = prometheus.NewDesc("grid_state_changes_missed_total", "Changes of the states of connections that OnStateChange was not told of by themselves, because it had not kept up.", nil, nil)
	stateDesc  = connectionDesc("state", "1 for the present state of the connection, 0 for all others.", "state")
	limitsDesc = connectionDesc("limits_reached_total", "How often a limit for the remote was reached here, by the name of the option.", "limit")
)

// states are all that there are.
var states = []grid.State{
	grid.StateUnconnected, grid.StateConnecting, grid.StateConnected, grid.StateConnectionError, grid.StateShutdown,
}

// limits are the options whose counters are exposed before they are reached, so that the first time
// is seen as an increase.
var limits = []string{"MaxHandlers", "MaxStreams", "MaxHostBytes", "MaxStreamBytes", "MaxPings", "MaxTotalBytes", "MaxTotalHandlers", "MaxTotalStreams"}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- missedDesc
	describeHandlers(ch)
	ch <- stateDesc
	ch <- limitsDesc
	for i := range connectionMetrics {
		ch <- connectionMetrics[i].desc
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.stats()
	ch <- prometheus.MustNewConstMetric(missedDesc, prometheus.CounterValue, float64(st.StateChangesMissed))
	for i := range st.Connections {
		collectConnection(ch, &st.Connections[i])
	}
	c.served.collect(ch, c.handlers)
}

func collectConnection(ch chan<- prometheus.Metric, c *grid.ConnectionStats) {
	remote := labelValue(c.HostName)
	for _, s := range states {
		is := 0.0
		if s == c.State {
			is = 1
		}
		ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, is, remote, s.String())
	}
	reached := maps.Clone(c.LimitsReached)
	for _, limit := range limits {
		ch <- prometheus.MustNewConstMetric(limitsDesc, prometheus.CounterValue, float64(reached[limit]), remote, limit)
		delete(reached, limit)
	}
	for _, limit := range slices.Sorted(maps.Keys(reached)) {
		ch <- prometheus.MustNewConstMetric(limitsDesc, prometheus.CounterValue, float64(reached[limit]), remote, limit)
	}
	for i := range connectionMetrics {
		m := &connectionMetrics[i]
		if v, ok := m.value(c); ok {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, remote)
		}
	}
}

// labelValue makes s a label's, which must be UTF-8.
func labelValue(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
