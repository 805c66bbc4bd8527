package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// report prints what the program does, and remembers whether all of it held. It is used by one
// goroutine.
type report struct {
	w        io.Writer
	terminal bool // a progress line may rewrite itself
	checks   int
	failed   []string

	drawn   time.Time // when progress was last printed
	partial bool      // the cursor is behind a progress line
}

// How often progress is printed: a line that rewrites itself, and plain ones.
const (
	redraw = 50 * time.Millisecond
	reline = 100 * time.Millisecond
)

func newReport(w io.Writer) *report {
	r := &report{w: w}
	if f, ok := w.(*os.File); ok {
		st, err := f.Stat()
		r.terminal = err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return r
}

func (r *report) print(mark, format string, a ...any) {
	if r.partial {
		fmt.Fprint(r.w, "\r\x1b[K")
		r.partial = false
	}
	fmt.Fprintf(r.w, mark+format+"\n", a...)
}

func (r *report) title(format string, a ...any) {
	r.print("\n", format, a...)
	r.drawn = time.Now()
}

func (r *report) line(format string, a ...any) { r.print("        ", format, a...) }

// check prints and reports whether something held.
func (r *report) check(ok bool, format string, a ...any) bool {
	r.checks++
	if ok {
		r.print("  ok    ", format, a...)
	} else {
		r.failed = append(r.failed, fmt.Sprintf(format, a...))
		r.print("  FAIL  ", format, a...)
	}
	return ok
}

// progress prints how far something has come, unless it did so a moment ago.
func (r *report) progress(format string, a ...any) {
	every := reline
	if r.terminal {
		every = redraw
	}
	if time.Since(r.drawn) < every {
		return
	}
	r.drawn = time.Now()
	if !r.terminal {
		r.line(format, a...)
		return
	}
	fmt.Fprintf(r.w, "\r\x1b[K        "+format, a...)
	r.partial = true
}

// end prints the verdict, and returns an error if anything did not hold.
func (r *report) end() error {
	if len(r.failed) == 0 {
		r.title("All %d checks held", r.checks)
		return nil
	}
	r.title("%d of %d checks failed:", len(r.failed), r.checks)
	for _, f := range r.failed {
		r.line("%s", f)
	}
	return errors.New("not everything held")
}

// took is the time since start, with three digits or so.
func took(start time.Time) time.Duration {
	d := time.Since(start)
	unit := time.Nanosecond
	for unit < time.Second && d >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit)
}

// size formats a number of bytes.
func size(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n) / (1 << 10)
	units := "KMGTPE"
	// What would be shown as 1024.0 belongs to the next unit.
	for v >= 1023.95 && len(units) > 1 {
		v /= 1 << 10
		units = units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}

// number formats a count with commas.
func number(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
