package chaos

import (
	"encoding/xml"
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	chartWidth, panelHeight         = 860.0, 190.0
	chartLeft, chartRight, chartTop = 86.0, 30.0, 76.0
	panelGap                        = 78.0
	chartStyle                      = `<style>text{font:13px "Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif;fill:#24292f}` +
		`.h{font-size:18px;font-weight:bold}.b{font-weight:bold}.s{font-size:12px;fill:#57606a}` +
		`.m{text-anchor:middle}.e{text-anchor:end}.g{stroke:#e3e7eb}.a{stroke:#8c959f}</style>`
)

// chart is an SVG that grows.
type chart struct{ strings.Builder }

func (c *chart) text(x, y float64, class, format string, a ...any) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" class="%s">%s</text>`+"\n", x, y, class, html.EscapeString(fmt.Sprintf(format, a...)))
}

func (c *chart) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

// panel is one curve over the time.
type panel struct {
	title, unit, color, format string
	value                      func(sample) float64
}

// drawChart draws the heap and the goroutines, one above the other. subtitle says when and where
// they were taken.
func drawChart(title, subtitle string, samples []sample) []byte {
	panels := []panel{
		{"Heap after a garbage collection", "MiB", "#e4520f", "%.1f MiB", func(s sample) float64 { return s.heap }},
		{"Goroutines", "goroutines", "#7188a0", "%.0f", func(s sample) float64 { return s.goroutines }},
	}
	height := chartTop + float64(len(panels))*(panelHeight+panelGap)
	var c chart
	fmt.Fprintf(&c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f">`+"\n", chartWidth, height, chartWidth, height)
	c.WriteString(chartStyle + `<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	c.text(chartLeft-62, 30, "h", "%s", title)
	c.text(chartLeft-62, 50, "s", "%s", subtitle)
	for i, p := range panels {
		p.draw(&c, chartTop+20+float64(i)*(panelHeight+panelGap), samples)
	}
	c.WriteString("</svg>\n")
	return []byte(c.String())
}

func (p panel) draw(c *chart, top float64, samples []sample) {
	c.text(chartLeft-62, top-12, "b", "%s", p.title)
	if len(samples) == 0 {
		c.text(chartLeft, top+20, "s", "no samples")
		return
	}
	least, most := samples[0], samples[0]
	for _, s := range samples {
		if p.value(s) < p.value(least) {
			least = s
		}
		if p.value(s) > p.value(most) {
			most = s
		}
	}
	span := samples[len(samples)-1].at
	step := niceStep(p.value(most) / 4)
	highest := step * math.Ceil(p.value(most)*1.12/step)
	bottom := top + panelHeight
	x := func(at time.Duration) float64 {
		return chartLeft + (chartWidth-chartLeft-chartRight)*float64(at)/float64(max(span, 1))
	}
	y := func(v float64) float64 { return bottom - panelHeight*v/highest }

	for v := 0.0; v <= highest; v += step {
		c.line(chartLeft, y(v), chartWidth-chartRight, y(v), "g")
		c.text(chartLeft-8, y(v)+4, "e s", "%g", v)
	}
	unit, name := time.Minute, "minutes"
	if span < 2*time.Minute {
		unit, name = time.Second, "seconds"
	}
	tick := niceStep(float64(span) / float64(unit) / 8)
	for v := 0.0; v*float64(unit) <= float64(span); v += tick {
		at := x(time.Duration(v * float64(unit)))
		c.line(at, bottom, at, bottom+4, "a")
		c.text(at, bottom+18, "m s", "%g", v)
	}
	c.text((chartLeft+chartWidth-chartRight)/2, bottom+36, "m s", "%s since the start", name)
	fmt.Fprintf(c, `<text transform="translate(%.1f %.1f) rotate(-90)" class="m s">%s</text>`+"\n", chartLeft-54, (top+bottom)/2, p.unit)
	c.line(chartLeft, bottom, chartWidth-chartRight, bottom, "a")
	c.line(chartLeft, top, chartLeft, bottom, "a")

	c.WriteString(`<polyline fill="none" stroke-width="2" stroke-linejoin="round" stroke="` + p.color + `" points="`)
	for _, s := range samples {
		fmt.Fprintf(c, "%.1f,%.1f ", x(s.at), y(p.value(s)))
	}
	c.WriteString(`"/>` + "\n")
	p.mark(c, "max ", x(most.at), y(p.value(most)), -9, p.value(most))
	p.mark(c, "min ", x(least.at), y(p.value(least)), 19, p.value(least))
}

// mark labels one point of the curve, dy below it.
func (p panel) mark(c *chart, what string, x, y, dy, v float64) {
	fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", x, y, p.color)
	class := "m b"
	switch {
	case x < chartLeft+60:
		class = "b"
	case x > chartWidth-chartRight-60:
		class = "e b"
	}
	c.text(x, y+dy, class, what+p.format, v)
}

// niceStep is the smallest of 1, 2, 5, 10, 20 and so on that is not below v.
func niceStep(v float64) float64 {
	if v <= 1 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 5} {
		if f*power >= v {
			return f * power
		}
	}
	return 10 * power
}

func TestChart_IsWellFormed(t *testing.T) {
	for _, n := range []int{0, 1, 100} {
		var samples []sample
		for i := range n {
			samples = append(samples, sample{time.Duration(i) * sampleEvery, 20 + 5*math.Sin(float64(i)), 800 + float64(i%7)})
		}
		svg := string(drawChart("faults & <managers>", "today", samples))
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else {
				require.NoError(t, err)
			}
		}
		require.NotContains(t, svg, "NaN")
		if n > 0 {
			require.Contains(t, svg, "max 8")
		}
	}
}
