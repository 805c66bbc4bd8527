package main

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// chart is one picture of the report, which is drawn for light pages and for dark ones.
type chart struct {
	name, alt         string
	title, text, foot string
	height            vg.Length
	draw              func(*sheet) // nil if the report has nothing for it
}

// writeCharts writes those charts into a folder for which there is data, and removes the others.
func (r *report) writeCharts(dir string) error {
	written := make(map[string]bool)
	for _, c := range r.charts() {
		for _, t := range themes {
			b, err := c.svg(t)
			if err != nil {
				return fmt.Errorf("chart %s: %w", c.name, err)
			}
			name := c.name + t.suffix + ".svg"
			written[name] = true
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				return err
			}
		}
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if !written[filepath.Base(path)] {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// charts are those for which there is data.
func (r *report) charts() []chart {
	all := []chart{r.grpcChart()}
	for i, in := range []string{"", inTwo} {
		where := []string{"both ends in one process", "an end in each process"}[i]
		bars := func(name, alt, title, text string, panels ...panel) {
			all = append(all, r.bars(name+in, alt+", with "+where, title, text+"; "+where, where, panels...))
		}
		all = append(all, r.unaryChart(in, where))
		bars("deadline", "Bars: time per call with a deadline, by peer", "Calls with a deadline",
			"512 bytes there and back, a deadline for each call; less is better",
			r.shapePanel("8 callers: time per call", "deadline"+in, "8"), r.shapePanel("64 callers: time per call", "deadline"+in, "64"))
		bars("payload", "Bars: throughput of each peer, by the size of the payload", "Throughput of calls, by the size of the payload",
			"8 callers; each way, as every payload goes there and back; more is better", r.payloadPanels(in)...)
		bars("streams", "Bars: time per stream of each peer", "Streams",
			"8 callers, ten messages of 512 bytes in a stream; less is better",
			r.shapePanel("Ten responses: time per stream", "stream-responses"+in, "8"),
			r.shapePanel("Ten requests: time per stream", "stream-requests"+in, "8"),
			r.shapePanel("Ten messages both ways: time per stream", "stream-twoway"+in, "8"),
			r.shapePanel("One long stream both ways: time per message", "stream-long"+in, r.longSize()))
		bars("bulk", "Bars: throughput of one stream, by the size of its messages", "Throughput of one stream",
			"One way; more is better", r.bulkPanels(in)...)
		all = append(all, r.mixedChart(in, where), r.overloadChart(in, where))
	}
	all = append(all,
		r.bars("idle", "Bars: memory of an idle connection and of an idle stream, by peer", "Memory of what is idle",
			"Live heap and stacks; less is better", "all in one process",
			r.idlePanel("One end of a connection", "conn-heap"), r.idlePanel("A stream, both ends", "stream-heap")),
		r.bars("mesh", "Bars: calls per second of a mesh, by the number of servers", "Calls per second of a mesh",
			"All servers call each other, and share the cores of one machine; more is better", "all in one process", r.meshPanel()))
	return slices.DeleteFunc(all, func(c chart) bool { return c.draw == nil })
}

// floorsAre explains the pale bars and the dashed lines of some charts.
const floorsAre = "floors, which are no way to call"

// bars is a chart of the panels that have bars, in two columns.
func (r *report) bars(name, alt, title, subtitle, where string, panels ...panel) chart {
	c := chart{name: name, alt: alt, title: title, text: subtitle, foot: r.foot(where)}
	panels = slices.DeleteFunc(panels, func(p panel) bool { return len(p.bars) == 0 })
	if len(panels) == 0 {
		return c
	}
	for _, p := range panels {
		if slices.ContainsFunc(p.bars, func(b bar) bool { return b.peer.Floor }) {
			c.text += ". Pale: " + floorsAre
			break
		}
	}
	const space = 22
	columns := min(len(panels), 2)
	width := vg.Length(sheetWidth-2*sheetEdge-space*(columns-1)) / vg.Length(columns)
	var tops []vg.Length
	y := vg.Length(sheetTop + 4)
	for row := range slices.Chunk(panels, columns) {
		high := vg.Length(0)
		for _, p := range row {
			tops = append(tops, y)
			high = max(high, p.height())
		}
		y += high + 14
	}
	c.height = y - 14 + sheetFoot
	c.draw = func(s *sheet) {
		for i, p := range panels {
			x := sheetEdge + vg.Length(i%columns)*(width+space)
			p.draw(s, s.part(x, tops[i], width, p.height()))
		}
	}
	return c
}

// grpcChart shows how many times gRPC's operations grid makes.
func (r *report) grpcChart() chart {
	p := panel{mark: "gRPC = 1×", format: func(v float64) string { return digits(v, 2) + "×" }}
	kind := ""
	for _, row := range [][4]string{
		{"a", "unary", "1", "call, 1 caller"}, {"a", "unary", "2", "call, 2 callers"}, {"a", "unary", "8", "call, 8 callers"},
		{"a", "unary", "64", "call, 64 callers"}, {"a", "unary", "256", "call, 256 callers"},
		{"b", "deadline", "8", "call with a deadline, 8 callers"}, {"b", "tls", "8", "call over TLS, 8 callers"},
		{"b", "tls", "64", "call over TLS, 64 callers"}, {"b", "typed", "8", "typed call, 8 callers"},
		{"c", "payload", "64KiB", "call with 64 KiB, 8 callers"}, {"c", "payload", "1MiB", "call with 1 MiB, 8 callers"},
		{"d", "stream-responses", "8", "stream of 10 responses, 8 callers"}, {"d", "stream-requests", "8", "stream of 10 requests, 8 callers"},
		{"d", "stream-twoway", "8", "stream of 10 both ways, 8 callers"},
		{"d", "stream-long", r.longSize(), "message of a long stream, both ways"},
		{"e", "bulk", "64KiB", "bulk in messages of 64 KiB, one way"},
	} {
		first := true
		for _, in := range []string{inTwo, ""} {
			g, v := r.find(row[1]+in, row[2], "grid"), r.find(row[1]+in, row[2], "grpc")
			if g == nil || v == nil || v.Ratio <= 0 {
				continue
			}
			b := bar{label: row[3], value: 1 / v.Ratio, second: !first, gap: first && kind != "" && kind != row[0]}
			if of := ratios(v.Rounds, g.Rounds); len(of) > 1 {
				b.least, b.most = slices.Min(of), slices.Max(of)
			}
			if v.Ratio <= 1 {
				b.peer.Name = "grid" // its color, where it is not slower
			}
			kind, first = row[0], false
			p.bars = append(p.bars, b)
		}
	}
	c := r.bars("grpc", "Bars: operations per second of grid, as a multiple of gRPC's", "grid compared with gRPC",
		"Operations per second, as a multiple of those of grpc-go under the same load; more is better", "", p)
	if c.draw == nil {
		return c
	}
	c.foot = r.foot("both on one machine")
	const key = 16
	if p.paired() {
		c.height += key
		bars := c.draw
		c.draw = func(s *sheet) {
			s.key(sheetEdge, sheetTop, []color.Color{s.theme.grid, s.gridPale}, []string{"an end in each process", "both ends in one process"})
			s.Max.Y -= key
			bars(s)
		}
	}
	return c
}

// longSize is the size of stream-long, which is not the same in a quick run.
func (r *report) longSize() string { return strings.Join(r.sizes("stream-long"), "") }

// newPanel is a panel with a bar for each peer whose value is not 0.
func (r *report) newPanel(title string, format func(float64) string, value func(peer string) (v, least, most float64)) panel {
	p := panel{title: title, format: format}
	for _, peer := range r.Peers {
		if v, least, most := value(peer.Name); v > 0 {
			p.bars = append(p.bars, bar{label: peer.Name, peer: peer, value: v, least: least, most: most})
		}
	}
	return p
}

func (r *report) shapePanel(title, shape, size string) panel {
	return r.newPanel(title, duration, func(peer string) (v, least, most float64) {
		if v := r.find(shape, size, peer); v != nil {
			least, most = v.spread()
			return v.Median, least, most
		}
		return 0, 0, 0
	})
}

func (r *report) payloadPanels(in string) (all []panel) {
	for _, size := range r.sizes("payload" + in) {
		rate := func(ns float64) float64 { return number(size) / ns * 1e3 }
		all = append(all, r.newPanel("Payload of "+size, func(v float64) string { return sig3(v) + " MB/s" }, func(peer string) (mid, least, most float64) {
			if v := r.find("payload"+in, size, peer); v != nil && v.Median > 0 {
				least, most := v.spread()
				if least <= 0 {
					return rate(v.Median), 0, 0
				}
				return rate(v.Median), rate(most), rate(least)
			}
			return 0, 0, 0
		}))
	}
	return all
}

func (r *report) bulkPanels(in string) (all []panel) {
	for _, size := range r.columns("bulk-rate" + in) {
		all = append(all, r.figurePanel("Messages of "+size, "bulk-rate"+in, size))
	}
	return all
}

func (r *report) idlePanel(title, column string) panel { return r.figurePanel(title, "idle", column) }

func (r *report) figurePanel(title, group, column string) panel {
	unit := ""
	p := r.newPanel(title, nil, func(peer string) (v, least, most float64) {
		if f := r.figure(group, column, peer); f != nil {
			unit = f.Unit
			return f.Value, f.Least, f.Most
		}
		return 0, 0, 0
	})
	p.format = func(v float64) string { return amount(v, unit) }
	return p
}

func (r *report) meshPanel() panel {
	p := panel{format: func(v float64) string { return amount(v, "calls/s") }}
	for _, n := range r.columns("mesh") {
		if f := r.figure("mesh", n, "grid"); f != nil && f.Value > 0 && number(n) > 0 {
			p.bars = append(p.bars, bar{label: n + " servers", peer: peerInfo{Name: "grid"}, value: f.Value, least: f.Least, most: f.Most})
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

// unaryChart draws a line for each peer, with its name at the end.
func (r *report) unaryChart(in, where string) chart {
	c := chart{
		name: "unary" + in, alt: "Lines: time per call of each peer, by the number of callers, with " + where,
		title: "Time per call, by callers at the same time",
		text:  "512 bytes there and back, " + where + "; time divided by the calls of all callers. Dashed: " + floorsAre,
		foot:  r.foot(where), height: 400,
	}
	var all []series
	var xs, ys []float64
	for _, p := range r.Peers {
		s := series{peer: p}
		for _, size := range r.sizes("unary" + in) {
			v := r.find("unary"+in, size, p.Name)
			if v == nil || v.Median <= 0 {
				continue
			}
			least, most := v.spread()
			s.points = append(s.points, plotter.XY{X: number(size), Y: v.Median})
			s.spread = append(s.spread, struct{ Low, High float64 }{v.Median - least, most - v.Median})
			xs, ys = append(xs, number(size)), append(ys, least, most)
		}
		if s.points != nil {
			all = append(all, s)
		}
	}
	slices.Sort(xs)
	if xs = slices.Compact(xs); len(xs) < 2 || slices.Min(ys) <= 0 {
		return c
	}
	c.draw = func(s *sheet) {
		pl := s.newPlot()
		pl.X.Scale, pl.Y.Scale = plot.LogScale{}, plot.LogScale{}
		values := axisTicks(slices.Min(ys), slices.Max(ys), 12)
		pl.X.Tick.Marker, pl.Y.Tick.Marker = ticks(xs, trimmed), ticks(values, tick)
		pl.X.Label.Text = "callers"
		pl.Y.LineStyle.Width = 0
		pl.Add(s.rules(values, nil))
		for i := len(all) - 1; i >= 0; i-- { // grid's on top
			all[i].add(s, pl)
		}
		pl.Add(s.names(all))
		pl.X.Min, pl.X.Max = xs[0]*0.85, xs[len(xs)-1]*1.1
		pl.Y.Min, pl.Y.Max = values[0], values[len(values)-1]
		pl.Draw(s.part(sheetEdge, sheetTop+10, sheetWidth-2*sheetEdge-78, c.height-sheetTop-10-sheetFoot))
	}
	return c
}

// rules are lines across a plot, behind its data.
func (s *sheet) rules(horizontal, vertical []float64) drawing {
	style := draw.LineStyle{Color: s.rule, Width: 0.75}
	return func(c draw.Canvas, x, y func(float64) vg.Length) {
		for _, v := range horizontal {
			c.StrokeLine2(style, c.Min.X, y(v), c.Max.X, y(v))
		}
		for _, v := range vertical {
			c.StrokeLine2(style, x(v), c.Min.Y, x(v), c.Max.Y)
		}
	}
}

// mixedChart draws the range of percentiles for each peer.
func (r *report) mixedChart(in, where string) chart {
	names := []string{"p50", "p99", "p99.9"}
	var peers []peerInfo
	var values []float64 // ns, three for each peer
	for _, p := range r.Peers {
		var v []float64
		for _, n := range names {
			v = append(v, r.value("mixed"+in, n, p.Name)*1e6)
		}
		if slices.Min(v) > 0 {
			peers, values = append(peers, p), append(values, v...)
		}
	}
	c := chart{
		name: "mixed" + in, alt: "Ranges: how long small calls take next to bulk, by peer, with " + where,
		title: "Small calls next to bulk",
		text:  "Time of a small call while 16 MiB payloads go the same way; log scale, less is better; " + where,
		foot:  r.foot(where), height: sheetTop + 40 + rowHeight*vg.Length(len(peers)) + sheetFoot,
	}
	if len(peers) == 0 {
		return c
	}
	shapes := []draw.GlyphDrawer{draw.RingGlyph{}, draw.CircleGlyph{}, barGlyph{}}
	c.draw = func(s *sheet) {
		pl := s.newPlot()
		pl.X.Scale = plot.LogScale{}
		round := axisTicks(slices.Min(values), slices.Max(values), 9)
		pl.X.Tick.Marker = ticks(round, tick)
		pl.X.LineStyle.Width = 0
		pl.HideY()
		pl.X.Min, pl.X.Max = round[0], round[len(round)-1]
		pl.Y.Min, pl.Y.Max = -float64(len(peers))+0.5, 0.5
		pl.Add(s.rules(nil, round))
		for i, p := range peers {
			v, y, own := values[3*i:3*i+3], float64(-i), s.theme.peer(p)
			pale := own.(color.NRGBA)
			pale.A = 0x5a
			pl.Add(&plotter.Line{XYs: plotter.XYs{{X: v[0], Y: y}, {X: v[2], Y: y}}, LineStyle: draw.LineStyle{Color: pale, Width: 6}})
			pl.Add(&plotter.Scatter{XYs: plotter.XYs{{X: v[0], Y: y}}, GlyphStyle: draw.GlyphStyle{Color: s.page, Radius: 4, Shape: draw.CircleGlyph{}}})
			for j, shape := range shapes {
				pl.Add(&plotter.Scatter{XYs: plotter.XYs{{X: v[j], Y: y}}, GlyphStyle: draw.GlyphStyle{Color: own, Radius: 4, Shape: shape}})
			}
			style := s.style(textSize, p.Name == "grid", text.XRight)
			style.YAlign = text.YCenter
			pl.Add(labels(style, vg.Point{X: -9}, plotter.XYs{{X: round[0], Y: y}}, []string{p.Name}))
		}
		column := func(c draw.Canvas, j int) vg.Length { return c.Max.X + 58*vg.Length(j+1) }
		pl.Add(drawing(func(c draw.Canvas, x, y func(float64) vg.Length) {
			for j, n := range names {
				style := s.style(textSize, true, text.XRight)
				at := vg.Point{X: column(c, j), Y: c.Max.Y + 6}
				c.FillText(style, at, n)
				at.X -= style.Width(n) + 9
				at.Y += 4
				c.DrawGlyphNoClip(draw.GlyphStyle{Color: s.faint, Radius: 4, Shape: shapes[j]}, at)
			}
			for i, p := range peers {
				style := s.style(textSize, p.Name == "grid", text.XRight)
				style.YAlign = text.YCenter
				for j := range names {
					c.FillText(style, vg.Point{X: column(c, j), Y: y(float64(-i))}, duration(values[3*i+j]))
				}
			}
		}))
		pl.Draw(s.part(sheetEdge, sheetTop+22, sheetWidth-2*sheetEdge-178, c.height-sheetTop-22-sheetFoot))
	}
	return c
}

// barGlyph is an upright bar.
type barGlyph struct{}

func (barGlyph) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	w, h := vg.Length(1.5), style.Radius*1.7
	c.FillPolygon(style.Color, []vg.Point{{X: at.X - w, Y: at.Y - h}, {X: at.X + w, Y: at.Y - h}, {X: at.X + w, Y: at.Y + h}, {X: at.X - w, Y: at.Y + h}})
}

// overloadChart draws what is accepted, and its p99, by the load.
func (r *report) overloadChart(in, where string) chart {
	var accepted, p99 []series
	most, slowest, fastest := 1.0, 0.0, math.Inf(1)
	for _, l := range overloadLooks {
		a, b := series{peer: peerInfo{Name: l.name}}, series{peer: peerInfo{Name: l.name}}
		if capacity := r.value("overload"+in, "capacity", l.name); capacity > 0 {
			for i, name := range overloadNames() {
				f := r.figure("overload"+in, name+"-accepted", l.name)
				if f == nil {
					continue
				}
				share := f.Value / capacity
				a.points, most = append(a.points, plotter.XY{X: overloadLoads[i], Y: share}), max(most, share)
				if v := r.value("overload"+in, name+"-p99", l.name) * 1e6; v > 0 {
					b.points = append(b.points, plotter.XY{X: overloadLoads[i], Y: v})
					slowest, fastest = max(slowest, v), min(fastest, v)
				}
			}
		}
		if a.points != nil && b.points != nil {
			accepted, p99 = append(accepted, a), append(p99, b)
		}
	}
	c := chart{
		name: "overload" + in, alt: "Lines: calls answered in time, and their p99, by the load, with " + where,
		title: "Overload",
		text: fmt.Sprintf("Calls that cost %s of CPU, arriving at random whatever becomes of others; deadline a second; %s",
			tick(float64(overloadCost)), where),
		foot: r.foot(where), height: 350,
	}
	if len(accepted) == 0 || slowest == 0 {
		return c
	}
	c.draw = func(s *sheet) {
		var colors []color.Color
		var names []string
		for _, l := range accepted {
			colors, names = append(colors, s.line(l.peer)), append(names, l.peer.Name)
		}
		s.key(sheetEdge, sheetTop+2, colors, names)
		const space = 24
		width := vg.Length(sheetWidth-2*sheetEdge-space) / 2
		half := func(i int, title string, all []series, values []float64, label func(float64) string, log bool) {
			pl := s.newPlot()
			if log {
				pl.Y.Scale = plot.LogScale{}
			}
			pl.X.Tick.Marker = ticks(overloadLoads, func(v float64) string { return trimmed(v) + "×" })
			pl.Y.Tick.Marker = ticks(values, label)
			pl.X.Label.Text = "offered load, by the capacity"
			pl.Y.LineStyle.Width = 0
			pl.Add(s.rules(values, nil))
			for i := len(all) - 1; i >= 0; i-- { // grid's on top
				all[i].add(s, pl)
			}
			pl.X.Min, pl.X.Max = overloadLoads[0]-0.15, overloadLoads[len(overloadLoads)-1]+0.1
			pl.Y.Min, pl.Y.Max = values[0], values[len(values)-1]
			x := sheetEdge + vg.Length(i)*(width+space)
			s.write(x, c.height-sheetTop-34, s.style(textSize, true, text.XLeft), title)
			pl.Draw(s.part(x, sheetTop+42, width, c.height-sheetTop-42-sheetFoot))
		}
		var shares []float64
		for i := range int(math.Ceil(most*5-1e-9)) + 1 {
			shares = append(shares, float64(i)/5)
		}
		half(0, "Calls answered in time, by the capacity", accepted, shares, func(v float64) string { return fmt.Sprintf("%.0f %%", v*100) }, false)
		half(1, "p99 of those", p99, axisTicks(fastest, slowest, 9), tick, true)
	}
	return c
}

// tick writes a round time.
func tick(ns float64) string {
	v, unit, _ := strings.Cut(duration(ns), " ")
	return trimZeros(v) + " " + unit
}
