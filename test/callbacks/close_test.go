package callbacks

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Also where the end of the context of NewManager has begun to close it. Not in a bubble, in which that
// seldom happens.
func TestClose_ReturnsOnceAllIsTold(t *testing.T) {
	hosts := []string{rig.LoneHost}
	for i := range 300 {
		hosts = append(hosts, fmt.Sprintf("http://other:%d", 1000+i))
	}
	for i := range 40 {
		o := rig.Options(rig.LoneHost, hosts)
		o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
		o.MinBackoff = time.Hour
		var closed, late atomic.Bool
		o.OnStateChange = func(grid.StateChange) {
			if closed.Load() {
				late.Store(true)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		m, err := grid.NewManager(ctx, o)
		require.NoError(t, err)
		cancel()
		for range i % 4 {
			runtime.Gosched() // it may have begun
		}
		require.NoError(t, m.Close())
		closed.Store(true)
		for _, host := range m.Targets() {
			require.Equal(t, grid.StateShutdown, m.Connection(host).State())
		}
		require.False(t, late.Load())
	}
}
