package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBackoff_DoublesWithJitterUpToItsMost(t *testing.T) {
	for range 1000 {
		var b Backoff
		for step, base := 0, Min; step < 12; step, base = step+1, min(2*base, Max) {
			pause := b.Next()
			require.LessOrEqual(t, pause, Max)
			require.GreaterOrEqual(t, pause, min(base, Max-Max/4))
			require.LessOrEqual(t, pause, base+base/2)
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
