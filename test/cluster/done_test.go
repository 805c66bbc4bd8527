package cluster

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

func TestManager_DoneHoweverItEnds(t *testing.T) {
	for name, end := range map[string]func(m *grid.Manager, cancel context.CancelFunc){
		"closed":      func(m *grid.Manager, _ context.CancelFunc) { m.Close() },
		"shut down":   func(m *grid.Manager, _ context.CancelFunc) { _ = m.Shutdown(context.Background()) },
		"its context": func(_ *grid.Manager, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				o := rig.Options("http://node1:9000", []string{"http://node1:9000"})
				o.LocalCalls = true
				m, err := grid.NewManager(ctx, o)
				require.NoError(t, err)
				defer m.Close()
				synctest.Wait()
				select {
				case <-m.Done():
					require.Fail(t, "it is not")
				default:
				}
				end(m, cancel)
				<-m.Done()
				_, err = m.Connection(m.HostName()).SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrDisconnected)
				require.ErrorIs(t, err, grid.ErrShutdown)
				require.False(t, grid.CanRetry(err), "nothing else can be asked through it")
			})
		})
	}
}

// Before there is a link nobody knows what the other host takes.
func TestConnection_MaxMessageSizeIsThisHostsWithoutALink(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			if i == 1 {
				o.MaxMessageSize = lesser
			}
		})
		c := g.Conn(0, 1)
		require.Equal(t, lesser, c.MaxMessageSize())
		g.Net.Partition(g.Addr(0), g.Addr(1))
		rig.WaitState(t, c, grid.StateConnectionError, grid.StateConnecting)
		require.Equal(t, g.Manager(0).MaxMessageSize(), c.MaxMessageSize())
		require.Zero(t, (*grid.Connection)(nil).MaxMessageSize())
	})
}

// Nobody waits for a link of a manager that will make none.
func TestWaitForConnect_EndsWithAShutdown(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		release, let := rig.Gate(t)
		require.NoError(t, g.Manager(0).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
		busy := rig.InBackground(func() error {
			_, err := g.Conn(2, 0).SingleRequest(t.Context(), rig.Unused, nil)
			return err
		})
		g.Net.Partition(g.Addr(0), g.Addr(1))
		c := g.Conn(0, 1)
		rig.WaitState(t, c, grid.StateConnectionError, grid.StateConnecting)
		waits := rig.InBackground(func() error { return c.WaitForConnect(t.Context()) })
		synctest.Wait()
		down := rig.InBackground(func() error { return g.Manager(0).Shutdown(t.Context()) })
		synctest.Wait()
		require.EqualError(t, <-waits, "grid: disconnected: "+g.Host(1)+": the manager is shutting down, and makes no connection any more")
		require.Empty(t, down, "it waits for the handler")
		require.NoError(t, g.Conn(0, 2).WaitForConnect(t.Context()), "which is connected still")
		let()
		require.NoError(t, <-busy)
		require.NoError(t, <-down)
		require.ErrorIs(t, c.WaitForConnect(t.Context()), grid.ErrDisconnected)
	})
}
