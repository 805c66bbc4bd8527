package limit

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/monotime"
)

// However much is wanted, and whenever the other side's seconds begin, none of it is beyond the
// limit, and a good part of that is made use of.
func TestPace_KeepsWithinTheRateOfTheOtherSide(t *testing.T) {
	for _, limit := range []int{2, 3, 10, 128, 24704} {
		for _, every := range []time.Duration{125 * time.Microsecond, 10 * time.Millisecond, time.Second} {
			var p Pace
			p.Init(limit, every)
			begin := time.Now().Add(-24 * time.Hour) // before the process
			var rates [7]Rate                        // that begin to count at different times
			for i := range rates {
				rates[i].Init(limit)
			}
			n, looks := 0, int(20*time.Second/every)
			if testing.Short() {
				looks /= 4
			}
			for look := range looks {
				now := monotime.Of(begin.Add(time.Duration(look) * every))
				for p.Allow(now) {
					n++
					for i := range rates {
						if n > i*limit/len(rates) {
							require.True(t, rates[i].Allow(now), "limit %d every %v", limit, every)
						}
					}
				}
			}
			seconds := float64(looks) * every.Seconds()
			require.GreaterOrEqual(t, float64(n), seconds*float64(limit)/3, "limit %d every %v", limit, every)
			require.Positive(t, p.Interval())
		}
	}
}

func TestPace_WithoutALimitAllowsAll(t *testing.T) {
	var p Pace
	p.Init(math.MaxInt, time.Millisecond)
	for range 1 << 20 {
		require.True(t, p.Allow(monotime.Of(time.Now())))
	}
	require.Zero(t, p.Interval())
}
