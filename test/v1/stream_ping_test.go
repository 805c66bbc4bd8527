package v1

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// streamPingTime is the protocol's interval.
const streamPingTime = 15 * time.Second

// rawMuxPong is the answer to a stream's ping (section 7).
func rawMuxPong(ping rawpeer.Msg, notFound bool) rawpeer.Msg {
	b := msgp.AppendMapHeader(nil, 3)
	b = msgp.AppendBool(msgp.AppendString(b, "nf"), notFound)
	b = msgp.AppendNil(msgp.AppendString(b, "e"))
	b = msgp.AppendTime(msgp.AppendString(b, "t"), time.Now())
	return rawpeer.Msg{Op: rawpeer.OpPong, MuxID: ping.MuxID, Seq: ping.Seq, Payload: b}
}

// openToRaw opens a stream to a scripted peer, which acks it.
func openToRaw(t *testing.T, ctx context.Context, c *grid.Connection, p *rawpeer.Peer) *grid.Stream {
	t.Helper()
	type opened struct {
		st  *grid.Stream
		err error
	}
	open := make(chan opened, 1)
	go func() {
		st, err := c.NewStream(ctx, rig.Block, nil)
		open <- opened{st, err}
	}()
	m := p.Expect(rawpeer.OpConnectMux)
	p.Send(rawpeer.Msg{Op: rawpeer.OpAckMux, MuxID: m.MuxID, Flags: rawpeer.FlagCRC})
	o := <-open
	require.NoError(t, o.err)
	return o.st
}

func TestPing_ClientPingsItsStreams(t *testing.T) {
	t.Parallel()
	for name, timeout := range map[string]time.Duration{"no deadline": 0, "a deadline that is far": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
				p := g.DialLone(raw, rawpeer.Config{Timeout: time.Minute})
				ctx, cancel := context.WithCancel(t.Context())
				if timeout > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), timeout)
				}
				defer cancel()
				st := openToRaw(t, ctx, g.Manager(0).Connection(raw), p)
				last := time.Now()
				for i := range 10 {
					ping := p.Expect(rawpeer.OpPing)
					require.EqualValues(t, rig.Mux1Base+1, ping.MuxID)
					require.Equal(t, uint32(i+1), ping.Seq, "ConnectMux was 0")
					require.Empty(t, ping.Payload)
					require.LessOrEqual(t, time.Since(last), streamPingTime)
					require.GreaterOrEqual(t, time.Since(last), streamPingTime-2*time.Second)
					last = time.Now()
					p.Send(rawMuxPong(ping, false))
				}
				cancel()
				require.ErrorIs(t, rig.Consume(st), context.Canceled)
				p.Expect(rawpeer.OpDisconnectServerMux)
			})
		})
	}
}

func TestPing_StreamWithANearDeadlineGetsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		p := g.DialLone(raw, rawpeer.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), streamPingTime)
		defer cancel()
		st := openToRaw(t, ctx, g.Manager(0).Connection(raw), p)
		require.ErrorIs(t, rig.Consume(st), context.DeadlineExceeded)
		synctest.Wait()
		p.Expect(rawpeer.OpDisconnectServerMux)
		require.Empty(t, p.Pending())
	})
}

// The connection is alive, and answers its own pings, but the stream is not.
func TestPing_ClientGivesAStreamUpThatAnswersNoneForTwoIntervals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		c := g.Manager(0).Connection(raw)
		p := g.DialLone(raw, rawpeer.Config{Timeout: time.Minute})
		silent := openToRaw(t, t.Context(), c, p)

		// What is sent on it counts as a sign of life, a pong or not.
		begin := time.Now()
		for i := range 3 {
			time.Sleep(25 * time.Second)
			require.NoError(t, silent.Err(), "after %v", time.Since(begin))
			require.NoError(t, silent.Send([]byte("which spends a credit")))
			p.Send(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, MuxID: rig.Mux1Base + 1, Seq: uint32(i + 1), Flags: rawpeer.FlagCRC})
		}
		begin = time.Now()
		require.ErrorIs(t, rig.Consume(silent), grid.ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), 3*streamPingTime)
		require.Greater(t, time.Since(begin), 2*streamPingTime-3*time.Second)
		require.Equal(t, grid.StateConnected, c.State())
		for {
			if m := p.Recv(); m.Op == rawpeer.OpDisconnectServerMux {
				require.EqualValues(t, rig.Mux1Base+1, m.MuxID)
				break
			}
		}
	})
}

func TestPing_StreamThatTheServerDoesNotKnowEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		p := g.DialLone(raw, rawpeer.Config{Timeout: time.Minute})
		st := openToRaw(t, t.Context(), g.Manager(0).Connection(raw), p)
		p.Send(rawMuxPong(p.Expect(rawpeer.OpPing), true))
		err := rig.Consume(st)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "does not know the stream")
	})
}

func TestPing_StreamWhosePongCarriesAnErrorEndsWithIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		p := g.DialLone(raw, rawpeer.Config{Timeout: time.Minute})
		st := openToRaw(t, t.Context(), g.Manager(0).Connection(raw), p)
		pong := rawMuxPong(p.Expect(rawpeer.OpPing), false)
		text := "handler is gone"
		pong.Payload = rawpeer.PongPayload(false, text)
		p.Send(pong)
		err := rig.Consume(st)
		require.EqualError(t, err, text)
		require.True(t, grid.IsRemoteErr(err))
		p.Expect(rawpeer.OpDisconnectServerMux)
	})
}

func TestPing_ServerAnswersThoseOfStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
		p := g.DialLone(raw, rawpeer.Config{})
		ended := rig.BlockHandler(t, g.Manager(0), rig.Unused)
		p.Send(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 5, Handler: uint8(rig.Unused), Flags: rawpeer.FlagCRC})
		p.Expect(rawpeer.OpAckMux)
		for i := range 20 { // pinged, it lives
			ping := rawpeer.Msg{Op: rawpeer.OpPing, MuxID: 5, Seq: uint32(i + 1), Flags: rawpeer.FlagCRC}
			p.Send(ping)
			pong := p.Expect(rawpeer.OpPong)
			require.Equal(t, ping.MuxID, pong.MuxID)
			require.Equal(t, ping.Seq, pong.Seq, "a pong repeats the number of its ping")
			require.Equal(t, byte(0xc2), pong.Payload[4], "nf is true")
			time.Sleep(3*streamPingTime + 10*time.Second)
			require.Empty(t, ended)
		}
		p.Send(rawpeer.Msg{Op: rawpeer.OpPing, MuxID: 6, Seq: 7, Flags: rawpeer.FlagCRC})
		pong := p.Expect(rawpeer.OpPong)
		require.Equal(t, uint64(6), pong.MuxID)
		require.Equal(t, uint32(7), pong.Seq)
		require.Equal(t, byte(0xc3), pong.Payload[4], "nf is false")
	})
}

func TestPing_ServerGivesAStreamUpAfterFourIntervalsOfSilence(t *testing.T) {
	t.Parallel()
	for name, deadline := range map[string]time.Duration{
		"no deadline":             0,
		"a deadline that is far":  time.Hour,
		"a deadline that is near": 4 * streamPingTime,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, nil)
				p := g.DialLone(raw, rawpeer.Config{Timeout: 2 * time.Minute})
				ended := rig.BlockHandler(t, g.Manager(0), rig.Unused)
				begin := time.Now()
				p.Send(rawpeer.Msg{
					Op: rawpeer.OpConnectMux, MuxID: 5, Handler: uint8(rig.Unused), Flags: rawpeer.FlagCRC,
					DeadlineMS: uint32(deadline.Milliseconds()),
				})
				p.Expect(rawpeer.OpAckMux)
				cause := <-ended
				if deadline == 4*streamPingTime {
					require.ErrorIs(t, cause, context.DeadlineExceeded)
					require.Equal(t, deadline, time.Since(begin))
					return
				}
				require.ErrorIs(t, cause, grid.ErrDisconnected)
				require.InDelta(t, (4 * streamPingTime).Seconds(), time.Since(begin).Seconds(), 2)
				drop := p.Expect(rawpeer.OpDisconnectClientMux)
				require.Contains(t, string(drop.Payload), "pinged")
				require.Equal(t, grid.StateConnected, g.Manager(0).Connection(raw).State())
			})
		})
	}
}

// Two of ours, with streams that nobody uses.
func TestPing_IdleStreamsLiveAndCustomIntervalsHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.StreamPingInterval = 500 * time.Millisecond })
		var streams []*grid.Stream
		for i := range 2 {
			ended := rig.BlockHandler(t, g.Manager(1-i), rig.Unused)
			st, err := g.Conn(i, 1-i).NewStream(t.Context(), rig.Unused, nil)
			require.NoError(t, err)
			streams = append(streams, st)
			defer func() { require.Empty(t, ended) }()
		}
		time.Sleep(time.Minute)
		for _, st := range streams {
			require.NoError(t, st.Err())
		}
	})
}
