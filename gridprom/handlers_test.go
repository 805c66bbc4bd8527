package gridprom

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
)

// handlersOf is a collector of handlers alone.
func handlersOf(all *[]grid.HandlerStats) prometheus.Collector {
	return &collector{stats: func() grid.ManagerStats { return grid.ManagerStats{} }, handlers: func() []grid.HandlerStats { return *all }}
}

func requireHandlers(t *testing.T, c prometheus.Collector, want string) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	require.NoError(t, err)
	var got strings.Builder
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "grid_handler_") {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := fmt.Sprintf("%s %s", m.GetLabel()[0].GetValue(), m.GetLabel()[1].GetValue())
			fmt.Fprintf(&got, "%s{%s} %v\n", strings.TrimPrefix(f.GetName(), "grid_handler_"), labels, m.GetCounter().GetValue()+m.GetGauge().GetValue())
		}
	}
	require.Equal(t, want, got.String())
}

// Those of one name are counted together, and there is a limit where all of them have one.
func TestCollector_HandlersAreCountedByName(t *testing.T) {
	all := []grid.HandlerStats{
		{ID: 1, Name: "lock", Running: 1, MaxRunning: 10, Calls: 100, Failed: 3, Refused: 2},
		{ID: 1, Name: "lock", Subroute: "a", Running: 2, MaxRunning: 20, Calls: 200, Failed: 4, Refused: 5},
		{ID: 2, Name: "2", Stream: true, Running: 6, Calls: 7},
		{ID: 2, Name: "2", Stream: true, Subroute: "a", MaxRunning: 5},
	}
	requireHandlers(t, handlersOf(&all), `calls_total{2 stream} 7
calls_total{lock request} 300
failed_total{2 stream} 0
failed_total{lock request} 7
refused_total{2 stream} 0
refused_total{lock request} 7
running{2 stream} 6
running{lock request} 3
running_limit{lock request} 30
`)
}

// A counter never falls, whatever is registered.
func TestCollector_CountersOfHandlersDoNotFall(t *testing.T) {
	all := []grid.HandlerStats{{ID: 1, Name: "lock", Calls: 10, Failed: 2, Refused: 1}}
	c := handlersOf(&all)
	calls := func(n, failed, refused int) {
		t.Helper()
		requireHandlers(t, c, fmt.Sprintf("calls_total{lock request} %d\nfailed_total{lock request} %d\nrefused_total{lock request} %d\nrunning{lock request} 0\n", n, failed, refused))
	}
	calls(10, 2, 1)
	all = nil // it was unregistered
	calls(10, 2, 1)
	calls(10, 2, 1)
	all = []grid.HandlerStats{{ID: 1, Name: "lock", Calls: 3}} // and registered again
	calls(13, 2, 1)
	all = []grid.HandlerStats{{ID: 1, Name: "lock", Calls: 1}} // between two scrapes
	calls(14, 2, 1)
}

// However many names there are, the series are bounded.
func TestCollector_NamesOfHandlersAreBounded(t *testing.T) {
	var all []grid.HandlerStats
	c := handlersOf(&all)
	for round := range 3 {
		all = nil
		for i := range 900 {
			all = append(all, grid.HandlerStats{ID: 1, Subroute: fmt.Sprint(round, i), Name: fmt.Sprintf("\xff%d %d", round, i), Calls: 1})
		}
		require.LessOrEqual(t, testutil.CollectAndCount(c, "grid_handler_calls_total"), maxHandlerNames+1)
	}
	all = nil
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	require.NoError(t, err)
	total := 0.0
	for _, f := range families {
		if f.GetName() == "grid_handler_calls_total" {
			for _, m := range f.GetMetric() {
				total += m.GetCounter().GetValue()
			}
		}
	}
	require.Equal(t, 2700., total)
}

func TestScrape_HasHandlers(t *testing.T) {
	g := gridtest.New(t, 2, gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) {
		o.HandlerOptions = map[grid.HandlerKey]grid.HandlerOptions{{ID: 1}: {Name: "lock", MaxRunning: 7}}
	}), gridtest.WithHandlers(func(_ int, m *grid.Manager) error {
		return m.RegisterSingleHandler(1, func(b []byte) ([]byte, *grid.RemoteErr) {
			if len(b) == 0 {
				return nil, grid.NewRemoteErrString("nothing")
			}
			return b, nil
		})
	}))
	for _, payload := range []string{"", "x", "y"} {
		_, _ = g.Conn(0, 1).SingleRequest(context.Background(), 1, []byte(payload))
	}
	requireHandlers(t, NewCollector(g.Manager(1)), `calls_total{lock request} 3
failed_total{lock request} 1
refused_total{lock request} 0
running{lock request} 0
running_limit{lock request} 7
`)
}
