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

// contender is a peer in one shape, ready to be measured.
type contender struct {
	peer peer
	pair pair
	ops  []func() error // one for each caller
	result
}

// contest measures a workload with all peers that can do it, interleaved.
func (r *run) contest(shape, size string, w workload) error {
	var all []*contender
	defer func() {
		for _, c := range all {
			c.pair.close()
		}
	}()
	for _, p := range r.peers {
		c, err := r.contender(p, shape, size, w)
		if err != nil {
			return fmt.Errorf("%s/%s: %s: %w", shape, size, p.name, err)
		}
		if c != nil {
			all = append(all, c)
		}
	}
	var allocs, bytes [][]float64 // by peer
	for range all {
		allocs, bytes = append(allocs, nil), append(bytes, nil)
	}
	for round := range r.rounds {
		for i := range all {
			// Nobody always comes after the same one.
			i = (i + round) % len(all)
			c := all[i]
			r.progress("%s/%s: round %d of %d: %s", shape, size, round+1, r.rounds, c.peer.name)
			t, err := measure(c.ops, w, r.round)
			if err != nil {
				return fmt.Errorf("%s/%s: %s: %w", shape, size, c.peer.name, err)
			}
			c.Rounds = append(c.Rounds, t.ns)
			allocs[i], bytes[i] = append(allocs[i], t.allocs), append(bytes[i], t.bytes)
		}
	}
	for i, c := range all {
		c.Median = median(c.Rounds)
		c.Allocs, c.Bytes = median(allocs[i]), median(bytes[i])
		if all[0].peer.name == "grid" {
			var ratios []float64
			for j, ns := range c.Rounds {
				ratios = append(ratios, all[0].Rounds[j]/ns)
			}
			c.Ratio = median(ratios)
		}
		r.report.Results = append(r.report.Results, c.result)
	}
	return nil
}

// errCannot says that a peer has no way to do what a shape asks for.
var errCannot = errors.New("not to be had with this peer")

// contender starts a peer for a workload. It returns nil if that can't do it.
func (r *run) contender(p peer, shape, size string, w workload) (*contender, error) {
	cfg := config{callers: w.callers}
	if w.tls {
		cfg.serverTLS, cfg.clientTLS = r.serverTLS.Clone(), r.clientTLS.Clone() // some add to theirs
	}
	pr, err := p.start(cfg)
	if errors.Is(err, errCannot) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &contender{peer: p, pair: pr, result: result{Shape: shape, Size: size, Peer: p.name}}
	for i := range w.callers {
		caller, err := pr.caller(i)
		if err != nil {
			pr.close()
			return nil, err
		}
		op := w.op(caller)
		if op == nil {
			pr.close()
			return nil, nil
		}
		// Once, so that what can't be done is seen before anything is measured.
		if err := op(); err != nil {
			pr.close()
			if errors.Is(err, errCannot) {
				return nil, nil
			}
			return nil, err
		}
		c.ops = append(c.ops, op)
	}
	return c, nil
}

// taken is one measurement, for each operation.
type taken struct{ ns, allocs, bytes float64 }

// measure lets all callers call for the time d, after a tenth of it to warm up.
func measure(ops []func() error, w workload, d time.Duration) (taken, error) {
	runtime.GC()
	if !w.once {
		if _, _, err := load(ops, w, d/10); err != nil {
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

// load lets all callers call until d is over. It returns how many calls they
// made, and the time until the last one was done.
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
