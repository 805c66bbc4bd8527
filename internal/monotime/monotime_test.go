package monotime

import (
	"cmp"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

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

// Times that are years apart are as far apart as they were made, and in the same order, wherever
// they are from now.
func TestTime_KeepsDistanceAndOrderOverYears(t *testing.T) {
	const years = 100 * 365 * 24 * time.Hour
	now := time.Now()
	random := seed.Rand(t)
	for range 100 {
		x, y := now.Add(time.Duration(int64(random.Uint64())%int64(years))), now.Add(time.Duration(int64(random.Uint64())%int64(years)))
		d := time.Duration(int64(random.Uint64()) % int64(years/4))
		require.Equal(t, x.Sub(y), Of(x).Sub(Of(y)))
		require.Equal(t, Of(x), Of(y).Add(x.Sub(y)))
		require.Equal(t, Of(x.Add(d)), Of(x).Add(d))
		require.Equal(t, x.Compare(y), cmp.Compare(Of(x), Of(y)))
	}
	for _, d := range []time.Duration{1, time.Millisecond, time.Hour, 24 * time.Hour, 24*time.Hour + 1, 50 * 24 * time.Hour, years} {
		require.Equal(t, d, Of(now.Add(d)).Sub(Of(now)))
		require.Equal(t, -d, Of(now.Add(-d)).Sub(Of(now)))
	}
}

// The zero time is before all others, as one that has never been; Never is after them.
func TestTime_LiesBetweenZeroAndNever(t *testing.T) {
	const years = 100 * 365 * 24 * time.Hour
	random := seed.Rand(t)
	for range 100 {
		x := Of(time.Now().Add(time.Duration(int64(random.Uint64()) % int64(years))))
		require.Less(t, Of(time.Time{}), x)
		require.Less(t, x, Never)
		require.Greater(t, Never.Sub(max(x, 0)), years)
	}
	require.LessOrEqual(t, Of(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)), Never)
	require.Positive(t, Now(), "a Stamp that was never set is before it")
}

// Whoever sets the clock of the host does not move the times in between.
func TestTime_StaysWhereTheWallClockIsSet(t *testing.T) {
	now := time.Now()
	set := now
	// A time.Time that was read after the clock was set an hour ahead: the seconds of the wall are
	// behind the flag and in front of 30 bits of nanoseconds.
	*(*uint64)(unsafe.Pointer(&set)) += 3600 << 30
	if set.Round(0).Sub(now.Round(0)) != time.Hour || set.Sub(now) != 0 {
		t.Skip("time.Time is made differently")
	}
	require.Equal(t, Of(now), Of(set))
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
