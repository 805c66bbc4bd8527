package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Options that differ between two hosts, as both tell each other in the handshake.

const (
	lesser  = 64 << 10
	greater = 32 << 20
)

// A payload above what the other host takes fails alone, at its sender, by an error that says whose
// limit it is; the link and all else on it goes on.
func TestTerms_MessageAboveTheOtherHostsLimitFailsAlone(t *testing.T) {
	for small := range 2 { // of the two hosts one dials, and each of them once is the one with less
		t.Run(fmt.Sprintf("node %d has less", small), func(t *testing.T) {
			rig.InPair(t, func(i int, o *grid.ManagerOptions) {
				if i == small {
					o.MaxMessageSize = lesser
				}
			}, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
				host := g.Host(small)
				tooLarge := func(n int) string {
					return fmt.Sprintf("payload of %d bytes, MaxMessageSize of %s is %d bytes", n, host, lesser)
				}
				give := func([]byte) ([]byte, *grid.RemoteErr) { return make([]byte, lesser+1), nil }
				require.NoError(t, g.Manager(1-small).RegisterSingleHandler(rig.Handler, give))
				require.NoError(t, g.Manager(1-small).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
					OutCapacity: 2,
					Handle: func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
						out <- make([]byte, lesser)
						out <- make([]byte, lesser+1)
						return nil
					},
				}))
				ctx, large, few := t.Context(), g.Conn(1-small, small), g.Conn(small, 1-small)
				kept, err := large.NewStream(ctx, rig.TwoWay, nil)
				require.NoError(t, err)
				require.Equal(t, lesser, large.MaxMessageSize())
				require.Equal(t, lesser, few.MaxMessageSize())
				require.Equal(t, lesser, g.Manager(small).MaxMessageSize())
				require.Equal(t, greater, g.Manager(1-small).MaxMessageSize())

				for _, n := range []int{lesser + 1, 4 * lesser, greater} {
					_, err := large.SingleRequest(ctx, rig.Echo, make([]byte, n))
					require.ErrorIs(t, err, grid.ErrMessageTooLarge)
					require.ErrorContains(t, err, tooLarge(n))
					require.False(t, grid.IsRemoteErr(err))
					_, err = large.NewStream(ctx, rig.TwoWay, make([]byte, n))
					require.ErrorIs(t, err, grid.ErrMessageTooLarge)
					require.ErrorIs(t, kept.Send(make([]byte, n)), grid.ErrMessageTooLarge)
				}
				_, err = large.SingleRequest(ctx, rig.Echo, make([]byte, greater+1))
				require.ErrorContains(t, err, "MaxMessageSize is", "its own")

				// An answer and a stream's message, at who sends them.
				_, err = few.SingleRequest(ctx, rig.Handler, nil)
				require.True(t, grid.IsRemoteErr(err), "%v", err)
				require.ErrorContains(t, err, tooLarge(lesser+1))
				s, err := few.NewStream(ctx, rig.Handler+1, nil)
				require.NoError(t, err)
				got := 0
				err = s.Results(func(b []byte) error { got += len(b); return nil })
				require.ErrorContains(t, err, tooLarge(lesser+1))
				require.LessOrEqual(t, got, lesser)

				for _, c := range []*grid.Connection{large, few} {
					b, err := c.SingleRequest(ctx, rig.Echo, make([]byte, lesser))
					require.NoError(t, err)
					require.Len(t, b, lesser)
				}
				require.NoError(t, kept.Send(make([]byte, lesser)))
				kept.CloseSend()
				results, err := rig.Collect(kept, 0)
				require.NoError(t, err)
				require.Len(t, results, 1)
				require.Zero(t, large.Stats().Reconnects)
				require.Zero(t, few.Stats().Reconnects)
			})
		})
	}
}

// Idle streams of two hosts whose intervals differ last, and so does the link.
func TestTerms_StreamsLastWherePingIntervalsDiffer(t *testing.T) {
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			o.StreamPingInterval, o.PingInterval, o.MaxPings = time.Second, time.Second, 2
		} else {
			o.StreamPingInterval, o.PingInterval, o.WriteTimeout = time.Minute, time.Minute, time.Hour
		}
	}, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		var streams []*grid.Stream
		for i := range 2 {
			s, err := g.Conn(i, 1-i).NewStream(t.Context(), rig.TwoWay, nil)
			require.NoError(t, err)
			streams = append(streams, s)
		}
		time.Sleep(20 * time.Minute)
		for _, s := range streams {
			require.NoError(t, s.Send([]byte("still here")))
			s.CloseSend()
			require.NoError(t, rig.Consume(s))
		}
		require.Zero(t, g.Conn(0, 1).Stats().Reconnects)
	})
}

// What a peer tells that is absurd has us ping neither without a pause nor never, and what it tells
// of its size is for the messages to it alone.
func TestTerms_OfAPeerThatTellsNonsense(t *testing.T) {
	const most = 1<<64 - 1
	for name, c := range map[string]struct {
		told        rawpeer.Told
		least, most int // pings of a stream, in a minute
		size        int // that may be sent
	}{
		"nothing":          {rawpeer.Told{}, 3, 5, greater},
		"the least":        {rawpeer.Told{MaxSize: 1, StreamPing: 1, MaxPings: 1}, 30, 70, 1},
		"the most":         {rawpeer.Told{MaxSize: most, StreamPing: most, MaxPings: most}, 3, 5, greater},
		"pings at once":    {rawpeer.Told{StreamPing: 1}, 50, 70, greater},
		"pings that end":   {rawpeer.Told{StreamPing: 1 << 62, MaxPings: 1}, 3, 5, greater},
		"what v1 might do": {rawpeer.Told{MaxSize: 100}, 3, 5, 100},
	} {
		t.Run(name, func(t *testing.T) {
			config := rawpeer.Config{Caps: rig.AllCaps, Told: c.told}
			rig.InWire(t, config, nil, func(r *rig.Wire) {
				_, err := r.Conn.SingleRequest(r.Context(), rig.Echo, make([]byte, c.size+1))
				require.ErrorIs(r, err, grid.ErrMessageTooLarge)
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				opened := rig.InBackground(func() error {
					_, err := r.Conn.NewStream(ctx, rig.TwoWay, nil)
					return err
				})
				open := r.Peer.Expect(rawpeer.OpConnectMux)
				r.Peer.Send(rawpeer.Msg{MuxID: open.MuxID, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: []byte{1, 1}})
				require.NoError(r, <-opened)
				pings, seq := 0, uint32(0)
				for end := time.Now().Add(time.Minute); time.Now().Before(end); {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
					for range len(r.Peer.Pending()) {
						m := r.Peer.Recv()
						if m.Op == rawpeer.OpPing && m.MuxID == open.MuxID {
							pings++
							seq++
							pong, err := rawpeer.Pong(rawpeer.Ping(time.Now()))
							require.NoError(r, err)
							pong.MuxID, pong.Seq = m.MuxID, m.Seq
							r.Peer.Send(pong)
						}
					}
				}
				require.GreaterOrEqual(r, pings, c.least)
				require.LessOrEqual(r, pings, c.most)
				require.Zero(r, r.Conn.Stats().Reconnects)
			})
		})
	}
}

// What is no number is refused, and the peer is told so.
func TestTerms_ThatAreNoNumbersAreRefused(t *testing.T) {
	for _, bad := range []string{"\xff", "\xa1x", "\xc0", "\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"} { // -1, text, nil, NaN
		for _, key := range []string{"\xa7MaxSize", "\xaaStreamPing", "\xa8MaxPings"} {
			rig.InWireOnce(t, true, rawpeer.Config{Bare: true}, nil, func(r *rig.Wire) {
				hello := rawpeer.Connect{ID: make([]byte, 16), Host: r.Raw, Time: time.Now(), Token: rig.Token}.Encode()
				hello[0]++ // a key more
				p := r.Next()
				p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: append(append(hello, key...), bad...)})
				answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
				require.NoError(t, err)
				require.False(t, answer.Accepted)
				require.Contains(t, answer.Reason, "Connect: ")
				p.ExpectClosed()
			})
		}
	}
}
