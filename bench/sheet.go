package main

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"image/color"
	"math"
	"regexp"
	"slices"
	"strconv"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// theme is the colors for one kind of page.
type theme struct {
	suffix                              string // of the names of files
	page, text, faint, rule, frame      color.Color
	grid, gridPale, gridOther, bar, low color.Color // the last is that of floors
	lines                               map[string]color.Color
}

// Only grid's color must be told from the others: these have their names at their bars and at the
// ends of their lines.
var themes = []theme{
	{
		page: hex(0xffffff), text: hex(0x1f2328), faint: hex(0x59636e), rule: hex(0xe3e7eb), frame: hex(0x8c959f),
		grid: hex(0xe4520f), gridPale: hex(0xf3a47f), gridOther: hex(0xb8860b), bar: hex(0x7188a0), low: hex(0xb3bec9),
		lines: map[string]color.Color{
			"grpc": hex(0x332288), "connect": hex(0x4a94cf), "drpc": hex(0x117733), "ttrpc": hex(0xaa4499),
			"netrpc": hex(0x8d8d2b), "nats": hex(0x882255), "http1": hex(0x3ba08f), "yamux": hex(0xc9a227),
			"grpc-tap": hex(0x332288), "grpc-streams": hex(0x4a94cf), "grpc-default": hex(0x7a6fc0),
		},
	},
	{
		suffix: "-dark",
		page:   hex(0x0d1117), text: hex(0xe6edf3), faint: hex(0x9198a1), rule: hex(0x262c34), frame: hex(0x656c76),
		grid: hex(0xff7a3d), gridPale: hex(0x9c4a22), gridOther: hex(0xe3b341), bar: hex(0x6f86a0), low: hex(0x465260),
		lines: map[string]color.Color{
			"grpc": hex(0xa99cff), "connect": hex(0x66b3ee), "drpc": hex(0x4fbf75), "ttrpc": hex(0xdd88cc),
			"netrpc": hex(0xc2c25a), "nats": hex(0xd9708f), "http1": hex(0x5fd0bd), "yamux": hex(0xe0c25c),
			"grpc-tap": hex(0xa99cff), "grpc-streams": hex(0x66b3ee), "grpc-default": hex(0x7d72d8),
		},
	},
}

func hex(rgb uint32) color.Color {
	return color.NRGBA{R: uint8(rgb >> 16), G: uint8(rgb >> 8), B: uint8(rgb), A: 0xff}
}

// peer is the color of a peer's bars.
func (t theme) peer(p peerInfo) color.Color {
	switch {
	case p.Name == "grid":
		return t.grid
	case p.Name == "grid-option" || p.Name == "grid-none":
		return t.gridPale
	case p.Floor:
		return t.low
	}
	return t.bar
}

// line is the color of a peer's line.
func (t theme) line(p peerInfo) color.Color {
	switch {
	case p.Name == "grid":
		return t.grid
	case p.Name == "grid-default":
		return t.gridOther
	case p.Floor:
		return t.frame
	}
	if c, ok := t.lines[p.Name]; ok {
		return c
	}
	return t.text
}

// Lengths are in points, of which a browser makes 4/3 pixels.
const (
	sheetWidth = 660
	sheetEdge  = 18
	sheetTop   = 58 // below the title and the line under it
	sheetFoot  = 32
	textSize   = 9.75
	smallSize  = 9
	rowHeight  = 18.5
)

// sheet is what a chart is drawn on.
type sheet struct {
	draw.Canvas
	theme
}

// svg draws a chart in the colors of a theme.
func (c chart) svg(t theme) ([]byte, error) {
	canvas := vgsvg.New(sheetWidth, c.height)
	s := &sheet{draw.New(canvas), t}
	s.SetColor(t.page)
	s.Fill(s.Rectangle.Path())
	s.write(sheetEdge, c.height-26, s.style(13.5, true, text.XLeft), c.title)
	s.write(sheetEdge, c.height-42, s.style(textSize, false, text.XLeft), c.text)
	small := s.style(smallSize, false, text.XLeft)
	small.Color = t.faint
	s.write(sheetEdge, 11, small, c.foot)
	c.draw(s)
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	return fitText(b.Bytes()), nil
}

// svgText is a text as vgsvg writes it: its position, weight, size and content.
var svgText = regexp.MustCompile(`<text ([^>]*)\s+style="font-family:Liberation Sans;font-variant:normal;font-weight:(\w+);font-style:normal;font-size:([\d.]+)px`)

var svgTextEnd = []byte("</text>")

// fitText gives each text of an SVG the width that it was measured with. That was in Liberation Sans,
// which not every browser has. Helvetica and Arial have the same widths, others are made to.
func fitText(svg []byte) []byte {
	var out bytes.Buffer
	for {
		m := svgText.FindSubmatchIndex(svg)
		if m == nil {
			break
		}
		part := func(i int) string { return string(svg[m[2*i]:m[2*i+1]]) }
		size, _ := strconv.ParseFloat(part(3), 64)
		style := textStyle(vg.Length(size), part(2) == "bold")
		_, rest, _ := bytes.Cut(svg[m[1]:], []byte(">"))
		content, _, _ := bytes.Cut(rest, svgTextEnd)
		out.Write(svg[:m[0]])
		fmt.Fprintf(&out, `<text %s textLength="%.1f" lengthAdjust="spacingAndGlyphs" style="font:%s %gpx Helvetica,Arial,'Liberation Sans',sans-serif`,
			part(1), style.Width(html.UnescapeString(string(content))).Points(), part(2), size)
		svg = svg[m[1]:]
	}
	out.Write(svg)
	return out.Bytes()
}

// style is that of text, which is written on its baseline.
func (s *sheet) style(size font.Length, bold bool, x text.XAlignment) text.Style {
	style := textStyle(size, bold)
	style.Color, style.XAlign = s.text, x
	return style
}

func textStyle(size font.Length, bold bool) text.Style {
	f := font.Font{Typeface: "Liberation", Variant: "Sans"}
	if bold {
		f.Weight = xfont.WeightBold
	}
	return text.Style{Font: font.From(f, size), YAlign: text.YBottom, Handler: plot.DefaultTextHandler}
}

func (s *sheet) write(x, y vg.Length, style text.Style, t string) {
	s.FillText(style, vg.Point{X: x, Y: y}, t)
}

// part is the canvas of a part of the sheet, with y from the top.
func (s *sheet) part(x, y, width, height vg.Length) draw.Canvas {
	top := s.Max.Y - y
	return draw.Canvas{Canvas: s.Canvas.Canvas, Rectangle: vg.Rectangle{
		Min: vg.Point{X: x, Y: top - height}, Max: vg.Point{X: x + width, Y: top},
	}}
}

// newPlot makes a plot in the colors of the theme.
func (s *sheet) newPlot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.LineStyle = draw.LineStyle{Color: s.frame, Width: 0.75}
		a.Padding = 0
		a.Tick.Length = 0
		a.Tick.LineStyle = a.LineStyle
		font := a.Tick.Label
		font.Color, font.Font = s.faint, s.style(smallSize, false, 0).Font
		a.Tick.Label = font
		a.Label.TextStyle.Color, a.Label.TextStyle.Font = s.faint, font.Font
		a.Label.Padding = 4
	}
	p.X.Tick.Label.YAlign = -1.5 // away from the axis
	p.Title.TextStyle.Color, p.Title.TextStyle.Font = s.text, s.style(textSize, true, 0).Font
	return p
}

// ticks are those of an axis, with the text of each.
func ticks(values []float64, label func(float64) string) plot.ConstantTicks {
	var all plot.ConstantTicks
	for _, v := range values {
		all = append(all, plot.Tick{Value: v, Label: label(v)})
	}
	return all
}

// drawing is a plotter that draws with the functions of the plot's axes.
type drawing func(c draw.Canvas, x, y func(float64) vg.Length)

func (d drawing) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	d(c, x, y)
}

// labels are texts at points, by which the axes leave room for them.
func labels(style text.Style, offset vg.Point, at plotter.XYs, texts []string) *plotter.Labels {
	l := &plotter.Labels{XYs: at, Labels: texts, Offset: offset}
	for range texts {
		l.TextStyle = append(l.TextStyle, style)
	}
	return l
}

// panel is a set of horizontal bars from 0, on one linear scale.
type panel struct {
	title  string
	bars   []bar
	format func(float64) string
	mark   string // of a line at 1
}

type bar struct {
	label              string
	peer               peerInfo
	value, least, most float64
	gap                bool // above it
	// second is one below the bar that it belongs to, as another measurement of the same.
	second bool
}

// step is how far below the one before it a bar is.
func (b bar) step() float64 {
	switch {
	case b.second:
		return 0.6
	case b.gap:
		return 1.4
	}
	return 1
}

func (p panel) height() vg.Length {
	rows := 0.25
	for i, b := range p.bars {
		rows += b.step()
		if p.paired() && !b.second && i > 0 {
			rows += 0.1
		}
	}
	h := vg.Length(rows * rowHeight)
	if p.title+p.mark != "" {
		h += 17
	}
	return h
}

func (p panel) paired() bool {
	return slices.ContainsFunc(p.bars, func(b bar) bool { return b.second })
}

// draw draws the panel to a canvas of its height.
func (p panel) draw(s *sheet, c draw.Canvas) {
	pl := s.newPlot()
	pl.HideAxes()
	names, values := s.style(textSize, false, text.XRight), s.style(textSize, false, text.XLeft)
	names.YAlign, values.YAlign = text.YCenter, text.YCenter
	right, left := vg.Point{X: 5}, vg.Point{X: -6}
	width := vg.Length(rowHeight * 0.68)
	if p.paired() {
		width = rowHeight * 0.5
	}
	y := 0.0
	for i, b := range p.bars {
		y -= b.step()
		if p.paired() && !b.second && i > 0 {
			y -= 0.1
		}
		if i == 0 {
			y = 0
		}
		color := s.theme.peer(b.peer)
		if b.second {
			color = s.gridPale
			if b.peer.Name != "grid" {
				color = s.low
			}
		}
		pl.Add(&plotter.BarChart{Values: plotter.Values{b.value}, Width: width, Color: color, XMin: y, Horizontal: true})
		if b.most > b.least {
			pl.Add(s.whisker(b, y, width/2))
		}
		bold := b.label == "grid" && b.peer.Name == "grid"
		names, values := names, values
		if bold {
			names.Font, values.Font = s.style(textSize, true, 0).Font, s.style(textSize, true, 0).Font
		}
		if !b.second {
			at := plotter.XYs{{X: 0, Y: y}}
			if slices.ContainsFunc(p.bars[i+1:min(i+2, len(p.bars))], func(b bar) bool { return b.second }) {
				at[0].Y -= 0.3
			}
			pl.Add(labels(names, left, at, []string{b.label}))
		}
		end := max(b.value, b.most)
		if p.mark != "" {
			end = max(end, 1) // not across the line
		}
		pl.Add(labels(values, right, plotter.XYs{{X: end, Y: y}}, []string{p.format(b.value)}))
	}
	pl.X.Min, pl.Y.Min, pl.Y.Max = 0, y-0.62, 0.62
	axis := draw.LineStyle{Color: s.frame, Width: 0.75}
	pl.Add(drawing(func(c draw.Canvas, x, y func(float64) vg.Length) {
		c.StrokeLine2(axis, x(0), c.Min.Y, x(0), c.Max.Y)
		if p.mark != "" {
			c.StrokeLine2(draw.LineStyle{Color: s.text, Width: 1.1, Dashes: []vg.Length{4, 2.5}}, x(1), c.Min.Y, x(1), c.Max.Y+2)
			c.FillText(s.style(textSize, true, text.XCenter), vg.Point{X: x(1), Y: c.Max.Y + 5}, p.mark)
		}
	}))
	if p.title+p.mark != "" {
		s.FillText(s.style(textSize, true, text.XLeft), vg.Point{X: c.Min.X, Y: c.Max.Y - 10}, p.title)
		c = draw.Crop(c, 0, 0, 0, -17)
	}
	pl.Draw(c)
}

// whisker shows the spread of a bar's rounds.
func (s *sheet) whisker(b bar, y float64, cap vg.Length) *plotter.XErrorBars {
	e := &plotter.XErrorBars{
		XYs:       plotter.XYs{{X: b.value, Y: y}},
		XErrors:   make(plotter.XErrors, 1),
		LineStyle: draw.LineStyle{Color: s.text, Width: 0.8},
		CapWidth:  cap,
	}
	e.XErrors[0].Low, e.XErrors[0].High = b.value-b.least, b.most-b.value
	return e
}

// key writes what colors mean, in a line from x on.
func (s *sheet) key(x, y vg.Length, colors []color.Color, texts []string) {
	style := s.style(textSize, false, text.XLeft)
	for i, t := range texts {
		s.FillPolygon(colors[i], corners(s.part(x, y, 14, 8).Rectangle))
		s.write(x+19, s.Max.Y-y-8, style, t)
		x += 19 + style.Width(t) + 22
	}
}

func corners(r vg.Rectangle) []vg.Point {
	return []vg.Point{r.Min, {X: r.Max.X, Y: r.Min.Y}, r.Max, {X: r.Min.X, Y: r.Max.Y}}
}

// axisTicks are round values of a logarithmic axis, from below lo to above hi, with at most n where
// possible.
func axisTicks(lo, hi float64, n int) (ticks []float64) {
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
	return ticks
}

// series is a line through points, with the spread of each.
type series struct {
	peer   peerInfo
	points plotter.XYs
	spread plotter.YErrors
}

// add draws the line, its points and their whiskers.
func (l series) add(s *sheet, pl *plot.Plot) {
	color, width := s.line(l.peer), vg.Length(1.5)
	var dashes []vg.Length
	switch {
	case l.peer.Name == "grid" || l.peer.Name == "grid-default":
		width = 3
	case l.peer.Floor:
		dashes = []vg.Length{4.5, 3}
	}
	pl.Add(&plotter.Line{XYs: l.points, LineStyle: draw.LineStyle{Color: color, Width: width, Dashes: dashes}})
	pl.Add(&plotter.Scatter{XYs: l.points, GlyphStyle: draw.GlyphStyle{Color: color, Radius: width/2 + 1.1, Shape: draw.CircleGlyph{}}})
	if l.spread != nil {
		pl.Add(&plotter.YErrorBars{XYs: l.points, YErrors: l.spread, LineStyle: draw.LineStyle{Color: color, Width: 0.8}, CapWidth: 5})
	}
}

// names writes the names of lines at their ends, pushed apart.
func (s *sheet) names(all []series) drawing {
	return func(c draw.Canvas, x, y func(float64) vg.Length) {
		type name struct {
			series
			at vg.Length
		}
		var names []name
		for _, l := range all {
			names = append(names, name{l, y(l.points[len(l.points)-1].Y)})
		}
		slices.SortStableFunc(names, func(a, b name) int { return cmp.Compare(a.at, b.at) })
		const apart = 12.5
		for range 500 { // and back into the chart
			for i := 1; i < len(names); i++ {
				if d := apart - (names[i].at - names[i-1].at); d > 0 {
					names[i-1].at, names[i].at = names[i-1].at-d/2, names[i].at+d/2
				}
			}
			names[0].at = max(names[0].at, c.Min.Y)
			names[len(names)-1].at = min(names[len(names)-1].at, c.Max.Y)
		}
		for _, n := range names {
			end := n.points[len(n.points)-1]
			style := s.style(textSize, n.peer.Name == "grid", text.XLeft)
			style.YAlign = text.YCenter
			c.StrokeLine2(draw.LineStyle{Color: s.line(n.peer), Width: 0.6}, x(end.X)+3, y(end.Y), c.Max.X+18, n.at)
			c.FillText(style, vg.Point{X: c.Max.X + 21, Y: n.at}, n.peer.Name)
		}
	}
}

// foot says on what was measured, and when.
func (r *report) foot(where string) string {
	commit := ""
	if r.Commit != "" {
		commit = ", commit " + r.shortCommit()
	}
	return fmt.Sprintf("%s, %d cores, %s; %s, over TCP on loopback; %s%s",
		cmp.Or(r.CPU, "unknown CPU"), r.Cores, r.Go, where, r.Made.UTC().Format("2006-01-02"), commit)
}
