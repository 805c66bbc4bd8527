package cluster

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// sameNameGrid is a grid of two, and a second process that goes by the name of one of them, the one
// that dials. The first may wrap its connections.
type sameNameGrid struct {
	*rig.Grid
	acceptor, dialler int
	log               *rig.LogBook // the acceptor's
}

func newSameNameGrid(t *testing.T, dial func(net.Conn) net.Conn) *sameNameGrid {
	t.Helper()
	// Which of them dials is decided by the names.
	g := &sameNameGrid{acceptor: 0, dialler: 1}
	if rawpeer.DialOrder("http://node0:9000", "http://node1:9000") {
		g.acceptor, g.dialler = 1, 0
	}
	g.Grid = rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
		if i == g.acceptor {
			o.Logger, g.log = rig.NewLogBook()
		}
		if plain := o.Dialer; dial != nil && i == g.dialler {
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := plain(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return dial(c), nil
			}
		}
	})
	return g
}

// startSecond starts the second process. It is reached by nobody, and dials from an address of its
// own.
func (g *sameNameGrid) startSecond(log *slog.Logger) *grid.Manager {
	g.T.Helper()
	o := rig.Options(g.Host(g.dialler), g.Hosts())
	o.Dialer = g.Net.Dialer("second:1")
	if log != nil {
		o.Logger = log
	}
	m, err := grid.NewManager(context.Background(), o)
	require.NoError(g.T, err)
	g.T.Cleanup(func() { m.Close() })
	return m
}

// Lesson 26: the second is refused clearly for as long as the first is alive, and nobody evicts
// anybody.
func TestSameName_SecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newSameNameGrid(t, nil)
		st, err := g.Conn(g.dialler, g.acceptor).NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		log, secondLog := rig.NewLogBook()
		second := g.startSecond(log)
		c := second.Connection(g.Host(g.acceptor))
		for range 30 {
			time.Sleep(time.Minute)
			g.RequireWorks()
			require.NotEqual(t, grid.StateConnected, c.State())
		}
		_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		const why = "two processes use one host name"
		require.Contains(t, c.Stats().LastError, why)
		require.Contains(t, c.Stats().LastError, g.Host(g.dialler))
		require.Len(t, g.log.About(why), 1, "in an hour")
		require.Len(t, g.log.About("level=WARN"), 1)
		require.Contains(t, g.log.About(why)[0], "second:")
		require.Len(t, secondLog.About(why), 1)
		require.Len(t, secondLog.About("level=WARN"), 1)

		require.Zero(t, g.Conn(g.acceptor, g.dialler).Stats().Reconnects, "the first was evicted")
		require.NoError(t, st.Send([]byte("still here")))
		st.CloseSend()
		require.NoError(t, rig.Consume(st))

		// The first goes, and the second may come.
		g.Stop(g.dialler)
		begin := time.Now()
		require.NoError(t, c.WaitForConnect(t.Context()))
		require.Less(t, time.Since(begin), 2*rig.MaxBackoff)
		b, err := c.SingleRequest(t.Context(), rig.Echo, []byte("second"))
		require.NoError(t, err)
		grid.PutByteBuffer(b)
	})
}

// A link that is so busy that a ping takes longer than the probe is alive.
func TestSameName_SecondProcessIsRefusedWhileTheFirstIsBusy(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	synctest.Test(t, func(t *testing.T) {
		g := newSameNameGrid(t, func(c net.Conn) net.Conn {
			w := faultconn.Wrap(c)
			w.WriteLimit(32 << 10)
			return w
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var senders sync.WaitGroup
		for range 40 {
			senders.Go(func() {
				for ctx.Err() == nil {
					b, err := g.Conn(g.dialler, g.acceptor).SingleRequest(ctx, rig.Echo, make([]byte, 16<<10))
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					grid.PutByteBuffer(b)
				}
			})
		}
		// How long a ping takes depends on how much of a batch is before it.
		var rtt time.Duration
		for range 20 {
			time.Sleep(10 * time.Second)
			if rtt = g.Conn(g.acceptor, g.dialler).Stats().RoundTrip; rtt > rig.ProbeTime {
				break
			}
		}
		require.Greater(t, rtt, rig.ProbeTime, "the case is not what it should be")
		second := g.startSecond(nil)
		senders.Wait()
		require.NotEqual(t, grid.StateConnected, second.Connection(g.Host(g.acceptor)).State())
		require.Zero(t, g.Conn(g.acceptor, g.dialler).Stats().Reconnects, "the first was evicted")
	})
}

// Lessons 4 and 26: what is open on the dead one ends, and not cleanly.
func TestSameName_DeadProcessIsReplacedWithinAboutASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newSameNameGrid(t, nil)
		n := g.Node(g.acceptor)
		served := rig.BlockHandler(t, n.Manager, rig.Unused)
		fromDead, err := g.Conn(g.dialler, g.acceptor).NewStream(t.Context(), rig.Unused, nil)
		require.NoError(t, err)
		toDead, err := g.Conn(g.acceptor, g.dialler).NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, toDead.Send([]byte("something to read")))
		synctest.Wait()

		// Its machine is gone, without a word.
		g.Net.Partition(g.Addr(g.dialler), g.Addr(g.acceptor))
		call := rig.InBackground(func() error {
			_, err := g.Conn(g.acceptor, g.dialler).SingleRequest(context.Background(), rig.Echo, nil)
			return err
		})
		synctest.Wait()
		begin := time.Now()
		second := g.startSecond(nil)
		rig.RegisterHandlers(t, second)
		require.NoError(t, second.Connection(g.Host(g.acceptor)).WaitForConnect(t.Context()))
		require.LessOrEqual(t, time.Since(begin), rig.ProbeTime+100*time.Millisecond)

		n2 := 0
		err = toDead.Results(func(b []byte) error { n2++; grid.PutByteBuffer(b); return nil })
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "replaced")
		require.Equal(t, 1, n2, "what had arrived before is lost")
		require.ErrorIs(t, <-served, grid.ErrDisconnected)
		require.ErrorIs(t, <-call, grid.ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), rig.ProbeTime+100*time.Millisecond)

		b, err := g.Conn(g.acceptor, g.dialler).SingleRequest(t.Context(), rig.Echo, []byte("to the second"))
		require.NoError(t, err)
		require.Equal(t, "to the second", string(b))
		require.ErrorIs(t, rig.Consume(fromDead), grid.ErrDisconnected) // when it notices by itself

		// Back again, the first is now the second.
		g.Net.Heal(g.Addr(g.dialler), g.Addr(g.acceptor))
		time.Sleep(time.Minute)
		require.NotEqual(t, grid.StateConnected, g.Conn(g.dialler, g.acceptor).State())
		require.Equal(t, 1, g.Conn(g.acceptor, g.dialler).Stats().Reconnects)
	})
}

// closedUnheard is a connection whose close the peer hears nothing of.
type closedUnheard struct{ net.Conn }

func (l closedUnheard) Close() error { return l.Conn.SetDeadline(time.Unix(1, 0)) }

// The same process that comes again has lost its connection: there is nothing to wait for, and
// nothing to tell.
func TestSameName_ProcessThatReconnectsReplacesItsLinkAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dialled []net.Conn
		g := newSameNameGrid(t, func(c net.Conn) net.Conn {
			dialled = append(dialled, c)
			return closedUnheard{c}
		})
		defer func() {
			g.StopAll()
			for _, c := range dialled {
				c.Close()
			}
		}()
		g.Guests = true
		st, err := g.Conn(g.acceptor, g.dialler).NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		ended := rig.InBackground(func() error { return rig.Consume(st) })
		synctest.Wait()

		begin := time.Now()
		require.NoError(t, dialled[0].SetReadDeadline(time.Unix(1, 0))) // which ends the session at this end
		synctest.Wait()
		require.Equal(t, grid.StateConnected, g.Conn(g.acceptor, g.dialler).State(), "it was told")
		require.NoError(t, g.Conn(g.dialler, g.acceptor).WaitForConnect(t.Context()))
		err = <-ended
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "replaced")
		require.Less(t, time.Since(begin), 2*rig.MinBackoff)
		require.Len(t, dialled, 2)
		g.RequireWorks()
		require.Empty(t, g.log.About("two processes"))
	})
}
