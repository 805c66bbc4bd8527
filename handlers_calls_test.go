package grid

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// However many begin and end at a time, there are never more than may be, and where there is room for
// one of two, one of them gets it.
func TestHandlerCalls_HoldUnderContention(t *testing.T) {
	var host hostLimits
	limited := func(n int) *handlerCalls {
		c := new(handlerCalls)
		c.bound(n)
		host.join(c)
		c.pool.Divide()
		return c
	}
	c := limited(3)
	var running, refused atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10_000 {
				if c.begin(&host) != nil {
					refused.Add(1)
					continue
				}
				if running.Add(1) > 3 {
					t.Error("more run than may")
				}
				running.Add(-1)
				c.end(&host, false)
			}
		})
	}
	all.Wait()
	require.Equal(t, c.began.Load(), c.ended.Load())
	require.Equal(t, int64(4*10_000), c.began.Load()+refused.Load())

	one := limited(1)
	for range 10_000 {
		var got atomic.Int32
		var both sync.WaitGroup
		start := make(chan struct{})
		for range 2 {
			both.Go(func() {
				<-start
				if one.begin(&host) == nil {
					got.Add(1)
				}
			})
		}
		close(start)
		both.Wait()
		require.EqualValues(t, 1, got.Load())
		one.end(&host, true)
	}
	require.EqualValues(t, 10_000, one.failed.Load())
}

func TestHandlerCalls_DeadlineIsTheSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for _, tt := range []struct {
			timeout, waited, caller, want time.Duration
			own                           bool
		}{
			{0, 0, 0, 0, false},
			{0, 0, time.Second, time.Second, false},
			{time.Minute, 0, 0, time.Minute, true},
			{time.Minute, 50 * time.Second, 0, 10 * time.Second, true},
			{time.Minute, 0, time.Hour, time.Minute, true},
			{time.Minute, 0, time.Minute, time.Minute, false},
			{time.Minute, 0, time.Second, time.Second, false},
		} {
			c := handlerCalls{timeout: tt.timeout}
			var caller, want time.Time
			if tt.caller > 0 {
				caller = now.Add(tt.caller)
			}
			if tt.want > 0 {
				want = now.Add(tt.want)
			}
			got, own := c.deadline(caller, tt.waited)
			require.Equal(t, want, got)
			require.Equal(t, tt.own, own)
		}
	})
}
