package main

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// overloadLooks are how the ways to serve under overload are drawn and explained, in their order.
// Their names begin with those of peers.
var overloadLooks = []struct{ name, color, dash, about string }{
	{"grid", gridColor, "", "MaxHandlers; a call beyond is refused at once"},
	{"grid-default", gridColor, ` stroke-dasharray="7 5"`, "MaxHandlers as by default, 16384"},
	{"grpc-tap", "#332288", "", "a tap that counts the calls under way; one beyond is refused at once"},
	{"grpc-streams", "#66a9dd", "", "MaxConcurrentStreams; a call beyond waits at the client"},
	{"grpc-default", "#332288", ` stroke-dasharray="7 5"`, "none, as by default"},
}

const overloadAbout = `Calls with 512 bytes and a deadline of a second, whose handlers take 200 µs of CPU time, so
that it is the cores that are overloaded. The capacity is what callers get who wait for
their answers, the best of three rounds; the load is a multiple of that. It arrives at
random and waits for nothing, and latencies count from the arrival. The limit is 64
handlers for each core: all of them are through in 13 ms, so that what is taken on is
answered in time.

Calls a second are *accepted*, which is answered well and in time; *refused* by the limit;
*late*, without an answer by their deadline; or *shed* by the client, which had 20,000 under
way, or was late itself. p50 and p99 are those of the accepted. *memory* is the most that
heap and stacks took at both ends, with garbage; *cpu* is the cores that were in use, and if
those are not all under overload, others had them. *recovery* is the time after the highest
load, with half the capacity from then on, until half a second is as good as before the
overload; if it takes 2.5 s, it did not come to that. *overdue* is by how much a call ended
after its deadline, at most. As both ends share the cores, what burdens the server holds up
its clients too; and where there is little to do, Go's timers are up to a millisecond late,
and calls with them.`

// overloadNames are the names of the loads, as in the figures.
func overloadNames() (names []string) {
	for _, load := range overloadLoads {
		names = append(names, strconv.FormatFloat(load, 'g', -1, 64))
	}
	return names
}

// writeOverload writes the tables of what was measured under overload.
func (r *report) writeOverload(b *bytes.Buffer) {
	cell := func(column, name string) string {
		f := r.figure("overload", column, name)
		if f == nil {
			return "–"
		}
		return strings.TrimSuffix(strings.TrimSuffix(amount(f.Value, f.Unit), " calls/s"), " cores")
	}
	row := func(name, second string, columns ...string) []string {
		row := []string{display(peerInfo{Name: name}), second}
		for _, c := range columns {
			row = append(row, cell(c, name))
		}
		return row
	}
	details := []string{"accepted", "refused", "late", "shed", "p50", "p99", "goroutines", "memory", "cpu"}
	loads := [][]string{append([]string{"", "load"}, details...), append([]string{"---"}, rules(len(details)+1)...)}
	summary := [][]string{{"", "what the limit is", "capacity", "accepted at 4, by the peak", "recovery", "overdue"}, append([]string{"---", "---"}, rules(4)...)}
	var notes []string
	for _, l := range overloadLooks {
		if r.figure("overload", "capacity", l.name) == nil {
			continue
		}
		add := func(load, title string) {
			var columns []string
			for _, d := range details {
				columns = append(columns, load+"-"+d)
			}
			loads = append(loads, row(l.name, title, columns...))
		}
		for _, load := range overloadNames() {
			add(load, load)
		}
		if long := r.figure("overload", "long-time", l.name); long != nil {
			add("long", fmt.Sprintf("2 for %s", amount(long.Value, long.Unit)))
			notes = append(notes, fmt.Sprintf("Over the %s of twice the capacity %s's live memory at the end was %s times that in the middle,\nand its recovery took %s.",
				amount(long.Value, long.Unit), l.name, cell("long-growth", l.name), cell("long-recovery", l.name)))
		}
		summary = append(summary, row(l.name, l.about, "capacity", "of-peak", "recovery", "overdue"))
	}
	writeRows(b, summary)
	writeRows(b, loads)
	if len(notes) > 0 {
		b.WriteString(strings.Join(notes, "\n") + "\n\n")
	}
}

func rules(n int) (rules []string) {
	for range n {
		rules = append(rules, "---:")
	}
	return rules
}

// overloadRatios are the times per accepted call, as those of other shapes.
func (r *report) overloadRatios(b *bytes.Buffer) {
	for _, load := range overloadNames() {
		grid := r.value("overload", load+"-accepted", "grid")
		for _, l := range overloadLooks[1:] {
			if v := r.figure("overload", load+"-accepted", l.name); v != nil && grid > 0 {
				fmt.Fprintf(b, "ratio overload/%s grid/%s %.3f\n", load, l.name, v.Value/grid)
			}
		}
	}
}

// overloadChart draws what is accepted, and its p99, by the load.
func (r *report) overloadChart() []byte {
	type point struct{ load, accepted, p99 float64 }
	const space, top, bottom = 84.0, chartTop + 66, 400.0
	const width = (chartWidth - 2*margin - space - 44) / 2
	var all [][]point
	most, slowest, fastest := 1.0, 0.0, math.Inf(1)
	for _, l := range overloadLooks {
		var points []point
		if capacity := r.value("overload", "capacity", l.name); capacity > 0 {
			for i, name := range overloadNames() {
				if f := r.figure("overload", name+"-accepted", l.name); f != nil {
					p := point{overloadLoads[i], f.Value / capacity, r.value("overload", name+"-p99", l.name) * 1e6}
					points = append(points, p)
					if most = max(most, p.accepted); p.p99 > 0 {
						slowest, fastest = max(slowest, p.p99), min(fastest, p.p99)
					}
				}
			}
		}
		all = append(all, points)
	}
	if slowest == 0 {
		return nil
	}
	var c canvas
	lowest, highest := overloadLoads[0], overloadLoads[len(overloadLoads)-1]
	axes := func(left float64, title string) (x scale) {
		x = scale{lowest, highest, left + 14, left + width - 14}
		c.text(left, top-18, "b", title)
		for _, load := range overloadLoads {
			c.text(x.at(load), bottom+20, "s m", trimmed(load)+"×")
		}
		c.text(left+width/2, bottom+38, "s m", "offered load, by the capacity")
		c.line(left, bottom, left+width, bottom, `class="a"`)
		return x
	}
	plot := func(i int, at func(point) (x, y float64, ok bool)) {
		l, path := overloadLooks[i], ""
		for _, p := range all[i] {
			if x, y, ok := at(p); ok {
				path += fmt.Sprintf("%.1f,%.1f ", x, y)
				c.dot(x, y, 3.5, `fill="`+l.color+`"`)
			}
		}
		fmt.Fprintf(&c, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%g\"%s/>\n", path, l.color, overloadWidth(l.name), l.dash)
	}

	left := margin + 44.0
	x := axes(left, "Calls answered in time, by the capacity")
	y := func(share float64) float64 { return bottom - share/(math.Ceil(most*5)/5)*(bottom-top) }
	for share := 0.0; share <= math.Ceil(most*5)/5+0.01; share += 0.2 {
		c.line(left, y(share), left+width, y(share), `class="g"`)
		c.text(left-8, y(share)+4, "s e", fmt.Sprintf("%.0f %%", share*100))
	}
	right := left + width + space
	x2 := axes(right, "p99 of those")
	y2, ticks := newScale(fastest, slowest, bottom, top, 9)
	for _, v := range ticks {
		c.line(right, y2.at(v), right+width, y2.at(v), `class="g"`)
		c.text(right-8, y2.at(v)+4, "s e", tick(v))
	}
	key := margin
	for i := len(all) - 1; i >= 0; i-- { // grid's on top
		plot(i, func(p point) (float64, float64, bool) { return x.at(p.load), y(p.accepted), true })
		plot(i, func(p point) (float64, float64, bool) { return x2.at(p.load), y2.at(max(p.p99, fastest)), p.p99 > 0 })
	}
	for i, l := range overloadLooks {
		if all[i] == nil {
			continue
		}
		class := ""
		if l.name == "grid" {
			class = "b"
		}
		c.line(key, chartTop+4, key+34, chartTop+4, fmt.Sprintf(`stroke="%s" stroke-width="%g"%s`, l.color, overloadWidth(l.name), l.dash))
		c.text(key+42, chartTop+8.5, class, l.name)
		key += 42 + 6.6*float64(len(l.name)) + 34
	}
	return c.done(r, "Overload",
		fmt.Sprintf("Calls that cost %s of CPU, arriving at random whatever becomes of others; deadline a second", tick(float64(overloadCost))), bottom+40)
}

func overloadWidth(name string) float64 {
	if name == "grid" {
		return 4
	}
	return 2
}
