package monotime

import (
	"testing"
	"testing/quick"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestTime_AgreesWithTheTimesItIsMadeOf(t *testing.T) {
	now := time.Now()
	require.NoError(t, quick.Check(func(a, b int32) bool {
		x, y := now.Add(time.Duration(a)), now.Add(time.Duration(b))
		return Of(x).Sub(Of(y)) == x.Sub(y) &&
			Of(x) == Of(y).Add(x.Sub(y)) &&
			(Of(x) < Of(y)) == x.Before(y)
	}, nil))
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
	require.NoError(t, quick.Check(func(a, b, c int64) bool {
		x, y := now.Add(time.Duration(a)%years), now.Add(time.Duration(b)%years)
		d := time.Duration(c) % (years / 4)
		return Of(x).Sub(Of(y)) == x.Sub(y) &&
			Of(y).Sub(Of(x)) == -x.Sub(y) &&
			Of(y).Add(x.Sub(y)) == Of(x) &&
			Of(x).Add(d) == Of(x.Add(d)) &&
			Of(x).Add(d).Add(-d) == Of(x) &&
			(Of(x) < Of(y)) == x.Before(y) &&
			(Of(x) == Of(y)) == x.Equal(y)
	}, nil))
	for _, d := range []time.Duration{1, time.Millisecond, time.Hour, 24 * time.Hour, 24*time.Hour + 1, 50 * 24 * time.Hour, years} {
		require.Equal(t, d, Of(now.Add(d)).Sub(Of(now)))
		require.Equal(t, -d, Of(now.Add(-d)).Sub(Of(now)))
	}
}

// The zero time is before all others, as one that has never been; Never is after them.
func TestTime_LiesBetweenZeroAndNever(t *testing.T) {
	const years = 100 * 365 * 24 * time.Hour
	require.NoError(t, quick.Check(func(a int64) bool {
		x := Of(time.Now().Add(time.Duration(a) % years))
		return Of(time.Time{}) < x && x < Never && Never.Sub(max(x, 0)) > years
	}, nil))
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
