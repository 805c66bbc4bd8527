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
	// first, if set, is called once before anything is measured, in place of op.
	first func(c caller) func() error
	// extra are peers of this workload alone.
	extra []peer
}

// contest measures a workload with all peers that can do it, in turns. Each has only itself running
// when it is measured, since what others keep on the heap would make the garbage collector's work
// rarer, or their timers take time.
func (r *run) contest(shape, size string, w workload) error {
	for _, n := range r.processes {
		if err := r.contestIn(n, nameIn(shape, n), size, w); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) contestIn(processes int, shape, size string, w workload) error {
	type contender struct {
		result
		allocs, bytes []float64
	}
	peers := slices.Concat(r.peers, w.extra)
	all := make(map[string]*contender)
	for round := range r.rounds {
		var can []peer // still
		for i := range peers {
			if round > 0 {
				i = (i + round) % len(peers) // nobody always comes after the same one
			}
			p := peers[i]
			r.progress("%s/%s: round %d of %d: %s", shape, size, round+1, r.rounds, p.name)
			t, err := r.take(p, processes, w)
			if errors.Is(err, errCannot) {
				continue
			}
			if err != nil {
				if err := r.failed(shape+"/"+size, p.name, err); err != nil {
					return err
				}
				continue
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
		if len(can) < len(peers) {
			peers = slices.DeleteFunc(peers, func(p peer) bool {
				return !slices.ContainsFunc(can, func(q peer) bool { return q.name == p.name })
			})
		}
	}
	for _, p := range peers {
		c := all[p.name]
		c.Median, c.Allocs, c.Bytes = median(c.Rounds), median(c.allocs), median(c.bytes)
		if g := all["grid"]; g != nil {
			c.Ratio = median(ratios(g.Rounds, c.Rounds))
		}
		r.report.Results = append(r.report.Results, c.result)
	}
	return nil
}

// ratios are those of the values of each round.
func ratios(a, b []float64) (all []float64) {
	for i := range min(len(a), len(b)) {
		all = append(all, a[i]/b[i])
	}
	return all
}

// failed notes that a peer could not be measured. Without grid there is nothing to compare with.
func (r *run) failed(what, peer string, err error) error {
	err = fmt.Errorf("%s: %s: %w", what, peer, err)
	if peer == "grid" {
		return err
	}
	r.fail(err)
	return nil
}

// errCannot says that a peer has no way to do what a shape asks for.
var errCannot = errors.New("not to be had with this peer")

// take starts a peer, makes one measurement, and ends it.
func (r *run) take(p peer, processes int, w workload) (t taken, err error) {
	cfg := config{callers: w.callers}
	if w.tls {
		if err := r.identity.addTo(&cfg); err != nil {
			return taken{}, err
		}
	}
	pr, err := p.startIn(processes, cfg)
	if err != nil {
		return taken{}, err
	}
	defer func() {
		if cerr := pr.close(); err == nil {
			err = cerr
		}
	}()
	callers := w.callers
	if p.single {
		callers = 1
	}
	var ops []func() error
	for i := range callers {
		c, err := pr.caller(i)
		if err != nil {
			return taken{}, err
		}
		op := w.op(c)
		if op == nil {
			return taken{}, errCannot
		}
		// Once, so that what can't be done is seen before anything is measured.
		first := op
		if w.first != nil {
			first = w.first(c)
		}
		if err := first(); err != nil {
			return taken{}, err
		}
		ops = append(ops, op)
	}
	return measure(ops, w, r.round, pr.allocs)
}

// taken is one measurement, for each operation.
type taken struct{ ns, allocs, bytes float64 }

// measure lets all callers call for the time d, after a fifth of it to warm up.
func measure(ops []func() error, w workload, d time.Duration, allocated func() (allocs, error)) (taken, error) {
	runtime.GC()
	if !w.once {
		if _, _, err := load(ops, w, d/5); err != nil {
			return taken{}, err
		}
	}
	before, err := allocated()
	if err != nil {
		return taken{}, err
	}
	n, took, err := load(ops, w, d)
	if err != nil {
		return taken{}, err
	}
	after, err := allocated()
	each := float64(n * max(w.ops, 1))
	return taken{
		ns:     float64(took) / each,
		allocs: float64(after.Objects-before.Objects) / each,
		bytes:  float64(after.Bytes-before.Bytes) / each,
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
