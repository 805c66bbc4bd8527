package fifo

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLock_GoesByTheOrderOfAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lock Lock
		require.NoError(t, lock.Take(t.Context()))
		var order []int
		for i := range 5 {
			go func() {
				if err := lock.Take(t.Context()); err != nil {
					t.Error(err)
				}
				order = append(order, i)
				lock.Leave()
			}()
			synctest.Wait()
		}
		lock.Leave()
		// Whoever comes now comes behind them.
		require.NoError(t, lock.Take(t.Context()))
		require.Equal(t, []int{0, 1, 2, 3, 4}, order)
		lock.Leave()
		require.NoError(t, lock.Take(t.Context()))
	})
}

func TestLock_WaiterThatGivesUpTakesNothingAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			var lock Lock
			require.NoError(t, lock.Take(t.Context()))
			why := errors.New("why")
			ctx, cancel := context.WithCancelCause(t.Context())
			cancelled, waiting := make(chan error, 1), make(chan error, 1)
			go func() { cancelled <- lock.Take(ctx) }()
			synctest.Wait()
			go func() { waiting <- lock.Take(t.Context()) }()
			synctest.Wait()
			go cancel(why)
			go lock.Leave()
			synctest.Wait()
			if err := <-cancelled; err != nil {
				require.ErrorIs(t, err, why)
			} else {
				lock.Leave()
			}
			require.NoError(t, <-waiting)
			lock.Leave()
			require.NoError(t, lock.Take(t.Context()))
		}
	})
}

func TestLock_CloseEndsAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lock Lock
		require.NoError(t, lock.Take(t.Context()))
		gone := errors.New("gone")
		ended := make(chan error, 10)
		for range 10 {
			go func() { ended <- lock.Take(t.Context()) }()
		}
		synctest.Wait()
		lock.Close(gone)
		lock.Close(errors.New("too late"))
		for range 10 {
			require.Equal(t, gone, <-ended)
		}
		lock.Leave()
		require.Equal(t, gone, lock.Take(t.Context()))

		var free Lock
		free.Close(gone)
		require.Equal(t, gone, free.Take(t.Context()))
	})
}

// Many that take, leave, give up and close: there is one at a time, and none waits for ever.
func TestLock_OneAtATime(t *testing.T) {
	for round := range 20 {
		var lock Lock
		var inside, served atomic.Int32
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for n := range 200 {
					ctx, cancel := context.WithCancel(t.Context())
					if (i+n)%3 == 0 {
						go cancel()
					}
					if lock.Take(ctx) == nil {
						if inside.Add(1) != 1 {
							t.Error("two at a time")
						}
						served.Add(1)
						if n%5 == 0 {
							time.Sleep(time.Microsecond)
						}
						inside.Add(-1)
						lock.Leave()
					}
					cancel()
				}
			})
		}
		if round%2 == 0 {
			all.Wait()
			require.NoError(t, lock.Take(t.Context()), "it is free")
			require.Greater(t, served.Load(), int32(8*200/2))
		}
		lock.Close(errors.New("gone"))
		all.Wait()
	}
}

func TestLock_AllocatesNothingUnlessSomebodyWaits(t *testing.T) {
	ctx := t.Context()
	var lock Lock
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_ = lock.Take(ctx)
		lock.Leave()
	}))
}
