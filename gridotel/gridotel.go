// Package gridotel gives the requests and streams of package grid OpenTelemetry spans and metrics,
// and carries the context of a trace from host to host.
//
//	telemetry, err := gridotel.New()
//	if err != nil {
//		return err
//	}
//	m, err := grid.NewManager(ctx, grid.ManagerOptions{
//		// ...
//		HandlerNames:      map[grid.HandlerID]string{diskInfo: "disk-info"},
//		CallInterceptors:  []grid.CallInterceptor{telemetry},
//		ServeInterceptors: []grid.ServeInterceptor{telemetry},
//	})
//
// The names are those of the semantic conventions for RPC. A span is called by the handler's name
// in ManagerOptions.HandlerNames, and lasts as long as the request, or the stream from its opening
// to its end. A handler that takes a context finds its span there, so that the calls that it makes
// with it become part of the same trace.
//
// What a propagator wants to send along goes as the call's metadata (protocol section 8, extension
// 8), of which there is little room: values for which there is none left, as may happen with a
// large baggage, are left out, not the call. Peers without the extension get nothing, and begin
// traces of their own.
package gridotel

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/clip"
)

const (
	// Scope is the name of the instrumentation.
	Scope = "github.com/gridrpc/grid/gridotel"
	// system is the rpc.system.name of all spans and metrics.
	system = "grid"
	// maxMetadata is what metadata may take with its strings, a little less than package grid
	// allows, in bytes.
	maxMetadata = 1900
	// pairCost is what a pair takes besides its strings.
	pairCost = 10
)

// The keys of what the conventions have no name for.
const (
	subrouteKey         = attribute.Key("grid.subroute")
	streamKey           = attribute.Key("grid.stream")
	sentMessagesKey     = attribute.Key("grid.sent.messages")
	sentBytesKey        = attribute.Key("grid.sent.bytes")
	receivedMessagesKey = attribute.Key("grid.received.messages")
	receivedBytesKey    = attribute.Key("grid.received.bytes")
)

// Option changes what [New] makes.
type Option func(*options)

type options struct {
	tracers     trace.TracerProvider
	meters      metric.MeterProvider
	propagators propagation.TextMapPropagator
}

// WithTracerProvider sets the provider of tracers. The default is the global one.
func WithTracerProvider(p trace.TracerProvider) Option { return func(o *options) { o.tracers = p } }

// WithMeterProvider sets the provider of meters. The default is the global one.
func WithMeterProvider(p metric.MeterProvider) Option { return func(o *options) { o.meters = p } }

// WithPropagators sets what carries contexts from host to host. The default is the global one,
// which carries nothing unless the program has set it.
func WithPropagators(p propagation.TextMapPropagator) Option {
	return func(o *options) { o.propagators = p }
}

// Telemetry is an interceptor of both sides. It may serve several managers.
type Telemetry struct {
	tracer      trace.Tracer
	propagators propagation.TextMapPropagator
	calls       rpcconv.ClientCallDuration
	serves      rpcconv.ServerCallDuration
}

var (
	_ grid.CallInterceptor  = (*Telemetry)(nil)
	_ grid.ServeInterceptor = (*Telemetry)(nil)
)

// New makes a Telemetry. An error is that of an instrument that could not be made.
func New(opts ...Option) (*Telemetry, error) {
	o := options{tracers: otel.GetTracerProvider(), meters: otel.GetMeterProvider(), propagators: otel.GetTextMapPropagator()}
	for _, opt := range opts {
		opt(&o)
	}
	t := &Telemetry{
		tracer:      o.tracers.Tracer(Scope, trace.WithSchemaURL(semconv.SchemaURL)),
		propagators: o.propagators,
	}
	meter := o.meters.Meter(Scope, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	if t.calls, err = rpcconv.NewClientCallDuration(meter); err != nil {
		return nil, err
	}
	t.serves, err = rpcconv.NewServerCallDuration(meter)
	return t, err
}

// InterceptCall implements [grid.CallInterceptor].
func (t *Telemetry) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	attrs := append(common(info), server(info.Host)...)
	ctx, span := t.tracer.Start(ctx, text(info.Name), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...), trace.WithAttributes(detail(info)...))
	t.propagators.Inject(ctx, carrier{info})
	return ctx, func(r grid.CallResult) {
		end(span, r)
		t.calls.Record(ctx, r.Duration.Seconds(), system, append(attrs, outcome(r)...)...)
	}, nil
}

// InterceptServe implements [grid.ServeInterceptor].
func (t *Telemetry) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	attrs := common(info)
	ctx = t.propagators.Extract(ctx, carrier{info})
	ctx, span := t.tracer.Start(ctx, text(info.Name), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attrs...),
		trace.WithAttributes(detail(info)...), trace.WithAttributes(peer(info.Host)...))
	return ctx, func(r grid.CallResult) {
		end(span, r)
		t.serves.Record(ctx, r.Duration.Seconds(), system, append(attrs, outcome(r)...)...)
	}, nil
}

// common is what spans and metrics have, of few values.
func common(info *grid.CallInfo) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.RPCMethodKey.String(text(info.Name)), streamKey.Bool(info.Stream)}
}

// detail is what spans have besides.
func detail(info *grid.CallInfo) []attribute.KeyValue {
	attrs := []attribute.KeyValue{semconv.RPCSystemNameKey.String(system)}
	if info.Subroute != "" {
		attrs = append(attrs, subrouteKey.String(text(info.Subroute)))
	}
	return attrs
}

func server(host string) []attribute.KeyValue {
	name, port := address(host)
	return []attribute.KeyValue{semconv.ServerAddress(name), semconv.ServerPort(port)}
}

// peer is who called. It has no port: that of its name is not where it called from.
func peer(host string) []attribute.KeyValue {
	name, _ := address(host)
	return []attribute.KeyValue{semconv.ClientAddress(name)}
}

// address splits the base URL of a host.
func address(host string) (name string, port int) {
	u, err := url.Parse(host)
	if err != nil {
		return text(host), 0
	}
	port, err = strconv.Atoi(u.Port())
	switch {
	case err == nil:
	case u.Scheme == "https":
		port = 443
	default:
		port = 80
	}
	return text(u.Hostname()), port
}

// text makes s one that can be exported: exporters drop all spans of a batch in which one has a
// string that is not UTF-8. Long ones are clipped.
func text(s string) string { return strings.ToValidUTF8(clip.Text(s), "\uFFFD") }

// outcome is how a call has ended, of few values.
func outcome(r grid.CallResult) []attribute.KeyValue {
	status := r.Status()
	attrs := []attribute.KeyValue{semconv.RPCResponseStatusCodeKey.String(status)}
	if r.Err != nil {
		attrs = append(attrs, semconv.ErrorTypeKey.String(status))
	}
	return attrs
}

func end(span trace.Span, r grid.CallResult) {
	span.SetAttributes(outcome(r)...)
	span.SetAttributes(
		sentMessagesKey.Int64(r.SentMessages), sentBytesKey.Int64(r.SentBytes),
		receivedMessagesKey.Int64(r.ReceivedMessages), receivedBytesKey.Int64(r.ReceivedBytes),
	)
	if r.Err != nil {
		span.SetStatus(codes.Error, text(r.Err.Error()))
	}
	span.End()
}

// carrier is the metadata of a call, for propagators.
type carrier struct{ info *grid.CallInfo }

// Get implements [propagation.TextMapCarrier].
func (c carrier) Get(key string) string { return c.info.Metadata[key] }

// Set implements [propagation.TextMapCarrier]. It leaves out what does not fit.
func (c carrier) Set(key, value string) {
	size := pairCost + len(key) + len(value)
	for k, v := range c.info.Metadata {
		size += pairCost + len(k) + len(v)
	}
	if value != "" && size <= maxMetadata {
		c.info.AddMetadata(key, value)
	}
}

// Keys implements [propagation.TextMapCarrier].
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c.info.Metadata))
	for k := range c.info.Metadata {
		keys = append(keys, k)
	}
	return keys
}
