package chaos

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var chartFlag = flag.String("chart", "", "where Soak writes a picture of the heap and the goroutines (SVG)")

// sampleEvery is how often heap and goroutines are looked at.
const sampleEvery = 10 * time.Second

// sample is what the process uses at one time.
type sample struct {
	at         time.Duration
	heap       float64 // MiB
	goroutines float64
}

// TestSoak_HeapAndGoroutinesDoNotGrow is TestChaos_EveryCallHasItsEnd for as long as is asked for,
// with a look at the heap and the goroutines. It runs only where -run names it.
func TestSoak_HeapAndGoroutinesDoNotGrow(t *testing.T) {
	if !strings.Contains(flag.Lookup("test.run").Value.String(), "Soak") {
		t.Skip("run it with -run Soak -duration 20m -timeout 30m")
	}
	every := min(sampleEvery, *durationFlag/12)
	var samples []sample
	run(t, *durationFlag, func(ctx context.Context) {
		for began := time.Now(); sleep(ctx, every); {
			samples = append(samples, takeSample(time.Since(began)))
		}
	})
	if *chartFlag != "" {
		title := fmt.Sprintf("%d managers under faults for %v, over %s", hosts, *durationFlag, fabricName())
		require.NoError(t, os.WriteFile(*chartFlag, drawChart(title, whenAndWhere(), samples), 0o644))
	}
	requireFlat(t, "heap (MiB)", samples, 2, func(s sample) float64 { return s.heap })
	requireFlat(t, "goroutines", samples, 20, func(s sample) float64 { return s.goroutines })
}

// whenAndWhere is the date and the machine.
func whenAndWhere() string {
	return fmt.Sprintf("%s, %s, %s/%s, %d cores: %s", time.Now().Format(time.DateOnly), runtime.Version(),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), processor())
}

// processor is what the system calls it.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown processor"
}

func fabricName() string {
	if *tcpFlag {
		return "loopback sockets"
	}
	return "a network in memory"
}

func takeSample(at time.Duration) sample {
	runtime.GC()
	runtime.GC() // for what the pools had kept from the first
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return sample{at, float64(mem.HeapAlloc) / (1 << 20), float64(runtime.NumGoroutine())}
}

// requireFlat checks that the median of the last quarter is not above that of the second one by
// more than a tenth and some slack. In the first one caches fill.
func requireFlat(t *testing.T, what string, samples []sample, slack float64, value func(sample) float64) {
	t.Helper()
	quarter := len(samples) / 4
	if quarter < 2 {
		t.Logf("%s: %d samples are too few to tell", what, len(samples))
		return
	}
	early, late := median(samples[quarter:2*quarter], value), median(samples[len(samples)-quarter:], value)
	t.Logf("%s: median %.1f in the second quarter, %.1f in the last", what, early, late)
	require.LessOrEqual(t, late, early*1.1+slack, "%s has grown", what)
}

func median(samples []sample, value func(sample) float64) float64 {
	var all []float64
	for _, s := range samples {
		all = append(all, value(s))
	}
	slices.Sort(all)
	return all[len(all)/2]
}
