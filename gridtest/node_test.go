package gridtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

func TestNode_StopAndStart(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		there, back := stream(t, g, 0, 1), stream(t, g, 1, 0)
		before := g.Manager(1).ID
		g.Stop(1)
		require.Nil(t, g.Manager(1))
		require.Nil(t, g.Conn(1, 0))
		require.NotEqual(t, grid.StateConnected, g.Conn(0, 1).State())
		require.ErrorIs(t, there(), grid.ErrDisconnected)
		require.ErrorIs(t, back(), grid.ErrDisconnected)
		requireReach(t, g, func(a, b int) bool { return a != 1 && b != 1 })
		g.WaitConnected() // the others are
		g.Stop(1)
		g.Start(1)
		m := g.Manager(1)
		g.Start(1)
		require.Same(t, m, g.Manager(1))
		require.NotEqual(t, before, m.ID)
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}

func TestNode_RestartHasItsHandlersAgain(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		require.NoError(t, g.Manager(2).RegisterSingleHandler(hold, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		for i := range 3 {
			g.Restart(i)
			g.WaitConnected()
			requireReach(t, g, everyone)
		}
		_, err := g.Conn(0, 2).SingleRequest(t.Context(), hold, nil)
		require.True(t, grid.IsRemoteErr(err), "was registered with the manager that is gone: %v", err)
	})
}

// The others try to reach a node all the time that its handlers take to be there.
func TestNode_IsNotConnectedBeforeItsHandlersAreThere(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		for i := range 3 {
			g.Start(i)
		}
		for i := range 3 {
			g.Restart(i)
			g.WaitConnected()
			requireReach(t, g, everyone)
		}
	}, Stopped(), WithHandlers(func(_ int, m *grid.Manager) error {
		time.Sleep(100 * time.Millisecond) // longer than it takes to connect
		if m.Stats().Connected > 0 {
			return errors.New("is connected")
		}
		return nil
	}))
}

func TestNode_StoppedOnesAreStartedByTheTest(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		require.NotNil(t, g.Manager(0))
		require.Nil(t, g.Manager(1))
		require.NoError(t, ask(g, 0, 2))
		require.ErrorIs(t, ask(g, 0, 1), grid.ErrDisconnected)
		g.Start(1)
		g.WaitConnected()
		requireReach(t, g, everyone)
	}, Stopped(1))
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		for i := range 3 {
			require.Nil(t, g.Manager(i))
		}
		g.WaitConnected()
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() { g.Start(i) })
		}
		all.Wait()
		g.WaitConnected()
		requireReach(t, g, everyone)
	}, Stopped())
}

// holding registers hold with a node: began is told of each call, which waits for release.
func holding(t *testing.T, g *Grid, node int, release <-chan bool) (began <-chan bool) {
	t.Helper()
	begin := make(chan bool)
	require.NoError(t, g.Manager(node).RegisterSingleHandler(hold, func([]byte) ([]byte, *grid.RemoteErr) {
		begin <- true
		<-release
		return nil, nil
	}))
	return begin
}

func TestNode_ShutdownLetsFinish(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		for i := range 2 { // one of them has dialled
			release := make(chan bool)
			began := holding(t, g, i, release)
			answered, down := make(chan error), make(chan error)
			go func() {
				_, err := g.Conn(1-i, i).SingleRequest(context.Background(), hold, nil)
				answered <- err
			}()
			<-began
			go func() { down <- g.Shutdown(context.Background(), i) }()
			select {
			case <-down:
				require.Fail(t, "did not wait")
			case <-time.After(50 * time.Millisecond):
			}
			require.NotNil(t, g.Manager(i))
			close(release)
			require.NoError(t, <-answered)
			require.NoError(t, <-down)
			require.Nil(t, g.Manager(i))
			require.ErrorIs(t, ask(g, 1-i, i), grid.ErrDisconnected)
			require.NoError(t, g.Shutdown(t.Context(), i))
			g.Start(i)
			g.WaitConnected()
			requireReach(t, g, everyone)
		}
	})
}

func TestNode_ShutdownBehindASilentPartition(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		for i := range 2 {
			g.PartitionSilently([]int{i})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			_ = g.Shutdown(ctx, i) // over TCP it may take all of it
			cancel()
			require.Equal(t, grid.StateConnected, g.Conn(1-i, i).State())
			g.Start(i)
			g.Heal()
			g.WaitConnected()
			requireReach(t, g, everyone)
		}
	}, WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = 10 * time.Second }))
}

func TestNode_ShutdownIsEndedByItsContextAndByStop(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		release := make(chan bool)
		defer close(release)
		call := func() {
			began := holding(t, g, 1, release)
			go g.Conn(0, 1).SingleRequest(context.Background(), hold, nil)
			<-began
		}
		call()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, g.Shutdown(ctx, 1), context.DeadlineExceeded)
		require.Nil(t, g.Manager(1))

		g.Start(1)
		g.WaitConnected()
		call()
		down := make(chan error)
		go func() { down <- g.Shutdown(context.Background(), 1) }()
		time.Sleep(20 * time.Millisecond)
		g.Stop(1)
		require.NoError(t, <-down)
		require.Nil(t, g.Manager(1))
	})
}

func TestGrid_HostsThatAreRemovedAreNotWaitedFor(t *testing.T) {
	inBoth(t, 3, func(t *testing.T, g *Grid) {
		require.NoError(t, g.Manager(0).RemoveHost(g.Host(1)))
		require.NoError(t, g.Manager(1).RemoveHost(g.Host(0)))
		g.WaitConnected()
		require.NoError(t, ask(g, 0, 2))
		require.NoError(t, g.Manager(0).AddHost(g.Host(1)))
		require.NoError(t, g.Manager(1).AddHost(g.Host(0)))
		g.WaitConnected()
		requireReach(t, g, everyone)
	})
}

// A program that registers its handlers once it has made its manager is called before they are
// there.
func TestNode_WithStartShowsHandlersThatComeTooLate(t *testing.T) {
	for name, tcp := range map[string]bool{"in memory": false, "over TCP": true} {
		t.Run(name, func(t *testing.T) {
			began, goOn := make(chan *grid.Manager), make(chan struct{})
			opts := []Option{Stopped(1), WithStart(func(node int, m *grid.Manager) error {
				if node == 1 {
					began <- m
					<-goOn
				}
				return m.RegisterSingleHandler(hold, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil })
			})}
			if tcp {
				opts = append(opts, TCP())
			}
			g := New(t, 2, opts...)
			var starts sync.WaitGroup
			starts.Go(func() { g.Start(1) })
			require.Same(t, <-began, g.Manager(1))
			c := g.Conn(0, 1)
			require.NoError(t, c.WaitForConnect(t.Context()))
			_, err := c.SingleRequest(t.Context(), hold, nil)
			require.ErrorIs(t, err, grid.ErrNoHandler)
			close(goOn)
			starts.Wait()
			_, err = c.SingleRequest(t.Context(), hold, nil)
			require.NoError(t, err)
			g.Start(1) // which runs: nothing is begun anew
		})
	}
	require.Contains(t, fail(t, func(t testing.TB) {
		New(t, 2, WithStart(func(int, *grid.Manager) error { return errors.New("no disk") }))
	}), "gridtest: start of node 0: WithStart: no disk")
}

// Register of the options comes before WithHandlers, and after a restart as well.
func TestNode_RegisterOfTheOptionsIsCalledToo(t *testing.T) {
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		for range 2 {
			for _, id := range []grid.HandlerID{hold, hold + 1} {
				_, err := g.Conn(0, 1).SingleRequest(t.Context(), id, nil)
				require.NoError(t, err)
			}
			g.Restart(1)
			g.WaitConnected()
		}
	}, WithOptions(func(_ int, o *grid.ManagerOptions) {
		o.Register = func(m *grid.Manager) error {
			return m.RegisterSingleHandler(hold, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil })
		}
	}), WithHandlers(func(_ int, m *grid.Manager) error {
		if err := m.RegisterSingleHandler(hold, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }); !errors.Is(err, grid.ErrHandlerAlreadyExists) {
			return fmt.Errorf("Register was not called: %w", err)
		}
		return m.RegisterSingleHandler(hold+1, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil })
	}))
}

// Whoever gives the nodes a way to tell each other from strangers need not take that of the grid away.
func TestNode_HasATokenOfTheGridOnlyWithoutAnother(t *testing.T) {
	for name, edit := range map[string]func(o *grid.ManagerOptions){
		"none":         func(*grid.ManagerOptions) {},
		"SharedSecret": func(o *grid.ManagerOptions) { o.SharedSecret = [][]byte{[]byte("0123456789abcdef")} },
		"Insecure":     func(o *grid.ManagerOptions) { o.Insecure = true },
		"AuthFn": func(o *grid.ManagerOptions) {
			o.AuthFn, o.AuthToken = func() string { return "own" }, func(token string) error {
				if token != "own" {
					return errors.New("not mine")
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBoth(t, 2, func(t *testing.T, g *Grid) { requireReach(t, g, everyone) },
				WithOptions(func(_ int, o *grid.ManagerOptions) { edit(o) }))
		})
	}
}
