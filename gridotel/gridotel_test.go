package gridotel_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridotel"
	"github.com/gridrpc/grid/gridtest"
)

const (
	relay grid.HandlerID = iota + 1
	count
	fail
	odd
)

var names = map[grid.HandlerID]string{relay: "relay", count: "count", fail: "fail", odd: "odd\xff"}

// observed is a grid whose nodes have a telemetry each, with one place for the spans.
type observed struct {
	*gridtest.Grid
	spans  *tracetest.InMemoryExporter
	traces *sdktrace.TracerProvider
	meters []*metric.ManualReader
}

func newObserved(t *testing.T, n int) *observed {
	o := &observed{spans: tracetest.NewInMemoryExporter()}
	o.traces = sdktrace.NewTracerProvider(sdktrace.WithSyncer(o.spans))
	for range n {
		o.meters = append(o.meters, metric.NewManualReader())
	}
	o.Grid = gridtest.New(t, n, gridtest.WithOptions(func(node int, m *grid.ManagerOptions) {
		tel, err := gridotel.New(
			gridotel.WithTracerProvider(o.traces),
			gridotel.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(o.meters[node]))),
			gridotel.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
		)
		require.NoError(t, err)
		m.HandlerNames = names
		m.CallInterceptors = []grid.CallInterceptor{tel}
		m.ServeInterceptors = []grid.ServeInterceptor{tel}
	}), gridtest.WithHandlers(func(node int, m *grid.Manager) error {
		// A request goes on to the next node, the last of which opens a stream.
		err := m.RegisterSingleHandlerContext(relay, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			said := baggage.FromContext(ctx).Member("who").Value()
			if node == n-1 {
				s, err := m.Connection(o.Host(0)).NewStream(ctx, count, nil)
				if err == nil {
					err = s.Results(func([]byte) error { return nil })
				}
				return []byte(said), grid.NewRemoteErr(err)
			}
			answer, err := m.Connection(o.Host(node+1)).SingleRequest(ctx, relay, nil)
			return answer, grid.NewRemoteErr(err)
		})
		if err == nil {
			err = m.RegisterStreamingHandler(count, grid.StreamHandler{Handle: func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				for range 3 {
					out <- []byte("x")
				}
				return nil
			}})
		}
		if err == nil {
			err = m.RegisterSingleHandler(fail, func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString("no") }, "disk", "1")
		}
		if err == nil {
			err = m.RegisterSingleHandler(odd, func(b []byte) ([]byte, *grid.RemoteErr) {
				return nil, grid.NewRemoteErrf("no file \xff%s", b)
			}, "sub\xff")
		}
		return err
	}))
	return o
}

// ended returns so many spans, once they have ended.
func (o *observed) ended(t *testing.T, n int) []tracetest.SpanStub {
	require.Eventually(t, func() bool { return len(o.spans.GetSpans()) >= n }, 10*time.Second, time.Millisecond)
	spans := o.spans.GetSpans()
	require.Len(t, spans, n)
	return spans
}

func attr(s tracetest.SpanStub, key string) attribute.Value {
	for _, a := range s.Attributes {
		if string(a.Key) == key {
			return a.Value
		}
	}
	return attribute.Value{}
}

func TestTrace_IsOneAcrossThreeNodes(t *testing.T) {
	o := newObserved(t, 3)
	who, err := baggage.NewMember("who", "me")
	require.NoError(t, err)
	bag, err := baggage.New(who)
	require.NoError(t, err)
	ctx, root := o.traces.Tracer("test").Start(baggage.ContextWithBaggage(t.Context(), bag), "root")
	answer, err := o.Conn(0, 1).SingleRequest(ctx, relay, nil)
	require.NoError(t, err)
	require.Equal(t, "me", string(answer), "the baggage has come along")
	root.End()

	spans := o.ended(t, 7)
	by := make(map[trace.SpanID]tracetest.SpanStub)
	for _, s := range spans {
		require.Equal(t, root.SpanContext().TraceID(), s.SpanContext.TraceID(), s.Name)
		by[s.SpanContext.SpanID()] = s
	}
	// From the last one, the stream that node 0 serves, back to the root.
	last := slices.IndexFunc(spans, func(s tracetest.SpanStub) bool { return s.Name == "count" && s.SpanKind == trace.SpanKindServer })
	var path []string
	for s, ok := spans[last], true; ok; s, ok = by[s.Parent.SpanID()] {
		path = append(path, fmt.Sprint(s.Name, " ", s.SpanKind))
	}
	require.Equal(t, []string{"count server", "count client", "relay server", "relay client", "relay server", "relay client", "root internal"}, path)

	stream := spans[last]
	require.Equal(t, "grid", attr(stream, "rpc.system.name").AsString())
	require.Equal(t, "count", attr(stream, "rpc.method").AsString())
	require.True(t, attr(stream, "grid.stream").AsBool())
	require.EqualValues(t, 3, attr(stream, "grid.sent.messages").AsInt64())
	require.Equal(t, "ok", attr(stream, "rpc.response.status_code").AsString())
	require.Equal(t, "node2", attr(stream, "client.address").AsString())
	client := by[stream.Parent.SpanID()]
	require.Equal(t, "node0", attr(client, "server.address").AsString())
	require.NotZero(t, attr(client, "server.port").AsInt64())
}

func TestTrace_ErrorsAndMetrics(t *testing.T) {
	o := newObserved(t, 2)
	_, err := o.Conn(0, 1).Subroute("disk/1").SingleRequest(t.Context(), fail, nil)
	require.Error(t, err)
	for _, s := range o.ended(t, 2) {
		require.Equal(t, codes.Error, s.Status.Code)
		require.Equal(t, "no", s.Status.Description)
		require.Equal(t, "remote_error", attr(s, "error.type").AsString())
		require.Equal(t, "disk/1", attr(s, "grid.subroute").AsString())
	}
	o.Stop(1)
	_, err = o.Conn(0, 1).SingleRequest(t.Context(), fail, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	require.Equal(t, "disconnected", attr(o.ended(t, 3)[2], "error.type").AsString())

	for node, want := range []map[string]uint64{
		{"rpc.client.call.duration fail remote_error": 1, "rpc.client.call.duration fail disconnected": 1},
		{"rpc.server.call.duration fail remote_error": 1},
	} {
		var rm metricdata.ResourceMetrics
		require.NoError(t, o.meters[node].Collect(t.Context(), &rm))
		got := make(map[string]uint64)
		for _, scope := range rm.ScopeMetrics {
			require.Equal(t, gridotel.Scope, scope.Scope.Name)
			for _, m := range scope.Metrics {
				require.Equal(t, "s", m.Unit)
				for _, p := range m.Data.(metricdata.Histogram[float64]).DataPoints {
					method, _ := p.Attributes.Value("rpc.method")
					status, _ := p.Attributes.Value("error.type")
					got[m.Name+" "+method.AsString()+" "+status.AsString()] = p.Count
					_, has := p.Attributes.Value("grid.subroute")
					require.False(t, has, "of which there may be many")
				}
			}
		}
		require.Equal(t, want, got)
	}
}

// The README names every attribute and instrument, and no other.
func TestOtelReadme_NamesAllAttributesAndInstruments(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	o := newObserved(t, 2)
	_, err = o.Conn(0, 1).Subroute("disk/1").SingleRequest(t.Context(), fail, nil)
	require.Error(t, err)
	used := map[string]bool{"rpc.client.call.duration": true, "rpc.server.call.duration": true}
	for _, s := range o.ended(t, 2) {
		for _, a := range s.Attributes {
			used[string(a.Key)] = true
		}
	}
	named := regexp.MustCompile("`((?:rpc|grid|error|server|client)\\.[a-z_.]+)`").FindAllSubmatch(text, -1)
	require.NotEmpty(t, named)
	for _, m := range named {
		require.True(t, used[string(m[1])], "%s is not used", m[1])
	}
	for name := range used {
		require.Contains(t, string(text), "`"+name+"`")
	}
}

// What is too much to go along is left out, and the call goes on.
func TestTrace_LargeBaggageIsLeftOut(t *testing.T) {
	o := newObserved(t, 2)
	who, err := baggage.NewMember("who", strings.Repeat("x", 4000))
	require.NoError(t, err)
	bag, err := baggage.New(who)
	require.NoError(t, err)
	ctx, root := o.traces.Tracer("test").Start(baggage.ContextWithBaggage(t.Context(), bag), "root")
	answer, err := o.Conn(0, 1).SingleRequest(ctx, relay, nil)
	require.NoError(t, err)
	require.Empty(t, answer)
	root.End()
	for _, s := range o.ended(t, 5) {
		require.Equal(t, root.SpanContext().TraceID(), s.SpanContext.TraceID(), "the trace goes on")
	}
}

// One string that is not UTF-8 loses all spans that are exported with it, and a text may be long.
func TestTrace_TextsCanBeExported(t *testing.T) {
	o := newObserved(t, 2)
	_, err := o.Conn(0, 1).Subroute("sub\xff").SingleRequest(t.Context(), odd, bytes.Repeat([]byte("x"), 50_000))
	require.ErrorContains(t, err, "no file \xff")
	for _, s := range o.ended(t, 2) {
		require.True(t, utf8.ValidString(s.Status.Description))
		require.Len(t, s.Status.Description, len("no file \uFFFD")+1024-len("no file x"))
		require.Equal(t, "odd\uFFFD", s.Name)
		require.Equal(t, "odd\uFFFD", attr(s, "rpc.method").AsString())
		require.Equal(t, "sub\uFFFD", attr(s, "grid.subroute").AsString())
	}
}
