package main

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// workload is what one shape asks of a caller.
type workload struct {
	callers int
	tls     bool
	// op makes one call through c. It is nil where c can't.
	op func(c caller) func() error
	// ops is how many operations one call counts for; 0 is 1.
	ops int
	// once says that a round is one call of each caller, however long it takes.
	once bool
}

// contest measures a workload with all peers that can do it, in turns. Each has only itself running
// when it is measured, since what others keep on the heap would make the garbage collector's work
// rarer, or their timers take time.
func (r *run) contest(shape, size string, w workload) error {
	type contender struct {
		result
		allocs, bytes []float64
	}
	peers := r.peers
	all := make(map[string]*contender)
	for round := range r.rounds {
		var can []peer // in the first round it is seen who can
		for i := range peers {
			if round > 0 {
				i = (i + round) % len(peers) // nobody always comes after the same one
			}
			p := peers[i]
			r.progress("%s/%s: round %d of %d: %s", shape, size, round+1, r.rounds, p.name)
			t, err := r.take(p, w)
			if errors.Is(err, errCannot) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s/%s: %s: %w", shape, size, p.name, err)
			}
			can = append(can, p)
			c := all[p.name]
			if c == nil {
				c = &contender{result: result{Shape: shape, Size: size, Peer: p.name}}
				all[p.name] = c
			}
			c.Rounds = append(c.Rounds, t.ns)
			c.allocs, c.bytes = append(c.allocs, t.allocs), append(c.bytes, t.bytes)
		}
		if round == 0 {
			peers = can
		}
	}
	for _, p := range peers {
		c := all[p.name]
		c.Median, c.Allocs, c.Bytes = median(c.Rounds), median(c.allocs), median(c.bytes)
		if g := all["grid"]; g != nil {
			var ratios []float64
			for i, ns := range c.Rounds {
				ratios = append(ratios, g.Rounds[i]/ns)
			}
			c.Ratio = median(ratios)
		}
		r.report.Results = append(r.report.Results, c.result)
	}
	return nil
}

// errCannot says that a peer has no way to do what a shape asks for.
var errCannot = errors.New("not to be had with this peer")

// take starts a peer, makes one measurement, and ends it.
func (r *run) take(p peer, w workload) (t taken, err error) {
	cfg := config{callers: w.callers}
	if w.tls {
		cfg.serverTLS, cfg.clientTLS = r.serverTLS.Clone(), r.clientTLS.Clone() // some add to theirs
	}
	pr, err := p.start(cfg)
	if err != nil {
		return taken{}, err
	}
	defer func() {
		if cerr := pr.close(); err == nil {
			err = cerr
		}
	}()
	var ops []func() error
	for i := range w.callers {
		c, err := pr.caller(i)
		if err != nil {
			return taken{}, err
		}
		op := w.op(c)
		if op == nil {
			return taken{}, errCannot
		}
		// Once, so that what can't be done is seen before anything is measured.
		if err := op(); err != nil {
			return taken{}, err
		}
		ops = append(ops, op)
	}
	return measure(ops, w, r.round)
}

// taken is one measurement, for each operation.
type taken struct{ ns, allocs, bytes float64 }

// measure lets all callers call for the time d, after a fifth of it to warm up.
func measure(ops []func() error, w workload, d time.Duration) (taken, error) {
	runtime.GC()
	if !w.once {
		if _, _, err := load(ops, w, d/5); err != nil {
			return taken{}, err
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, took, err := load(ops, w, d)
	runtime.ReadMemStats(&after)
	each := float64(n * max(w.ops, 1))
	return taken{
		ns:     float64(took) / each,
		allocs: float64(after.Mallocs-before.Mallocs) / each,
		bytes:  float64(after.TotalAlloc-before.TotalAlloc) / each,
	}, err
}

// load lets all callers call until d is over. It returns how many calls they made, and the time
// until the last one was done.
func load(ops []func() error, w workload, d time.Duration) (calls int, took time.Duration, err error) {
	var stop atomic.Bool
	if w.once {
		stop.Store(true)
	} else {
		defer time.AfterFunc(d, func() { stop.Store(true) }).Stop()
	}
	counts, errs := make([]int, len(ops)), make([]error, len(ops))
	var wg sync.WaitGroup
	start := time.Now()
	for i, op := range ops {
		wg.Go(func() {
			n := 0
			for {
				if errs[i] = op(); errs[i] != nil {
					return
				}
				n++
				if stop.Load() {
					break
				}
			}
			counts[i] = n
		})
	}
	wg.Wait()
	took = time.Since(start)
	for _, n := range counts {
		calls += n
	}
	return calls, took, errors.Join(errs...)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// percentile returns the value below which the share q of v lies.
func percentile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[min(int(q*float64(len(v))), len(v)-1)]
}
