package main

import (
	"fmt"
	"strconv"
)

const (
	smallPayload   = 512
	streamMessages = 10
	longMessages   = 100_000
)

// shape is one kind of traffic.
type shape struct {
	name string
	run  func(r *run) error
}

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
		return r.contest("stream-long", strconv.Itoa(n), workload{callers: 1, once: true, ops: n,
			op: streamOf(func(s streamer, payload []byte) error { return s.twoway(n, payload) })})
	}},
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

// typedOfUnary compares grid's typed calls with its own untyped ones, where both were measured.
func (r *run) typedOfUnary() {
	for _, v := range r.report.Results {
		if u := r.report.find("unary", v.Size, "grid"); v.Shape == "typed" && v.Peer == "grid" && u != nil {
			r.figure(v.Median/u.Median, "ratio", "typed-of-unary/%s/grid", v.Size)
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

func (r *run) figure(value float64, unit, name string, a ...any) {
	r.report.Figures = append(r.report.Figures, figure{Name: fmt.Sprintf(name, a...), Value: value, Unit: unit})
}
