package main

import (
	"fmt"
	"math/rand/v2"
)

// meshCallers is how many goroutines of each server call the others.
const meshCallers = 16

// mesh measures grids of many servers, whose callers call another server each
// time.
func (r *run) mesh() error {
	if !r.has("grid") {
		return nil
	}
	rates := make(map[int][]float64)
	sizes := []int{2, 4, 8, 16, 32}
	for round := range r.rounds {
		for _, n := range sizes {
			r.progress("mesh: round %d of %d: %d servers", round+1, r.rounds, n)
			rate, err := r.meshRound(n)
			if err != nil {
				return fmt.Errorf("mesh of %d: %w", n, err)
			}
			rates[n] = append(rates[n], rate)
		}
	}
	for _, n := range sizes {
		r.figure(median(rates[n]), "calls/s", "mesh/%d/grid", n)
	}
	for _, n := range sizes {
		var of4 []float64
		for i, rate := range rates[n] {
			of4 = append(of4, rate/rates[4][i])
		}
		r.figure(median(of4), "ratio", "mesh/%d-of-4/grid", n)
	}
	return nil
}

func (r *run) meshRound(n int) (rate float64, err error) {
	m, err := newGridMesh(n, config{})
	if err != nil {
		return 0, err
	}
	defer m.close()
	var ops []func() error
	for from := range n {
		for range meshCallers {
			rng := rand.New(rand.NewPCG(uint64(len(ops)), 1))
			payload := pattern(smallPayload)
			ops = append(ops, func() error {
				to := (from + 1 + rng.IntN(n-1)) % n
				return gridCaller{m.conn(from, to)}.echo(payload)
			})
		}
	}
	t, err := measure(ops, workload{}, r.round)
	return 1e9 / t.ns, err
}
