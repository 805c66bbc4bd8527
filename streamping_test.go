package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/faultconn"
)

// streamPingTime is the protocol's interval.
const streamPingTime = 15 * time.Second

// rawMuxPong is the answer to a stream's ping (section 7).
func rawMuxPong(ping rawMsg, notFound bool) rawMsg {
	b := msgp.AppendMapHeader(nil, 3)
	b = msgp.AppendBool(msgp.AppendString(b, "nf"), notFound)
	b = msgp.AppendNil(msgp.AppendString(b, "e"))
	b = msgp.AppendTime(msgp.AppendString(b, "t"), time.Now())
	return rawMsg{Op: rawOpPong, MuxID: ping.MuxID, Seq: ping.Seq, Payload: b}
}

// openToRaw opens a stream to a scripted peer, which acks it.
func openToRaw(t *testing.T, ctx context.Context, c *Connection, p *rawPeer) *Stream {
	t.Helper()
	type opened struct {
		st  *Stream
		err error
	}
	open := make(chan opened, 1)
	go func() {
		st, err := c.NewStream(ctx, testBlock, nil)
		open <- opened{st, err}
	}()
	m := p.expect(rawOpConnectMux)
	p.send(rawMsg{Op: rawOpAckMux, MuxID: m.MuxID, Flags: rawFlagCRC})
	o := <-open
	require.NoError(t, o.err)
	return o.st
}

func TestClientPingsItsStreams(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"no deadline": 0, "a deadline that is far": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
				p := g.dialLone(raw, rawConfig{Timeout: time.Minute})
				ctx, cancel := context.WithCancel(t.Context())
				if timeout > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), timeout)
				}
				defer cancel()
				st := openToRaw(t, ctx, g.nodes[0].Connection(raw), p)
				last := time.Now()
				for i := range 10 {
					ping := p.expect(rawOpPing)
					require.Equal(t, uint64(1), ping.MuxID)
					require.Equal(t, uint32(i+1), ping.Seq, "ConnectMux was 0")
					require.Empty(t, ping.Payload)
					require.LessOrEqual(t, time.Since(last), streamPingTime)
					require.GreaterOrEqual(t, time.Since(last), streamPingTime-2*time.Second)
					last = time.Now()
					p.send(rawMuxPong(ping, false))
				}
				cancel()
				require.ErrorIs(t, consume(st), context.Canceled)
				p.expect(rawOpDisconnectServerMux)
			})
		})
	}
}

func TestStreamWithANearDeadlineIsNotPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		p := g.dialLone(raw, rawConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), streamPingTime)
		defer cancel()
		st := openToRaw(t, ctx, g.nodes[0].Connection(raw), p)
		require.ErrorIs(t, consume(st), context.DeadlineExceeded)
		synctest.Wait()
		p.expect(rawOpDisconnectServerMux)
		require.Empty(t, p.pending())
	})
}

// The connection is alive, and answers its own pings, but the stream is not.
func TestClientGivesAStreamUpAfterTwoIntervalsOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		c := g.nodes[0].Connection(raw)
		p := g.dialLone(raw, rawConfig{Timeout: time.Minute})
		silent := openToRaw(t, t.Context(), c, p)

		// What is sent on it counts as a sign of life, a pong or not.
		begin := time.Now()
		for i := range 3 {
			time.Sleep(25 * time.Second)
			require.NoError(t, silent.Err(), "after %v", time.Since(begin))
			p.send(rawMsg{Op: rawOpUnblockClMux, MuxID: 1, Seq: uint32(i + 1), Flags: rawFlagCRC})
			require.NoError(t, silent.Send([]byte("credit is spent")))
		}
		begin = time.Now()
		require.ErrorIs(t, consume(silent), ErrDisconnected)
		require.LessOrEqual(t, time.Since(begin), 2*streamPingTime)
		require.Greater(t, time.Since(begin), streamPingTime)
		require.Equal(t, StateConnected, c.State())
		for {
			if m := p.recv(); m.Op == rawOpDisconnectServerMux {
				require.Equal(t, uint64(1), m.MuxID)
				break
			}
		}
	})
}

func TestStreamThatTheServerDoesNotKnowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		p := g.dialLone(raw, rawConfig{Timeout: time.Minute})
		st := openToRaw(t, t.Context(), g.nodes[0].Connection(raw), p)
		p.send(rawMuxPong(p.expect(rawOpPing), true))
		err := consume(st)
		require.ErrorIs(t, err, ErrDisconnected)
		require.ErrorContains(t, err, "does not know the stream")
	})
}

func TestStreamWhosePongCarriesAnErrorEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		p := g.dialLone(raw, rawConfig{Timeout: time.Minute})
		st := openToRaw(t, t.Context(), g.nodes[0].Connection(raw), p)
		pong := rawMuxPong(p.expect(rawOpPing), false)
		text := "handler is gone"
		var err error
		pong.Payload, err = (&pongMsg{Err: &text, T: time.Now()}).MarshalMsg(nil)
		require.NoError(t, err)
		p.send(pong)
		err = consume(st)
		require.EqualError(t, err, text)
		require.True(t, IsRemoteErr(err))
		p.expect(rawOpDisconnectServerMux)
	})
}

func TestServerAnswersStreamPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		p := g.dialLone(raw, rawConfig{})
		ended := blockHandler(t, g.nodes[0].Manager, testUnused)
		p.send(rawMsg{Op: rawOpConnectMux, MuxID: 5, Handler: uint8(testUnused), Flags: rawFlagCRC})
		p.expect(rawOpAckMux)
		for i := range 20 { // pinged, it lives
			ping := rawMsg{Op: rawOpPing, MuxID: 5, Seq: uint32(i + 1), Flags: rawFlagCRC}
			p.send(ping)
			pong := p.expect(rawOpPong)
			require.Equal(t, ping.MuxID, pong.MuxID)
			require.Equal(t, ping.Seq, pong.Seq, "a pong repeats the number of its ping")
			require.Equal(t, byte(0xc2), pong.Payload[4], "nf is true")
			time.Sleep(3*streamPingTime + 10*time.Second)
			require.Empty(t, ended)
		}
		p.send(rawMsg{Op: rawOpPing, MuxID: 6, Seq: 7, Flags: rawFlagCRC})
		pong := p.expect(rawOpPong)
		require.Equal(t, uint64(6), pong.MuxID)
		require.Equal(t, uint32(7), pong.Seq)
		require.Equal(t, byte(0xc3), pong.Payload[4], "nf is false")
	})
}

func TestServerGivesAStreamUpAfterFourIntervalsOfSilence(t *testing.T) {
	for name, deadline := range map[string]time.Duration{
		"no deadline":             0,
		"a deadline that is far":  time.Hour,
		"a deadline that is near": 4 * streamPingTime,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
				p := g.dialLone(raw, rawConfig{Timeout: 2 * time.Minute})
				ended := blockHandler(t, g.nodes[0].Manager, testUnused)
				begin := time.Now()
				p.send(rawMsg{
					Op: rawOpConnectMux, MuxID: 5, Handler: uint8(testUnused), Flags: rawFlagCRC,
					DeadlineMS: uint32(deadline.Milliseconds()),
				})
				p.expect(rawOpAckMux)
				cause := <-ended
				if deadline == 4*streamPingTime {
					require.ErrorIs(t, cause, context.DeadlineExceeded)
					require.Equal(t, deadline, time.Since(begin))
					return
				}
				require.ErrorIs(t, cause, ErrDisconnected)
				require.InDelta(t, (4 * streamPingTime).Seconds(), time.Since(begin).Seconds(), 2)
				drop := p.expect(rawOpDisconnectClientMux)
				require.Contains(t, string(drop.Payload), "pinged")
				require.Equal(t, StateConnected, g.nodes[0].Connection(raw).State())
			})
		})
	}
}

// Two of ours, with streams that nobody uses.
func TestIdleStreamsLiveAndCustomIntervalsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, func(_ int, o *ManagerOptions) { o.StreamPingInterval = 500 * time.Millisecond })
		var streams []*Stream
		for i := range 2 {
			ended := blockHandler(t, g.nodes[1-i].Manager, testUnused)
			st, err := g.conn(i, 1-i).NewStream(t.Context(), testUnused, nil)
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
