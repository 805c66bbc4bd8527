package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// noticeTime is within what a peer that has fallen silent must be noticed.
const noticeTime = 2 * 10 * time.Second

// blockHandler registers a stream handler that reports why its context ended.
func blockHandler(t testing.TB, m *Manager, id HandlerID) (ended <-chan error) {
	t.Helper()
	c := make(chan error, 1)
	require.NoError(t, m.RegisterStreamingHandler(id, StreamHandler{InCapacity: 1, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
		<-ctx.Done()
		c <- context.Cause(ctx)
		return nil
	}}))
	return c
}

// inBackground runs f, whose error is then to be received.
func inBackground(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func consume(st *Stream) error {
	return st.Results(func(b []byte) error { PutByteBuffer(b); return nil })
}

// Lesson 18, the kinds that get as far as the handshake: the
// end of the session reaches everything that waits.
func TestMutePeerIsNoticedWithinTwoPingIntervals(t *testing.T) {
	for name, mute := range map[string]rawConfig{
		"reads, and answers no ping": {ManualPings: true},
		"does not even read":         {Unread: true},
	} {
		for _, rawDials := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", dialled us", false: ", dialled by us"}[rawDials], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := faultconn.NewNetwork()
					var s *rawServer
					if !rawDials {
						s = listenLone(t, n, mute)
					}
					g, raw := newLoneGrid(t, n, rawDials, nil)
					c := g.nodes[0].Connection(raw)
					handler := blockHandler(t, g.nodes[0].Manager, testUnused)
					begin := time.Now()
					var p *rawPeer
					if rawDials {
						p = g.dialLone(raw, mute)
					} else {
						p = s.accept()
					}
					p.send(rawMsg{Op: rawOpConnectMux, MuxID: 1, Handler: uint8(testUnused), Flags: rawFlagCRC})
					require.NoError(t, c.WaitForConnect(t.Context()))
					call := inBackground(func() error {
						_, err := c.SingleRequest(context.Background(), testEcho, nil)
						return err
					})
					open := inBackground(func() error {
						_, err := c.NewStream(context.Background(), testEcho, nil)
						return err
					})
					waitState(t, c, StateConnectionError)
					require.LessOrEqual(t, time.Since(begin), noticeTime)
					require.Greater(t, time.Since(begin), noticeTime/2)
					require.ErrorIs(t, <-call, ErrDisconnected)
					require.ErrorIs(t, <-open, ErrDisconnected)
					require.ErrorIs(t, <-handler, ErrDisconnected)
					require.LessOrEqual(t, time.Since(begin), noticeTime)

					if rawDials {
						g.dialLone(raw, rawConfig{})
					}
					require.NoError(t, c.WaitForConnect(t.Context()), "it is not taken back")
				})
			})
		}
	}
}

// Lesson 18, half-open TCP.
func TestHalfOpenLinkIsNoticedWithinTwoPingIntervals(t *testing.T) {
	for _, age := range []time.Duration{0, 9 * time.Second, 10 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			g := newTestGrid(t, 2, nil)
			time.Sleep(age)
			synctest.Wait()
			var ends []<-chan error
			for i := range 2 {
				ends = append(ends, blockHandler(t, g.nodes[i].Manager, testUnused))
			}
			for i := range 2 {
				c := g.conn(i, 1-i)
				st, err := c.NewStream(context.Background(), testUnused, nil)
				require.NoError(t, err)
				unread, err := c.NewStream(context.Background(), testBlock, nil)
				require.NoError(t, err)
				ends = append(ends, inBackground(func() error { return consume(st) }))
				ends = append(ends, inBackground(func() error { <-unread.Done(); return unread.Err() }))
			}
			synctest.Wait()
			g.net.Partition(g.addr(0), g.addr(1))
			begin := time.Now()
			for i := range 2 {
				c := g.conn(i, 1-i)
				ends = append(ends, inBackground(func() error {
					_, err := c.SingleRequest(context.Background(), testEcho, nil)
					return err
				}))
				ends = append(ends, inBackground(func() error {
					_, err := c.NewStream(context.Background(), testBlock, nil)
					return err
				}))
			}
			for _, end := range ends {
				require.ErrorIs(t, <-end, ErrDisconnected)
			}
			require.LessOrEqual(t, time.Since(begin), noticeTime)
			for i := range 2 {
				require.NotEqual(t, StateConnected, g.conn(i, 1-i).State())
				_, err := g.conn(i, 1-i).SingleRequest(context.Background(), testEcho, nil)
				require.ErrorIs(t, err, ErrDisconnected, "not at once")
			}
			require.LessOrEqual(t, time.Since(begin), noticeTime)

			g.net.Heal(g.addr(0), g.addr(1))
			g.waitConnected()
			g.requireWorks()
		})
	}
}

// Lesson 18, the kinds that do not get so far.
func TestPeerThatNeverAnswersTheHandshakeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no answer to the upgrade
		n := faultconn.NewNetwork()
		l := listenMemory(t, n, rawHostFor(t, false))
		g, raw := newLoneGrid(t, n, false, nil)
		c := g.nodes[0].Connection(raw)
		begin := time.Now()
		waitState(t, c, StateConnectionError)
		require.LessOrEqual(t, time.Since(begin), noticeTime)
		synctest.Wait()
		require.NotEmpty(t, c.Stats().LastError)
		g.stop(0)
		l.Close()
	})
	synctest.Test(t, func(t *testing.T) { // no answer to the Connect
		n := faultconn.NewNetwork()
		s := listenLone(t, n, rawConfig{Bare: true})
		g, raw := newLoneGrid(t, n, false, nil)
		begin := time.Now()
		p := s.accept()
		waitState(t, g.nodes[0].Connection(raw), StateConnectionError)
		require.LessOrEqual(t, time.Since(begin), noticeTime)
		p.expect(rawOpConnect)
		p.expectClosed()
		s.accept() // and it tries again
	})
	synctest.Test(t, func(t *testing.T) { // no Connect
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		begin := time.Now()
		p := g.dialLone(raw, rawConfig{Bare: true, Timeout: noticeTime})
		p.expectClosed()
		require.LessOrEqual(t, time.Since(begin), noticeTime)
		require.Equal(t, StateUnconnected, g.nodes[0].Connection(raw).State())
	})
}

// A peer that sends data and pings of its own is mute all the same if it
// answers no ping (section 7).
func TestPeerThatTalksButAnswersNoPingIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		begin := time.Now()
		p := g.dialLone(raw, rawConfig{ManualPings: true})
		c := g.nodes[0].Connection(raw)
		talk := inBackground(func() error {
			for {
				if err := p.trySend(rawPing(time.Now())); err != nil {
					return err
				}
				time.Sleep(time.Second)
			}
		})
		waitState(t, c, StateConnectionError)
		require.LessOrEqual(t, time.Since(begin), noticeTime)
		require.Error(t, <-talk)
	})
}

func TestIdleConnectionLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		st, err := g.conn(0, 1).NewStream(t.Context(), testTwoWay, nil)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.NoError(t, st.Send([]byte("after an hour")))
		st.CloseSend()
		require.NoError(t, consume(st))
		for i := range 2 {
			require.Zero(t, g.conn(i, 1-i).Stats().Reconnects)
		}
	})
}

func TestConnectionPingsKeepTheirInterval(t *testing.T) {
	for _, interval := range []time.Duration{10 * time.Second, time.Second, 80 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, func(o *ManagerOptions) { o.PingInterval = interval })
			last := time.Now()
			p := g.dialLone(raw, rawConfig{ManualPings: true})
			for range 20 {
				ping := p.expect(rawOpPing)
				require.Zero(t, ping.MuxID)
				require.Zero(t, ping.Seq)
				require.LessOrEqual(t, time.Since(last), interval)
				require.GreaterOrEqual(t, time.Since(last), interval*3/4)
				last = time.Now()
				time.Sleep(interval / 10) // the round trip
				pong, err := rawPong(ping)
				require.NoError(t, err)
				p.send(pong)
			}
			synctest.Wait()
			require.Equal(t, interval/10, g.nodes[0].Connection(raw).Stats().RoundTrip)

			// And pings that arrive are answered at once, with their time.
			sent := time.Now().Add(-time.Hour)
			p.send(rawPing(sent))
			pong := p.expect(rawOpPong)
			want, err := rawPong(rawPing(sent))
			require.NoError(t, err)
			require.Equal(t, want.Payload, pong.Payload)
		})
	}
}
