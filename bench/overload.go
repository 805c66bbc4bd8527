package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
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
	processes int
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
	for _, n := range r.processes {
		if err := r.overloadIn(n); err != nil {
			return fmt.Errorf("%s: %w", nameIn("overload", n), err)
		}
	}
	return nil
}

func (r *run) overloadIn(processes int) error {
	name := nameIn("overload", processes)
	var all []*overloaded
	for _, p := range r.overloadPeers() {
		all = append(all, &overloaded{peer: p, processes: processes, loads: make(map[float64]span)})
	}
	// each measures something with all in turn, beginning with the nth.
	each := func(n int, what string, measure func(o *overloaded) error) error {
		var still []*overloaded
		for i := range all {
			o := all[(i+n)%len(all)]
			r.progress("%s: %s: %s", name, what, o.name)
			if err := measure(o); err == nil {
				still = append(still, o)
			} else if err := r.failed(name+"/"+what, o.name, err); err != nil {
				return err
			}
		}
		all = slices.DeleteFunc(all, func(o *overloaded) bool { return !slices.Contains(still, o) })
		return nil
	}
	times, spins := r.overloadTimes(), spinsFor(overloadCost)
	for round := range 3 {
		err := each(round, "capacity", func(o *overloaded) error {
			rate, err := o.closedLoop(spins, times.measured/6)
			o.capacity = max(o.capacity, rate) // what else the machine does only takes away
			return err
		})
		if err != nil {
			return err
		}
	}
	for i, load := range overloadLoads {
		err := each(i, fmt.Sprint(load), func(o *overloaded) error { return o.offer(load, spins, times) })
		if err != nil {
			return err
		}
	}
	for _, o := range all {
		if o.name != "grid" || processes > 1 {
			continue // once is enough for memory that grows
		}
		r.progress("%s: %g for %v: %s", name, overloadLong, times.long, o.name)
		if err := o.endure(spins, times); err != nil {
			return fmt.Errorf("%v: %s: %w", times.long, o.name, err)
		}
	}
	for _, o := range all {
		o.figures(r, name)
	}
	return nil
}

func overloadLimit() int { return overloadQueue * runtime.GOMAXPROCS(0) }

// with calls f with a new pair and a call through it.
func (o *overloaded) with(spins int, f func(pr pair, call func(context.Context) error) error) (err error) {
	pr, err := o.startIn(o.processes, config{callers: 1, limit: overloadLimit(), spins: spins, work: func() { spin(spins) }})
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
	return f(pr, func(ctx context.Context) error { return c.(worker).work(ctx, payload) })
}

// closedLoop returns the calls a second of half as many callers as handlers may run: all cores are
// busy, and nothing is refused.
func (o *overloaded) closedLoop(spins int, d time.Duration) (rate float64, err error) {
	err = o.with(spins, func(pr pair, call func(context.Context) error) error {
		ops := make([]func() error, overloadLimit()/2)
		for i := range ops {
			ops[i] = func() error { return call(context.Background()) }
		}
		t, err := measure(ops, workload{}, d, pr.allocs)
		rate = 1e9 / t.ns
		return err
	})
	return rate, err
}

func (o *overloaded) openLoop(spins int, deadline time.Duration, parts ...arrivals) (t *tally, err error) {
	err = o.with(spins, func(pr pair, call func(context.Context) error) (err error) {
		t, err = openLoop{call, deadline, overloadBound, pr.footprint}.run(parts...)
		return err
	})
	if t != nil {
		o.overdue = max(o.overdue, time.Duration(t.overdue.Load()))
		o.lag = max(o.lag, time.Duration(t.lag.Load()))
	}
	return t, err
}

// offer measures one load, and how the peer recovers from the highest.
func (o *overloaded) offer(load float64, spins int, times overloadTimes) error {
	end := times.settle + times.measured
	parts := []arrivals{{load * o.capacity, end}}
	if load == overloadLoads[len(overloadLoads)-1] {
		parts = append(parts, arrivals{overloadLoads[0] * o.capacity, times.after})
	}
	t, err := o.openLoop(spins, times.deadline, parts...)
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
func (o *overloaded) endure(spins int, times overloadTimes) error {
	end := times.settle + times.long
	t, err := o.openLoop(spins, times.deadline,
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
func (o *overloaded) figures(r *run, group string) {
	figure := func(v float64, unit, name string) { r.figure(v, unit, "%s/%s/%s", group, name, o.name) }
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
		figure(s.peak.Goroutines, "goroutines", name+"-goroutines")
		figure(s.peak.Used, "bytes", name+"-memory")
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

// spinsFor is how many spins take a core for the time d when nothing else runs on it.
func spinsFor(d time.Duration) int {
	const probe = 100_000
	best := time.Duration(1 << 62)
	for range 50 {
		start := time.Now()
		spin(probe)
		best = min(best, time.Since(start))
	}
	return int(float64(probe) * float64(d) / float64(best))
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
