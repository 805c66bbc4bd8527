package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Calls that a host makes while it shuts down.

// callOn registers, at node from, handlers of both kinds that wait for release, and then call node
// to, which may be from itself.
func callOn(t *testing.T, g *rig.Grid, from, to int, release <-chan struct{}) {
	m := g.Manager(from)
	on := func(ctx context.Context, b []byte) ([]byte, error) {
		<-release
		c := m.Connection(g.Host(to))
		if err := c.WaitForConnect(ctx); err != nil {
			return nil, err
		}
		s, err := c.NewStream(ctx, rig.TwoWay, nil)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(s.Send(b), s.Finish(ctx)); err != nil {
			return nil, err
		}
		return c.SingleRequest(ctx, rig.Echo, b)
	}
	require.NoError(t, m.RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
		b, err := on(ctx, b)
		return b, grid.NewRemoteErr(err)
	}))
	require.NoError(t, m.RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{Serve: func(ctx context.Context, b []byte, s *grid.ServerStream) *grid.RemoteErr {
		b, err := on(ctx, b)
		if err == nil {
			err = s.Send(ctx, b)
		}
		return grid.NewRemoteErr(err)
	}}))
}

// callBoth calls both handlers of callOn.
func callBoth(ctx context.Context, c *grid.Connection) <-chan error {
	return rig.InBackground(func() error {
		stream := rig.InBackground(func() error {
			s, err := c.NewStream(ctx, rig.Handler+1, make([]byte, 100<<10))
			if err != nil {
				return err
			}
			return rig.Consume(s)
		})
		_, err := c.SingleRequest(ctx, rig.Handler, make([]byte, 100<<10))
		return errors.Join(err, <-stream)
	})
}

// What runs may call on, to another host or the local one, and once it has ended nothing may.
func TestShutdown_HandlersMayCall(t *testing.T) {
	for name, to := range map[string]int{"another host": 2, "its caller": 0, "the local host": 1} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := rig.New(t, 3, func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true })
				release, let := rig.Gate(t)
				callOn(t, g, 1, to, release)
				served := callBoth(t.Context(), g.Conn(0, 1))
				synctest.Wait()
				begin := time.Now()
				down := rig.InBackground(func() error { return g.Manager(1).Shutdown(t.Context()) })
				synctest.Wait()
				_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrDisconnected, "nothing new is taken")
				require.NotErrorIs(t, err, grid.ErrShutdown, "it is not this host")
				require.True(t, grid.CanRetry(err))
				require.Empty(t, down)
				time.Sleep(20 * time.Second)
				let()
				require.NoError(t, <-served)
				require.NoError(t, <-down)
				require.Less(t, time.Since(begin), 22*time.Second)
				own := g.Manager(1).Connection(g.Host(to))
				_, err = own.SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrShutdown)
				require.ErrorIs(t, err, grid.ErrDisconnected)
				require.False(t, grid.CanRetry(err))
			})
		})
	}
}

func TestShutdown_HandlersMayCallOverTCP(t *testing.T) {
	g := rig.NewTCP(t, 3, nil)
	release, let := rig.Gate(t)
	callOn(t, g, 1, 2, release)
	var served []<-chan error
	for range 10 {
		served = append(served, callBoth(t.Context(), g.Conn(0, 1)))
	}
	running := func() (n int) { // not the slots, which are taken before a shutdown is looked for
		for _, h := range g.Manager(1).HandlerStats() {
			n += h.Running
		}
		return n
	}
	for running() < 20 {
		time.Sleep(time.Millisecond)
	}
	down := rig.InBackground(func() error { return g.Manager(1).Shutdown(context.Background()) })
	rig.WaitState(t, g.Conn(0, 1), grid.StateConnectionError)
	let()
	for _, c := range served {
		require.NoError(t, <-c)
	}
	require.NoError(t, <-down)
}

// Once no handler is running calls are refused, and those that are under way go on.
func TestShutdown_CallsOfItsOwnAreRefusedOnceNoHandlerRuns(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release, let := rig.Gate(t)
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			<-release
			return b, nil
		}))
		under := rig.InBackground(func() error { _, err := c.SingleRequest(t.Context(), rig.Handler, nil); return err })
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		served := rig.BlockHandler(t, g.Manager(0), rig.Handler)
		ctx, giveUp := context.WithCancel(t.Context())
		in, err := g.Conn(1, 0).NewStream(ctx, rig.Handler, nil)
		require.NoError(t, err)
		synctest.Wait()
		down := rig.InBackground(func() error { return g.Manager(0).Shutdown(t.Context()) })
		synctest.Wait()
		for range 3 { // a handler is running: other goroutines may call as well
			_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
		giveUp()
		<-served
		require.Error(t, rig.Consume(in))
		synctest.Wait()
		require.Empty(t, down)
		for _, err := range []error{
			func() error { _, err := c.SingleRequest(t.Context(), rig.Echo, nil); return err }(),
			func() error { _, err := c.NewStream(t.Context(), rig.TwoWay, nil); return err }(),
			g.Manager(0).AddHost("http://late:9000"),
		} {
			require.ErrorIs(t, err, grid.ErrShutdown)
			require.ErrorIs(t, err, grid.ErrDisconnected)
			require.False(t, grid.CanRetry(err), err)
		}
		require.NoError(t, s.Send([]byte("x")))
		require.NoError(t, s.Finish(t.Context()))
		require.Empty(t, down)
		let()
		require.NoError(t, <-under)
		require.NoError(t, <-down)
	})
}

// Two hosts whose handlers call each other while both shut down: each call is refused at once, as
// the other takes nothing new, and so neither waits for the other.
func TestShutdown_OfTwoThatCallEachOther(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		release, let := rig.Gate(t)
		var served, down []<-chan error
		for i := range 2 {
			callOn(t, g, i, 1-i, release)
		}
		for i := range 2 {
			served = append(served, callBoth(t.Context(), g.Conn(i, 1-i)))
		}
		synctest.Wait()
		for i := range 2 {
			down = append(down, rig.InBackground(func() error { return g.Manager(i).Shutdown(t.Context()) }))
		}
		synctest.Wait()
		begin := time.Now()
		let()
		for i := range 2 {
			err := <-served[i]
			require.True(t, grid.IsRemoteErr(err), err)
			require.ErrorContains(t, err, "the remote host is shutting down")
			require.False(t, grid.CanRetry(err), "the handler has run")
			require.NoError(t, <-down[i])
		}
		require.Less(t, time.Since(begin), 5*time.Second)
	})
}

// A handler that calls for ever is cut off by the context of Shutdown; one that hears of it ends.
func TestShutdown_OfAHandlerThatCallsOnAndOn(t *testing.T) {
	for name, listens := range map[string]bool{"that does not listen": false, "that listens": true} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := rig.New(t, 3, nil)
				ended := make(chan error, 1)
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Serve: func(ctx context.Context, _ []byte, _ *grid.ServerStream) *grid.RemoteErr {
					var err error
					for err == nil && !(listens && isDraining(grid.Draining(ctx))) {
						_, err = g.Conn(1, 2).SingleRequest(context.WithoutCancel(ctx), rig.Echo, nil)
						time.Sleep(time.Second)
					}
					ended <- err
					return nil
				}}))
				_, err := g.Conn(0, 1).NewStream(t.Context(), rig.Handler, nil)
				require.NoError(t, err)
				time.Sleep(time.Minute)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				err = g.Manager(1).Shutdown(ctx)
				if listens {
					require.NoError(t, err)
					require.NoError(t, <-ended)
					return
				}
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorIs(t, <-ended, grid.ErrShutdown)
			})
		})
	}
}

// A link that is lost meanwhile is not made again, and another host can still be asked.
func TestShutdown_CallsFindNoNewLink(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		release, let := rig.Gate(t)
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			<-release
			return b, nil
		}))
		under := rig.InBackground(func() error { _, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Handler, nil); return err })
		synctest.Wait()
		down := rig.InBackground(func() error { return g.Manager(1).Shutdown(t.Context()) })
		synctest.Wait()
		g.Cut(1, 2)
		time.Sleep(20 * time.Second)
		_, err := g.Conn(1, 2).SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.NotErrorIs(t, err, grid.ErrShutdown)
		require.True(t, grid.CanRetry(err))
		require.ErrorContains(t, err, "the manager is shutting down, and makes no connection any more")
		require.ErrorIs(t, g.Conn(1, 2).WaitForConnect(t.Context()), grid.ErrDisconnected)
		either, err := grid.NewRetrier(grid.RetryOptions{}, g.Conn(1, 2), g.Conn(1, 0))
		require.NoError(t, err)
		_, err = either.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
		let()
		require.NoError(t, <-under)
		require.NoError(t, <-down)
	})
}

// Calls of this host to itself can't keep it from shutting down, nor can those to others.
func TestShutdown_UnderLoadOfItsOwn(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true })
		callOn(t, g, 0, 1, closed())
		var callers sync.WaitGroup
		for to := range 2 {
			for range 4 {
				callers.Go(func() {
					c, id := g.Manager(0).Connection(g.Host(to)), rig.Echo
					if to == 0 {
						id = rig.Handler // which calls on
					}
					for {
						_, err := c.SingleRequest(t.Context(), id, nil)
						time.Sleep(time.Microsecond)
						switch {
						case errors.Is(err, grid.ErrShutdown):
							return
						case err != nil && !grid.CanRetry(err):
							t.Error(fmt.Errorf("call to %d: %w", to, err))
							return
						}
					}
				})
			}
		}
		time.Sleep(30 * time.Microsecond)
		require.NoError(t, g.Manager(0).Shutdown(t.Context()))
		callers.Wait()
	})
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
