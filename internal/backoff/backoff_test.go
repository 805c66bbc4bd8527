package backoff

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridrpc/grid/internal/seed"
	"github.com/stretchr/testify/require"
)

func TestBackoff_DoublesWithJitterUpToItsMost(t *testing.T) {
	random := seed.Rand(t).Int64N
	for range 1000 {
		var b Backoff
		for step, base := 0, Min; step < 12; step, base = step+1, min(2*base, Max) {
			pause := b.next(random)
			require.LessOrEqual(t, pause, Max)
			require.GreaterOrEqual(t, pause, min(base, Max-Max/4))
			require.LessOrEqual(t, pause, base+base/2)
		}
	}
}

// bounds are those of a pause after so many others: it is Min, doubled as often, and up to a half
// more; and where that would be more than Max, the last quarter below it.
func bounds(before int) (least, most time.Duration) {
	base := Max
	if before < 10 {
		base = min(Min<<before, Max)
	}
	return min(base, Max-Max/4), min(base+base/2, Max)
}

// However many attempts fail, each pause is within its bounds, and those of many are all over them:
// who begins together does not go on so. After a Reset it begins again, wherever it was.
func TestBackoff_EveryPauseIsWithinItsBounds(t *testing.T) {
	random := seed.Rand(t).Int64N
	const many = 200
	all := make([]Backoff, many)
	pauses := make([]time.Duration, many)
	for _, attempts := range []int{1, 5, 100, 3} { // the doubling of an int64 is over after 38
		for attempt := range attempts {
			least, most := bounds(attempt)
			for i := range all {
				pauses[i] = all[i].next(random)
				require.GreaterOrEqual(t, pauses[i], least, "attempt %d", attempt)
				require.LessOrEqual(t, pauses[i], most, "attempt %d", attempt)
			}
			slices.Sort(pauses)
			fifth := (most - least) / 5
			if base := Min << min(attempt, 10); base < Max && base+base/2 > Max {
				fifth = 0 // of two kinds, which overlap
			}
			require.LessOrEqual(t, pauses[0], most-4*fifth, "attempt %d", attempt)
			require.GreaterOrEqual(t, pauses[many-1], most-fifth, "attempt %d", attempt)
			require.Greater(t, len(slices.Compact(slices.Clone(pauses))), many/2, "attempt %d", attempt)
		}
		for i := range all {
			all[i].Reset()
		}
	}
}

func TestBackoff_PausesDiffer(t *testing.T) {
	for _, steps := range []int{0, 20} {
		seen := make(map[time.Duration]bool)
		for range 100 {
			var b Backoff
			for range steps {
				b.Next()
			}
			seen[b.Next()] = true
		}
		require.Greater(t, len(seen), 50, "after %d pauses", steps)
	}
}

func TestBackoff_ResetBeginsAgain(t *testing.T) {
	var b Backoff
	for range 10 {
		b.Next()
	}
	b.Reset()
	require.Less(t, b.Next(), 2*Min)
}

func TestBackoff_WaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Backoff
		start := time.Now()
		b.Wait(t.Context())
		require.GreaterOrEqual(t, time.Since(start), Min)
		for range 10 {
			b.Next()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		b.Wait(ctx)
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestBackoff_StaysWithinWhatItWasMadeFor(t *testing.T) {
	random := seed.Rand(t).Int64N
	for _, c := range [][2]time.Duration{{1, 1}, {time.Millisecond, time.Millisecond}, {time.Second, 1500 * time.Millisecond}, {time.Millisecond, 30 * 24 * time.Hour}} {
		b := New(c[0], c[1])
		base := c[0]
		for range 100 {
			pause := b.next(random)
			require.GreaterOrEqual(t, pause, min(base, c[1]-c[1]/4))
			require.LessOrEqual(t, pause, c[1])
			base = min(2*base, c[1])
		}
		b.Reset()
		require.LessOrEqual(t, b.next(random), min(c[0]+c[0]/2, c[1]))
	}
}
