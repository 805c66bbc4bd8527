// Package asynclog stands in front of a slog.Handler that may block, panic, end its goroutine or
// call back into what logs: nothing of it is called by those who log, who wait for nothing.
package asynclog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/gridrpc/grid/internal/offload"
)

const (
	// maxLines is how many lines wait for the handler. Those beyond are dropped, and counted.
	maxLines = 1024
	// maxDebugLines is how many wait of which the last is below level info: whether anybody wants
	// to see them is for the handler to say, and they must not take the place of others.
	maxDebugLines = maxLines / 4
)

// New returns a logger whose lines go to h, in their order and one at a time, on goroutines of g.
// They have attrs, and so has the line that says how many were dropped.
func New(g *offload.Group, h slog.Handler, attrs ...slog.Attr) *slog.Logger {
	q := &queue{base: h}
	q.loop.Init(g, q.step)
	q.root = &handler{queue: q}
	if len(attrs) > 0 {
		q.root = &handler{queue: q, parent: q.root, attrs: attrs}
	}
	return slog.New(q.root)
}

// queue is the lines that wait.
type queue struct {
	// Set once.
	base slog.Handler
	root *handler
	loop offload.Loop

	mu      sync.Mutex // guards what follows
	lines   []line
	dropped int  // since the last of lines
	failed  bool // the last line was not taken
}

type line struct {
	to      *handler
	record  slog.Record
	dropped int // how many were, between the line before and this one
}

func (q *queue) add(to *handler, r slog.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	most := maxLines
	if r.Level < slog.LevelInfo {
		most = maxDebugLines
	}
	if len(q.lines) >= most {
		q.dropped++
		return
	}
	q.lines = append(q.lines, line{to, r.Clone(), q.dropped})
	q.dropped = 0
	q.loop.Wake()
}

// take returns the next line, whose record is zero where there is none, but some were dropped.
func (q *queue) take() (l line, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) > 0 {
		l, q.lines[0] = q.lines[0], line{}
		q.lines = q.lines[1:]
		return l, true
	}
	q.lines = nil
	if q.dropped == 0 || q.failed { // it would fail again
		return line{}, false
	}
	l.dropped, q.dropped = q.dropped, 0
	return l, true
}

// step implements a step of [offload.Loop].
func (q *queue) step() bool {
	l, ok := q.take()
	if !ok {
		return false
	}
	defer func() { // also if the first one ends the goroutine
		if l.to != nil {
			q.pass(l.to, l.record, 1)
		}
	}()
	if l.dropped > 0 {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "grid: log lines dropped", 0)
		r.AddAttrs(slog.Int("lines", l.dropped))
		q.pass(q.root, r, l.dropped)
	}
	return true
}

// pass hands a record to the application's handler, which stands for so many lines.
func (q *queue) pass(to *handler, r slog.Record, lines int) {
	taken := false
	defer func() {
		_ = recover() // there is nobody to tell but this handler, who hears of the line that it lost
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.failed = !taken; !taken {
			q.dropped += lines
		}
	}()
	ctx := context.Background()
	if h := to.resolve(); h.Enabled(ctx, r.Level) {
		_ = h.Handle(ctx, r)
	}
	taken = true
}

// handler is the application's with attributes and groups, which are told to it when there is a
// line.
type handler struct {
	// Set once.
	queue  *queue
	parent *handler // nil for the root
	attrs  []slog.Attr
	group  string

	resolved slog.Handler // the loop's own
}

// resolve runs on the loop.
func (h *handler) resolve() slog.Handler {
	if h.resolved != nil {
		return h.resolved
	}
	to := h.queue.base
	if h.parent != nil {
		if to = h.parent.resolve(); h.group != "" {
			to = to.WithGroup(h.group)
		} else {
			to = to.WithAttrs(h.attrs)
		}
	}
	h.resolved = to
	return to
}

// Enabled implements [slog.Handler]. Only the application's handler knows, which is asked later.
func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements [slog.Handler].
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	h.queue.add(h, r)
	return nil
}

// WithAttrs implements [slog.Handler].
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	return &handler{queue: h.queue, parent: h, attrs: attrs}
}

// WithGroup implements [slog.Handler].
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &handler{queue: h.queue, parent: h, group: name}
}
