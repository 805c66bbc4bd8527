package grid

import (
	"bytes"
	"context"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridrpc/grid/internal/seed"
	"github.com/stretchr/testify/require"
)

// A stream that comes when the session has ended would never be told: it must be refused.
func TestMuxTable_TakesNoneOnceItIsClosed(t *testing.T) {
	var table muxTable[string]
	table.init()
	require.Nil(t, table.untilIdle())
	require.True(t, table.add(1, "one"))
	require.True(t, table.add(2, "two"))
	idle := table.untilIdle()
	require.ElementsMatch(t, []string{"one", "two"}, table.close())
	require.False(t, table.add(3, "three"))
	require.Equal(t, 2, table.size())
	_, ok := table.get(3)
	require.False(t, ok)
	for id, want := range map[uint64]string{1: "one", 2: "two"} {
		select {
		case <-idle:
			require.Fail(t, "there is one still")
		default:
		}
		v, ok := table.remove(id)
		require.True(t, ok)
		require.Equal(t, want, v)
		_, ok = table.remove(id)
		require.False(t, ok, "it is gone")
	}
	<-idle
	require.Nil(t, table.untilIdle())
}

// Calls with a timeout are given up after it: never before, and no more than a thirty-second part
// of it late, or two milliseconds.
func TestCallTable_TimeoutIsNeverShort(t *testing.T) {
	random := seed.Rand(t)
	synctest.Test(t, func(t *testing.T) {
		var table callTable
		var wg sync.WaitGroup
		var id atomic.Uint64
		for range 500 {
			timeout := time.Duration(1 + random.Int64N(int64(time.Millisecond)<<random.IntN(25)))
			when := time.Duration(random.Int64N(int64(time.Hour)))
			wg.Go(func() {
				time.Sleep(when)
				c, err := table.add(func() uint64 { return id.Add(1) }, timeout)
				require.NoError(t, err)
				begin := time.Now()
				_, _, err = table.wait(context.Background(), c)
				took := time.Since(begin)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.GreaterOrEqual(t, took, timeout)
				require.LessOrEqual(t, took, timeout+max(timeout/32, 2*time.Millisecond))
			})
		}
		wg.Wait()
		require.Zero(t, table.size())
		time.Sleep(time.Hour)
		table.mu.Lock()
		defer table.mu.Unlock()
		for _, c := range table.clocks {
			require.True(t, c == nil || !c.runs && c.calls == 0, "nobody waits")
		}
	})
}

// On a busy machine ticks are late, and so are calls, but by no more than that.
func TestCallTable_TimeoutIsNotAsLateAsAllTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout, late = 100 * time.Millisecond, 30 * time.Millisecond
		var table callTable
		c, err := table.add(func() uint64 { return 1 }, timeout)
		require.NoError(t, err)
		c.clock.timer.Stop()
		begin := time.Now()
		for table.size() > 0 {
			time.Sleep(late)
			c.clock.advance()
			c.clock.timer.Stop()
		}
		require.GreaterOrEqual(t, time.Since(begin), timeout)
		require.LessOrEqual(t, time.Since(begin), timeout+2*late)

		// One that comes while a tick is late is not ended by that.
		c, err = table.add(func() uint64 { return 2 }, late)
		require.NoError(t, err)
		c.clock.advance()
		c.clock.timer.Stop()
		time.Sleep(late - 1)
		c, err = table.add(func() uint64 { return 3 }, late)
		require.NoError(t, err)
		time.Sleep(time.Nanosecond)
		c.clock.advance()
		require.True(t, table.waits(3))
		require.False(t, table.waits(2))
		begin = time.Now()
		_, _, err = table.wait(context.Background(), c)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.GreaterOrEqual(t, time.Since(begin), late-1)

		_, err = table.add(func() uint64 { return 4 }, math.MaxInt64)
		require.NoError(t, err)
		time.Sleep(24 * time.Hour)
		require.True(t, table.waits(4))
		table.close(io.EOF)
	})
}

// All slots are gone through at every tick: those of a burst must not stay because there always is
// a call.
func TestCallTable_ShrinksWhileCallsWait(t *testing.T) {
	var table callTable
	defer table.close(io.EOF)
	var id uint64
	add := func() *call {
		c, err := table.add(func() uint64 { id++; return id }, 0)
		require.NoError(t, err)
		return c
	}
	end := func(c *call) {
		require.Same(t, c, table.remove(c.id))
		c.end(answer{})
		_, _, err := table.wait(context.Background(), c)
		require.NoError(t, err)
	}
	burst := func(n int) (end []*call) {
		for range n {
			end = append(end, add())
		}
		return end
	}
	first, all, last := add(), burst(10_000), add()
	table.expire(time.Now(), time.Minute)
	require.Greater(t, len(table.slots), 2*len(all), "they wait")
	for _, c := range all {
		end(c)
	}
	table.expire(time.Now(), time.Minute)
	require.LessOrEqual(t, len(table.slots), maxFreeCalls)
	end(first)
	end(last)

	// Two that would have the same slot keep theirs.
	first, all = add(), burst(400)
	slots := len(table.slots)
	id = first.id + uint64(slots/2) - 1
	last = add()
	require.Equal(t, first.id+uint64(slots/2), last.id)
	for _, c := range all {
		end(c)
	}
	table.expire(time.Now(), time.Minute)
	require.Len(t, table.slots, slots)
	end(first)
	table.expire(time.Now(), time.Minute)
	require.Len(t, table.slots, maxFreeCalls)
	end(last)
}

// FuzzCallTable compares with a map: whatever is added, answered and given up, each call has one
// slot, and nobody else's.
func FuzzCallTable(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 2, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4})
	f.Add(bytes.Repeat([]byte{0, 0, 0, 1, 1}, 60))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var table callTable
		defer table.close(io.EOF)
		model := make(map[uint64]*call)
		last := uint64(math.MaxUint64 - 20)
		for i, op := range ops {
			switch op % 4 {
			case 0, 1:
				c, err := table.add(func() uint64 { last++; return last }, 0)
				require.NoError(t, err)
				require.NotContains(t, model, c.id)
				model[c.id] = c
			case 2: // one that is there, if any
				for id, c := range model {
					require.Same(t, c, table.remove(id))
					require.Nil(t, table.remove(id))
					delete(model, id)
					c.end(answer{})
					_, _, err := table.wait(context.Background(), c)
					require.NoError(t, err)
					break
				}
			default:
				id := last - uint64(op/4) - uint64(i%3)*64
				require.Equal(t, model[id] != nil, table.waits(id))
			}
			require.Equal(t, len(model), table.size())
		}
		for id := range model {
			require.True(t, table.waits(id))
		}
	})
}
