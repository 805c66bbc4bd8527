package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The document that quotes the committed run.
const (
	performanceDoc = "../docs/performance.md"
	committedRun   = defaultOut
)

var updateDocument = flag.Bool("update", false, "write the figures of the committed run to "+performanceDoc+", in place of those that it quotes")

var (
	// quoted is a figure of the run: a number, perhaps with its unit, and the name of the figure in
	// a comment after it.
	quoted = regexp.MustCompile(`([0-9][0-9,]*(?:\.[0-9]+)?)( ?)(ns|µs|ms|s|MB/s|GB/s|KiB|MiB|%)?<!-- ([^ ]+/[^ ]+) -->`)
	// timed is a figure of a kind that a run has.
	timed = regexp.MustCompile(`[0-9](?: to [0-9.]+)? (?:ns|µs|ms|MB/s|GB/s)\b`)
	// apart says in a section where its figures are from that are not the run's.
	apart   = regexp.MustCompile(`<!-- apart: .*? -->`)
	heading = regexp.MustCompile(`(?m)^##+ `)
	mark    = regexp.MustCompile(`<!-- .*? -->`)
)

// units are how much of a figure's unit each is.
var units = map[string]map[string]float64{
	"ns":      {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9},
	"ms":      {"ns": 1e-6, "µs": 1e-3, "ms": 1, "s": 1e3},
	"µs":      {"ns": 1e-3, "µs": 1, "ms": 1e3, "s": 1e6},
	"s":       {"ms": 1e-3, "s": 1},
	"µs/s":    {"µs": 1, "ms": 1e3},
	"bytes":   {"KiB": 1 << 10, "MiB": 1 << 20},
	"MB/s":    {"MB/s": 1, "GB/s": 1e3},
	"ratio":   {"": 1, "%": 0.01},
	"calls/s": {"": 1},
}

// quote is what the run has for a name, in a unit: "shape/size/peer" for the time of an operation,
// the same with "/ratio" for grid's time by that of the peer, or the name of a figure. The size may
// be * where there is one only.
func (r *report) quote(name, unit string) (float64, error) {
	value, own := math.NaN(), ""
	of, ratio := strings.CutSuffix(name, "/ratio")
	for _, v := range r.Results {
		if of != v.Shape+"/"+v.Size+"/"+v.Peer && of != v.Shape+"/*/"+v.Peer {
			continue
		}
		if value, own = v.Median, "ns"; ratio {
			value, own = v.Ratio, "ratio"
		}
	}
	for _, f := range r.Figures {
		if f.Name == name {
			value, own = f.Value, f.Unit
		}
	}
	if math.IsNaN(value) {
		return 0, fmt.Errorf("the run has no %s", name)
	}
	by, ok := units[own][unit]
	if !ok && unit == "" {
		by, ok = 1, true // a count
	}
	if !ok {
		return 0, fmt.Errorf("%s is in %s, and not to be quoted in %q", name, own, unit)
	}
	return value / by, nil
}

// significant is how many digits of a number say something.
func significant(number string) int {
	return len(strings.TrimLeft(strings.ReplaceAll(strings.ReplaceAll(number, ",", ""), ".", ""), "0"))
}

// checkQuotes returns what is wrong with a document's figures, and the document with those of the run.
func (r *report) checkQuotes(text string) (string, error) {
	var errs []error
	updated := quoted.ReplaceAllStringFunc(text, func(s string) string {
		m := quoted.FindStringSubmatch(s)
		number, space, unit, name := strings.ReplaceAll(m[1], ",", ""), m[2], m[3], m[4]
		v, err := r.quote(name, unit)
		if err != nil {
			errs = append(errs, err)
			return s
		}
		_, fraction, _ := strings.Cut(number, ".")
		if is := strconv.FormatFloat(v, 'f', len(fraction), 64); is != number {
			errs = append(errs, fmt.Errorf("%s%s%s is quoted as %s, the run has %s", m[1], space, unit, name, is))
			n := max(significant(number), 2)
			for _, u := range []string{"s", "ms", "µs", "ns"} { // the first of which there is one
				if in, err := r.quote(name, u); err == nil && unit != "" && units["ns"][unit] > 0 && (v >= 1000 || v < 0.1) && in >= 1 {
					v, unit = in, u
				}
			}
			return digits(v, n) + space + unit + "<!-- " + name + " -->"
		}
		return s
	})
	for _, section := range heading.Split(text, -1) {
		title, _, _ := strings.Cut(section, "\n")
		if apart.MatchString(section) {
			continue
		}
		rest := quoted.ReplaceAllString(section, "")
		if m := mark.FindString(rest); m != "" {
			errs = append(errs, fmt.Errorf("%s: %s is after no figure", title, m))
		}
		if m := timed.FindString(rest); m != "" {
			errs = append(errs, fmt.Errorf("%s: a figure without the name that the run has for it: …%s…", title, m))
		}
	}
	return updated, errors.Join(errs...)
}

func committed(t *testing.T) *report {
	t.Helper()
	r, err := readReport(filepath.Join(committedRun, "results.json"))
	require.NoError(t, err)
	return r
}

// TestPerformanceDocument_QuotesTheRun checks every figure in it that the committed run has. With
// -update it writes them.
func TestPerformanceDocument_QuotesTheRun(t *testing.T) {
	b, err := os.ReadFile(performanceDoc)
	require.NoError(t, err)
	r := committed(t)
	updated, err := r.checkQuotes(string(b))
	if *updateDocument {
		require.NoError(t, os.WriteFile(performanceDoc, []byte(updated), 0o644))
		_, err = r.checkQuotes(updated)
	}
	require.NoError(t, err, "go test -run TestPerformanceDocument . -update writes the figures that the run has")
	assert.Greater(t, len(quoted.FindAllString(string(b), -1)), 40, "figures that are checked")
	assert.Empty(t, r.Later, "all of one run")
}

// TestReport_IsThatOfTheCommittedRun checks that the tables and charts are made of the same run.
func TestReport_IsThatOfTheCommittedRun(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, committed(t).writeFiles(dir))
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	there, err := filepath.Glob(filepath.Join(committedRun, "*"))
	require.NoError(t, err)
	assert.Len(t, there, len(made))
	for _, path := range made {
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(committedRun, filepath.Base(path)))
		require.NoError(t, err)
		assert.True(t, string(want) == string(got), "%s is not made of results.json: go run . -from results.json makes it", filepath.Base(path))
	}
}

func TestQuotes_AreCompared(t *testing.T) {
	r := smallReport()
	r.Figures = append(r.Figures, figure{Name: "overload/of-peak/grid", Value: 0.8035, Unit: "ratio"}, figure{Name: "idle/conn-heap/grid", Value: 25_300, Unit: "bytes"})
	for _, c := range []struct{ text, err, updated string }{
		{text: "2.0 µs<!-- unary/8/grid --> and 10.0 µs<!-- unary/8/grpc -->"},
		{text: "2 µs<!-- unary/8/grid -->, 2,000 ns<!-- unary/8/grid -->, 1.2 ms<!-- mixed/p99.9/grid -->, 25 KiB<!-- idle/conn-heap/grid -->"},
		{text: "80 %<!-- overload/of-peak/grid --> or 0.80<!-- overload/of-peak/grid -->, 0.20<!-- unary/8/grpc/ratio -->"},
		{text: "1.9 µs<!-- unary/8/grid -->", err: "the run has 2.0", updated: "2.0 µs<!-- unary/8/grid -->"},
		{text: "3 µs<!-- unary/8/grid -->", err: "the run has 2", updated: "2.0 µs<!-- unary/8/grid -->"},
		{text: "12345 ns<!-- unary/8/grpc -->", err: "the run has 10000", updated: "10.000 µs<!-- unary/8/grpc -->"},
		{text: "0.01 ms<!-- unary/8/grid -->", err: "the run has 0.00", updated: "2.0 µs<!-- unary/8/grid -->"},
		{text: "0.194<!-- unary/8/grpc/ratio -->", err: "the run has 0.200", updated: "0.200<!-- unary/8/grpc/ratio -->"},
		{text: "2.0 µs<!-- unary/9/grid -->", err: "the run has no unary/9/grid"},
		{text: "2.0 MB/s<!-- unary/8/grid -->", err: "not to be quoted"},
		{text: "some µs<!-- unary/8/grid -->", err: "after no figure"},
		{text: "2.0 µs is long", err: "without the name"},
		{text: "2.0 µs is long<!-- apart: a clock -->"},
		{text: "\n## One\n2.0 µs is long<!-- apart: a clock -->\n## Two\n3 ms is longer", err: "Two: a figure without the name"},
	} {
		updated, err := r.checkQuotes(c.text)
		if c.updated == "" {
			c.updated = c.text
		}
		assert.Equal(t, c.updated, updated)
		if c.err == "" {
			assert.NoError(t, err, c.text)
		} else {
			assert.ErrorContains(t, err, c.err, c.text)
		}
	}
}
