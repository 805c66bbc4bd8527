package errlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/seed"
)

func newBuffer() (*slog.Logger, *bytes.Buffer) {
	b := new(bytes.Buffer)
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func TestLog_WarnsOfTheFirstAndThenOfOneAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, b := newBuffer()
		var l Log
		for range 7200 {
			l.Warn(log, "it broke", errors.New("why"))
			time.Sleep(time.Second)
		}
		require.Equal(t, 2, strings.Count(b.String(), "it broke"))
		require.Equal(t, 1, strings.Count(b.String(), "suppressed=3599"))
		require.Contains(t, b.String(), "error=why")
	})
}

// A new reason is told at once, and each once an hour. There are no more than a few, however many
// somebody makes up, and none is lost count of.
func TestLog_WarnsOfANewReasonAtOnce(t *testing.T) {
	random := seed.Rand(t)
	synctest.Test(t, func(t *testing.T) {
		log, b := newBuffer()
		var l Log
		for i := range 3600 {
			l.WarnReason(log, "cannot connect", fmt.Errorf("dial 10.0.0.1:%d: no such host", i))
			if i >= 1000 {
				l.WarnReason(log, "cannot connect", errors.New("403 Forbidden"))
			}
			time.Sleep(time.Second)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		require.Len(t, lines, 2)
		require.Contains(t, lines[0], "no such host")
		require.NotContains(t, lines[0], "suppressed")
		require.Contains(t, lines[1], "403 Forbidden")
		require.Contains(t, lines[1], "suppressed=1000")

		l.WarnReason(log, "cannot connect", errors.New("dial 10.0.0.1:1: no such host"))
		require.Equal(t, 2, strings.Count(b.String(), "no such host"), "its hour is over")
		l.WarnReason(log, "cannot connect", errors.New("403 Forbidden"))
		require.Equal(t, 1, strings.Count(b.String(), "403"), "its hour is not")
		time.Sleep(1000 * time.Second)
		l.WarnReason(log, "cannot connect", errors.New("403 Forbidden"))
		require.Equal(t, 2, strings.Count(b.String(), "403"))
	})
	synctest.Test(t, func(t *testing.T) {
		log, b := newBuffer()
		var l Log
		for range 3 * 3600 {
			l.WarnReason(log, "refused", errors.New(strings.Repeat("?", 1+random.IntN(2000))))
			time.Sleep(time.Second)
		}
		n := strings.Count(b.String(), "\n")
		require.Equal(t, 3*MaxReasons, n)
		suppressed := 0
		for _, m := range regexp.MustCompile(`suppressed=(\d+)`).FindAllStringSubmatch(b.String(), -1) {
			n, _ := strconv.Atoi(m[1])
			suppressed += n
		}
		require.Equal(t, 3*3600, n+suppressed+l.suppressed)

		l.Reset()
		b.Reset()
		l.WarnReason(log, "refused", errors.New("?"))
		require.Equal(t, 1, strings.Count(b.String(), "\n"))
		l.Warn(log, "lost", errors.New("another"))
		require.Equal(t, 1, strings.Count(b.String(), "\n"), "Warn knows no reasons")
	})
}

func TestLog_PanickedHasTheStack(t *testing.T) {
	log, b := newBuffer()
	var l Log
	for range 3 {
		l.Panicked(log, "it panicked", "boom")
	}
	require.Equal(t, 1, strings.Count(b.String(), "it panicked"))
	require.Contains(t, b.String(), "panic=boom")
	require.Contains(t, b.String(), "TestLog_PanickedHasTheStack")
}

func TestLog_PanickedCountsWhatItSuppresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, b := newBuffer()
		var l Log
		for range 3 {
			l.Panicked(log, "it panicked", "boom")
		}
		time.Sleep(Interval)
		l.Panicked(log, "it panicked", "boom")
		require.Equal(t, 2, strings.Count(b.String(), "it panicked"))
		require.Contains(t, b.String(), "suppressed=2")
	})
}

func TestLog_ClipsWhatIsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, b := newBuffer()
		var l, panics Log
		long := strings.Repeat("x", 1<<20)
		for range 3 {
			l.Warn(log, "it broke", errors.New(long))
			panics.Panicked(log, "it panicked", errors.New(long))
			time.Sleep(Interval / 2) // the third one has a number
		}
		require.Equal(t, 2, strings.Count(b.String(), "suppressed=1"))
		for line := range strings.Lines(b.String()) {
			require.LessOrEqual(t, strings.Count(line, "x"), clip.Most+100)
			require.Greater(t, strings.Count(line, "x"), clip.Most/2)
		}
	})
}

func TestLog_TellsOfARecoveryOnce(t *testing.T) {
	var l Log
	now := time.Now()
	require.True(t, l.Recovered(), "the first time all is well")
	require.False(t, l.Recovered())
	l.Due(now)
	require.True(t, l.Recovered())
	l.Due(now.Add(time.Minute)) // not logged
	require.False(t, l.Recovered())
	l.ExpectRecovery()
	require.True(t, l.Recovered())
}

func TestLog_ResetMakesTheNextErrorAFirstOne(t *testing.T) {
	var l Log
	now := time.Now()
	for range 3 {
		l.Due(now)
	}
	l.Reset()
	n, ok := l.Due(now)
	require.True(t, ok)
	require.Zero(t, n)
}

// However errors come: none is lost count of, and two that are logged are an Interval apart.
func TestLog_CountsWhatItSuppresses(t *testing.T) {
	random := seed.Rand(t)
	for range 50 {
		var l Log
		now, last := time.Now(), time.Time{}
		pending := 0
		for range 500 {
			now = now.Add(time.Duration(random.Int64N(int64(Interval / 10))))
			n, ok := l.Due(now)
			if !ok {
				require.Less(t, now.Sub(last), Interval)
				pending++
				continue
			}
			require.Equal(t, pending, n)
			require.True(t, last.IsZero() || now.Sub(last) >= Interval)
			last, pending = now, 0
		}
	}
}

func TestLog_TellsOfANewPanicAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, b := newBuffer()
		var l Log
		for i := range 100 {
			l.Panicked(log, "it panicked", fmt.Sprintf("index out of range [%d]", i))
			l.Panicked(log, "it panicked", "nil pointer")
		}
		require.Equal(t, 2, strings.Count(b.String(), "it panicked"))
		for i := range 100 {
			l.Panicked(log, "it panicked", strings.Repeat("x", i))
		}
		require.Equal(t, MaxReasons, strings.Count(b.String(), "it panicked"))
		time.Sleep(Interval)
		l.Panicked(log, "it panicked", "nil pointer")
		require.Equal(t, MaxReasons+1, strings.Count(b.String(), "it panicked"))
	})
}
