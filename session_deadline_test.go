package grid

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a step of the clock would do with it is for test/clock.
func TestDeadline_OfAWallTimeIsPinnedToTheMonotonicClock(t *testing.T) {
	now := time.Now()
	for _, deadline := range []time.Time{now.Add(time.Hour), now.Add(time.Hour).Round(0)} {
		got := pinned(now, deadline)
		require.Equal(t, now.Add(time.Hour), got, "with a monotonic reading")
		require.Equal(t, time.Hour, got.Sub(now))
	}
	require.Zero(t, pinned(now, time.Time{}))
}
