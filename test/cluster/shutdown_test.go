package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// shutdownGrid is two nodes; a request to Unused on node 1 waits for release.
func shutdownGrid(t *testing.T) (g *rig.Grid, release chan struct{}) {
	g = rig.New(t, 2, nil)
	release = make(chan struct{})
	require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
		<-release
		return b, nil
	}))
	return g, release
}

func TestShutdown_LetsWhatRunsFinish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, release := shutdownGrid(t)
		in := make(chan error, 1) // a call to the node that shuts down
		go func() {
			_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
			in <- err
		}()
		out, err := g.Conn(1, 0).NewStream(t.Context(), rig.TwoWay, nil) // one from it
		require.NoError(t, err)
		synctest.Wait()

		ended := make(chan error, 1)
		go func() { ended <- g.Manager(1).Shutdown(t.Context()) }()
		synctest.Wait()
		require.Empty(t, ended)
		_, err = g.Conn(1, 0).SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err, "a handler is running, which may call")
		_, err = g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, nil)
		require.EqualError(t, err, "grid: disconnected: http://node1:9000: the remote host is shutting down (handler 1)")
		require.ErrorIs(t, err, grid.ErrDisconnected)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = g.Conn(0, 1).With(grid.CallOptions{WaitForLink: true}).SingleRequest(ctx, rig.Echo, nil)
		rig.RequireKind(t, err, rig.IsDeadline, "who waits for the link")
		require.ErrorContains(t, err, "context deadline exceeded: http://node1:9000: the remote host is shutting down")
		_, err = g.Conn(0, 1).NewStream(t.Context(), rig.TwoWay, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Equal(t, grid.StateConnectionError, g.Conn(0, 1).State())
		require.Equal(t, 1, g.Conn(0, 1).Stats().Calls, "what is under way goes on")

		close(release)
		require.NoError(t, <-in)
		synctest.Wait()
		require.Empty(t, ended, "its own stream is open")
		_, err = g.Conn(1, 0).SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrShutdown, "no handler is")
		require.NoError(t, out.Send([]byte("still there")))
		close(out.Requests)
		n := 0
		require.NoError(t, out.Results(func(b []byte) error { n++; grid.PutByteBuffer(b); return nil }))
		require.Equal(t, 1, n)
		require.NoError(t, <-ended)
		require.Equal(t, grid.StateShutdown, g.Conn(1, 0).State())
	})
}

func TestShutdown_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, release := shutdownGrid(t)
		in := make(chan error, 1)
		go func() {
			_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
			in <- err
		}()
		synctest.Wait()
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, g.Manager(1).Shutdown(ctx), enough)
		require.Equal(t, time.Second, time.Since(start))
		require.ErrorIs(t, <-in, grid.ErrDisconnected)
		close(release)
	})
}

func TestShutdown_OfAnIdleOrClosedManagerReturnsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		start := time.Now()
		require.NoError(t, g.Manager(0).Shutdown(t.Context()))
		require.NoError(t, g.Manager(0).Shutdown(t.Context()))
		require.NoError(t, g.Manager(0).Close())
		require.Zero(t, time.Since(start))
	})
}

func TestShutdown_OfBothSidesWithCallsBothWays(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	release, let := rig.Gate(t)
	running := make(chan struct{}, 100)
	var results []<-chan error
	for i := range 2 {
		require.NoError(t, g.Manager(i).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			running <- struct{}{}
			<-release
			return b, nil
		}))
	}
	for i := range 2 {
		c := g.Conn(i, 1-i)
		for range 10 {
			results = append(results, rig.InBackground(func() error {
				b, err := c.SingleRequest(t.Context(), rig.Handler, make([]byte, 100<<10))
				grid.PutByteBuffer(b)
				return err
			}), rig.InBackground(func() error {
				s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
				if err != nil {
					return err
				}
				running <- struct{}{}
				go func() {
					<-release
					for range 100 {
						_ = s.Send(make([]byte, 1000))
					}
					s.CloseSend()
				}()
				n := 0
				err = s.Results(func(b []byte) error { n++; grid.PutByteBuffer(b); return nil })
				if err == nil && n != 100 {
					err = errors.New("messages are missing")
				}
				return err
			}))
		}
	}
	for range 40 {
		<-running
	}
	var ended []<-chan error
	for i := range 2 {
		for range 2 {
			ended = append(ended, rig.InBackground(func() error { return g.Manager(i).Shutdown(context.Background()) }))
		}
	}
	for i := range 2 {
		rig.WaitState(t, g.Conn(i, 1-i), grid.StateConnectionError)
		_, err := g.Conn(i, 1-i).SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
	}
	let()
	for _, c := range append(results, ended...) {
		require.NoError(t, <-c)
	}
	for i := range 2 {
		st := g.Conn(i, 1-i).Stats()
		require.Zero(t, st.KeptBytes)
		require.Zero(t, st.Handlers+st.Calls+st.Streams+st.StreamsServed)
	}
}
