package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// chart is one picture of the report.
type chart struct {
	name, alt string
	svg       []byte // nil if the report has nothing for it
}

// writeCharts writes those charts into a folder for which there is data.
func (r *report) writeCharts(dir string) error {
	for _, c := range r.charts() {
		if err := os.WriteFile(filepath.Join(dir, c.name+".svg"), c.svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *report) charts() []chart {
	all := []chart{
		{"grpc", "Bars: operations per second of grid, as a multiple of gRPC's", r.bars("grid compared with gRPC",
			"Operations per second, as a multiple of those of grpc-go under the same load; more is better", r.grpcPanel())},
		{"unary", "Lines: time per call of each peer, by the number of callers", r.unaryChart()},
		{"payload", "Bars: throughput of each peer, by the size of the payload", r.bars("Throughput of calls, by the size of the payload",
			"8 callers; MB/s each way, as every payload goes there and back; more is better", r.payloadPanels()...)},
		{"streams", "Bars: time per stream of each peer", r.bars("Streams",
			"8 callers, ten messages of 512 bytes in a stream; less is better",
			r.shapePanel("Ten responses: time per stream", "stream-responses", "8"),
			r.shapePanel("Ten requests: time per stream", "stream-requests", "8"),
			r.shapePanel("Ten messages both ways: time per stream", "stream-twoway", "8"),
			r.shapePanel("One long stream both ways: time per message", "stream-long", r.longSize()))},
		{"mixed", "Ranges: how long small calls take next to bulk, by peer", r.mixedChart()},
		{"overload", "Lines: calls answered in time, and their p99, by the load", r.overloadChart()},
		{"idle", "Bars: memory of an idle connection and of an idle stream, by peer", r.bars("Memory of what is idle",
			"Live heap and stacks; less is better", r.idlePanel("One end of a connection", "conn-heap"), r.idlePanel("A stream, both ends", "stream-heap"))},
		{"mesh", "Bars: calls per second of a mesh, by the number of servers", r.bars("Calls per second of a mesh",
			"All servers call each other, and share the cores of one machine; more is better", r.meshPanel())},
	}
	return slices.DeleteFunc(all, func(c chart) bool { return c.svg == nil })
}

// Only grid's color must be told from the others: these have their names at their bars and at the
// ends of their lines.
const (
	gridColor, barColor, floorColor = "#e4520f", "#7188a0", "#b9c3cd"
	chartWidth, margin, rowHeight   = 860.0, 24.0, 26.0
	chartTop                        = 80.0 // below the title

	chartStyle = `<style>text{font:13px "Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif;fill:#24292f}` +
		`.h{font-size:18px;font-weight:bold}.b{font-weight:bold}.s{font-size:12px;fill:#57606a}` +
		`.m{text-anchor:middle}.e{text-anchor:end}.g{stroke:#e3e7eb}.a{stroke:#8c959f}</style>`
)

var lineColors = map[string]string{
	"grpc": "#332288", "connect": "#66a9dd", "drpc": "#117733", "ttrpc": "#aa4499",
	"netrpc": "#8d8d2b", "nats": "#882255", "http1": "#3ba08f", "yamux": "#c9ae4a",
}

// look is how a peer is drawn: the color, and the class of its name.
func (p peerInfo) look() (color, class string) {
	switch {
	case p.Name == "grid":
		return gridColor, "b"
	case p.Floor:
		return floorColor, ""
	}
	return barColor, ""
}

// panel is a set of horizontal bars from 0, on one linear scale.
type panel struct {
	title  string
	bars   []bar
	format func(float64) string
	mark   string // of a line at 1
}

type bar struct {
	label string
	peer  peerInfo
	value float64
	gap   bool // above it
}

// draw draws the panel, and returns where it ends.
func (p panel) draw(c *canvas, x, y, width float64) float64 {
	most, label := 0.0, 0
	if p.mark != "" {
		most = 1
	}
	for _, b := range p.bars {
		most, label = max(most, b.value), max(label, len(b.label))
	}
	left := x + float64(label)*6.6 + 14
	unit := (x + width - 84 - left) / most
	if p.title+p.mark != "" {
		c.text(x, y+8, "b", p.title)
		y += 18
	}
	top := y
	for _, b := range p.bars {
		if b.gap {
			y += 10
		}
		color, class := b.peer.look()
		if b.label != "grid" {
			class = ""
		}
		c.text(left-8, y+17.5, "e "+class, b.label)
		c.rect(left, y+4, max(b.value*unit, 1), rowHeight-8, `rx="2" fill="`+color+`"`)
		end := b.value
		if p.mark != "" {
			end = max(end, 1) // not across the line
		}
		c.text(left+end*unit+7, y+17.5, class, p.format(b.value))
		y += rowHeight
	}
	c.line(left, top, left, y, `class="a"`)
	if p.mark != "" {
		c.line(left+unit, top-2, left+unit, y+2, `stroke="#24292f" stroke-width="1.5" stroke-dasharray="5 3"`)
		c.text(left+unit, top-8, "m b", p.mark)
	}
	return y
}

// bars draws the panels that have bars in two columns.
func (r *report) bars(title, text string, panels ...panel) []byte {
	panels = slices.DeleteFunc(panels, func(p panel) bool { return len(p.bars) == 0 })
	if len(panels) == 0 {
		return nil
	}
	const space = 28
	columns := min(len(panels), 2)
	width := (chartWidth - 2*margin - space*float64(columns-1)) / float64(columns)
	var c canvas
	y, end := chartTop, 0.0
	for i, p := range panels {
		if i > 0 && i%columns == 0 {
			y = end + space
		}
		end = max(end, p.draw(&c, margin+float64(i%columns)*(width+space), y, width))
	}
	return c.done(r, title, text, end)
}

// grpcPanel shows how many times gRPC's operations grid makes.
func (r *report) grpcPanel() panel {
	p := panel{mark: "gRPC = 1×", format: func(v float64) string { return fmt.Sprintf("%.2f×", v) }}
	kind := ""
	for _, row := range [][4]string{
		{"a", "unary", "2", "call, 2 callers"}, {"a", "unary", "8", "call, 8 callers"},
		{"a", "unary", "64", "call, 64 callers"}, {"a", "unary", "256", "call, 256 callers"},
		{"b", "typed", "8", "typed call, 8 callers"}, {"b", "typed", "64", "typed call, 64 callers"},
		{"c", "payload", "64KiB", "call with 64 KiB, 8 callers"}, {"c", "payload", "1MiB", "call with 1 MiB, 8 callers"},
		{"d", "stream-responses", "8", "stream of 10 responses, 8 callers"}, {"d", "stream-twoway", "8", "stream of 10 both ways, 8 callers"},
		{"d", "stream-long", r.longSize(), "message of a long stream, both ways"},
	} {
		if v := r.find(row[1], row[2], "grpc"); v != nil && v.Ratio > 0 {
			b := bar{label: row[3], value: 1 / v.Ratio, gap: kind != "" && kind != row[0]}
			if kind = row[0]; v.Ratio <= 1 {
				b.peer.Name = "grid" // its color, where it is not slower
			}
			p.bars = append(p.bars, b)
		}
	}
	return p
}

// longSize is the size of stream-long, which is not the same in a quick run.
func (r *report) longSize() string { return strings.Join(r.sizes("stream-long"), "") }

// newPanel is a panel with a bar for each peer whose value is not 0.
func (r *report) newPanel(title string, format func(float64) string, value func(peer string) float64) panel {
	p := panel{title: title, format: format}
	for _, peer := range r.Peers {
		if v := value(peer.Name); v > 0 {
			p.bars = append(p.bars, bar{label: peer.Name, peer: peer, value: v})
		}
	}
	return p
}

func (r *report) shapePanel(title, shape, size string) panel {
	return r.newPanel(title, duration, func(peer string) float64 { return r.median(shape, size, peer) })
}

func (r *report) payloadPanels() (all []panel) {
	for _, size := range r.sizes("payload") {
		all = append(all, r.newPanel("Payload of "+size, func(v float64) string { return sig3(v) + " MB/s" }, func(peer string) float64 {
			if ns := r.median("payload", size, peer); ns > 0 {
				return number(size) / ns * 1e3
			}
			return 0
		}))
	}
	return all
}

func (r *report) idlePanel(title, column string) panel {
	return r.newPanel(title, func(v float64) string { return amount(v, "bytes") }, func(peer string) float64 {
		return r.value("idle", column, peer)
	})
}

func (r *report) meshPanel() panel {
	p := panel{format: func(v float64) string { return amount(v, "calls/s") }}
	for _, n := range r.columns("mesh") {
		if v := r.value("mesh", n, "grid"); v > 0 && number(n) > 0 {
			p.bars = append(p.bars, bar{label: n + " servers", peer: peerInfo{Name: "grid"}, value: v})
		}
	}
	return p
}

// number is the value of a size such as "64" or "64KiB"; 0 if it is none.
func number(size string) float64 {
	unit := 1.0
	for i, u := range []string{"KiB", "MiB", "B"} {
		if s, ok := strings.CutSuffix(size, u); ok {
			size, unit = s, []float64{1 << 10, 1 << 20, 1}[i]
		}
	}
	v, _ := strconv.ParseFloat(size, 64)
	return v * unit
}

// scale is a logarithmic axis.
type scale struct{ lo, hi, from, to float64 }

func (s scale) at(v float64) float64 {
	return s.from + math.Log(v/s.lo)/math.Log(s.hi/s.lo)*(s.to-s.from)
}

// newScale makes an axis from a tick to a tick, with at most n where possible.
func newScale(lo, hi, from, to float64, n int) (s scale, ticks []float64) {
	for _, steps := range [][]float64{{1, 2, 5}, {1, 3}, {1}} {
		ticks = nil
		for d := math.Floor(math.Log10(lo)); d <= math.Ceil(math.Log10(hi))+1; d++ {
			for _, m := range steps {
				ticks = append(ticks, m*math.Pow(10, d))
			}
		}
		first := slices.IndexFunc(ticks, func(v float64) bool { return v > lo }) - 1
		last := slices.IndexFunc(ticks, func(v float64) bool { return v >= hi && v > lo })
		if ticks = ticks[max(first, 0) : last+1]; len(ticks) <= n {
			break
		}
	}
	return scale{ticks[0], ticks[len(ticks)-1], from, to}, ticks
}

// unaryChart draws a line for each peer, with its name at the end.
func (r *report) unaryChart() []byte {
	type point struct{ x, y float64 }
	type series struct {
		peer   peerInfo
		points []point
		label  float64 // its y
	}
	const left, right, top, bottom = margin + 56, chartWidth - margin - 70, chartTop + 22, 460.0
	var all []series
	var xs, ys []float64
	for _, p := range r.Peers {
		s := series{peer: p}
		for _, size := range r.sizes("unary") {
			if v := r.median("unary", size, p.Name); v > 0 {
				s.points = append(s.points, point{number(size), v})
				xs, ys = append(xs, number(size)), append(ys, v)
			}
		}
		if s.points != nil {
			all = append(all, s)
		}
	}
	if slices.Sort(xs); len(xs) == 0 || xs[0] == xs[len(xs)-1] {
		return nil
	}
	x := scale{xs[0], xs[len(xs)-1], left + 16, right - 16}
	y, ticks := newScale(slices.Min(ys), slices.Max(ys), bottom, top, 12)
	var c canvas
	c.text(margin, top-16, "s", "time per call")
	for _, v := range ticks {
		c.line(left, y.at(v), right, y.at(v), `class="g"`)
		c.text(left-8, y.at(v)+4, "s e", tick(v))
	}
	for _, v := range slices.Compact(xs) {
		c.text(x.at(v), bottom+20, "s m", trimmed(v))
	}
	c.text((left+right)/2, bottom+38, "s m", "callers")
	c.line(left, bottom, right, bottom, `class="a"`)

	for i, s := range all {
		all[i].label = y.at(s.points[len(s.points)-1].y)
	}
	slices.SortStableFunc(all, func(a, b series) int { return cmp.Compare(a.label, b.label) })
	for range 500 { // push the names apart, and back into the chart
		for i := 1; i < len(all); i++ {
			if d := 17 - (all[i].label - all[i-1].label); d > 0 {
				all[i-1].label, all[i].label = all[i-1].label-d/2, all[i].label+d/2
			}
		}
		all[0].label = max(all[0].label, top)
		all[len(all)-1].label = min(all[len(all)-1].label, bottom)
	}
	for _, s := range all {
		color, class := s.peer.look()
		width, dash := 2.0, ""
		switch color {
		case gridColor:
			width = 4
		case floorColor:
			dash = ` stroke-dasharray="6 4"`
		default:
			color = cmp.Or(lineColors[s.peer.Name], "#cc6677")
		}
		path := ""
		for _, p := range s.points {
			path += fmt.Sprintf("%.1f,%.1f ", x.at(p.x), y.at(p.y))
			c.dot(x.at(p.x), y.at(p.y), width/2+1.5, `fill="`+color+`"`)
		}
		fmt.Fprintf(&c, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%g\"%s/>\n", path, color, width, dash)
		end := s.points[len(s.points)-1]
		c.line(x.at(end.x)+4, y.at(end.y), right+8, s.label, `stroke="`+color+`" stroke-width="0.8"`)
		c.text(right+12, s.label+4, class, s.peer.Name)
	}
	return c.done(r, "Time per call, by callers at the same time",
		"512 bytes there and back; time divided by the calls of all callers; less is better", bottom+40)
}

// mixedChart draws the range of percentiles for each peer.
func (r *report) mixedChart() []byte {
	names := []string{"p50", "p99", "p99.9"}
	var peers []peerInfo
	var values []float64 // ns, three for each peer
	for _, p := range r.Peers {
		var v []float64
		for _, n := range names {
			v = append(v, r.value("mixed", n, p.Name)*1e6)
		}
		if slices.Min(v) > 0 {
			peers, values = append(peers, p), append(values, v...)
		}
	}
	if len(peers) == 0 {
		return nil
	}
	const left, right, top = margin + 64, chartWidth - margin - 230, chartTop + 24
	x, ticks := newScale(slices.Min(values), slices.Max(values), left+8, right-8, 9)
	bottom := top + rowHeight*float64(len(peers))
	var c canvas
	for _, v := range ticks {
		c.line(x.at(v), top-4, x.at(v), bottom+4, `class="g"`)
		c.text(x.at(v), bottom+20, "s m", tick(v))
	}
	marks := []func(x, y float64, color string){
		func(x, y float64, color string) { c.dot(x, y, 5, `fill="#ffffff" stroke-width="2" stroke="`+color+`"`) },
		func(x, y float64, color string) { c.dot(x, y, 6, `fill="`+color+`"`) },
		func(x, y float64, color string) { c.rect(x-2, y-9, 4, 18, `fill="`+color+`"`) },
	}
	column := func(i int) float64 { return right + 76*float64(i+1) }
	for i, n := range names {
		c.text(column(i), top-12, "e b", n)
		marks[i](column(i)-50, top-16.5, "#57606a")
	}
	for i, p := range peers {
		color, class := p.look()
		y, v := top+rowHeight*(float64(i)+0.5), values[3*i:3*i+3]
		c.text(left-8, y+4.5, "e "+class, p.Name)
		c.rect(x.at(v[0]), y-4, x.at(v[2])-x.at(v[0]), 8, `opacity="0.35" fill="`+color+`"`)
		for j := range v {
			marks[j](x.at(v[j]), y, color)
			c.text(column(j), y+4.5, "e "+class, duration(v[j]))
		}
	}
	return c.done(r, "Small calls next to bulk",
		"Time of a small call while 16 MiB payloads go the same way; log scale, less is better", bottom+22)
}

// tick writes a round time.
func tick(ns float64) string {
	v, unit, _ := strings.Cut(duration(ns), " ")
	return trimZeros(v) + " " + unit
}
