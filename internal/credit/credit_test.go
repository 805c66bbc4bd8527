package credit

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCredits(avail, limit int) *Credits {
	c := new(Credits)
	c.Reset(avail, limit)
	return c
}

func TestCredits_ReserveTakesWhatIsThereThenWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCredits(2, 2)
		var got atomic.Int32
		for range 5 {
			go func() {
				if c.Reserve(t.Context()) == nil {
					got.Add(1)
				}
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 2, got.Load())
		require.NoError(t, c.Add(2))
		synctest.Wait()
		require.EqualValues(t, 4, got.Load(), "one Add of two wakes two")
		require.NoError(t, c.Add(1))
		synctest.Wait()
		require.EqualValues(t, 5, got.Load())
	})
}

// A stream's credits come after its opening: whoever waits by then must see them.
func TestCredits_ResetWakesWhoeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Credits
		var got atomic.Int32
		for range 3 {
			go func() {
				if c.Reserve(t.Context()) == nil {
					got.Add(1)
				}
			}()
		}
		synctest.Wait()
		require.Zero(t, got.Load(), "the zero value holds none")
		c.Reset(2, 4)
		synctest.Wait()
		require.EqualValues(t, 2, got.Load())
		require.ErrorIs(t, c.Add(5), ErrOverflow, "the limit is the new one")
		c.Reset(1, 1)
		synctest.Wait()
		require.EqualValues(t, 3, got.Load())
	})
}

func TestCredits_ReadyTellsOfCreditsAndOfTheEnd(t *testing.T) {
	c := newCredits(1, 2)
	require.Nil(t, c.Ready())
	require.NoError(t, c.Reserve(t.Context()))
	ready := c.Ready()
	require.NotNil(t, ready)
	require.Empty(t, ready)
	require.NoError(t, c.Add(1))
	<-ready
	require.Nil(t, c.Ready())
	require.NoError(t, c.Reserve(t.Context()))
	ready = c.Ready()
	c.Close(errors.New("gone"))
	<-ready
	require.Nil(t, c.Ready(), "Reserve would not wait")
}

func TestCredits_Overflow(t *testing.T) {
	c := newCredits(2, 3)
	require.ErrorIs(t, c.Add(2), ErrOverflow)
	require.ErrorIs(t, c.Add(-1), ErrOverflow)
	require.ErrorIs(t, c.Add(int(^uint(0)>>1)), ErrOverflow)
	require.NoError(t, c.Add(1), "a refused Add adds nothing")
	require.ErrorIs(t, c.Add(1), ErrOverflow)
	require.ErrorIs(t, new(Credits).Add(1), ErrOverflow)
}

// Credits that were reserved, and turn out not to be there, are made up for by those that come.
func TestCredits_AdjustMayLeaveADebt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCredits(4, 100)
		for range 3 {
			require.NoError(t, c.Reserve(t.Context()))
		}
		c.Adjust(-3, 8) // there were but one
		var got atomic.Int32
		go func() {
			for c.Reserve(t.Context()) == nil {
				got.Add(1)
			}
		}()
		synctest.Wait()
		require.Zero(t, got.Load())
		require.NoError(t, c.Add(2))
		synctest.Wait()
		require.Zero(t, got.Load())
		require.NoError(t, c.Add(1))
		synctest.Wait()
		require.EqualValues(t, 1, got.Load())
		c.Adjust(2, 8)
		synctest.Wait()
		require.EqualValues(t, 3, got.Load())
		require.ErrorIs(t, c.Add(9), ErrOverflow)
		c.Close(errors.New("gone"))
	})
}

func TestCredits_CloseEndsAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCredits(0, 8)
		gone := errors.New("gone")
		var ended atomic.Int32
		for range 10 {
			go func() {
				if errors.Is(c.Reserve(t.Context()), gone) {
					ended.Add(1)
				}
			}()
		}
		synctest.Wait()
		c.Close(gone)
		c.Close(errors.New("too late"))
		synctest.Wait()
		require.EqualValues(t, 10, ended.Load())
		require.NoError(t, c.Add(1))
		require.ErrorIs(t, c.Reserve(t.Context()), gone, "credits that are left do not revive it")
	})
}

// A waiter that gives up must not take the wake-up of another with it.
func TestCredits_CancelledWaiterLosesNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			c := newCredits(0, 8)
			why := errors.New("why")
			ctx, cancel := context.WithCancelCause(t.Context())
			cancelled := make(chan error, 1)
			go func() { cancelled <- c.Reserve(ctx) }()
			waiting := make(chan error, 1)
			go func() { waiting <- c.Reserve(t.Context()) }()
			synctest.Wait()
			go cancel(why)
			go c.Add(1)
			synctest.Wait()
			if err := <-cancelled; err != nil {
				require.ErrorIs(t, err, why)
			} else {
				require.NoError(t, c.Add(1)) // it took the credit: one for the other
			}
			require.NoError(t, <-waiting)
		}
	})
}

func BenchmarkReserveAdd(b *testing.B) {
	c := newCredits(1, 1)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_ = c.Reserve(ctx)
		_ = c.Add(1)
	}
}
