package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	smallPayload   = 512
	streamMessages = 10
	longMessages   = 100_000
	bulkStream     = 64 << 20
	// callDeadline is that of each call in the shape deadline. None comes near it.
	callDeadline = 10 * time.Second
)

// shape is one kind of traffic.
type shape struct {
	name string
	run  func(r *run) error
}

// covers reports whether the shape measures what has a name: its own, or one that is longer.
func (s shape) covers(name string) bool { return name == s.name || strings.HasPrefix(name, s.name+"-") }

// shapes are in the order of the report.
var shapes = []shape{
	{"unary", func(r *run) error {
		return r.byCallers("unary", []int{1, 2, 8, 64, 256}, workload{op: echoOf(smallPayload)})
	}},
	{"typed", func(r *run) error {
		defer r.typedOfUnary()
		return r.byCallers("typed", []int{8, 64}, workload{op: func(c caller) func() error {
			t, ok := c.(typedCaller)
			if !ok {
				return nil
			}
			return func() error { return t.typed(theSample) }
		}})
	}},
	{"deadline", (*run).deadline},
	{"payload", func(r *run) error {
		for _, size := range []struct {
			name string
			n    int
		}{{"16B", 16}, {"4KiB", 4 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
			if err := r.contest("payload", size.name, workload{callers: 8, op: echoOf(size.n)}); err != nil {
				return err
			}
		}
		return nil
	}},
	{"stream-responses", func(r *run) error {
		return r.streams("stream-responses", func(s streamer, payload []byte) error { return s.responses(streamMessages, payload) })
	}},
	{"stream-requests", func(r *run) error {
		return r.streams("stream-requests", func(s streamer, payload []byte) error { return s.requests(streamMessages, payload) })
	}},
	{"stream-twoway", func(r *run) error {
		return r.streams("stream-twoway", func(s streamer, payload []byte) error { return s.twoway(streamMessages, payload) })
	}},
	{"stream-long", func(r *run) error {
		n := longMessages
		if r.quick {
			n /= 10
		}
		stream := func(n int) func(caller) func() error {
			return streamOf(func(s streamer, payload []byte) error { return s.twoway(n, payload) })
		}
		return r.contest("stream-long", strconv.Itoa(n), workload{callers: 1, once: true, ops: n, op: stream(n), first: stream(n / 10)})
	}},
	{"bulk", (*run).bulk},
	{"mixed", (*run).mixed},
	{"overload", (*run).overload},
	{"idle", (*run).idle},
	{"mesh", (*run).mesh},
	{"hosts", (*run).hosts},
	{"star", (*run).star},
	{"tls", func(r *run) error {
		return r.byCallers("tls", []int{2, 8, 64}, workload{tls: true, op: echoOf(smallPayload)})
	}},
}

// deadline measures calls each of which has a deadline, and what that costs with grid.
func (r *run) deadline() error {
	w := workload{op: func(c caller) func() error {
		payload := pattern(smallPayload)
		switch c := c.(type) {
		case timeoutCaller:
			return func() error { return c.echoWithin(callDeadline, payload) }
		case contextCaller:
			return func() error {
				ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
				defer cancel()
				return c.echoContext(ctx, payload)
			}
		}
		return nil
	}}
	if r.has("grid") {
		w.extra = gridTimeoutPeers()
	}
	first := len(r.report.Results)
	if err := r.byCallers("deadline", []int{2, 8, 64}, w); err != nil {
		return err
	}
	rounds := func(of result, peer string) []float64 {
		if v := r.report.find(of.Shape, of.Size, peer); v != nil {
			return v.Rounds
		}
		return nil
	}
	for _, n := range r.processes {
		for _, v := range r.report.Results[first:] {
			none := rounds(v, "grid-none")
			if v.Shape == nameIn("deadline", n) && (v.Peer == "grid" || v.Peer == "grid-option") && none != nil {
				r.rounded(ratios(v.Rounds, none), "ratio", "%s/%s/%s", nameIn("deadline-of-none", n), v.Size, v.Peer)
			}
		}
	}
	return nil
}

// bulk measures one stream of many bytes.
func (r *run) bulk() error {
	total := bulkStream
	if r.quick {
		total /= 8
	}
	first := len(r.report.Results)
	for _, size := range []string{"64KiB", "256KiB"} {
		payload := pattern(int(number(size)))
		n := total / len(payload)
		err := r.contest("bulk", size, workload{callers: 1, once: true, ops: n, op: func(c caller) func() error {
			switch c := c.(type) {
			case bulkSender:
				return func() error { return c.bulk(n, payload) }
			case streamer:
				return func() error { return c.requests(n, payload) }
			}
			return nil
		}})
		if err != nil {
			return err
		}
	}
	for _, n := range r.processes {
		for _, v := range r.report.Results[first:] {
			if v.Shape == nameIn("bulk", n) {
				var rates []float64
				for _, ns := range v.Rounds {
					rates = append(rates, number(v.Size)/ns*1e3)
				}
				r.rounded(rates, "MB/s", "%s/%s/%s", nameIn("bulk-rate", n), v.Size, v.Peer)
			}
		}
	}
	return nil
}

// typedOfUnary compares grid's typed calls with its own untyped ones, where both were measured.
func (r *run) typedOfUnary() {
	for _, n := range r.processes {
		for _, v := range r.report.Results {
			if u := r.report.find(nameIn("unary", n), v.Size, "grid"); v.Shape == nameIn("typed", n) && v.Peer == "grid" && u != nil {
				r.figure(v.Median/u.Median, "ratio", "%s/%s/grid", nameIn("typed-of-unary", n), v.Size)
			}
		}
	}
}

// byCallers measures w with various numbers of callers.
func (r *run) byCallers(shape string, callers []int, w workload) error {
	for _, n := range callers {
		w.callers = n
		if err := r.contest(shape, strconv.Itoa(n), w); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) streams(shape string, op func(s streamer, payload []byte) error) error {
	return r.byCallers(shape, []int{2, 8, 64}, workload{op: streamOf(op)})
}

func echoOf(size int) func(caller) func() error {
	return func(c caller) func() error {
		payload := pattern(size)
		return func() error { return c.echo(payload) }
	}
}

func streamOf(op func(s streamer, payload []byte) error) func(caller) func() error {
	return func(c caller) func() error {
		s, ok := c.(streamer)
		if !ok {
			return nil
		}
		payload := pattern(smallPayload)
		return func() error { return op(s, payload) }
	}
}

// pattern is a payload of n bytes that are not all the same.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// rounded reports the median of the values of some rounds.
func (r *run) rounded(values []float64, unit, name string, a ...any) {
	r.figure(median(values), unit, name, a...)
	if len(values) > 1 {
		f := &r.report.Figures[len(r.report.Figures)-1]
		f.Least, f.Most = slices.Min(values), slices.Max(values)
	}
}

func (r *run) figure(value float64, unit, name string, a ...any) {
	r.report.Figures = append(r.report.Figures, figure{Name: fmt.Sprintf(name, a...), Value: value, Unit: unit})
}
