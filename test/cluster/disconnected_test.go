package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rig"
)

// What a call says that finds no connection, or loses it: which host it was, and why.

// says is what calls over a connection say.
func says(t *testing.T, c *grid.Connection) string {
	t.Helper()
	_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
	rig.RequireKind(t, err, rig.IsDisconnected, "request")
	_, streamErr := c.Subroute("a").NewStream(t.Context(), rig.Stream, nil)
	rig.RequireKind(t, streamErr, rig.IsDisconnected, "stream")
	text, ok := strings.CutSuffix(err.Error(), fmt.Sprintf(" (handler %d)", rig.Echo))
	require.Equal(t, c != nil, ok, err)
	require.Contains(t, streamErr.Error(), text, "or with the attempt that the first has had made")
	return text
}

func TestDisconnected_NamesTheHostThatCannotBeDialled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		unblock := make(chan struct{})
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), false, func(o *grid.ManagerOptions) { o.BlockConnect = unblock })
		c := g.Manager(0).Connection(raw)
		require.Equal(t, "grid: disconnected: "+raw+": no connection for 0s, not dialled yet", says(t, c))
		close(unblock)
		synctest.Wait()
		time.Sleep(12 * time.Second)
		require.Equal(t, "grid: disconnected: "+raw+": no connection for 12s: dial memory raw"+raw[len("http://raw"):]+": connect: connection refused", says(t, c))

		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		err := c.WaitForConnect(ctx)
		rig.RequireKind(t, err, rig.IsDeadline, "WaitForConnect")
		require.ErrorContains(t, err, "context deadline exceeded: "+raw+": no connection for 14s: dial memory")
	})
}

func TestDisconnected_NamesTheHostThatDoesNotCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		time.Sleep(90 * time.Second)
		require.Equal(t, "grid: disconnected: "+raw+": no connection for 1m30s, waiting for it to dial", says(t, g.Manager(0).Connection(raw)))
	})
}

func TestDisconnected_NamesTheHostThatWasLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		for i := range 2 {
			c := g.Conn(i, 1-i)
			ended := rig.BlockHandler(t, g.Manager(1-i), rig.Handler)
			s, err := c.NewStream(t.Context(), rig.Handler, nil)
			require.NoError(t, err)
			time.Sleep(time.Minute)
			g.PartitionSilently([]int{0}, []int{1})
			g.Cut(0, 1)
			synctest.Wait()
			lost := "grid: disconnected: " + g.Host(1-i) + ": "
			require.ErrorContains(t, s.Err(), lost)
			reason, ok := strings.CutSuffix(s.Err().Error()[len(lost):], fmt.Sprintf(" (handler %d)", rig.Handler))
			require.True(t, ok)
			require.ErrorContains(t, <-ended, "grid: disconnected: "+g.Host(i)+": ", "the handler's context")
			require.NotContains(t, reason, "grid: ")
			require.Equal(t, "grid: disconnected: "+reason, c.Stats().LastError, "the statistics have the host beside it")
			if absent := says(t, c); c.Stats().Dials {
				require.Equal(t, lost+"no connection for 0s: "+reason, absent)
			} else {
				require.Equal(t, lost+"no connection for 0s, waiting for it to dial: "+reason, absent)
			}
			g.Heal()
			g.WaitConnected()
		}
	})
}

func TestDisconnected_NamesTheHostThatWasRemoved(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, g.Manager(0).RemoveHost(g.Host(1)))
		require.Equal(t, "grid: disconnected: http://node1:9000: the host was removed", says(t, c))
		require.EqualError(t, c.WaitForConnect(t.Context()), says(t, c))
	})
}

func TestDisconnected_SaysThatTheManagerEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, release := shutdownGrid(t)
		busy := rig.InBackground(func() error {
			_, err := g.Conn(1, 0).SingleRequest(t.Context(), rig.Echo, nil)
			return err
		})
		require.NoError(t, <-busy)
		busy = rig.InBackground(func() error {
			_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
			return err
		})
		synctest.Wait()
		here := g.Conn(0, 1)
		ended := rig.InBackground(func() error { return g.Manager(0).Shutdown(t.Context()) })
		synctest.Wait()
		require.Equal(t, "grid: disconnected: http://node1:9000: the manager is shutting down", says(t, here))
		g.Cut(0, 1)
		rig.RequireKind(t, <-busy, rig.IsDisconnected, "call")
		require.NoError(t, <-ended)
		require.Equal(t, "grid: disconnected: http://node1:9000: the manager is closed", says(t, here))
		close(release)
	})
}

func TestDisconnected_OfNilSaysWhatItMayBe(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		for _, host := range []string{"http://unknown", g.Host(0), "127.0.0.1:99"} {
			c := g.Manager(0).Connection(host)
			require.Nil(t, c)
			require.Equal(t, "grid: disconnected: nil Connection: its host was not among the Manager's hosts, or is the local one", says(t, c))
			require.EqualError(t, c.WaitForConnect(t.Context()), says(t, c))
		}
	})
}
