package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rig"
)

func TestManager_MeshOf32ConnectsWithin5SecondsAndWorks(t *testing.T) {
	const nodes = 32
	begin := time.Now()
	g := rig.NewTCP(t, nodes, nil)
	took := time.Since(begin)
	t.Logf("%d managers, %d connections: connected after %v", nodes, nodes*(nodes-1)/2, took)
	require.Less(t, took, 5*time.Second)
	begin = time.Now()
	g.RequireMeshWorks()
	t.Logf("every pair has called after %v", time.Since(begin))
	for _, n := range g.Nodes() {
		require.Equal(t, nodes-1, n.Stats().Connected)
	}
}

func TestReconnect_RestartedManagerIsTakenBack(t *testing.T) {
	restart := func(t *testing.T, g *rig.Grid, down func()) {
		for i := range g.Nodes() {
			var lost []*rig.Link
			for j := range g.Nodes() {
				if i != j {
					lost = append(lost, rig.LinkOf(g.Conn(j, i)))
				}
			}
			id := g.Manager(i).ID
			g.Stop(i)
			rig.WaitEnded(lost...)
			down()
			begin := time.Now()
			g.Start(i)
			require.NotEqual(t, id, g.Manager(i).ID)
			g.WaitConnected()
			require.LessOrEqual(t, time.Since(begin), rig.MaxBackoff+time.Second)
			g.RequireMeshWorks()
		}
	}
	for _, down := range []time.Duration{0, 10 * time.Second, 3 * time.Minute} {
		t.Run(fmt.Sprintf("in memory, %v later", down), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				restart(t, rig.New(t, 4, nil), func() { time.Sleep(down) })
			})
		})
	}
	t.Run("TCP", func(t *testing.T) { restart(t, rig.NewTCP(t, 4, nil), func() {}) })
}

// cutter keeps the connections that hosts have dialled, to be cut.
type cutter struct {
	mu    sync.Mutex
	conns []*faultconn.Conn
}

func (c *cutter) watch(o *grid.ManagerOptions) {
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		w := faultconn.Wrap(conn)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.conns = append(c.conns, w)
		return w, nil
	}
}

// cut cuts all connections that there are, and waits until both ends know.
func (c *cutter) cut(g *rig.Grid) {
	var links []*rig.Link
	for i := range g.Nodes() {
		for j := range g.Nodes() {
			if i != j {
				links = append(links, rig.LinkOf(g.Conn(i, j)))
			}
		}
	}
	c.mu.Lock()
	for _, conn := range c.conns {
		conn.Cut()
	}
	c.conns = nil
	c.mu.Unlock()
	rig.WaitEnded(links...)
}

func TestReconnect_WithinASecondOfACut(t *testing.T) {
	var c cutter
	g := rig.NewTCP(t, 4, func(_ int, o *grid.ManagerOptions) { c.watch(o) })
	var times []time.Duration
	for range 12 {
		g.RequireMeshWorks() // so that the sessions have lived
		begin := time.Now()
		c.cut(g)
		g.WaitConnected()
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	t.Logf("back after: median %v, worst %v", times[len(times)/2], times[len(times)-1])
	require.Less(t, times[len(times)-1], time.Second)
}

// The same with many cuts, by the clock of a bubble, where no scheduler can spoil the figure.
func TestReconnect_AfterManyCuts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		for range 200 {
			g.RequireWorks()
			begin := time.Now()
			g.Cut(0, 1)
			synctest.Wait()
			g.WaitConnected()
			require.LessOrEqual(t, time.Since(begin), reconnectTime)
		}
		require.Equal(t, 200, g.Conn(0, 1).Stats().Reconnects)
	})
}
