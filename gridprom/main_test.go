package gridprom

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
)

const (
	echo   grid.HandlerID = iota + 1 // a request, answers its payload
	fail                             // a request, fails
	block                            // a request, waits until its context ends
	repeat                           // a stream, answers each message
)

var handlerNames = map[grid.HandlerID]string{echo: "echo", fail: "fail", block: "block", repeat: "repeat"}

// maxMessage is the MaxMessageSize of nodes.
const maxMessage = 100_000

// rig is a grid whose nodes serve their metrics.
type rig struct {
	*gridtest.Grid
	t       testing.TB
	blocked chan struct{} // gets a token when block has begun
	ends    []*ends       // of each node
}

// newRig makes a grid of n nodes. Their interceptors, collectors and registries are new after a
// restart.
func newRig(t testing.TB, n int, opts ...gridtest.Option) *rig {
	t.Helper()
	r := &rig{t: t, blocked: make(chan struct{}, 100), ends: make([]*ends, n)}
	interceptors, registries := make([]*Interceptor, n), make([]*prometheus.Registry, n)
	for i := range n {
		r.ends[i] = new(ends)
	}
	r.Grid = gridtest.New(t, n, append([]gridtest.Option{
		gridtest.WithOptions(func(i int, o *grid.ManagerOptions) {
			interceptors[i] = NewInterceptor()
			o.HandlerNames = handlerNames
			o.CallInterceptors = []grid.CallInterceptor{r.ends[i], interceptors[i]}
			o.ServeInterceptors = []grid.ServeInterceptor{r.ends[i], interceptors[i]}
			o.MaxMessageSize = maxMessage
			o.MaxHandlers = 4
		}),
		gridtest.WithHandlers(func(i int, m *grid.Manager) error {
			registries[i] = prometheus.NewPedanticRegistry()
			registries[i].MustRegister(interceptors[i], NewCollector(m))
			return r.register(m)
		}),
		gridtest.WithRoutes(func(i int, mux *http.ServeMux) {
			mux.HandleFunc("/metrics", func(w http.ResponseWriter, req *http.Request) {
				promhttp.HandlerFor(registries[i], promhttp.HandlerOpts{}).ServeHTTP(w, req)
			})
		}),
	}, opts...)...)
	return r
}

func (r *rig) register(m *grid.Manager) error {
	if err := m.RegisterSingleHandler(echo, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }); err != nil {
		return err
	}
	if err := m.RegisterSingleHandler(fail, func([]byte) ([]byte, *grid.RemoteErr) {
		return nil, grid.NewRemoteErrString("no such lock")
	}); err != nil {
		return err
	}
	if err := m.RegisterSingleHandlerContext(block, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
		r.blocked <- struct{}{}
		<-ctx.Done()
		return nil, grid.NewRemoteErr(context.Cause(ctx))
	}); err != nil {
		return err
	}
	return m.RegisterStreamingHandler(repeat, grid.StreamHandler{
		InCapacity: 10,
		Handle: func(ctx context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				select {
				case out <- b:
				case <-ctx.Done():
				}
			}
			return nil
		},
	})
}

// request makes one from node 0 to node 1.
func (r *rig) request(ctx context.Context, id grid.HandlerID, payload []byte) error {
	_, err := r.Conn(0, 1).SingleRequest(ctx, id, payload)
	return err
}

// stream sends messages from node 0 to node 1 and back.
func (r *rig) stream(messages ...[]byte) error {
	s, err := r.Conn(0, 1).NewStream(r.t.Context(), repeat, nil)
	if err != nil {
		return err
	}
	for _, b := range messages {
		if err := s.Send(b); err != nil {
			return err
		}
	}
	s.CloseSend()
	return s.Results(func([]byte) error { return nil })
}

// waitEnds returns when all calls have ended on both sides, and were counted.
func (r *rig) waitEnds() {
	for _, e := range r.ends {
		e.Wait()
	}
}

// scrape gets the metrics of a node over HTTP, as Prometheus does.
func (r *rig) scrape(node int) scraped {
	r.t.Helper()
	resp, err := r.Client(node).Get(r.Host(node) + "/metrics")
	require.NoError(r.t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(r.t, http.StatusOK, resp.StatusCode)
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	require.NoError(r.t, err)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(&body)
	require.NoError(r.t, err)
	return scraped{r.t, families}
}

// scraped is what Prometheus gets.
type scraped struct {
	t        testing.TB
	families map[string]*dto.MetricFamily
}

// find returns the series of a metric with these labels, given as name and value by turns.
func (s scraped) find(name string, labels ...string) *dto.Metric {
	want := make(map[string]string)
	for pair := range slices.Chunk(labels, 2) {
		want[pair[0]] = pair[1]
	}
	for _, m := range s.families[name].GetMetric() {
		got := make(map[string]string)
		for _, l := range m.GetLabel() {
			got[l.GetName()] = l.GetValue()
		}
		if maps.Equal(got, want) {
			return m
		}
	}
	return nil
}

// value returns that of a counter or a gauge.
func (s scraped) value(name string, labels ...string) float64 {
	s.t.Helper()
	m := s.find(name, labels...)
	require.NotNil(s.t, m, "%s %v", name, labels)
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	}
	require.FailNow(s.t, "neither a counter nor a gauge", "%s %v", name, labels)
	return 0
}

// remotes returns the hosts that metrics of connections are about.
func (s scraped) remotes() []string {
	all := make(map[string]bool)
	for name, family := range s.families {
		if !strings.HasPrefix(name, "grid_connection_") {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "remote" {
					all[l.GetValue()] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// ends waits for the ends of calls. It must be the first interceptor, so that it is the last to
// hear of them.
type ends struct{ sync.WaitGroup }

func (e *ends) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	e.Add(1)
	return ctx, func(grid.CallResult) { e.Done() }, nil
}

func (e *ends) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return e.InterceptCall(ctx, info)
}

func shortPings(_ int, o *grid.ManagerOptions) { o.PingInterval = 50 * time.Millisecond }
