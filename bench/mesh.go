package main

import (
	"fmt"
	"math/rand/v2"
)

const (
	// meshPairCallers is how many goroutines of each server call each other one: the load of every
	// link is the same, however many there are.
	meshPairCallers = 4
	// meshSpreadCallers is how many there are in all in the second measurement, each calling
	// another pair of servers each time: the more links, the fewer calls share one write.
	meshSpreadCallers = 64
)

// mesh measures grids of many servers.
func (r *run) mesh() error {
	if !r.has("grid") {
		return nil
	}
	sizes := []int{2, 4, 8, 16, 32}
	pairs, spread := make(map[int][]float64), make(map[int][]float64)
	for round := range r.rounds {
		for _, n := range sizes {
			r.progress("mesh: round %d of %d: %d servers", round+1, r.rounds, n)
			p, s, err := r.meshRound(n)
			if err != nil {
				return fmt.Errorf("mesh of %d: %w", n, err)
			}
			pairs[n], spread[n] = append(pairs[n], p), append(spread[n], s)
		}
	}
	r.meshFigures("mesh", pairs, sizes)
	r.meshFigures("mesh-spread", spread, sizes)
	return nil
}

// meshFigures reports the rates, and what they are of that of 4 servers in the same round.
func (r *run) meshFigures(name string, rates map[int][]float64, sizes []int) {
	for _, n := range sizes {
		r.rounded(rates[n], "calls/s", "%s/%d/grid", name, n)
	}
	for _, n := range sizes {
		var of4 []float64
		for i, rate := range rates[n] {
			of4 = append(of4, rate/rates[4][i])
		}
		r.rounded(of4, "ratio", "%s/%d-of-4/grid", name, n)
	}
}

// meshRound returns the calls a second, with callers between all pairs and with a fixed number.
func (r *run) meshRound(n int) (pairs, spread float64, err error) {
	m, err := newGridMesh(n, config{})
	if err != nil {
		return 0, 0, err
	}
	defer m.close()
	payload := pattern(smallPayload)
	var ops []func() error
	for from := range n {
		for to := range n {
			for range meshPairCallers {
				if c := (gridCaller{m.conn(from, to)}); from != to {
					ops = append(ops, func() error { return c.echo(payload) })
				}
			}
		}
	}
	t, err := measure(ops, workload{}, r.round, pair{}.allocs)
	if err != nil {
		return 0, 0, err
	}
	pairs = 1e9 / t.ns
	ops = ops[:0]
	for i := range meshSpreadCallers {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		ops = append(ops, func() error {
			from := rng.IntN(n)
			to := (from + 1 + rng.IntN(n-1)) % n
			return gridCaller{m.conn(from, to)}.echo(payload)
		})
	}
	t, err = measure(ops, workload{}, r.round, pair{}.allocs)
	return pairs, 1e9 / t.ns, err
}
