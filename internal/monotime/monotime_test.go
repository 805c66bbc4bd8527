package monotime

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/seed"
)

func TestTime_AgreesWithTheTimesItIsMadeOf(t *testing.T) {
	now := time.Now()
	random := seed.Rand(t)
	for range 100 {
		x, y := now.Add(time.Duration(int32(random.Uint32()))), now.Add(time.Duration(int32(random.Uint32())))
		require.Equal(t, x.Sub(y), Of(x).Sub(Of(y)))
		require.Equal(t, Of(x), Of(y).Add(x.Sub(y)))
		require.Equal(t, x.Before(y), Of(x) < Of(y))
	}
}

// The wall clock of a time may say what it likes: Round(0) strips the monotonic reading, and only
// then does it count.
func TestTime_IsThatOfTheMonotonicClock(t *testing.T) {
	before := Now()
	time.Sleep(time.Millisecond)
	require.GreaterOrEqual(t, Now().Sub(before), time.Millisecond)
	wall := time.Now().Round(0).Add(time.Hour)
	require.InDelta(t, float64(time.Hour), float64(Of(wall).Sub(Now())), float64(time.Minute))
}

func TestTime_IsThatOfABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := Now()
		time.Sleep(time.Hour)
		require.Equal(t, time.Hour, Now().Sub(before))
	})
}

func TestStamp_KeepsTheLastTime(t *testing.T) {
	var s Stamp
	require.Zero(t, s.Load())
	s.Store(5)
	require.Equal(t, Time(5), s.Load())
}
