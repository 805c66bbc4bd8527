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

// twinGrid is a grid of two, and a second process that goes by the name of one of them, the one
// that dials. The first may wrap its connections.
type twinGrid struct {
	*rig.Grid
	acceptor, dialler int
	log               *rig.LogBook // the acceptor's
}

func newTwinGrid(t *testing.T, dial func(net.Conn) net.Conn) *twinGrid {
	t.Helper()
	// Which of them dials is decided by the names.
	tw := &twinGrid{acceptor: 0, dialler: 1}
	if rawpeer.DialOrder("http://node0:9000", "http://node1:9000") {
		tw.acceptor, tw.dialler = 1, 0
	}
	tw.Grid = rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
		if i == tw.acceptor {
			o.Logger, tw.log = rig.NewLogBook()
		}
		if plain := o.Dialer; dial != nil {
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := plain(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return dial(c), nil
			}
		}
	})
	return tw
}

// startTwin starts the second process. It is reached by nobody, and dials from an address of its
// own.
func (tw *twinGrid) startTwin(log *slog.Logger) *grid.Manager {
	tw.T.Helper()
	o := rig.Options(tw.Host(tw.dialler), tw.Hosts())
	o.Dialer = tw.Net.Dialer("twin:1")
	if log != nil {
		o.Logger = log
	}
	m, err := grid.NewManager(context.Background(), o)
	require.NoError(tw.T, err)
	tw.T.Cleanup(func() { m.Close() })
	return m
}

// Lesson 26: the second is refused clearly for as long as the first is alive, and nobody evicts
// anybody.
func TestTwins_SecondProcessUnderOneNameIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tw := newTwinGrid(t, nil)
		st, err := tw.Conn(tw.dialler, tw.acceptor).NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		log, twinLog := rig.NewLogBook()
		twin := tw.startTwin(log)
		c := twin.Connection(tw.Host(tw.acceptor))
		for range 30 {
			time.Sleep(time.Minute)
			tw.RequireWorks()
			require.NotEqual(t, grid.StateConnected, c.State())
		}
		_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		const why = "two processes use one host name"
		require.Contains(t, c.Stats().LastError, why)
		require.Contains(t, c.Stats().LastError, tw.Host(tw.dialler))
		require.Len(t, tw.log.About(why), 1, "in an hour")
		require.Len(t, tw.log.About("level=WARN"), 1)
		require.Contains(t, tw.log.About(why)[0], "twin:")
		require.Len(t, twinLog.About(why), 1)
		require.Len(t, twinLog.About("level=WARN"), 1)

		require.Zero(t, tw.Conn(tw.acceptor, tw.dialler).Stats().Reconnects, "the first was evicted")
		require.NoError(t, st.Send([]byte("still here")))
		st.CloseSend()
		require.NoError(t, rig.Consume(st))

		// The first goes, and the second may come.
		tw.Stop(tw.dialler)
		begin := time.Now()
		require.NoError(t, c.WaitForConnect(t.Context()))
		require.Less(t, time.Since(begin), 2*rig.MaxBackoff)
		b, err := c.SingleRequest(t.Context(), rig.Echo, []byte("twin"))
		require.NoError(t, err)
		grid.PutByteBuffer(b)
	})
}

// A link that is so busy that a ping takes longer than the probe is alive.
func TestTwins_SecondProcessIsRefusedWhileTheFirstIsBusy(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	synctest.Test(t, func(t *testing.T) {
		tw := newTwinGrid(t, func(c net.Conn) net.Conn {
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
					b, err := tw.Conn(tw.dialler, tw.acceptor).SingleRequest(ctx, rig.Echo, make([]byte, 16<<10))
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
			if rtt = tw.Conn(tw.acceptor, tw.dialler).Stats().RoundTrip; rtt > rig.ProbeTime {
				break
			}
		}
		require.Greater(t, rtt, rig.ProbeTime, "the case is not what it should be")
		twin := tw.startTwin(nil)
		senders.Wait()
		require.NotEqual(t, grid.StateConnected, twin.Connection(tw.Host(tw.acceptor)).State())
		require.Zero(t, tw.Conn(tw.acceptor, tw.dialler).Stats().Reconnects, "the first was evicted")
	})
}

// Lessons 4 and 26: what is open on the dead one ends, and not cleanly.
func TestTwins_DeadProcessIsReplacedWithinAboutASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tw := newTwinGrid(t, nil)
		n := tw.Node(tw.acceptor)
		served := rig.BlockHandler(t, n.Manager, rig.Unused)
		fromDead, err := tw.Conn(tw.dialler, tw.acceptor).NewStream(t.Context(), rig.Unused, nil)
		require.NoError(t, err)
		toDead, err := tw.Conn(tw.acceptor, tw.dialler).NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, toDead.Send([]byte("something to read")))
		synctest.Wait()

		// Its machine is gone, without a word.
		tw.Net.Partition(tw.Addr(tw.dialler), tw.Addr(tw.acceptor))
		call := rig.InBackground(func() error {
			_, err := tw.Conn(tw.acceptor, tw.dialler).SingleRequest(context.Background(), rig.Echo, nil)
			return err
		})
		synctest.Wait()
		begin := time.Now()
		twin := tw.startTwin(nil)
		rig.RegisterHandlers(t, twin)
		require.NoError(t, twin.Connection(tw.Host(tw.acceptor)).WaitForConnect(t.Context()))
		require.LessOrEqual(t, time.Since(begin), rig.ProbeTime+100*time.Millisecond)

		n2 := 0
		err = toDead.Results(func(b []byte) error { n2++; grid.PutByteBuffer(b); return nil })
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "replaced")
		require.Equal(t, 1, n2, "what had arrived before is lost")
		require.ErrorIs(t, <-served, grid.ErrDisconnected)
		require.ErrorIs(t, <-call, grid.ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), rig.ProbeTime+100*time.Millisecond)

		b, err := tw.Conn(tw.acceptor, tw.dialler).SingleRequest(t.Context(), rig.Echo, []byte("to the twin"))
		require.NoError(t, err)
		require.Equal(t, "to the twin", string(b))
		require.ErrorIs(t, rig.Consume(fromDead), grid.ErrDisconnected) // when it notices by itself

		// Back again, the first is now the second.
		tw.Net.Heal(tw.Addr(tw.dialler), tw.Addr(tw.acceptor))
		time.Sleep(time.Minute)
		require.NotEqual(t, grid.StateConnected, tw.Conn(tw.dialler, tw.acceptor).State())
		require.Equal(t, 1, tw.Conn(tw.acceptor, tw.dialler).Stats().Reconnects)
	})
}

// lingering is a connection whose close the peer hears nothing of.
type lingering struct{ net.Conn }

func (l lingering) Close() error { return l.Conn.SetDeadline(time.Unix(1, 0)) }

// The same process that comes again has lost its connection: there is nothing to wait for, and
// nothing to tell.
func TestTwins_SameProcessThatReconnectsReplacesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dialled []net.Conn
		tw := newTwinGrid(t, func(c net.Conn) net.Conn {
			dialled = append(dialled, c)
			return lingering{c}
		})
		defer func() {
			tw.StopAll()
			for _, c := range dialled {
				c.Close()
			}
		}()
		tw.Guests = true
		st, err := tw.Conn(tw.acceptor, tw.dialler).NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		ended := rig.InBackground(func() error { return rig.Consume(st) })
		synctest.Wait()

		begin := time.Now()
		require.NoError(t, dialled[0].SetReadDeadline(time.Unix(1, 0))) // which ends the session at this end
		synctest.Wait()
		require.Equal(t, grid.StateConnected, tw.Conn(tw.acceptor, tw.dialler).State(), "it was told")
		require.NoError(t, tw.Conn(tw.dialler, tw.acceptor).WaitForConnect(t.Context()))
		err = <-ended
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "replaced")
		require.Less(t, time.Since(begin), 2*rig.MinBackoff)
		require.Len(t, dialled, 2)
		tw.RequireWorks()
		require.Empty(t, tw.log.About("two processes"))
	})
}
