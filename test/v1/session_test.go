package v1

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestV1Session_OverTCP(t *testing.T) {
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			l, rawListener := rawpeer.ListenPair(t, rawDials)
			host, raw := "http://"+l.Addr().String(), "http://"+rawListener.Addr().String()
			var s *rawpeer.Server
			if !rawDials {
				s = rawpeer.Serve(t, rawListener, rawpeer.Config{})
			}
			g := rig.Setup{TCP: rig.LoopbackOf("http", l), Edit: func(_ int, o *grid.ManagerOptions) {
				o.Hosts = []string{host, raw}
			}}.Start(t)
			r := &wire{&rig.Wire{T: t, Node: g.Node(0), Conn: g.Manager(0).Connection(raw)}}
			if rawDials {
				r.Peer = rawpeer.Dial(t, host, rig.Token, raw, 0)
			} else {
				r.Peer = s.Accept()
			}
			require.NoError(t, r.Conn.WaitForConnect(t.Context()))

			done := r.Call(t.Context(), 50, []byte("q"))
			r.Expect(rawpeer.Msg{MuxID: r.Mux(1), DeadlineMS: 60000, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: []byte("q")})
			r.Peer.Send(rawpeer.Msg{MuxID: r.Mux(1), Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("a")})
			require.Equal(t, rig.Outcome{Payload: []byte("a")}, <-done)

			r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.TwoWay), Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC})
			r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC})
			r.Peer.Send(rawpeer.Msg{MuxID: 1, Seq: 1, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: []byte("x")})
			ops := map[uint8]bool{r.Peer.Recv().Op: true, r.Peer.Recv().Op: true}
			require.Equal(t, map[uint8]bool{rawpeer.OpUnblockClMux: true, rawpeer.OpMuxServerMsg: true}, ops)
			r.Peer.Send(rawpeer.Msg{MuxID: 1, Seq: 2, Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCEOF})
			r.Peer.Send(rawpeer.Msg{MuxID: 1, Seq: 3, Op: rawpeer.OpUnblockSrvMux, Flags: rawpeer.FlagCRC})
			r.Expect(rawpeer.Msg{MuxID: 1, Seq: 3, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
		})
	}
}

func TestV1Session_MergedMessagesOfAnyCountAreTakenApart(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.Peer.SendMerged()
		for _, n := range []int{1, 2, 300} {
			var msgs []rawpeer.Msg
			for i := range n {
				msgs = append(msgs, rawpeer.Msg{MuxID: uint64(i + 1), Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: uint8(rawpeer.FlagEOF + i%2*rawpeer.FlagCRC)})
			}
			r.Peer.SendMerged(msgs...)
			seen := map[uint64]bool{}
			for range n {
				seen[r.Peer.Expect(rawpeer.OpResponse).MuxID] = true
			}
			require.Len(r, seen, n)
		}
		r.Alive()
	})
}

func TestV1Session_PingIsAnswered(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		ping := rawpeer.Ping(time.Now().Add(-time.Minute))
		ping.Seq = 7
		want, err := rawpeer.Pong(ping)
		require.NoError(r, err)
		r.Peer.Send(ping)
		r.Expect(want)
		r.Peer.SendMerged(ping, ping)
		r.Expect(want)
		r.Expect(want)
		// A pong that nobody has asked for harms nothing.
		r.Peer.Send(want)
		r.Alive()
		r.Peer.Send(rawpeer.Msg{Op: rawpeer.OpPing, Payload: []byte("\x81\xa1t\xa1x")})
		r.Lost("Ping")
	})
}

func TestV1Session_IsPingedAndGivenUpWithoutPongs(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{ManualPings: true}, nil, func(r *wire) {
		r.Peer.Timeout = time.Minute
		start := time.Now()
		for i := range 5 {
			ping := r.Peer.Recv()
			require.LessOrEqual(r, time.Since(start), 10*time.Second)
			if i > 0 { // the first may come at any time
				require.Greater(r, time.Since(start), 8*time.Second)
			}
			start = time.Now()
			require.Equal(r, rawpeer.Ping(start), ping, "no checksum, the time inside")
			time.Sleep(100 * time.Millisecond)
			pong, err := rawpeer.Pong(ping)
			require.NoError(r, err)
			r.Peer.Send(pong)
			synctest.Wait()
			require.Equal(r, 100*time.Millisecond, r.Conn.Stats().RoundTrip)
		}
		pings, _ := r.Peer.Drain()
		require.NotEmpty(r, pings)
		// The ping that is not answered comes after an interval.
		require.LessOrEqual(r, time.Since(start), 30*time.Second)
		require.Greater(r, time.Since(start), 26*time.Second)
		r.Lost("no pong")
	})
}

func TestV1Session_UnknownOpIsDroppedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for range 3 {
			for _, op := range []uint8{0, 18, 100, 255} {
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: op, Flags: rig.CRCEOF, Payload: []byte("new")})
			}
			r.Alive()
		}
		require.Len(r, r.Book.About("unknown op"), 4)
		for _, op := range []string{"op=0 ", "op=18 ", "op=100 ", "op=255 "} {
			require.Len(r, r.Book.About("unknown op", op), 1)
		}
	})
}

// What a peer must not send ends the session: calls on it are told, and so is the operator.
func TestV1Session_EndsWithAReason(t *testing.T) {
	t.Parallel()
	bad := rawpeer.Msg{MuxID: 9, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF}.Encode()
	bad[len(bad)-1]++
	connect := rawpeer.Connect{ID: make([]byte, 16), Host: "x", Time: time.Now()}
	tooLarge := rawpeer.Msg{MuxID: 9, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: make([]byte, 1001)}
	for name, c := range map[string]struct {
		frame []byte
		why   []string
	}{
		"checksum":           {bad, []string{"Request for mux 9 has checksum", "should be"}},
		"no message":         {[]byte("hello"), []string{"undecodable message of 5 bytes"}},
		"empty":              {nil, []string{"undecodable message of 0 bytes"}},
		"stray bytes":        {append(rawpeer.Msg{MuxID: 9, Op: rawpeer.OpResponse}.Encode(), 1, 2), []string{"Response for mux 9", "2 stray bytes"}},
		"merged twice":       {rawpeer.EncodeMerged(rawpeer.Msg{Op: rawpeer.OpMerged}), []string{"merged message inside a merged one"}},
		"merged lies":        {rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 3}.Encode(), []string{"merged message 1 of 3"}},
		"connect":            {rawpeer.Msg{Op: rawpeer.OpConnect, Payload: connect.Encode()}.Encode(), []string{"Connect after the handshake"}},
		"response":           {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{Accepted: true}.Encode()}.Encode(), []string{"ConnectResponse after the handshake"}},
		"disconnect":         {rawpeer.Msg{Op: rawpeer.OpDisconnect}.Encode(), []string{"the peer has closed the connection"}},
		"pong":               {rawpeer.Msg{Op: rawpeer.OpPong, Payload: []byte("x")}.Encode(), []string{"Pong for mux 0"}},
		"connect error":      {rawpeer.Msg{MuxID: 3, Op: rawpeer.OpMuxConnectError, Payload: []byte("\x81\xa5Error\x01")}.Encode(), []string{"MuxConnectError for mux 3"}},
		"large payload":      {tooLarge.Encode(), []string{"Request for mux 9", "1001 bytes", "is 1000 bytes"}},
		"merged and large":   {rawpeer.EncodeMerged(rawpeer.Msg{MuxID: 9, Op: rawpeer.OpResponse, Flags: rawpeer.FlagCRC}, tooLarge), []string{"Request for mux 9", "1001 bytes"}},
		"large message":      {bytes.Repeat([]byte{0xc1}, 1000+rig.FrameOverhead+1), []string{"message too large", "1049576 bytes", "is 1000 bytes"}},
		"large, and unknown": {rawpeer.Msg{Op: 200, Payload: make([]byte, 1001)}.Encode(), []string{"op 200", "1001 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{}, func(o *grid.ManagerOptions) { o.MaxMessageSize = 1000 }, func(r *wire) {
				done := r.Call(r.Context(), 50, nil)
				r.Peer.Expect(rawpeer.OpRequest)
				_ = r.Peer.TrySendBytes(c.frame) // a large one may not be read to its end
				r.Lost(c.why...)
				got := <-done
				require.ErrorIs(r, got.Err, grid.ErrDisconnected)
				require.NotErrorIs(r, got.Err, grid.ErrProtocol)
				for _, why := range c.why {
					require.ErrorContains(r, got.Err, why)
				}
				require.Len(r, r.Book.About("connection lost", c.why[0]), 1, "%q", r.Book.About(""))
				r.Peer = r.Next()
				r.Alive()
			})
		})
	}
	t.Run("text", func(t *testing.T) {
		inWire(t, rawpeer.Config{}, nil, func(r *wire) {
			require.NoError(r, r.Peer.WS.WriteMessage(websocket.TextMessage, rawpeer.Msg{Op: rawpeer.OpPong}.Encode()))
			r.Lost("not binary")
		})
	})
	t.Run("closed", func(t *testing.T) {
		inWire(t, rawpeer.Config{}, nil, func(r *wire) {
			done := r.Call(r.Context(), 50, nil)
			r.Peer.Expect(rawpeer.OpRequest)
			r.Peer.Close()
			require.ErrorIs(r, (<-done).Err, grid.ErrDisconnected)
			synctest.Wait()
			require.Contains(r, r.Conn.Stats().LastError, "closed the connection")
		})
	})
}

func TestV1Session_MessagesAtTheSizeLimitAreTaken(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, func(o *grid.ManagerOptions) { o.MaxMessageSize = 1000 }, func(r *wire) {
		text := strings.Repeat("x", 1000)
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: []byte(text)})
		require.Equal(r, text, string(r.Peer.Expect(rawpeer.OpResponse).Payload))
		_, err := r.Conn.SingleRequest(r.Context(), 50, make([]byte, 1001))
		require.ErrorIs(r, err, grid.ErrMessageTooLarge)
		r.Alive()
	})
}
