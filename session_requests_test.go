package grid

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/monotime"
)

// A request is late from an eighth of its time on, and up to its deadline: then it is out of the
// way at once, since nobody waits for it. One without a deadline never is.
func TestRequest_IsLateUntilItsDeadline(t *testing.T) {
	now := time.Now()
	deadline := now.Add(8 * time.Second)
	task := new(singleTask)
	task.Limit(now, deadline)
	for after, late := range map[time.Duration]bool{
		0: false, time.Second: false, time.Second + 1: true,
		8*time.Second - 1: true, 8 * time.Second: false, time.Minute: false,
	} {
		require.Equal(t, late, task.Late(monotime.Of(now.Add(after))), "after %v", after)
	}
	task.Limit(now, time.Time{})
	for _, after := range []time.Duration{0, time.Hour, 10_000 * time.Hour} {
		require.False(t, task.Late(monotime.Of(now.Add(after))))
	}
}
