package grid

import (
	"testing"

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
