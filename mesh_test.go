package grid

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

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/faultconn"
)

// requireMeshWorks makes all pairs call at the same time.
func (g *testGrid) requireMeshWorks() {
	g.t.Helper()
	var calls []<-chan error
	for i, a := range g.nodes {
		for j, b := range g.nodes {
			if a == nil || b == nil || i == j {
				continue
			}
			text := fmt.Sprintf("%d to %d", i, j)
			calls = append(calls, inBackground(func() error {
				got, err := a.Connection(b.host).SingleRequest(context.Background(), testEcho, []byte(text))
				if err == nil && string(got) != text {
					err = fmt.Errorf("answer is %q", got)
				}
				PutByteBuffer(got)
				if err != nil {
					err = fmt.Errorf("%s: %w", text, err)
				}
				return err
			}))
		}
	}
	for _, call := range calls {
		require.NoError(g.t, <-call)
	}
}

func TestMeshOf32ConnectsWithin5SecondsAndWorks(t *testing.T) {
	const nodes = 32
	begin := time.Now()
	g := newTCPGrid(t, nodes, nil)
	took := time.Since(begin)
	t.Logf("%d managers, %d connections: connected after %v", nodes, nodes*(nodes-1)/2, took)
	require.Less(t, took, 5*time.Second)
	begin = time.Now()
	g.requireMeshWorks()
	t.Logf("every pair has called after %v", time.Since(begin))
	for _, n := range g.nodes {
		require.Equal(t, nodes-1, n.Stats().Connected)
	}
}

func TestRestartedManagerIsTakenBack(t *testing.T) {
	restart := func(t *testing.T, g *testGrid, down func()) {
		for i := range g.nodes {
			var lost []*session
			for j := range g.nodes {
				if i != j {
					lost = append(lost, g.conn(j, i).session.Load())
				}
			}
			id := g.nodes[i].ID
			g.stop(i)
			for _, s := range lost {
				<-s.done
			}
			down()
			begin := time.Now()
			g.start(i)
			require.NotEqual(t, id, g.nodes[i].ID)
			g.waitConnected()
			require.LessOrEqual(t, time.Since(begin), backoff.Max+time.Second)
			g.requireMeshWorks()
		}
	}
	for _, down := range []time.Duration{0, 10 * time.Second, 3 * time.Minute} {
		t.Run(fmt.Sprintf("in memory, %v later", down), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				restart(t, newTestGrid(t, 4, nil), func() { time.Sleep(down) })
			})
		})
	}
	t.Run("TCP", func(t *testing.T) { restart(t, newTCPGrid(t, 4, nil), func() {}) })
}

// cutter keeps the connections that hosts have dialled, to be cut.
type cutter struct {
	mu    sync.Mutex
	conns []*faultconn.Conn
}

func (c *cutter) watch(o *ManagerOptions) {
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
func (c *cutter) cut(g *testGrid) {
	var sessions []*session
	for i := range g.nodes {
		for j := range g.nodes {
			if i != j {
				sessions = append(sessions, g.conn(i, j).session.Load())
			}
		}
	}
	c.mu.Lock()
	for _, conn := range c.conns {
		conn.Cut()
	}
	c.conns = nil
	c.mu.Unlock()
	for _, s := range sessions {
		<-s.done
	}
}

func TestLinkComesBackWithinASecondOfACut(t *testing.T) {
	var c cutter
	g := newTCPGrid(t, 4, func(_ int, o *ManagerOptions) { c.watch(o) })
	var times []time.Duration
	for range 12 {
		g.requireMeshWorks() // so that the sessions have lived
		begin := time.Now()
		c.cut(g)
		g.waitConnected()
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	t.Logf("back after: median %v, worst %v", times[len(times)/2], times[len(times)-1])
	require.Less(t, times[len(times)-1], time.Second)
}

// The same with many cuts, by the clock of a bubble, where no scheduler can
// spoil the figure.
func TestLinkComesBackAfterManyCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		for range 200 {
			g.requireWorks()
			begin := time.Now()
			g.cut(0, 1)
			synctest.Wait()
			g.waitConnected()
			require.LessOrEqual(t, time.Since(begin), reconnectTime)
		}
		require.Equal(t, 200, g.conn(0, 1).Stats().Reconnects)
	})
}
