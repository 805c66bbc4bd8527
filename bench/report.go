package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// writeLines writes one line for each value, for programs and for comparing runs.
func (r *report) writeLines(w io.Writer) error {
	var b bytes.Buffer
	for _, v := range r.Results {
		fmt.Fprintf(&b, "figure %s/%s/time/%s %s ns/op\n", v.Shape, v.Size, v.Peer, plain(v.Median))
		if v.Peer != "grid" && v.Ratio > 0 {
			fmt.Fprintf(&b, "ratio %s/%s grid/%s %.3f\n", v.Shape, v.Size, v.Peer, v.Ratio)
		}
		if v.Allocs >= 0 {
			fmt.Fprintf(&b, "figure %s/%s/allocs/%s %s allocs/op\n", v.Shape, v.Size, v.Peer, plain(v.Allocs))
			fmt.Fprintf(&b, "figure %s/%s/bytes/%s %s B/op\n", v.Shape, v.Size, v.Peer, plain(v.Bytes))
		}
	}
	for _, f := range r.Figures {
		fmt.Fprintf(&b, "figure %s %s %s\n", f.Name, plain(f.Value), f.Unit)
	}
	r.overloadRatios(&b)
	_, err := w.Write(b.Bytes())
	return err
}

// writeJSON writes everything, with the names of the fields as they are here.
func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// about says what a shape or a group of figures is: its title, and the text below that.
var about = map[string][2]string{
	"unary":            {"Calls", "A payload of 512 bytes there, and the same back. A column is a number of callers at the same time."},
	"typed":            {"Typed calls", "A small struct there and back, in each peer's own encoding. A column is a number of callers."},
	"payload":          {"Payloads", "Calls by 8 callers. A column is the size of the payload, which goes there and back."},
	"tls":              {"Calls over TLS", "The calls with 512 bytes, over TLS. A column is a number of callers."},
	"stream-responses": {"Streams of responses", "One request, and ten messages of 512 bytes as the answer. The time is that of the whole stream, with its opening and its end. A column is a number of callers."},
	"stream-requests":  {"Streams of requests", "Ten messages of 512 bytes there, and the end of the stream back. The time is that of the whole stream. A column is a number of callers."},
	"stream-twoway":    {"Two-way streams", "Ten messages of 512 bytes, each of which the handler sends back. The time is that of the whole stream. A column is a number of callers."},
	"stream-long":      {"A long stream", "One two-way stream with as many messages as the column says. The time is that of one message there and back."},
	"deadline":         {"Calls with a deadline", "The calls with 512 bytes, each with a deadline of its own, which it never reaches: `context.WithTimeout` for each call, as real programs have; with yamux that of the stream. Of grid also with a timeout that is an option (grid-option), and without any (grid-none). A column is a number of callers."},
	"deadline-of-none": {"What a deadline costs", "The time of grid's calls with a deadline by that of its calls without one, in the same rounds."},
	"bulk":             {"Bulk", "One stream of 64 MiB, one way, and its end back. The time is that of one message, and a column is the size of these."},
	"bulk-rate":        {"Bulk by second", "The throughput of that stream."},
	"mixed":            {"Small calls next to bulk", "How long small calls take, one due every millisecond, while payloads of 16 MiB go the same way without a pause; and how much of these gets through (bulk). p99.9 is that of the calls of all rounds together."},
	"overload":         {"Overload", overloadAbout},
	"idle":             {"What idle connections and streams cost", "Live heap with stacks, and goroutines. For a connection (conn) they are those of one end; for a stream on which nothing happens, those of both ends together. grid's connections are those of a mesh of 32, and what its managers and servers need is counted with them; those of the others are 64 pairs, each with a server of its own (for NATS a whole broker), over which one call was made. There are 10,000 streams of grid and grpc, 1,000 of the others."},
	"mesh":             {"Meshes", "Servers in one process, so that more of them share the same cores. On each, 4 goroutines call each other server, so that every link has the same load. A column is a number of servers, and its value the calls per second of all together; *n*-of-4 is that by the value of 4 servers."},
	"mesh-spread":      {"Meshes with a fixed load", "The same with 64 callers in all, each of which calls between another pair of servers each time: the more links there are, the fewer calls share one write."},
	"typed-of-unary":   {"Typed calls by untyped ones", "The time of grid's typed calls by that of its calls with 512 bytes."},
	"star":             {"A star", starAbout},
	"hosts":            {"Hosts", "Meshes in one process, in which nothing is called: CPU time to connect and, while idle, per second, and memory; each for one end of a connection. A column is a number of hosts and what was measured."},
}

// writeMarkdown writes the document. The charts that it shows are those of writeCharts, in the same
// folder.
func (r *report) writeMarkdown(w io.Writer) error {
	b := new(bytes.Buffer)
	charts := make(map[string]chart)
	for _, c := range r.charts() {
		charts[c.name] = c
	}
	show := func(name string) bool {
		c, ok := charts[name]
		if ok {
			b.WriteString(c.picture(""))
			b.WriteString("\n\n")
			delete(charts, name)
		}
		return ok
	}
	// section begins a section, or for one with an end in each process a part of that.
	section := func(name string) {
		base, two := strings.CutSuffix(name, inTwo)
		title, text := about[base][0], about[base][1]
		if two {
			b.WriteString("### With an end in each process\n\n")
		} else {
			fmt.Fprintf(b, "## %s\n\n", cmp.Or(title, name))
			if text != "" {
				fmt.Fprintf(b, "%s\n\n", text)
			}
		}
		if strings.HasPrefix(name, "stream-") {
			base = "streams" // one chart for all, at the first of them
		}
		if two {
			base += inTwo
		}
		show(base)
	}

	r.writeHead(b)
	if _, ok := charts["grpc"]; ok {
		b.WriteString("## Compared with gRPC\n\n")
		show("grpc")
	}
	for _, shape := range r.shapes() {
		section(shape)
		r.writeTable(b, r.sizes(shape), func(peer, size string) string {
			v := r.find(shape, size, peer)
			if v == nil {
				return ""
			}
			s := duration(v.Median)
			if peer != "grid" && v.Ratio > 0 {
				s += " (" + times(1/v.Ratio) + ")"
			}
			if len(v.Rounds) > 1 {
				s += between(duration, slices.Min(v.Rounds), slices.Max(v.Rounds))
			}
			return s
		})
	}
	r.writeAllocs(b)
	for _, group := range r.groups() {
		section(group)
		if strings.HasPrefix(group, "overload") {
			r.writeOverload(b, group)
			continue
		}
		if group == "star" {
			r.writeStar(b)
			continue
		}
		r.writeTable(b, r.columns(group), func(peer, column string) string {
			f := r.figure(group, column, peer)
			if f == nil {
				return ""
			}
			write := func(v float64) string { return amount(v, f.Unit) }
			if f.Most == 0 {
				return write(f.Value)
			}
			return write(f.Value) + between(write, f.Least, f.Most)
		})
	}
	_, err := w.Write(append(bytes.TrimSpace(b.Bytes()), '\n'))
	return err
}

// between writes the spread of a value below it.
func between(write func(float64) string, least, most float64) string {
	return "<br><sub>" + spread(write(least), write(most)) + "</sub>"
}

// spread writes a range, with the unit once where both have the same.
func spread(least, most string) string {
	if v, unit, ok := strings.Cut(least, " "); ok && strings.HasSuffix(most, " "+unit) {
		least = v
	}
	return least + " – " + most
}

// picture shows a chart, for light pages and for dark ones; dir is the path to its folder.
func (c chart) picture(dir string) string {
	return fmt.Sprintf(`<picture>
  <source media="(prefers-color-scheme: dark)" srcset="%[1]s%[2]s-dark.svg">
  <img alt="%[3]s" src="%[1]s%[2]s.svg">
</picture>`, dir, c.name, html.EscapeString(c.alt))
}

// shortCommit is as much of the commit as names it.
func (r *report) shortCommit() string {
	s := r.Commit[:min(len(r.Commit), 12)]
	if r.Dirty {
		s += " with changes"
	}
	return s
}

// later says which shapes were measured after the others.
func (r *report) later() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.Later)) {
		fmt.Fprintf(&b, "- **%s:** measured anew, %s\n", cmp.Or(about[name][0], name), r.Later[name].UTC().Format("2 January 2006, 15:04 UTC"))
	}
	return b.String()
}

// writeHead says what was measured, and how.
func (r *report) writeHead(b *bytes.Buffer) {
	fmt.Fprintf(b, `# Benchmarks

grid next to other ways for two Go servers to call each other. This document and its
charts are made by the module in bench/ of this repository.

- **When:** %s; it took %s
- **Go:** %s, %s
- **CPU:** %s; %d cores used (GOMAXPROCS)
- **Rounds:** %d, each with %s for a measurement
- **Commit:** %s
%s
The ends are connected over TCP on the loopback interface: they share the cores, and there
is no network between them. First both are in one process, where waking the other end is
a switch between goroutines; then *with an end in each process*, as people run it, where
that takes the kernel. Peers take turns, and each has only itself running when it is
measured. So the live heap is small, and the garbage collector runs often for those that
allocate much: in a process with a larger heap they lose less to it. Other machines and
loads give other numbers.

The time of an operation is that of the measurement by the operations of all callers, so
it becomes shorter as callers are added; it is not the latency that one of them sees.
The median of the rounds is given, with the least and the most of them in small below it,
or as whiskers in a chart. ×4.2 says that a peer takes 4.2 times as long as grid:
the median of the ratios in each round, and so not exactly that of the two times; below
×1 grid is the slower one.
`, r.Made.UTC().Format("2 January 2006, 15:04 UTC"), r.Took.Round(time.Second), r.Go, r.OS, r.CPU, r.Cores, r.Rounds, r.Round, cmp.Or(r.shortCommit(), "unknown"), r.later())
	if mid, most := r.spread(); most > 0 {
		fmt.Fprintf(b, `Among the rounds of one measurement, the slowest took %.2f times as long as the fastest in
the median case, and %.2f times at worst.
`, mid, most)
	}
	if len(r.Failed) > 0 {
		b.WriteString("\nWhat could not be measured:\n\n")
		for _, f := range r.Failed {
			fmt.Fprintf(b, "- %s\n", strings.ReplaceAll(f, "\n", " "))
		}
	}
	b.WriteString("\n## Who takes part\n\n")
	rows := [][]string{{"Peer", "Version", "What it is, and how it is run"}, {"---", "---", "---"}}
	floors := false
	for _, p := range r.Peers {
		floors = floors || p.Floor
		version := cmp.Or(p.Version, "–") // with the standard library
		if p.Name == "grid" {
			version = "this one"
		}
		rows = append(rows, []string{display(p), version, p.About})
	}
	writeRows(b, rows)
	if floors {
		b.WriteString("The floors are no way to call: they only move bytes, which every peer has to do as well.\n" +
			"They show how much of a time is the transport's, and are not competitors. *mux* is the\n" +
			"measure for calls: what a library with calls that block over one connection must do at the\n" +
			"least. *window* is below what such a library can reach.\n\n")
	}
}

// writeAllocs writes the allocations of an operation with 64 callers.
func (r *report) writeAllocs(b *bytes.Buffer) {
	const size = "64"
	has := func(shape string) bool {
		return !strings.HasSuffix(shape, inTwo) && slices.ContainsFunc(r.Results, func(v result) bool {
			return v.Shape == shape && v.Size == size && v.Allocs >= 0
		})
	}
	shapes := slices.DeleteFunc(r.shapes(), func(s string) bool { return !has(s) })
	if len(shapes) == 0 {
		return
	}
	b.WriteString("## Allocations\n\nFor one operation, on both ends together, with 64 callers: their number, and their bytes.\n\n")
	r.writeTable(b, shapes, func(peer, shape string) string {
		v := r.find(shape, size, peer)
		if v == nil || v.Allocs < 0 {
			return ""
		}
		return trimmed(v.Allocs) + ", " + amount(v.Bytes, "bytes")
	})
}

// writeTable writes a table with a row for each peer that has a cell; grid is the first, as it is
// of the peers.
func (r *report) writeTable(b *bytes.Buffer, columns []string, cell func(peer, column string) string) {
	rule := []string{"---"}
	for range columns {
		rule = append(rule, "---:")
	}
	rows := [][]string{append([]string{""}, columns...), rule}
	for _, p := range r.Peers {
		row, any := []string{display(p)}, false
		for _, c := range columns {
			s := cell(p.Name, c)
			any = any || s != ""
			row = append(row, cmp.Or(s, "–"))
		}
		if any {
			rows = append(rows, row)
		}
	}
	writeRows(b, rows)
}

func writeRows(b *bytes.Buffer, rows [][]string) {
	for _, row := range rows {
		for _, s := range row {
			fmt.Fprintf(b, "| %s ", strings.ReplaceAll(s, "|", `\|`))
		}
		b.WriteString("|\n")
	}
	b.WriteByte('\n')
}

func display(p peerInfo) string {
	switch {
	case p.Name == "grid":
		return "**grid**"
	case p.Floor:
		return "*" + p.Name + "* (floor)"
	}
	return p.Name
}

// path splits the name of a figure.
func (f figure) path() (group, column, peer string) {
	group, rest, _ := strings.Cut(f.Name, "/")
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		return group, rest[:i], rest[i+1:]
	}
	return group, f.Unit, rest
}

func (r *report) shapes() []string {
	return distinct(r.Results, func(v result) string { return v.Shape })
}

func (r *report) sizes(shape string) []string {
	return distinct(r.Results, func(v result) string {
		if v.Shape != shape {
			return ""
		}
		return v.Size
	})
}

func (r *report) groups() []string {
	return distinct(r.Figures, func(f figure) string { g, _, _ := f.path(); return g })
}

func (r *report) columns(group string) []string {
	return distinct(r.Figures, func(f figure) string {
		g, column, _ := f.path()
		if g != group {
			return ""
		}
		return column
	})
}

// distinct are the keys of all, without the empty one, in their order.
func distinct[T any](all []T, key func(T) string) (keys []string) {
	for _, v := range all {
		if k := key(v); k != "" && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

// find returns nil for what was not measured.
func (r *report) find(shape, size, peer string) *result {
	for i, v := range r.Results {
		if v.Shape == shape && v.Size == size && v.Peer == peer {
			return &r.Results[i]
		}
	}
	return nil
}

// value is that of a figure, or 0.
func (r *report) value(group, column, peer string) float64 {
	if f := r.figure(group, column, peer); f != nil {
		return f.Value
	}
	return 0
}

// figure returns nil for what was not measured.
func (r *report) figure(group, column, peer string) *figure {
	for i, f := range r.Figures {
		if g, c, p := f.path(); g == group && c == column && p == peer {
			return &r.Figures[i]
		}
	}
	return nil
}

// spread is the slowest round by the fastest: the median of all results, and the most.
func (r *report) spread() (mid, most float64) {
	var all []float64
	for _, v := range r.Results {
		if len(v.Rounds) > 1 && slices.Min(v.Rounds) > 0 {
			all = append(all, slices.Max(v.Rounds)/slices.Min(v.Rounds))
		}
	}
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)-1]
}
