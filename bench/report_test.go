package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// smallReport is a narrow run.
func smallReport() *report {
	return &report{
		Peers: []peerInfo{{Name: "grid"}, {Name: "grpc"}},
		Results: []result{
			{Shape: "unary", Size: "8", Peer: "grid", Median: 2000, Ratio: 1, Allocs: 9, Bytes: 1234.5678},
			{Shape: "unary", Size: "8", Peer: "grpc", Median: 10000, Ratio: 0.2, Allocs: 150.25, Bytes: 9876543},
			{Shape: "unary", Size: "8", Peer: "tcp", Median: 1000, Ratio: 1.23456, Allocs: -1, Bytes: -1},
			{Shape: "tls", Size: "2", Peer: "grpc", Median: 1000, Allocs: -1},
		},
		Figures: []figure{{Name: "mixed/p99.9/grid", Value: 1.23456789, Unit: "ms"}, {Name: "mesh/8/grid", Value: 1234567.8, Unit: "calls/s"}},
	}
}

// fullReport has all that a full run has, with numbers that were made up.
func fullReport() *report {
	r := &report{
		Made: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC), Took: 754 * time.Second,
		Go: "go1.26.8", OS: "linux/amd64", CPU: "Fast(TM) CPU @ 2.90GHz", Cores: 2, Rounds: 3, Round: 250 * time.Millisecond,
		Commit: "0123456789abcdef0123456789abcdef01234567", Dirty: true,
	}
	peers := []struct {
		name            string
		cost, byteCost  float64 // of a call in ns, of a byte in ns
		streams, typed  bool
		heap, streaming float64
	}{
		{"grid", 2600, 0.8, true, true, 31000, 2100},
		{"grid-option", 2700, 0.8, false, false, 0, 0},
		{"grid-none", 2650, 0.8, false, false, 0, 0},
		{"grpc", 15500, 1.6, true, true, 68000, 5200},
		{"connect", 31000, 2.1, true, true, 61000, 14000},
		{"drpc", 9100, 1.1, true, true, 22000, 0},
		{"ttrpc", 7900, 1.5, true, true, 9100, 1900},
		{"netrpc", 6100, 2.4, false, true, 14900, 0},
		{"nats", 8200, 2.2, false, false, 90500, 0},
		{"http1", 24100, 1.2, false, false, 21000, 0},
		{"yamux", 10900, 1.3, true, false, 17000, 3300},
		{"gorilla", 6900, 0.9, true, false, 11100, 0},
		{"tcp", 5900, 0.5, true, false, 4100, 0},
		{"mux", 1900, 0.6, false, false, 4100, 0},
		{"window", 900, 0.5, false, false, 4100, 0},
	}
	for _, p := range peers {
		r.Peers = append(r.Peers, peerInfo{
			Name: p.name, About: "made up | as it might be", Version: "v1.2.3", Floor: slices.Contains([]string{"gorilla", "tcp", "mux", "window"}, p.name),
		})
	}
	n := 0
	slower := 1.0 // with an end in each process
	add := func(shape, size string, ns func(i int) float64) {
		first := len(r.Results)
		for i, p := range peers {
			if strings.HasPrefix(p.name, "grid-") != (strings.HasPrefix(shape, "deadline") && i > 0 && i < 3) ||
				strings.HasPrefix(shape, "stream") && !p.streams || shape == "typed" && !p.typed || shape == "payload" && p.name == "ttrpc" && size == "1MiB" {
				continue
			}
			n++
			m := slower * ns(i) * (1 + 0.05*math.Sin(float64(n)))
			v := result{Shape: shape, Size: size, Peer: p.name, Rounds: []float64{m * 0.95, m, m * 1.14}, Median: m,
				Allocs: p.cost / 700, Bytes: p.cost / 3}
			r.Results = append(r.Results, v)
			r.Results[len(r.Results)-1].Ratio = r.Results[first].Median / m
		}
	}
	for _, shape := range []string{"unary", "typed", "deadline", "payload", "stream-responses", "stream-requests", "stream-twoway", "stream-long", "bulk", "tls"} {
		sizes := map[string][]string{"unary": {"1", "2", "8", "64", "256"}, "typed": {"8", "64"},
			"payload": {"16B", "4KiB", "64KiB", "1MiB"}, "stream-long": {"100000"}, "bulk": {"64KiB", "256KiB"}}[shape]
		if sizes == nil {
			sizes = []string{"2", "8", "64"}
		}
		for _, size := range slices.Concat(sizes, sizes) {
			name := shape
			if r.find(shape, size, "grid") != nil {
				name, slower = shape+inTwo, 1.6
			}
			add(name, size, func(i int) float64 {
				p := peers[i]
				switch {
				case shape == "payload", shape == "bulk":
					return p.cost + p.byteCost*number(size)
				case shape == "stream-long":
					return p.cost / 5
				case strings.HasPrefix(shape, "stream"):
					return p.cost * (3 + 8/number(size))
				}
				alone := 14000 + 1.2*p.cost
				return p.cost + alone/number(size)
			})
			slower = 1
		}
	}
	figure := func(name string, v float64, unit string) {
		r.Figures = append(r.Figures, figure{Name: name, Value: v, Unit: unit})
	}
	for _, in := range []string{"", inTwo} {
		for i, p := range peers {
			if strings.HasPrefix(p.name, "grid-") || p.name == "window" {
				continue
			}
			for _, size := range []string{"64KiB", "256KiB"} {
				figure("bulk-rate"+in+"/"+size+"/"+p.name, 2500-90*float64(i), "MB/s")
				v := &r.Figures[len(r.Figures)-1]
				v.Least, v.Most = v.Value*0.93, v.Value*1.1
			}
		}
	}
	for _, in := range []string{"", inTwo} {
		for i, p := range peers {
			if strings.HasPrefix(p.name, "grid-") || p.name == "mux" || p.name == "window" {
				continue
			}
			figure("mixed"+in+"/p50/"+p.name, 0.09+0.02*float64(i*i), "ms")
			figure("mixed"+in+"/p99/"+p.name, 0.9+0.2*float64(i*i), "ms")
			figure("mixed"+in+"/p99.9/"+p.name, 2.1+0.5*float64(i*i), "ms")
			figure("mixed"+in+"/bulk/"+p.name, 1500-90*float64(i), "MB/s")
		}
	}
	for _, in := range []string{"", inTwo} {
		for i, l := range overloadLooks {
			group := "overload" + in + "/"
			figure(group+"capacity/"+l.name, 9000-200*float64(i), "calls/s")
			for j, load := range overloadNames() {
				figure(group+load+"-accepted/"+l.name, (9000-200*float64(i))*min(overloadLoads[j], 1)/(1+float64(i*j*j)/9), "calls/s")
				figure(group+load+"-p99/"+l.name, 5*math.Pow(2, float64(j))*float64(i+1), "ms")
			}
			figure(group+"of-peak/"+l.name, 0.93-0.2*float64(i), "ratio")
		}
	}
	figure("overload/long-time/grid", 60, "s")
	figure("overload/long-accepted/grid", 8800, "calls/s")
	figure("overload/long-growth/grid", 1.01, "ratio")
	figure("overload/long-recovery/grid", 100, "ms")
	for _, p := range peers {
		if p.heap == 0 {
			continue
		}
		figure("idle/conn-heap/"+p.name, p.heap, "bytes")
		figure("idle/conn-goroutines/"+p.name, 2, "goroutines")
		if p.streaming > 0 {
			figure("idle/stream-heap/"+p.name, p.streaming, "bytes")
			figure("idle/stream-goroutines/"+p.name, 1.0003, "goroutines")
		}
	}
	figure("idle/stream-noinput-heap/grid", 1100, "bytes")
	for i, n := range []int{2, 4, 8, 16, 32} {
		figure(fmt.Sprintf("mesh/%d/grid", n), 410_000-20_000*float64(i*i)/2, "calls/s")
	}
	for i, n := range []int{2, 4, 8, 16, 32} {
		figure(fmt.Sprintf("mesh/%d-of-4/grid", n), 1.02-0.02*float64(i), "ratio")
	}
	figure("something/else/grpc", 12.5, "widgets")
	return r
}

func TestReport_Lines(t *testing.T) {
	var b bytes.Buffer
	if err := smallReport().writeLines(&b); err != nil {
		t.Fatal(err)
	}
	want := `figure unary/8/time/grid 2000 ns/op
figure unary/8/allocs/grid 9 allocs/op
figure unary/8/bytes/grid 1234.57 B/op
figure unary/8/time/grpc 10000 ns/op
ratio unary/8 grid/grpc 0.200
figure unary/8/allocs/grpc 150.25 allocs/op
figure unary/8/bytes/grpc 9876543 B/op
figure unary/8/time/tcp 1000 ns/op
ratio unary/8 grid/tcp 1.235
figure tls/2/time/grpc 1000 ns/op
figure mixed/p99.9/grid 1.23457 ms
figure mesh/8/grid 1234568 calls/s
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}

func TestReport_JSON(t *testing.T) {
	r := fullReport()
	var b, again bytes.Buffer
	if err := errors.Join(r.writeJSON(&b), r.writeJSON(&again)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("not stable")
	}
	got := new(report)
	if err := json.Unmarshal(b.Bytes(), got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, want %+v", got, r)
	}
}

func TestReport_Markdown(t *testing.T) {
	r := fullReport()
	dir := os.Getenv("BENCH_TEST_OUT") // to look at the charts
	if dir == "" {
		dir = t.TempDir()
	}
	var b bytes.Buffer
	if err := errors.Join(r.writeCharts(dir), r.writeMarkdown(&b)); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if err := os.WriteFile(filepath.Join(dir, "README.md"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# Benchmarks\n", "14 March 2026, 15:09 UTC", "12m34s", "go1.26.8", "Fast(TM) CPU @ 2.90GHz; 2 cores", "3, each with 250ms",
		"| **grid** | this one | made up \\| as it might be |\n", "| *tcp* (floor) | v1.2.3 |", "The floors are no way to call",
		"## Calls\n", "|  | 1 | 2 | 8 | 64 | 256 |\n| --- | ---: | ---: | ---: | ---: | ---: |\n| **grid** | 20.5 µs<br><sub>19.5 – 23.4 µs</sub> |",
		"## Allocations\n", "|  | unary | typed | deadline | stream-responses | stream-requests | stream-twoway | tls |\n",
		"| **grid** | 3.71, 867 B |",
		"|  | p50 | p99 | p99.9 | bulk |\n", "| **grid** | 90.0 µs | 900 µs | 2.10 ms | 1.50 GB/s |",
		"| **grid** | MaxHandlers; a call beyond is refused at once | 9.00k | 0.930 | – | – |\n",
		"| **grid** | 4 | 9.00k | – | – | – | – | 40.0 ms | – | – | – |\n| **grid** | 2 for 60 s | 8.80k |",
		"Over the 60 s of twice the capacity grid's live memory at the end was 1.01 times that in the middle",
		"| grpc | 66.4 KiB | 2 | 5.08 KiB | 1 | – |\n",
		"|  | 2 | 4 | 8 | 16 | 32 | 2-of-4 |", "| 410k calls/s |",
		"## something\n\n|  | else |\n| --- | ---: |\n| grpc | 12.5 widgets |\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the document has no %q", want)
		}
	}
	if v := r.find("unary", "8", "grpc"); !strings.Contains(text, duration(v.Median)+" ("+times(1/v.Ratio)+")") {
		t.Error("the document has not gRPC's time and ratio")
	}

	var linked []string
	for _, m := range regexp.MustCompile(`(?:srcset|src)="(.*?)"`).FindAllStringSubmatch(text, -1) {
		linked = append(linked, m[1])
		checkSVG(t, filepath.Join(dir, m[1]))
	}
	var want []string
	for _, name := range []string{
		"grpc", "unary", "unary-2p", "deadline", "deadline-2p", "payload", "payload-2p", "streams", "streams-2p", "bulk", "bulk-2p",
		"mixed", "mixed-2p", "overload", "overload-2p", "idle", "mesh",
	} {
		want = append(want, name+"-dark.svg", name+".svg")
	}
	if !slices.Equal(linked, want) {
		t.Errorf("links to %q, want %q", linked, want)
	}
	width := 0
	for line := range strings.Lines(text) { // rows are as wide as their heads
		n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|")
		if n != width && n*width != 0 {
			t.Errorf("a row with %d bars under one with %d: %q", n, width, line)
		}
		width = n
	}
}

// checkSVG checks that a chart is well-formed, and has no number that is none.
func checkSVG(t *testing.T, path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if bytes.Contains(b, []byte("NaN")) || bytes.Contains(b, []byte("Inf")) {
		t.Errorf("%s has coordinates that are no numbers", path)
	}
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
	}
}

// TestReport_Narrow checks that a chart without data is neither written nor shown.
func TestReport_Narrow(t *testing.T) {
	for _, c := range []struct {
		report *report
		charts []string
	}{
		{new(report), nil},
		{smallReport(), []string{"grpc-dark.svg", "grpc.svg", "mesh-dark.svg", "mesh.svg"}}, // a line needs two points, and a range three
	} {
		dir := t.TempDir()
		var b bytes.Buffer
		r := c.report
		if err := errors.Join(r.writeCharts(dir), r.writeMarkdown(&b), r.writeLines(io.Discard), r.writeJSON(io.Discard)); err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range files {
			names = append(names, f.Name())
			checkSVG(t, filepath.Join(dir, f.Name()))
		}
		if !slices.Equal(names, c.charts) {
			t.Errorf("wrote %q, want %q", names, c.charts)
		}
		if got := strings.Count(b.String(), ".svg\""); got != len(files) {
			t.Errorf("%d links, %d charts", got, len(files))
		}
	}
}

func TestReport_FiguresAreShort(t *testing.T) {
	for _, c := range [][2]string{
		{duration(0), "0 ns"}, {duration(1.234), "1.23 ns"}, {duration(87), "87 ns"}, {duration(999.7), "1.00 µs"},
		{duration(12345), "12.3 µs"}, {duration(999_999), "1.00 ms"}, {duration(2.5e9), "2.50 s"}, {duration(7.2e12), "7200 s"},
		{amount(0.5, "ms"), "500 µs"}, {amount(1536, "bytes"), "1.50 KiB"}, {amount(123456, "calls/s"), "123k calls/s"},
		{amount(0.987, "ratio"), "0.987"}, {amount(2.0001, "goroutines"), "2"}, {amount(1200, "MB/s"), "1.20 GB/s"},
		{times(0.854), "×0.85"}, {times(4.23), "×4.2"}, {times(9.97), "×10"}, {times(16.6), "×17"},
		{plain(1234567.8), "1234568"}, {plain(0), "0"}, {plain(0.00012345678), "0.000123457"}, {plain(150), "150"},
	} {
		if c[0] != c[1] {
			t.Errorf("got %q, want %q", c[0], c[1])
		}
	}
}

func TestReport_MergeKeepsOtherShapes(t *testing.T) {
	dir := t.TempDir()
	old := report{
		Made: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC), Peers: []peerInfo{{Name: "grid"}, {Name: "grpc"}},
		Results: []result{{Shape: "unary", Size: "2", Peer: "grid", Median: 1}, {Shape: "tls", Size: "2", Peer: "grid", Median: 2}},
		Figures: []figure{{Name: "idle/conn-heap/grid", Value: 3}, {Name: "mesh/4/grid", Value: 4}},
	}
	if err := old.writeFiles(dir); err != nil {
		t.Fatal(err)
	}
	anew := report{
		Made: old.Made.Add(time.Hour), Peers: []peerInfo{{Name: "grid"}, {Name: "other"}},
		Results: []result{{Shape: "tls", Size: "8", Peer: "grid", Median: 5}},
		Figures: []figure{{Name: "idle/conn-heap/other", Value: 6}},
	}
	if err := anew.merge(dir, []shape{{name: "tls"}, {name: "idle"}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range anew.Results {
		got = append(got, v.Shape+v.Size)
	}
	for _, f := range anew.Figures {
		got = append(got, f.Name)
	}
	for _, p := range anew.Peers {
		got = append(got, p.Name)
	}
	want := "unary2 tls8 mesh/4/grid idle/conn-heap/other grid grpc other"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("%s, not %s", s, want)
	}
	if !anew.Made.Equal(old.Made) || !anew.Later["tls"].Equal(old.Made.Add(time.Hour)) || !strings.Contains(anew.later(), "Calls over TLS") {
		t.Errorf("made %v, later %v", anew.Made, anew.Later)
	}
}
