package gridtest

import (
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/faultconn"
)

func TestGrid_NewConnectsAll(t *testing.T) {
	inBoth(t, 4, func(t *testing.T, g *Grid) {
		require.Equal(t, 4, g.Len())
		require.Len(t, g.Hosts(), 4)
		for i, host := range g.Hosts() {
			require.Equal(t, host, g.Host(i))
			require.Equal(t, host, g.Manager(i).HostName())
			require.Equal(t, 3, g.Manager(i).Stats().Connected)
			require.Nil(t, g.Conn(i, i))
		}
		require.Equal(t, g.Host(2), g.Conn(1, 2).HostName())
		requireReach(t, g, everyone)
	})
}

func TestGrid_OfOneNode(t *testing.T) {
	inBoth(t, 1, func(t *testing.T, g *Grid) {
		g.Restart(0)
		g.WaitConnected()
		require.NoError(t, ask(g, 0, 0))
	}, WithOptions(func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true }))
}

func TestGrid_InMemoryOutsideOfABubble(t *testing.T) {
	g := New(t, 3, WithHandlers(register))
	g.Cut(0, 1)
	g.Restart(2)
	g.WaitConnected()
	requireReach(t, g, everyone)
	requireNothingLeft(t, g)
}

func TestGrid_SeveralSideBySide(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		var opts []Option
		if g.opts.tcp {
			opts = append(opts, TCP())
		}
		other := New(t, 3, append(opts, WithHandlers(register))...)
		g.Stop(1)
		require.ErrorIs(t, ask(g, 0, 1), grid.ErrDisconnected)
		requireReach(t, other, everyone)
		g.Start(1)
		other.Close()
		g.WaitConnected()
		requireReach(t, g, everyone)
		requireNothingLeft(t, other)
	})
}

func TestGrid_FailuresAreTold(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		test func(t testing.TB)
		want string
	}{
		"no nodes":       {func(t testing.TB) { New(t, 0) }, "gridtest: New: a grid of 0 nodes, must be at least 1"},
		"fewer":          {func(t testing.TB) { New(t, -1) }, "a grid of -1 nodes"},
		"unknown node":   {func(t testing.TB) { New(t, 2).Manager(2) }, "gridtest: there is no node 2, the last of them is 1"},
		"of a group":     {func(t testing.TB) { New(t, 2).Partition([]int{0}, []int{7}) }, "there is no node 7"},
		"of a cut":       {func(t testing.TB) { New(t, 2).Cut(0, -1) }, "there is no node -1"},
		"of Stopped":     {func(t testing.TB) { New(t, 2, Stopped(5)) }, "there is no node 5"},
		"start too late": {func(t testing.TB) { g := New(t, 2); g.Close(); g.Start(0) }, "gridtest: start of node 0: the grid is closed"},
		"handlers": {func(t testing.TB) {
			New(t, 3, WithHandlers(func(node int, _ *grid.Manager) error {
				if node == 1 {
					return boom
				}
				return nil
			}))
		}, "gridtest: start of node 1: grid: Register: WithHandlers: boom"},
		"options": {func(t testing.TB) {
			New(t, 2, WithOptions(func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = -1 }))
		}, "gridtest: start of node 0: grid: MaxMessageSize is -1"},
		"name": {func(t testing.TB) {
			New(t, 2, WithOptions(func(_ int, o *grid.ManagerOptions) { o.Local = o.Hosts[1] }))
		}, `start of node 0: WithOptions: Local is "http://node1:9000", must stay "http://node0:9000"`},
		"two networks": {func(t testing.TB) {
			New(t, 2, TCP(), WithNetwork(faultconn.NewNetwork()))
		}, "gridtest: New: TCP and WithNetwork exclude each other"},
		"address": {func(t testing.TB) {
			New(t, 2, TCP(), WithHosts(func(int, string) string { return "http://anna:1" }))
		}, `WithHosts: node 0 is "http://anna:1", must have the address 127.0.0.1:`},
		"ended by a hook": {func(t testing.TB) {
			New(t, 3, WithHandlers(func(node int, _ *grid.Manager) error { t.Fatalf("in the hook"); return nil }))
		}, "in the hook"},
		"over TCP": {func(t testing.TB) {
			New(t, 3, TCP(), WithRoutes(func(node int, _ *http.ServeMux) { t.Fatalf("no routes") }))
		}, "no routes"},
	} {
		t.Run(name, func(t *testing.T) { require.Contains(t, fail(t, c.test), c.want) })
	}
}

func TestGrid_WaitConnectedSaysWhoIsNotAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		failure := fail(t, func(t testing.TB) {
			New(t, 3, WithOptions(func(i int, o *grid.ManagerOptions) {
				if i == 2 {
					o.AuthFn = func() string { return "another" }
					o.AuthToken = func(string) error { return errors.New("not for me") }
				}
			}))
		})
		require.Regexp(t, `^gridtest: not connected after 1m0s:\n\tnode 0 to node 2 \(http://node2:9000\): `, failure)
		require.Contains(t, failure, "node 2 to node 1 (http://node1:9000): ")
		require.Contains(t, failure, "last error: ")
		require.Contains(t, failure, "403 Forbidden")
		require.NotContains(t, failure, "node 0 to node 1")
		require.Equal(t, connectTime, time.Since(began).Truncate(time.Second))
	})
}

func TestGrid_CloseMayBeCalledOftenAndAtOnce(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		var all sync.WaitGroup
		for range 4 {
			all.Go(g.Close)
		}
		all.Wait()
		require.ErrorIs(t, ask(g, 0, 1), grid.ErrDisconnected)
		g.Stop(1)
		require.NoError(t, g.Shutdown(t.Context(), 2))
	})
}

func TestGrid_NothingIsLeft(t *testing.T) {
	buffers, goroutines, files := bytepool.Out(), runtime.NumGoroutine(), openFiles(t)
	fail(t, func(tb testing.TB) {
		for _, opts := range [][]Option{{}, {TCP()}} {
			g := New(tb, 4, append(opts, WithHandlers(register))...)
			g.PartitionSilently([]int{0})
			g.Stop(1)
			g.Stop(0) // with sockets that nobody may know to be closed
			g.Partition([]int{2})
			g.Start(1)
		}
		tb.Fatalf("the test has failed") // leaves the rest to the cleanup
	})
	left := func() bool {
		return runtime.NumGoroutine() > goroutines || bytepool.Out() > buffers || openFiles(t) > files
	}
	for range 1000 { // handlers and the like, that nobody waits for
		if !left() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	require.Fail(t, "something is left", "goroutines: %d, were %d; buffers: %d, were %d; sockets: %d, were %d",
		runtime.NumGoroutine(), goroutines, bytepool.Out(), buffers, openFiles(t), files)
}

// openFiles counts sockets; it is 0 where it can't.
func openFiles(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

func TestGrid_LogGoesToTheTestUntilItsEnd(t *testing.T) {
	b := &brokenTB{TB: t}
	var g *Grid
	b.run(func(t testing.TB) {
		g = New(t, 2, Log())
		g.Cut(0, 1)
	})
	require.Empty(t, b.failure)
	logged := strings.Join(b.logged, "\n")
	require.Contains(t, logged, "connection lost")
	require.Contains(t, logged, "local="+g.Host(0))
	n, err := g.testLog.Write([]byte("too late\n"))
	require.NoError(t, err)
	require.Equal(t, 9, n)
	require.NotContains(t, strings.Join(b.logged, "\n"), "too late")
}

func TestGrid_RoutesAreReachedOverTheLinks(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		get := func() (string, error) {
			resp, err := g.Client(0).Get(g.Host(1) + "/health")
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return string(b), err
		}
		body, err := get()
		require.NoError(t, err)
		require.Equal(t, "node 1 is well", body)
		g.Stop(1)
		_, err = get()
		require.ErrorContains(t, err, "connection refused")
		g.Start(1)
		_, err = get()
		require.NoError(t, err)
		g.Partition([]int{0}, []int{1})
		client := g.Client(0)
		client.Timeout = 200 * time.Millisecond
		_, err = client.Get(g.Host(1) + "/health")
		require.Error(t, err)
	}, WithRoutes(func(node int, mux *http.ServeMux) {
		mux.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "node "+string(rune('0'+node))+" is well")
		})
	}))
}

func TestGrid_OptionsAreChanged(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		requireReach(t, g, everyone)
		_, err := g.Conn(0, 1).SingleRequest(t.Context(), whoami, make([]byte, 2000))
		require.ErrorIs(t, err, grid.ErrMessageTooLarge)
	}, WithOptions(func(_ int, o *grid.ManagerOptions) {
		o.MaxMessageSize = 1000
		o.RoutePath = "/elsewhere"
		o.Dialer = nil // the grid's own nevertheless
	}))
}
