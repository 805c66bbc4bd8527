package grid

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
