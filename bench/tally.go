package main

import (
	"math/bits"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// outcome is how a call of an open loop has ended.
type outcome int

const (
	accepted outcome = iota // answered well, and in time
	refused                 // by a limit of the server's
	late                    // not answered by its deadline
	shed                    // never made: too many were under way
	failed                  // for any other reason
	outcomes
)

// tallySlice is how finely a tally tells the time.
const tallySlice = 100 * time.Millisecond

// tally counts how calls end, by the time at which they do. Its size does not depend on their
// number, so that it is not what makes the heap grow.
type tally struct {
	start   time.Time
	slices  []slice
	overdue atomic.Int64 // ns by which a call has missed its deadline, at most
	lag     atomic.Int64 // ns by which the generator was behind, at most
}

// slice is the calls that ended within a tallySlice, and what the processes took at its end.
type slice struct {
	ended     [outcomes]atomic.Uint32
	latencies [latencyBuckets]atomic.Uint32 // of those that were accepted
	use       footprint
}

// footprint is what one or more processes take.
type footprint struct {
	Goroutines float64
	Used       float64 // bytes of heap and stacks, with what is garbage by now
	Live       float64 // bytes of heap at the last garbage collection, and of stacks
	CPU        time.Duration
	at         time.Duration // since the start of a tally
}

func takeFootprint() footprint {
	m := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(m)
	stacks := float64(m[2].Value.Uint64())
	return footprint{
		Goroutines: float64(m[0].Value.Uint64()),
		Used:       float64(m[1].Value.Uint64()) + stacks,
		Live:       float64(m[3].Value.Uint64()) + stacks,
		CPU:        cpuTime(),
	}
}

func (f footprint) plus(g footprint) footprint {
	f.Goroutines += g.Goroutines
	f.Used += g.Used
	f.Live += g.Live
	f.CPU += g.CPU
	return f
}

// newTally makes one for a time d from now on. What comes later counts as the last.
func newTally(d time.Duration) *tally {
	return &tally{slices: make([]slice, d/tallySlice+1), start: time.Now()}
}

func (t *tally) at(when time.Duration) *slice {
	return &t.slices[min(int(when/tallySlice), len(t.slices)-1)]
}

// end counts a call that ended at a time after the start, with its latency.
func (t *tally) end(o outcome, when, latency time.Duration) {
	s := t.at(when)
	s.ended[o].Add(1)
	if o == accepted {
		s.latencies[latencyBucket(latency)].Add(1)
	}
}

// sample notes what take says, until stop is closed.
func (t *tally) sample(take func() (footprint, error), stop <-chan struct{}) error {
	tick := time.NewTicker(tallySlice)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
		use, err := take()
		if err != nil {
			return err
		}
		use.at = time.Since(t.start)
		t.at(use.at - tallySlice/2).use = use
	}
}

// raise makes v at least to.
func raise(v *atomic.Int64, to time.Duration) {
	for old := v.Load(); int64(to) > old && !v.CompareAndSwap(old, int64(to)); old = v.Load() {
	}
}

// span is a part of a tally, in sums.
type span struct {
	ended     [outcomes]float64
	latencies [latencyBuckets]float64
	peak      footprint
	live      float64 // mean
	seconds   float64
	cores     float64 // in use: fewer than there are if others have them
}

// between sums up the whole slices between two times.
func (t *tally) between(from, to time.Duration) (s span) {
	i := int((from + tallySlice - 1) / tallySlice)
	j := min(int(to/tallySlice), len(t.slices))
	if i >= j {
		return s
	}
	var first, last footprint
	samples := 0.0
	for k := i; k < j; k++ {
		v := &t.slices[k]
		for o := range v.ended {
			s.ended[o] += float64(v.ended[o].Load())
		}
		for b := range v.latencies {
			s.latencies[b] += float64(v.latencies[b].Load())
		}
		if v.use.CPU == 0 {
			continue // the sampler did not come to its turn
		}
		s.peak.Used, s.peak.Live = max(s.peak.Used, v.use.Used), max(s.peak.Live, v.use.Live)
		s.peak.Goroutines = max(s.peak.Goroutines, v.use.Goroutines)
		s.live += v.use.Live
		if samples++; samples == 1 {
			first = v.use
		}
		last = v.use
	}
	s.live /= max(samples, 1)
	s.seconds = float64(j-i) * tallySlice.Seconds()
	if d := last.at - first.at; d > 0 {
		s.cores = float64(last.CPU-first.CPU) / float64(d)
	}
	return s
}

func (s *span) rate(o outcome) float64 {
	if s.seconds == 0 {
		return 0
	}
	return s.ended[o] / s.seconds
}

// share is what was accepted of all that ended.
func (s *span) share() float64 {
	all := 0.0
	for _, n := range s.ended {
		all += n
	}
	if all == 0 {
		return 0
	}
	return s.ended[accepted] / all
}

// percentile is the latency in ms below which the share q of the accepted lie.
func (s *span) percentile(q float64) float64 {
	left := q * s.ended[accepted]
	for b, n := range s.latencies {
		if left -= n; left < 0 {
			return float64(latencyOf(b)) / 1e6
		}
	}
	return 0
}

// A latency is counted in a bucket that is exact to a µs below 64 µs, and to a thirty-second above.
const (
	latencyExact   = 64
	latencySteps   = latencyExact / 2
	latencyBuckets = 20 * latencySteps // up to 16 s
)

func latencyBucket(d time.Duration) int {
	v := uint64(max(d, 0) / time.Microsecond)
	if v < latencyExact {
		return int(v)
	}
	shift := bits.Len64(v / latencyExact)
	return min(shift*latencySteps+int(v>>shift), latencyBuckets-1)
}

// latencyOf is the middle of a bucket.
func latencyOf(bucket int) time.Duration {
	if bucket < latencyExact {
		return time.Duration(bucket) * time.Microsecond
	}
	shift := bucket/latencySteps - 1
	low := bucket - shift*latencySteps
	return time.Duration((2*low+1)<<shift) * time.Microsecond / 2
}
