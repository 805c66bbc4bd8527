package grid

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/faultconn"
)

// twinGrid is a grid of two, and a second process that goes by the name of one
// of them, the one that dials. The first may wrap its connections.
type twinGrid struct {
	*testGrid
	acceptor, dialler int
	log               *logBook // the acceptor's
}

func newTwinGrid(t *testing.T, dial func(net.Conn) net.Conn) *twinGrid {
	t.Helper()
	// Which of them dials is decided by the names.
	tw := &twinGrid{acceptor: 0, dialler: 1}
	if shouldDial("http://node0:9000", "http://node1:9000") {
		tw.acceptor, tw.dialler = 1, 0
	}
	tw.testGrid = newTestGrid(t, 2, func(i int, o *ManagerOptions) {
		if i == tw.acceptor {
			o.Logger, tw.log = newLogBook()
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

// startTwin starts the second process. It is reached by nobody, and dials from
// an address of its own.
func (tw *twinGrid) startTwin(log *slog.Logger) *Manager {
	tw.t.Helper()
	o := testOptions(tw.hosts[tw.dialler], tw.hosts)
	o.Dialer = tw.net.Dialer("twin:1")
	if log != nil {
		o.Logger = log
	}
	m, err := NewManager(context.Background(), o)
	require.NoError(tw.t, err)
	tw.t.Cleanup(func() { m.Close() })
	return m
}

// Lesson 26: the second is refused clearly for as long as the first is alive,
// and nobody evicts anybody.
func TestSecondProcessUnderOneNameIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTwinGrid(t, nil)
		st, err := tw.conn(tw.dialler, tw.acceptor).NewStream(t.Context(), testTwoWay, nil)
		require.NoError(t, err)
		log, twinLog := newLogBook()
		twin := tw.startTwin(log)
		c := twin.Connection(tw.hosts[tw.acceptor])
		for range 30 {
			time.Sleep(time.Minute)
			tw.requireWorks()
			require.NotEqual(t, StateConnected, c.State())
		}
		_, err = c.SingleRequest(t.Context(), testEcho, nil)
		require.ErrorIs(t, err, ErrDisconnected)
		const why = "two processes use one host name"
		require.Contains(t, c.Stats().LastError, why)
		require.Contains(t, c.Stats().LastError, tw.hosts[tw.dialler])
		require.Len(t, tw.log.about(why), 1, "in an hour")
		require.Len(t, tw.log.about("level=WARN"), 1)
		require.Contains(t, tw.log.about(why)[0], "twin:")
		require.Len(t, twinLog.about(why), 1)
		require.Len(t, twinLog.about("level=WARN"), 1)

		require.Zero(t, tw.conn(tw.acceptor, tw.dialler).Stats().Reconnects, "the first was evicted")
		require.NoError(t, st.Send([]byte("still here")))
		st.CloseSend()
		require.NoError(t, consume(st))

		// The first goes, and the second may come.
		tw.stop(tw.dialler)
		begin := time.Now()
		require.NoError(t, c.WaitForConnect(t.Context()))
		require.Less(t, time.Since(begin), 2*backoff.Max)
		b, err := c.SingleRequest(t.Context(), testEcho, []byte("twin"))
		require.NoError(t, err)
		PutByteBuffer(b)
	})
}

// A link that is so busy that a ping takes longer than the probe is alive.
func TestSecondProcessIsRefusedWhileTheFirstIsBusy(t *testing.T) {
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
					b, err := tw.conn(tw.dialler, tw.acceptor).SingleRequest(ctx, testEcho, make([]byte, 16<<10))
					if err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					PutByteBuffer(b)
				}
			})
		}
		// How long a ping takes depends on how much of a batch is before it.
		var rtt time.Duration
		for range 20 {
			time.Sleep(10 * time.Second)
			if rtt = tw.conn(tw.acceptor, tw.dialler).Stats().RoundTrip; rtt > probeTime {
				break
			}
		}
		require.Greater(t, rtt, probeTime, "the case is not what it should be")
		twin := tw.startTwin(nil)
		senders.Wait()
		require.NotEqual(t, StateConnected, twin.Connection(tw.hosts[tw.acceptor]).State())
		require.Zero(t, tw.conn(tw.acceptor, tw.dialler).Stats().Reconnects, "the first was evicted")
	})
}

// Lessons 4 and 26: what is open on the dead one ends, and not cleanly.
func TestDeadProcessIsReplacedWithinAboutASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTwinGrid(t, nil)
		n := tw.nodes[tw.acceptor]
		served := blockHandler(t, n.Manager, testUnused)
		fromDead, err := tw.conn(tw.dialler, tw.acceptor).NewStream(t.Context(), testUnused, nil)
		require.NoError(t, err)
		toDead, err := tw.conn(tw.acceptor, tw.dialler).NewStream(t.Context(), testTwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, toDead.Send([]byte("something to read")))
		synctest.Wait()

		// Its machine is gone, without a word.
		tw.net.Partition(tw.addr(tw.dialler), tw.addr(tw.acceptor))
		call := inBackground(func() error {
			_, err := tw.conn(tw.acceptor, tw.dialler).SingleRequest(context.Background(), testEcho, nil)
			return err
		})
		synctest.Wait()
		begin := time.Now()
		twin := tw.startTwin(nil)
		registerTestHandlers(t, twin)
		require.NoError(t, twin.Connection(tw.hosts[tw.acceptor]).WaitForConnect(t.Context()))
		require.LessOrEqual(t, time.Since(begin), probeTime+100*time.Millisecond)

		n2 := 0
		err = toDead.Results(func(b []byte) error { n2++; PutByteBuffer(b); return nil })
		require.ErrorIs(t, err, ErrDisconnected)
		require.ErrorContains(t, err, "replaced")
		require.Equal(t, 1, n2, "what had arrived before is lost")
		require.ErrorIs(t, <-served, ErrDisconnected)
		require.ErrorIs(t, <-call, ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), probeTime+100*time.Millisecond)

		b, err := tw.conn(tw.acceptor, tw.dialler).SingleRequest(t.Context(), testEcho, []byte("to the twin"))
		require.NoError(t, err)
		require.Equal(t, "to the twin", string(b))
		require.ErrorIs(t, consume(fromDead), ErrDisconnected) // when it notices by itself

		// Back again, the first is now the second.
		tw.net.Heal(tw.addr(tw.dialler), tw.addr(tw.acceptor))
		time.Sleep(time.Minute)
		require.NotEqual(t, StateConnected, tw.conn(tw.dialler, tw.acceptor).State())
		require.Equal(t, 1, tw.conn(tw.acceptor, tw.dialler).Stats().Reconnects)
	})
}

// lingering is a connection whose close the peer hears nothing of.
type lingering struct{ net.Conn }

func (l lingering) Close() error { return l.Conn.SetDeadline(time.Unix(1, 0)) }

// The same process that comes again has lost its connection: there is nothing
// to wait for, and nothing to tell.
func TestSameProcessThatReconnectsReplacesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialled []net.Conn
		tw := newTwinGrid(t, func(c net.Conn) net.Conn {
			dialled = append(dialled, c)
			return lingering{c}
		})
		defer func() {
			tw.stopAll()
			for _, c := range dialled {
				c.Close()
			}
		}()
		tw.guests = true
		st, err := tw.conn(tw.acceptor, tw.dialler).NewStream(t.Context(), testBlock, nil)
		require.NoError(t, err)
		ended := inBackground(func() error { return consume(st) })
		synctest.Wait()

		begin := time.Now()
		old := tw.conn(tw.dialler, tw.acceptor).session.Load()
		old.close(errors.New("lost"))
		synctest.Wait()
		require.Equal(t, StateConnected, tw.conn(tw.acceptor, tw.dialler).State(), "it was told")
		require.NoError(t, tw.conn(tw.dialler, tw.acceptor).WaitForConnect(t.Context()))
		err = <-ended
		require.ErrorIs(t, err, ErrDisconnected)
		require.ErrorContains(t, err, "replaced")
		require.Less(t, time.Since(begin), 2*backoff.Min)
		require.Len(t, dialled, 2)
		tw.requireWorks()
		require.Empty(t, tw.log.about("two processes"))
	})
}
