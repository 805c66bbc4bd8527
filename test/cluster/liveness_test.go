package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Lesson 18, the kinds that get as far as the handshake: the end of the session reaches everything
// that waits.
func TestLiveness_MutePeerIsNoticed(t *testing.T) {
	t.Parallel()
	for name, mute := range map[string]rawpeer.Config{
		"reads, and answers no ping": {ManualPings: true},
		"does not even read":         {Unread: true},
	} {
		for _, rawDials := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", dialled us", false: ", dialled by us"}[rawDials], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := faultconn.NewNetwork()
					var s *rawpeer.Server
					if !rawDials {
						s = rig.ListenLone(t, n, mute)
					}
					g, raw := rig.NewLone(t, n, rawDials, nil)
					c := g.Manager(0).Connection(raw)
					handler := rig.BlockHandler(t, g.Manager(0), rig.Unused)
					begin := time.Now()
					var p *rawpeer.Peer
					if rawDials {
						p = g.DialLone(raw, mute)
					} else {
						p = s.Accept()
					}
					p.Send(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 1, Handler: uint8(rig.Unused), Flags: rawpeer.FlagCRC})
					require.NoError(t, c.WaitForConnect(t.Context()))
					call := rig.InBackground(func() error {
						_, err := c.SingleRequest(context.Background(), rig.Echo, nil)
						return err
					})
					open := rig.InBackground(func() error {
						_, err := c.NewStream(context.Background(), rig.Echo, nil)
						return err
					})
					rig.WaitState(t, c, grid.StateConnectionError)
					require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
					require.Greater(t, time.Since(begin), rig.NoticeTime/2)
					require.ErrorIs(t, <-call, grid.ErrDisconnected)
					require.ErrorIs(t, <-open, grid.ErrDisconnected)
					require.ErrorIs(t, <-handler, grid.ErrDisconnected)
					require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)

					if rawDials {
						g.DialLone(raw, rawpeer.Config{})
					}
					require.NoError(t, c.WaitForConnect(t.Context()), "it is not taken back")
				})
			})
		}
	}
}

// Lesson 18, half-open TCP.
func TestLiveness_HalfOpenLinkIsNoticed(t *testing.T) {
	t.Parallel()
	for _, age := range []time.Duration{0, 9 * time.Second, 10 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			g := rig.New(t, 2, nil)
			time.Sleep(age)
			synctest.Wait()
			var ends []<-chan error
			for i := range 2 {
				ends = append(ends, rig.BlockHandler(t, g.Manager(i), rig.Unused))
			}
			for i := range 2 {
				c := g.Conn(i, 1-i)
				st, err := c.NewStream(context.Background(), rig.Unused, nil)
				require.NoError(t, err)
				unread, err := c.NewStream(context.Background(), rig.Block, nil)
				require.NoError(t, err)
				ends = append(ends, rig.InBackground(func() error { return rig.Consume(st) }))
				ends = append(ends, rig.InBackground(func() error { <-unread.Done(); return unread.Err() }))
			}
			synctest.Wait()
			g.Net.Partition(g.Addr(0), g.Addr(1))
			begin := time.Now()
			for i := range 2 {
				c := g.Conn(i, 1-i)
				ends = append(ends, rig.InBackground(func() error {
					_, err := c.SingleRequest(context.Background(), rig.Echo, nil)
					return err
				}))
				ends = append(ends, rig.InBackground(func() error {
					_, err := c.NewStream(context.Background(), rig.Block, nil)
					return err
				}))
			}
			for _, end := range ends {
				require.ErrorIs(t, <-end, grid.ErrDisconnected)
			}
			require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
			for i := range 2 {
				require.NotEqual(t, grid.StateConnected, g.Conn(i, 1-i).State())
				_, err := g.Conn(i, 1-i).SingleRequest(context.Background(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrDisconnected, "not at once")
			}
			require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)

			g.Net.Heal(g.Addr(0), g.Addr(1))
			g.WaitConnected()
			g.RequireWorks()
		})
	}
}

// Lesson 18, the kinds that do not get so far.
func TestLiveness_PeerThatNeverAnswersTheHandshakeIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no answer to the upgrade
		n := faultconn.NewNetwork()
		l := rig.ListenMemory(t, n, rig.PeerHost(t, false))
		g, raw := rig.NewLone(t, n, false, nil)
		c := g.Manager(0).Connection(raw)
		begin := time.Now()
		rig.WaitState(t, c, grid.StateConnectionError)
		require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
		synctest.Wait()
		require.NotEmpty(t, c.Stats().LastError)
		g.Stop(0)
		l.Close()
	})
	synctest.Test(t, func(t *testing.T) { // no answer to the Connect
		n := faultconn.NewNetwork()
		s := rig.ListenLone(t, n, rawpeer.Config{Bare: true})
		g, raw := rig.NewLone(t, n, false, nil)
		begin := time.Now()
		p := s.Accept()
		rig.WaitState(t, g.Manager(0).Connection(raw), grid.StateConnectionError)
		require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
		p.Expect(rawpeer.OpConnect)
		p.ExpectClosed()
		s.Accept() // and it tries again
	})
	synctest.Test(t, func(t *testing.T) { // no Connect
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		begin := time.Now()
		p := g.DialLone(raw, rawpeer.Config{Bare: true, Timeout: rig.NoticeTime})
		p.ExpectClosed()
		require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
		require.Equal(t, grid.StateUnconnected, g.Manager(0).Connection(raw).State())
	})
}

// A peer that sends data and pings of its own is mute all the same if it answers no ping (section
// 7).
func TestLiveness_PeerThatTalksButAnswersNoPingIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		begin := time.Now()
		p := g.DialLone(raw, rawpeer.Config{ManualPings: true})
		c := g.Manager(0).Connection(raw)
		talk := rig.InBackground(func() error {
			for {
				if err := p.TrySend(rawpeer.Ping(time.Now())); err != nil {
					return err
				}
				time.Sleep(time.Second)
			}
		})
		rig.WaitState(t, c, grid.StateConnectionError)
		require.LessOrEqual(t, time.Since(begin), rig.NoticeTime)
		require.Error(t, <-talk)
	})
}

// A peer has two intervals to answer a ping, whenever its stall begins: a pause for a garbage
// collection or the move of a virtual machine costs no link, and no stream.
func TestLiveness_StallOfLessThanTwoIntervalsCostsNothing(t *testing.T) {
	t.Parallel()
	const interval = time.Second
	for phase := time.Duration(0); phase < interval; phase += interval / 8 {
		for _, both := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.PingInterval, o.StreamPingInterval = interval, interval })
				st, err := g.Conn(0, 1).NewStream(t.Context(), rig.TwoWay, nil)
				require.NoError(t, err)
				back, err := g.Conn(1, 0).NewStream(t.Context(), rig.TwoWay, nil)
				require.NoError(t, err)
				for _, stall := range []time.Duration{13 * interval / 10, 199 * interval / 100} {
					time.Sleep(10*interval + phase)
					g.Net.Stall(g.Addr(0), g.Addr(1), true)
					g.Net.Stall(g.Addr(1), g.Addr(0), both)
					time.Sleep(stall)
					g.Net.Stall(g.Addr(0), g.Addr(1), false)
					g.Net.Stall(g.Addr(1), g.Addr(0), false)
				}
				time.Sleep(10 * interval)
				for i, st := range []*grid.Stream{st, back} {
					require.NoError(t, st.Err())
					require.NoError(t, st.Send([]byte("still here")))
					st.CloseSend()
					require.NoError(t, rig.Consume(st))
					require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects)
				}
			})
		}
	}
}

func TestLiveness_IdleConnectionLives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		st, err := g.Conn(0, 1).NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.NoError(t, st.Send([]byte("after an hour")))
		st.CloseSend()
		require.NoError(t, rig.Consume(st))
		for i := range 2 {
			require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects)
		}
	})
}

// What is looked after on a link is not held against it from when nothing was: the time in which a
// call must be answered, or a write must move, begins with it.
func TestLiveness_IdleLinkBegins(t *testing.T) {
	t.Parallel()
	const period = time.Second / 2
	for phase := time.Duration(0); phase < 10*time.Second; phase += 700 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.WriteTimeout = 8 * period })
			release := make(chan struct{})
			defer close(release)
			require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func([]byte) ([]byte, *grid.RemoteErr) {
				<-release
				return nil, nil
			}))
			c := g.Conn(0, 1)
			time.Sleep(5*time.Minute + phase)
			begin := time.Now()
			_, err := c.SingleRequest(context.Background(), rig.Unused, nil)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.GreaterOrEqual(t, time.Since(begin), rig.DefaultDeadline)
			require.LessOrEqual(t, time.Since(begin), rig.DefaultDeadline+2*period)

			time.Sleep(5*time.Minute + phase)
			begin = time.Now()
			g.Net.Stall(g.Addr(0), g.Addr(1), true)
			_, err = c.SingleRequest(context.Background(), rig.Echo, make([]byte, 2*faultconn.DefaultBuffer))
			require.ErrorContains(t, err, "has read nothing for")
			require.GreaterOrEqual(t, time.Since(begin), 7*period) // the writer may have moved before the tick
			require.LessOrEqual(t, time.Since(begin), 9*period)
			g.Net.Stall(g.Addr(0), g.Addr(1), false)
		})
	}
}

// The links of a host are not all pinged at once, whenever they were made, nor does it ping each by
// itself.
func TestLiveness_PingsOfManyLinksAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 40
		g := rig.New(t, n, nil)
		time.Sleep(time.Minute)
		pings := func() (all int64) {
			for i := 1; i < n; i++ {
				all += g.Conn(0, i).Stats().BatchesOut
			}
			return all
		}
		moments, most := 0, int64(0)
		before := pings()
		for range 9 * 8 { // an interval
			time.Sleep(time.Second / 8)
			synctest.Wait()
			now := pings()
			if now > before {
				moments++
			}
			before, most = now, max(most, now-before)
		}
		require.Greater(t, moments, 15)
		require.LessOrEqual(t, moments, 9*4)
		require.Less(t, most, int64(n/2))
	})
}

func TestLiveness_ConnectionPingsKeepTheirInterval(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{10 * time.Second, time.Second, 80 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, func(o *grid.ManagerOptions) { o.PingInterval = interval })
			last := time.Now()
			p := g.DialLone(raw, rawpeer.Config{ManualPings: true})
			for i := range 20 {
				ping := p.Expect(rawpeer.OpPing)
				require.Zero(t, ping.MuxID)
				require.Zero(t, ping.Seq)
				require.LessOrEqual(t, time.Since(last), interval)
				if i > 0 { // the first may come at any time, so that not all links are pinged at once
					require.GreaterOrEqual(t, time.Since(last), interval*3/4)
				}
				last = time.Now()
				time.Sleep(interval / 10) // the round trip
				pong, err := rawpeer.Pong(ping)
				require.NoError(t, err)
				p.Send(pong)
			}
			synctest.Wait()
			require.Equal(t, interval/10, g.Manager(0).Connection(raw).Stats().RoundTrip)

			// And pings that arrive are answered at once, with their time.
			sent := time.Now().Add(-time.Hour)
			p.Send(rawpeer.Ping(sent))
			pong := p.Expect(rawpeer.OpPong)
			want, err := rawpeer.Pong(rawpeer.Ping(sent))
			require.NoError(t, err)
			require.Equal(t, want.Payload, pong.Payload)
		})
	}
}
