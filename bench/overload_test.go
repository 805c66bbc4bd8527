package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func overloadTestRun() *run {
	return &run{peers: []peer{gridPeer(), grpcPeer()}, quick: true, long: 300 * time.Millisecond, processes: []int{1, 2}}
}

// eachOverloadPeer runs test with a call of each, whose handler does work.
func eachOverloadPeer(t *testing.T, limit int, work func(), test func(t *testing.T, name string, call func(context.Context) error)) {
	for _, p := range overloadTestRun().overloadPeers() {
		t.Run(p.name, func(t *testing.T) {
			ignored := goleak.IgnoreCurrent()
			pr, err := p.start(config{callers: 1, limit: limit, work: work})
			require.NoError(t, err)
			defer func() {
				assert.NoError(t, pr.close())
				goleak.VerifyNone(t, ignored)
			}()
			c, err := pr.caller(0)
			require.NoError(t, err)
			test(t, p.name, func(ctx context.Context) error { return c.(worker).work(ctx, pattern(smallPayload)) })
		})
	}
}

func TestOverloadPeers_Work(t *testing.T) {
	var worked atomic.Int64
	eachOverloadPeer(t, 4, func() { worked.Add(1) }, func(t *testing.T, _ string, call func(context.Context) error) {
		before := worked.Load()
		for range 20 { // a limit that is not given back would be reached
			require.NoError(t, call(t.Context()))
		}
		assert.EqualValues(t, 20, worked.Load()-before)
	})
}

// TestOverloadPeers_Refuse has more calls than the limit under way. Those with a limit of the
// server's refuse at once, the others let the call wait.
func TestOverloadPeers_Refuse(t *testing.T) {
	const limit = 2
	var hold atomic.Bool
	started := make(chan struct{}, 10)
	release := make(chan struct{})
	work := func() {
		if hold.Load() {
			started <- struct{}{}
			<-release
		}
	}
	eachOverloadPeer(t, limit, work, func(t *testing.T, name string, call func(context.Context) error) {
		require.NoError(t, call(t.Context()))
		hold.Store(true)
		held := make(chan error, limit)
		for range limit {
			go func() { held <- call(context.Background()) }()
			<-started
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := call(ctx)
		hold.Store(false)
		if name == "grid" || name == "grpc-tap" {
			assert.ErrorIs(t, err, errRefused)
		} else {
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		}
		for len(started) > 0 { // without a limit that call runs too
			<-started
			release <- struct{}{}
		}
		for range limit {
			release <- struct{}{}
			require.NoError(t, <-held)
		}
		assert.NoError(t, call(t.Context()), "afterwards")
	})
}

func TestOpenLoop_CountsEveryEnd(t *testing.T) {
	var n atomic.Int64
	l := openLoop{footprint: pair{}.footprint, deadline: 20 * time.Millisecond, bound: 1000, call: func(ctx context.Context) error {
		switch n.Add(1) % 4 {
		case 0:
			return fmt.Errorf("told: %w", errRefused)
		case 1:
			<-ctx.Done()
			return ctx.Err()
		case 2:
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	}}
	tally, err := l.run(arrivals{2000, 300 * time.Millisecond}, arrivals{1000, 300 * time.Millisecond})
	require.NoError(t, err)
	all := tally.between(0, 700*time.Millisecond)
	assert.InDelta(t, 900, float64(n.Load())+all.ended[shed], 150)
	quarter := float64(n.Load()) / 4
	assert.InDelta(t, quarter, all.ended[refused], 1)
	assert.GreaterOrEqual(t, all.ended[late], quarter-1)
	assert.LessOrEqual(t, all.ended[accepted], 2*quarter+1)
	assert.Zero(t, all.ended[failed])
	assert.Greater(t, all.peak.Goroutines, 1.0)
	assert.Greater(t, all.live, 0.0)
}

// TestOpenLoop_Sheds has no room for a second call.
func TestOpenLoop_Sheds(t *testing.T) {
	l := openLoop{footprint: pair{}.footprint, deadline: time.Second, bound: 1, call: func(context.Context) error {
		time.Sleep(50 * time.Millisecond)
		return nil
	}}
	tally, err := l.run(arrivals{2000, 200 * time.Millisecond})
	require.NoError(t, err)
	all := tally.between(0, 300*time.Millisecond)
	assert.Greater(t, all.ended[accepted], 0.0)
	assert.LessOrEqual(t, all.ended[accepted], 4.0)
	assert.Greater(t, all.ended[shed], 100.0)
}

func TestOpenLoop_Fails(t *testing.T) {
	l := openLoop{footprint: pair{}.footprint, deadline: time.Second, bound: 10, call: func(context.Context) error { return errCannot }}
	_, err := l.run(arrivals{1000, 50 * time.Millisecond})
	assert.ErrorIs(t, err, errCannot)
}

func TestTally_Latencies(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 20*time.Second; d += d/50 + time.Microsecond {
		b := latencyBucket(d)
		require.GreaterOrEqual(t, b, last)
		last = b
		if d < 16*time.Second {
			require.InDelta(t, d, latencyOf(b), float64(d/50+time.Microsecond))
		}
	}
	require.Equal(t, latencyBuckets-1, last)

	tally := newTally(time.Second)
	for i := range 1000 {
		tally.end(accepted, time.Duration(i)*time.Millisecond, time.Duration(i)*time.Millisecond)
	}
	tally.end(late, 2*time.Second, 2*time.Second)
	s := tally.between(0, time.Second)
	assert.InEpsilon(t, 500, s.percentile(0.5), 0.03)
	assert.InEpsilon(t, 990, s.percentile(0.99), 0.03)
	assert.InDelta(t, 1000, s.rate(accepted), 1e-9)
	assert.Equal(t, 1.0, s.share())
	all := tally.between(0, 1100*time.Millisecond)
	assert.Less(t, all.share(), 1.0, "what comes late is in the last slice")
	s = tally.between(time.Second, time.Second)
	assert.Zero(t, s.percentile(0.99)+s.rate(accepted)+s.share())
}

func TestTally_Recovery(t *testing.T) {
	fill := func(t *tally, from, to, latency time.Duration) {
		for at := from; at < to; at += 10 * time.Millisecond {
			t.end(accepted, at, latency)
		}
	}
	normal := newTally(time.Second)
	fill(normal, 0, time.Second, time.Millisecond)
	for _, c := range []struct {
		name string
		fill func(*tally)
		want time.Duration
	}{
		{"at once", func(t *tally) { fill(t, time.Second, 3*time.Second, time.Millisecond) }, 0},
		{"slow for a while", func(t *tally) {
			fill(t, time.Second, 1500*time.Millisecond, 100*time.Millisecond)
			fill(t, 1500*time.Millisecond, 3*time.Second, time.Millisecond)
		}, 500 * time.Millisecond},
		{"failing for a while", func(t *tally) {
			fill(t, time.Second, 3*time.Second, time.Millisecond)
			t.end(late, 1250*time.Millisecond, time.Second)
		}, 300 * time.Millisecond},
		{"a slow one long after", func(t *tally) {
			fill(t, time.Second, 3*time.Second, time.Millisecond)
			t.end(accepted, 2500*time.Millisecond, time.Second)
		}, 0},
		{"never", func(t *tally) { fill(t, time.Second, 3*time.Second, 2*time.Millisecond) }, 2 * time.Second},
		{"nothing is answered", func(t *tally) {}, 2 * time.Second},
	} {
		after := newTally(3 * time.Second)
		c.fill(after)
		assert.Equal(t, c.want, recovery(normal, 0, time.Second, after, time.Second), c.name)
	}
}

// TestOverloadRun_ReportsEveryLook runs all of it, with parts that are as short as can be.
func TestOverloadRun_ReportsEveryLook(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while, and all cores")
	}
	r := overloadTestRun()
	require.NoError(t, r.overload())
	var b strings.Builder
	require.NoError(t, errors.Join(r.report.writeLines(&b), r.report.writeMarkdown(&b)))
	for _, l := range overloadLooks {
		assert.Positive(t, r.report.value("overload", "capacity", l.name), l.name)
		assert.Positive(t, r.report.value("overload", "0.5-accepted", l.name), l.name)
		assert.NotNil(t, r.report.figure("overload", "4-p99", l.name), l.name)
		assert.Positive(t, r.report.value("overload-2p", "0.5-accepted", l.name), l.name)
		assert.Positive(t, r.report.value("overload-2p", "0.5-cpu", l.name), l.name)
		assert.Contains(t, b.String(), " "+l.name+" ")
	}
	assert.Positive(t, r.report.value("overload", "long-growth", "grid"))
	assert.Contains(t, b.String(), "ratio overload/4 grid/grpc-tap ")
}
