package main

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
)

// canvas collects the elements of an SVG.
type canvas struct{ bytes.Buffer }

func (c *canvas) text(x, y float64, class, s string) {
	fmt.Fprintf(c, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, class, html.EscapeString(s))
}

func (c *canvas) line(x1, y1, x2, y2 float64, attr string) {
	fmt.Fprintf(c, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2, attr)
}

func (c *canvas) rect(x, y, w, h float64, attr string) {
	fmt.Fprintf(c, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" %s/>\n", x, y, w, h, attr)
}

func (c *canvas) dot(x, y, radius float64, attr string) {
	fmt.Fprintf(c, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" %s/>\n", x, y, radius, attr)
}

// done returns the chart around the elements, which end at bottom.
func (c *canvas) done(r *report, title, text string, bottom float64) []byte {
	if bytes.Contains(c.Bytes(), []byte(floorColor)) {
		text += ". Pale: floors, which are no way to call"
	}
	height := bottom + 46
	var all canvas
	fmt.Fprintf(&all, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" role=\"img\">\n<title>%s</title>\n%s\n",
		chartWidth, height, chartWidth, height, html.EscapeString(title), chartStyle)
	all.rect(0.5, 0.5, chartWidth-1, height-1, `rx="8" fill="#ffffff" stroke="#d0d7de"`)
	all.text(margin, 34, "h", title)
	all.text(margin, 54, "", text)
	all.Write(c.Bytes())
	all.text(margin, height-14, "s", fmt.Sprintf("%s, %d cores, %s; all in one process, over TCP on loopback; %s",
		cmp.Or(r.CPU, "unknown CPU"), r.Cores, r.Go, r.Made.UTC().Format("2006-01-02")))
	all.WriteString("</svg>\n")
	return all.Bytes()
}
