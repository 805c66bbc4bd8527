package gridprom

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridrpc/grid"
)

// Option changes what [NewInterceptor] makes.
type Option func(o *options)

type options struct {
	buckets []float64
}

// WithBuckets sets the upper bounds of the buckets of the durations, in seconds and ascending; with
// none there are only native histograms. The default is [DefaultBuckets].
func WithBuckets(bounds ...float64) Option {
	return func(o *options) { o.buckets = slices.Clone(bounds) }
}

// DefaultBuckets returns the upper bounds of the buckets of the durations, in seconds: 0.0001,
// 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60
// and 300. Requests in a local network are the first of them, and a minute is the deadline of those
// that have none of their own.
func DefaultBuckets() []float64 {
	return []float64{
		0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
	}
}

// Interceptor measures the requests and streams that a host makes, where it is one of the
// CallInterceptors of [grid.ManagerOptions], and those that it serves, where it is one of the
// ServeInterceptors. It refuses none of them.
//
// It is a [prometheus.Collector] as well, of metrics by side ("call" or "serve"), kind ("request"
// or "stream") and handler, whose name is that of HandlerNames. All of them are counted when the
// call has ended, so a stream that is open is not among them. On the serving side those are missing
// that were refused before, because of a limit or for want of a handler:
// grid_connection_refused_total has them.
//
// How calls have ended is a label, result, with the values of [grid.CallResult.Status], and one
// more:
//
//   - ok: without an error.
//   - remote_error: with a [grid.RemoteErr], of the remote's handler or of the remote
//     itself. Only with side "call".
//   - handler_error: the handler here has returned an error, or panicked; or the remote
//     has given up its stream with a reason in its own words. Only with side "serve".
//   - disconnected: [grid.ErrDisconnected].
//   - overloaded: [grid.ErrOverloaded], here or there.
//   - deadline_exceeded, canceled: the context of the caller has ended, with whatever
//     cause.
//   - message_too_large: [grid.ErrMessageTooLarge].
//   - protocol_error: [grid.ErrProtocol], [grid.ErrIncorrectSequence], [grid.ErrFlowControl].
//   - error: everything else, such as a consumer that has ended its stream early.
//
// Durations are native histograms too, at a resolution of 10 %, which are exposed to servers that
// ask for them.
//
// Several managers may share one Interceptor; their calls are then counted together.
type Interceptor struct {
	duration                       *prometheus.HistogramVec
	ended                          *prometheus.CounterVec
	sentBytes, receivedBytes       *prometheus.CounterVec
	sentMessages, receivedMessages *prometheus.CounterVec
	collectors                     []prometheus.Collector // all of them

	mu     sync.RWMutex // guards what follows
	series map[seriesKey]*series
}

var (
	_ grid.CallInterceptor  = (*Interceptor)(nil)
	_ grid.ServeInterceptor = (*Interceptor)(nil)
	_ prometheus.Collector  = (*Interceptor)(nil)
)

// NewInterceptor makes an Interceptor. It panics if the bounds of the buckets do not ascend.
func NewInterceptor(opts ...Option) *Interceptor {
	o := options{buckets: DefaultBuckets()}
	for _, opt := range opts {
		opt(&o)
	}
	for i, bound := range o.buckets {
		// A NaN is neither.
		if ascends := i == 0 && bound == bound || i > 0 && bound > o.buckets[i-1]; !ascends {
			panic(fmt.Sprintf("gridprom: the bounds of the buckets do not ascend: %v", o.buckets))
		}
	}
	i := &Interceptor{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grid_handler_duration_seconds", Help: "How long requests and streams took, from their begin to their end.",
			Buckets:                        o.buckets,
			NativeHistogramBucketFactor:    1.1,
			NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}, seriesLabels),
		ended:            handlerCounter("results_total", "Requests and streams that have ended, by how they did.", "result"),
		sentBytes:        handlerCounter("sent_bytes_total", "Bytes of payloads sent by this side in requests and streams that have ended."),
		receivedBytes:    handlerCounter("received_bytes_total", "Bytes of payloads received by this side in requests and streams that have ended."),
		sentMessages:     handlerCounter("sent_messages_total", "Payloads sent by this side in requests and streams that have ended."),
		receivedMessages: handlerCounter("received_messages_total", "Payloads received by this side in requests and streams that have ended."),
		series:           make(map[seriesKey]*series),
	}
	i.collectors = []prometheus.Collector{i.duration, i.ended, i.sentBytes, i.receivedBytes, i.sentMessages, i.receivedMessages}
	return i
}

func handlerCounter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "grid_handler_" + name, Help: help},
		append(slices.Clone(seriesLabels), labels...))
}

// Describe implements [prometheus.Collector].
func (i *Interceptor) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range i.collectors {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector].
func (i *Interceptor) Collect(ch chan<- prometheus.Metric) {
	for _, c := range i.collectors {
		c.Collect(ch)
	}
}

// InterceptCall implements [grid.CallInterceptor].
func (i *Interceptor) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, i.of(seriesKey{served: false, stream: info.Stream, handler: info.Name}).observe, nil
}

// InterceptServe implements [grid.ServeInterceptor].
func (i *Interceptor) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, i.of(seriesKey{served: true, stream: info.Stream, handler: info.Name}).observe, nil
}

// seriesKey is what the series of a handler are told by.
type seriesKey struct {
	served, stream bool
	handler        string
}

var seriesLabels = []string{"side", "kind", "handler"}

// labels returns the values of seriesLabels.
func (k seriesKey) labels() []string {
	side, kind := "call", "request"
	if k.served {
		side = "serve"
	}
	if k.stream {
		kind = "stream"
	}
	return []string{side, kind, labelValue(k.handler)}
}

// series are those of a handler on one side, looked up once.
type series struct {
	observe                        func(grid.CallResult) // add, without an allocation for each call
	served                         bool
	duration                       prometheus.Observer
	ended                          map[string]prometheus.Counter // by result
	sentBytes, receivedBytes       prometheus.Counter
	sentMessages, receivedMessages prometheus.Counter
}

// of returns the series of a handler, which exist from its first call on.
func (i *Interceptor) of(k seriesKey) *series {
	i.mu.RLock()
	s := i.series[k]
	i.mu.RUnlock()
	if s != nil {
		return s
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if s = i.series[k]; s == nil {
		s = i.newSeries(k)
		i.series[k] = s
	}
	return s
}

func (i *Interceptor) newSeries(k seriesKey) *series {
	labels := k.labels()
	s := &series{
		served:           k.served,
		duration:         i.duration.WithLabelValues(labels...),
		sentBytes:        i.sentBytes.WithLabelValues(labels...),
		receivedBytes:    i.receivedBytes.WithLabelValues(labels...),
		sentMessages:     i.sentMessages.WithLabelValues(labels...),
		receivedMessages: i.receivedMessages.WithLabelValues(labels...),
	}
	// All results from the start, so that the first error is seen as an increase.
	s.ended = make(map[string]prometheus.Counter)
	for _, r := range results(k.served) {
		s.ended[r] = i.ended.WithLabelValues(append(slices.Clone(labels), r)...)
	}
	s.observe = s.add
	return s
}

// add counts a call that has ended.
func (s *series) add(r grid.CallResult) {
	s.duration.Observe(r.Duration.Seconds())
	ended := s.ended[resultOf(r, s.served)]
	if ended == nil { // a word that grid has learned since
		ended = s.ended[otherError]
	}
	ended.Inc()
	s.sentBytes.Add(float64(r.SentBytes))
	s.receivedBytes.Add(float64(r.ReceivedBytes))
	s.sentMessages.Add(float64(r.SentMessages))
	s.receivedMessages.Add(float64(r.ReceivedMessages))
}
