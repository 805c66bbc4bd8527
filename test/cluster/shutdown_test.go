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

// shutdownGrid is two nodes; a request to Unused on node 1 waits for
// release.
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
		require.ErrorIs(t, err, grid.ErrDisconnected)
		_, err = g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, nil)
		require.EqualError(t, err, "grid: disconnected: the remote host is shutting down")
		require.ErrorIs(t, err, grid.ErrDisconnected)
		_, err = g.Conn(0, 1).NewStream(t.Context(), rig.TwoWay, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Equal(t, grid.StateConnectionError, g.Conn(0, 1).State())
		require.Equal(t, 1, g.Conn(0, 1).Stats().Calls, "what is under way goes on")

		close(release)
		require.NoError(t, <-in)
		synctest.Wait()
		require.Empty(t, ended, "its own stream is open")
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
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		start := time.Now()
		require.NoError(t, g.Manager(0).Shutdown(t.Context()))
		require.NoError(t, g.Manager(0).Shutdown(t.Context()))
		require.NoError(t, g.Manager(0).Close())
		require.Zero(t, time.Since(start))
	})
}
