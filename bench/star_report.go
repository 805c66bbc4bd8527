package main

import (
	"bytes"
	"cmp"
	"strings"
)

const starAbout = "One server, in a process of its own, with as many links to another process as a column says, whose servers know nobody else; nothing but the machine is shared. At the start all begin at once, and the server dials about half of the others; a restart is that of the server, and begins when it is killed. The CPU time is the server's, and so is the memory: that of a link is live heap and stacks. Idle it has nothing but pings, in both directions, and its CPU is of one core. The calls, with 512 bytes, go to each link in turn, or to all at once, until all have answered. In the last rows all others dial the server at once."

// starRows are what the table has of a star, by the ends of the names of its figures.
var starRows = [][2]string{
	{"start", "all connected after a start"},
	{"start-cpu", "CPU for it"},
	{"restart", "all connected after a restart"},
	{"restart-cpu", "CPU for it"},
	{"link-heap", "memory of a link"},
	{"link-goroutines", "goroutines of a link"},
	{"rss", "resident memory of the process"},
	{"idle-cpu", "CPU when idle"},
	{"call-p50", "a call in turn, p50"},
	{"call-p99", "p99"},
	{"broadcast-p50", "a call to all, p50"},
	{"broadcast-p99", "p99"},
	{"broadcast-cpu", "CPU for it"},
	{"rush", "links a second, all dialled at once"},
	{"rush-cpu", "CPU for it"},
}

// writeStar writes the table of the stars, with a column for each.
func (r *report) writeStar(b *bytes.Buffer) {
	head, rule := []string{"links"}, []string{"---"}
	for _, column := range r.columns("star") {
		if links, ok := strings.CutSuffix(column, "-start"); ok {
			head, rule = append(head, links), append(rule, "---:")
		}
	}
	rows := [][]string{head, rule}
	for _, row := range starRows {
		cells := []string{row[1]}
		for _, links := range head[1:] {
			text := ""
			if f := r.figure("star", links+"-"+row[0], "grid"); f != nil {
				text = strings.Replace(amount(f.Value, f.Unit), "links/s", "/s", 1)
			}
			cells = append(cells, cmp.Or(text, "–"))
		}
		rows = append(rows, cells)
	}
	writeRows(b, rows)
}
