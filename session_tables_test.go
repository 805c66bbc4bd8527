package grid

import (
	"testing"
	"time"

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

// Calls without a deadline of their own are looked after by the tick: they are given up after the
// default one, never before, and no more than two ticks behind it.
func TestCallTable_DefaultDeadlineIsNeverShort(t *testing.T) {
	for _, period := range []time.Duration{time.Second, 250 * time.Millisecond, 7 * time.Second, 333 * time.Millisecond} {
		var table callTable
		table.init(period)
		table.expire(5, time.Now(), time.Hour)
		const id = 1
		c, err := table.add(id, true)
		require.NoError(t, err)
		came := 6*period - 1 // as late as may be behind that tick
		for tick := uint64(6); len(c.answered) == 0; tick++ {
			waited := time.Duration(tick)*period - came
			require.Less(t, waited, defaultDeadline+2*period)
			table.expire(tick, time.Now(), time.Hour)
			if waited < defaultDeadline {
				require.Empty(t, c.answered, "given up after %v", waited)
			}
		}
		require.False(t, table.waits(id))
	}
}
