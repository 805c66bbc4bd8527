package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Every change that a connection makes is seen by one who polls it, in an order that the table
// allows.
func TestState_ConnectionGoesThroughAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		block := make(chan struct{})
		g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) { o.BlockConnect = block })
		c := g.Manager(0).Connection(raw)
		require.Equal(t, grid.StateUnconnected, c.State())
		n.Partition(rig.HostAddr(rig.LoneHost), rig.HostAddr(raw))
		close(block)
		synctest.Wait()
		require.Equal(t, grid.StateConnecting, c.State())
		time.Sleep(rig.HandshakeTimeout)
		synctest.Wait()
		require.Equal(t, grid.StateConnectionError, c.State())

		s := rig.ListenLone(t, n, rawpeer.Config{})
		n.Heal(rig.HostAddr(rig.LoneHost), rig.HostAddr(raw))
		p := s.Accept()
		synctest.Wait()
		require.Equal(t, grid.StateConnected, c.State())
		p.Close()
		synctest.Wait()
		require.Equal(t, grid.StateConnectionError, c.State())
		s.Accept()
		synctest.Wait()
		require.Equal(t, grid.StateConnected, c.State())
		require.NoError(t, g.Manager(0).Close())
		require.Equal(t, grid.StateShutdown, c.State())
	})
}

// Lesson 20.
func TestState_WaitForConnectWithACancelledContextLeavesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		c := g.Manager(0).Connection(raw)
		why := errors.New("lost patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		errs := make(chan error, 100)
		for range cap(errs) {
			go func() { errs <- c.WaitForConnect(ctx) }()
		}
		synctest.Wait()
		require.Empty(t, errs)
		cancel(why)
		for range cap(errs) {
			err := <-errs
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, why)
		}
		require.ErrorIs(t, c.WaitForConnect(ctx), why, "ended before")
		// The bubble ends here although the connection lives: nothing waits.
		require.Equal(t, grid.StateUnconnected, c.State())

		late, cancelLate := context.WithTimeout(t.Context(), time.Second)
		defer cancelLate()
		begin := time.Now()
		require.ErrorIs(t, c.WaitForConnect(late), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestState_WaitForConnectSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := []string{"http://a", "http://b"}
		for _, local := range hosts {
			m, err := grid.NewManager(t.Context(), grid.ManagerOptions{
				Local: local, Hosts: hosts, Insecure: true, Logger: slog.New(slog.DiscardHandler),
				Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") },
			})
			require.NoError(t, err)
			defer m.Close()
			c := m.Connection(m.Targets()[0])
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err = c.WaitForConnect(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			if c.Stats().Dials {
				require.ErrorContains(t, err, "exceeded: "+c.HostName()+": no connection for 10s: no route")
			} else {
				require.ErrorContains(t, err, "exceeded: "+c.HostName()+": no connection for 10s, waiting for it to dial")
			}
		}
	})
}

func TestState_WaitForConnectSeesEveryWaiterThrough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		c := g.Manager(0).Connection(raw)
		errs := make(chan error, 100)
		for range cap(errs) {
			go func() { errs <- c.WaitForConnect(context.Background()) }()
		}
		synctest.Wait()
		require.Empty(t, errs)
		g.DialLone(raw, rawpeer.Config{})
		for range cap(errs) {
			require.NoError(t, <-errs)
		}
		// Connected: at once, also with a context that has ended.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, c.WaitForConnect(ctx))
	})
}

func TestState_WaitForConnectReturnsAtOnceAfterShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		c := g.Manager(0).Connection(raw)
		waited := make(chan error, 1)
		go func() { waited <- c.WaitForConnect(context.Background()) }()
		synctest.Wait()
		require.NoError(t, g.Manager(0).Close())
		require.ErrorIs(t, <-waited, grid.ErrDisconnected)
		err := c.WaitForConnect(context.Background())
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "closed")
		require.ErrorIs(t, c.Subroute("a").WaitForConnect(context.Background()), grid.ErrDisconnected)
	})
}
