package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// overloadLooks are what the ways to serve under overload are, in their order.
// Their names begin with those of peers.
var overloadLooks = []struct{ name, about string }{
	{"grid", "MaxHandlers; a call beyond is refused at once"},
	{"grid-default", "MaxHandlers as by default, 16384"},
	{"grpc-tap", "a tap that counts the calls under way; one beyond is refused at once"},
	{"grpc-streams", "MaxConcurrentStreams; a call beyond waits at the client"},
	{"grpc-default", "none, as by default"},
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
func (r *report) writeOverload(b *bytes.Buffer, group string) {
	cell := func(column, name string) string {
		f := r.figure(group, column, name)
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
		if r.figure(group, "capacity", l.name) == nil {
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
		if long := r.figure(group, "long-time", l.name); long != nil {
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
	for _, group := range []string{"overload", "overload" + inTwo} {
		for _, load := range overloadNames() {
			grid := r.value(group, load+"-accepted", "grid")
			for _, l := range overloadLooks[1:] {
				if v := r.figure(group, load+"-accepted", l.name); v != nil && grid > 0 {
					fmt.Fprintf(b, "ratio %s/%s grid/%s %.3f\n", group, load, l.name, v.Value/grid)
				}
			}
		}
	}
}
