package gridprom

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// allMetrics returns a registry that exposes each metric that there is.
func allMetrics(t *testing.T) *prometheus.Registry {
	t.Helper()
	i := NewInterceptor()
	for _, stream := range []bool{false, true} {
		_, end, err := i.InterceptCall(t.Context(), &grid.CallInfo{Name: "x", Stream: stream})
		require.NoError(t, err)
		end(grid.CallResult{Duration: time.Second})
	}
	c := &collector{stats: func() grid.ManagerStats {
		return grid.ManagerStats{Connections: []grid.ConnectionStats{{HostName: "http://a", RoundTrip: time.Second}}}
	}, handlers: func() []grid.HandlerStats { return []grid.HandlerStats{{Name: "x", MaxRunning: 1}} }}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(i, c)
	return reg
}

func TestMetrics_Lint(t *testing.T) {
	problems, err := testutil.GatherAndLint(allMetrics(t))
	require.NoError(t, err)
	require.Empty(t, problems)
}

// The table of README.md is what is exposed, in the same order.
func TestMetrics_AreAllListedInTheReadme(t *testing.T) {
	families, err := allMetrics(t).Gather()
	require.NoError(t, err)
	var want strings.Builder
	for _, f := range families {
		labels := make(map[string]bool)
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels["`"+l.GetName()+"`"] = true
			}
		}
		unit := "–"
		for _, u := range []string{"seconds", "bytes"} {
			if strings.HasSuffix(strings.TrimSuffix(f.GetName(), "_total"), "_"+u) {
				unit = u
			}
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()),
			strings.Join(slices.Sorted(maps.Keys(labels)), ", "), unit, f.GetHelp())
	}
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	var got strings.Builder
	for line := range strings.Lines(string(readme)) {
		if strings.HasPrefix(line, "| `grid_") {
			got.WriteString(line)
		}
	}
	require.Equal(t, want.String(), got.String())
}

// README.md and the documentation list the values of the label result.
func TestMetrics_ResultsAreDocumented(t *testing.T) {
	for _, name := range []string{"README.md", "interceptor.go"} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, r := range append(results(false), handlerError) {
			require.Contains(t, string(text), r, name)
		}
	}
}
