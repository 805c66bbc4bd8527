package main

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

const (
	// overloadCost is the CPU time that a handler takes: what is overloaded is the machine, and not
	// the way to it.
	overloadCost = 200 * time.Microsecond
	// overloadQueue is how many handlers may run for each core. Together they are through in 64
	// times the cost, 13 ms: far less than the deadline of a call, so that what is taken on is
	// answered in time, and more than the time in which the reader of a busy server comes to its
	// turn, so that the cores do not run dry.
	overloadQueue = 64
	// overloadBound is how many calls the clients have under way at most: more than arrive within a
	// deadline at twice the capacity of two cores.
	overloadBound = 20_000
	// overloadLong is the load that lasts, and is followed by a load of half the capacity.
	overloadLong = 2.0
)

// overloadLoads are multiples of the capacity.
var overloadLoads = []float64{0.5, 1, 2, 4}

// overloadTimes are how long the parts of the measurement are.
type overloadTimes struct {
	deadline time.Duration // of a call
	// settle is how long a load lasts before it is measured: what came before has ended, and those
	// that are too late are so by then.
	settle, measured time.Duration
	after            time.Duration // the overload
	long             time.Duration
}

func (r *run) overloadTimes() overloadTimes {
	if r.quick {
		return overloadTimes{200 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond, r.long}
	}
	return overloadTimes{time.Second, time.Second, 2 * time.Second, 2500 * time.Millisecond, r.long}
}

// overloaded is what was measured with one peer.
type overloaded struct {
	peer
	capacity  float64          // calls a second of a closed loop
	loads     map[float64]span // by the load
	normal    *tally           // that of the lowest load
	recovery  time.Duration
	overdue   time.Duration
	lag       time.Duration
	longSpan  span // of the whole long overload
	growth    float64
	longAfter time.Duration // until it had recovered
}

// overload measures what becomes of calls of which more arrive than can be answered.
func (r *run) overload() error {
	var all []*overloaded
	for _, p := range r.overloadPeers() {
		all = append(all, &overloaded{peer: p, loads: make(map[float64]span)})
	}
	times, work := r.overloadTimes(), spinner(overloadCost)
	for round := range 3 {
		for i := range all {
			o := all[(i+round)%len(all)]
			r.progress("overload: capacity: round %d: %s", round+1, o.name)
			rate, err := o.closedLoop(work, times.measured/6)
			if err != nil {
				return fmt.Errorf("overload: %s: %w", o.name, err)
			}
			o.capacity = max(o.capacity, rate) // what else the machine does only takes away
		}
	}
	for i, load := range overloadLoads {
		for j := range all {
			o := all[(i+j)%len(all)]
			r.progress("overload: %g: %s", load, o.name)
			if err := o.offer(load, work, times); err != nil {
				return fmt.Errorf("overload: %g: %s: %w", load, o.name, err)
			}
		}
	}
	for _, o := range all {
		if o.name != "grid" {
			continue
		}
		r.progress("overload: %g for %v: %s", overloadLong, times.long, o.name)
		if err := o.endure(work, times); err != nil {
			return fmt.Errorf("overload: %v: %s: %w", times.long, o.name, err)
		}
	}
	for _, o := range all {
		o.figures(r)
	}
	return nil
}

func overloadLimit() int { return overloadQueue * runtime.GOMAXPROCS(0) }

// with calls f with a new pair and a call through it.
func (o *overloaded) with(work func(), f func(call func(context.Context) error) error) (err error) {
	limit := overloadLimit()
	pr, err := o.start(config{callers: 1, limit: limit, work: work})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := pr.close(); err == nil {
			err = cerr
		}
	}()
	c, err := pr.caller(0)
	if err != nil {
		return err
	}
	payload := pattern(smallPayload)
	runtime.GC()
	return f(func(ctx context.Context) error { return c.(worker).work(ctx, payload) })
}

// closedLoop returns the calls a second of half as many callers as handlers may run: all cores are
// busy, and nothing is refused.
func (o *overloaded) closedLoop(work func(), d time.Duration) (rate float64, err error) {
	err = o.with(work, func(call func(context.Context) error) error {
		ops := make([]func() error, overloadLimit()/2)
		for i := range ops {
			ops[i] = func() error { return call(context.Background()) }
		}
		t, err := measure(ops, workload{}, d)
		rate = 1e9 / t.ns
		return err
	})
	return rate, err
}

func (o *overloaded) openLoop(work func(), deadline time.Duration, parts ...arrivals) (t *tally, err error) {
	err = o.with(work, func(call func(context.Context) error) (err error) {
		t, err = openLoop{call, deadline, overloadBound}.run(parts...)
		return err
	})
	if t != nil {
		o.overdue = max(o.overdue, time.Duration(t.overdue.Load()))
		o.lag = max(o.lag, time.Duration(t.lag.Load()))
	}
	return t, err
}

// offer measures one load, and how the peer recovers from the highest.
func (o *overloaded) offer(load float64, work func(), times overloadTimes) error {
	end := times.settle + times.measured
	parts := []arrivals{{load * o.capacity, end}}
	if load == overloadLoads[len(overloadLoads)-1] {
		parts = append(parts, arrivals{overloadLoads[0] * o.capacity, times.after})
	}
	t, err := o.openLoop(work, times.deadline, parts...)
	if err != nil {
		return err
	}
	o.loads[load] = t.between(times.settle, end)
	if o.normal == nil {
		o.normal = t
	}
	if len(parts) > 1 {
		o.recovery = recovery(o.normal, times.settle, end, t, end)
	}
	return nil
}

// endure measures an overload that lasts.
func (o *overloaded) endure(work func(), times overloadTimes) error {
	end := times.settle + times.long
	t, err := o.openLoop(work, times.deadline,
		arrivals{overloadLong * o.capacity, end}, arrivals{overloadLoads[0] * o.capacity, times.after})
	if err != nil {
		return err
	}
	o.longSpan = t.between(times.settle, end)
	// From the middle to the end, a tenth of the time at each.
	tenth := max(times.long/10, 2*tallySlice)
	middle, last := t.between(end-times.long/2-tenth, end-times.long/2), t.between(end-tenth, end)
	if middle.live > 0 {
		o.growth = last.live / middle.live
	}
	o.longAfter = recovery(o.normal, times.settle, times.settle+times.measured, t, end)
	return nil
}

// recovery is how long it takes after an overload until half a second is as good as under normal
// load, of which every slice between two times is: all calls are answered in time, and the p99 is
// not above.
func recovery(normal *tally, from, to time.Duration, t *tally, overloadEnd time.Duration) time.Duration {
	share, p99 := 1.0, 0.0
	for at := from; at+tallySlice <= to; at += tallySlice {
		s := normal.between(at, at+tallySlice)
		share, p99 = min(share, s.share()), max(p99, s.percentile(0.99))
	}
	const enough = 5
	good := 0
	at := overloadEnd
	for ; at+tallySlice <= time.Duration(len(t.slices)-1)*tallySlice && good < enough; at += tallySlice {
		if s := t.between(at, at+tallySlice); s.share() >= share && s.percentile(0.99) <= p99 {
			good++
		} else {
			good = 0
		}
	}
	return at - overloadEnd - time.Duration(good)*tallySlice
}

// figures reports what was measured.
func (o *overloaded) figures(r *run) {
	figure := func(v float64, unit, name string) { r.figure(v, unit, "overload/%s/%s", name, o.name) }
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	span := func(name string, s span) {
		for _, f := range []struct {
			name string
			o    outcome
		}{{"accepted", accepted}, {"refused", refused}, {"late", late}, {"shed", shed}} {
			figure(s.rate(f.o), "calls/s", name+"-"+f.name)
		}
		figure(s.percentile(0.5), "ms", name+"-p50")
		figure(s.percentile(0.99), "ms", name+"-p99")
		figure(s.cores, "cores", name+"-cpu")
		figure(s.peak.goroutines, "goroutines", name+"-goroutines")
		figure(s.peak.used, "bytes", name+"-memory")
	}
	peak := o.capacity
	figure(o.capacity, "calls/s", "capacity")
	for i, name := range overloadNames() {
		s := o.loads[overloadLoads[i]]
		peak = max(peak, s.rate(accepted))
		span(name, s)
	}
	most := o.loads[overloadLoads[len(overloadLoads)-1]]
	figure(most.rate(accepted)/peak, "ratio", "of-peak")
	figure(ms(o.recovery), "ms", "recovery")
	figure(ms(max(o.overdue, 0)), "ms", "overdue")
	figure(ms(o.lag), "ms", "lag")
	if o.longSpan.seconds > 0 {
		figure(o.longSpan.seconds, "s", "long-time")
		span("long", o.longSpan)
		figure(o.growth, "ratio", "long-growth")
		figure(ms(o.longAfter), "ms", "long-recovery")
	}
}

// spinner returns what takes a core for the time d when nothing else runs on it.
func spinner(d time.Duration) func() {
	const probe = 100_000
	best := time.Duration(1 << 62)
	for range 50 {
		start := time.Now()
		spin(probe)
		best = min(best, time.Since(start))
	}
	n := int(float64(probe) * float64(d) / float64(best))
	return func() { spin(n) }
}

// spin computes what can't be known before.
func spin(n int) {
	x := uint64(n) | 1
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	runtime.KeepAlive(x)
}
