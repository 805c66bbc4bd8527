package limit

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/seed"
)

// arrivals draws when things happen: in bursts, at a steady pace, to the second, and with pauses.
func arrivals(random *rand.Rand, n int) (at []monotime.Time) {
	now := monotime.Now()
	for len(at) < n {
		var gap time.Duration
		burst := 1 + random.IntN(30)
		switch random.IntN(4) {
		case 0: // all at once
		case 1:
			gap = time.Duration(random.Int64N(int64(100 * time.Millisecond)))
		case 2:
			gap, burst = time.Second, 1+burst/8
		case 3:
			gap, burst = time.Duration(random.Int64N(int64(5*time.Second))), 1
		}
		for range burst {
			now = now.Add(gap)
			at = append(at, now)
		}
	}
	return at
}

// Whenever things happen: one is refused only where as many as the limit were allowed in the second
// before it. From the first on, no more are allowed than the limit for each second that has begun.
// A second that lies across two of those that are counted has less than twice the limit.
func TestRate_HoldsWheneverThingsHappen(t *testing.T) {
	random := seed.Rand(t)
	for range 100 {
		limit := 1 + random.IntN(12)
		var r Rate
		r.Init(limit)
		var allowed []monotime.Time
		// within is how many were allowed in the second that ends now.
		within := func(now monotime.Time) (n int) {
			for i := len(allowed) - 1; i >= 0 && now.Sub(allowed[i]) < time.Second; i-- {
				n++
			}
			return n
		}
		for _, now := range arrivals(random, 1000) {
			before := within(now)
			if !r.Allow(now) {
				require.GreaterOrEqual(t, before, limit, "refused without a reason")
				continue
			}
			allowed = append(allowed, now)
			require.Less(t, within(now), 2*limit)
		}
		for n, now := range allowed {
			begun := 1 + int(now.Sub(allowed[0])/time.Second) // at most so many seconds
			require.LessOrEqual(t, n+1, begun*limit)
		}
	}
}

func TestRate_RecoversAfterASecond(t *testing.T) {
	for _, limit := range []int{1, 2, 100} {
		var r Rate
		r.Init(limit)
		now := monotime.Time(0) // as good a time as any
		for range 3 {
			for range limit {
				require.True(t, r.Allow(now))
			}
			for range 1000 {
				require.False(t, r.Allow(now), "it is full")
			}
			require.False(t, r.Allow(now.Add(time.Second-1)), "the second is not over")
			now = now.Add(time.Second) // those that were refused do not make it longer
		}
		now = now.Add(1000 * time.Hour)
		for range limit {
			require.True(t, r.Allow(now))
		}
		require.False(t, r.Allow(now), "what was not used is not saved up")
	}
}
