package main

import (
	"errors"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	bulkPayload = 16 << 20
	mixedEvery  = time.Millisecond
)

// mixed measures how long a small request takes, one every millisecond, while large ones run back
// to back.
func (r *run) mixed() error {
	for _, n := range r.processes {
		if err := r.mixedIn(n); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) mixedIn(processes int) error {
	name := nameIn("mixed", processes)
	type measured struct{ p50, p99, bulk, calls []float64 }
	all := make(map[string]*measured)
	for round := range r.rounds {
		for i := range r.peers {
			p := r.peers[(i+round)%len(r.peers)]
			r.progress("%s: round %d of %d: %s", name, round+1, r.rounds, p.name)
			ms, rate, err := mixedRound(p, processes, 6*r.round)
			if errors.Is(err, errCannot) {
				continue
			}
			if err != nil {
				if err := r.failed(name, p.name, err); err != nil {
					return err
				}
				continue
			}
			m := all[p.name]
			if m == nil {
				m = new(measured)
				all[p.name] = m
			}
			m.p50 = append(m.p50, percentile(ms, 0.5))
			m.p99 = append(m.p99, percentile(ms, 0.99))
			m.calls = append(m.calls, ms...)
			m.bulk = append(m.bulk, rate)
		}
	}
	for _, p := range r.peers {
		if m := all[p.name]; m != nil {
			r.rounded(m.p50, "ms", "%s/p50/%s", name, p.name)
			r.rounded(m.p99, "ms", "%s/p99/%s", name, p.name)
			r.figure(percentile(m.calls, 0.999), "ms", "%s/p99.9/%s", name, p.name)
			r.rounded(m.bulk, "MB/s", "%s/bulk/%s", name, p.name)
		}
	}
	return nil
}

// mixedRound returns the latencies of the small requests in ms, and the rate at which the large
// ones went.
func mixedRound(p peer, processes int, d time.Duration) (ms []float64, rate float64, err error) {
	pr, err := p.startIn(processes, config{callers: 2})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, pr.close()) }()
	small, err := pr.caller(0)
	if err != nil {
		return nil, 0, err
	}
	large, err := pr.caller(1)
	if err != nil {
		return nil, 0, err
	}
	up, ok := large.(uploader)
	if !ok {
		return nil, 0, errCannot
	}
	payload, bulk := pattern(smallPayload), pattern(bulkPayload)
	for range 2 {
		if err := errors.Join(up.upload(bulk), small.echo(payload)); err != nil {
			return nil, 0, err
		}
	}
	runtime.GC()

	var stop atomic.Bool
	uploaded := make(chan error, 1)
	var count int
	start := time.Now()
	go func() {
		for !stop.Load() {
			if err := up.upload(bulk); err != nil {
				uploaded <- err
				return
			}
			count++
		}
		uploaded <- nil
	}()
	for due := start; time.Since(start) < d; due = due.Add(mixedEvery) {
		begin := due // where the last one took too long, waiting for it counts
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
			begin = time.Now() // a timer that is late is not the peer's fault
		}
		if err = small.echo(payload); err != nil {
			break
		}
		ms = append(ms, float64(time.Since(begin))/1e6)
	}
	stop.Store(true)
	if uerr := <-uploaded; err == nil {
		err = uerr
	}
	return ms, float64(count) * bulkPayload / 1e6 / time.Since(start).Seconds(), err
}
