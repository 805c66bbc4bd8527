package grid

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// These tests and those of the files v1*_test.go hold the node against the
// protocol as a version 1 peer sees it: message by message.

// v1Rig is a node and the scripted peer that it is connected to.
type v1Rig struct {
	*testing.T
	node *node
	conn *Connection // to the peer
	peer *rawPeer
	log  *logBook
	next func() *rawPeer // connects once more
}

// inV1 runs f in a bubble twice: with the node as acceptor and as dialler. c is
// the peer, of which the zero value is one of version 1; edit may be nil.
func inV1(t *testing.T, c rawConfig, edit func(o *ManagerOptions), f func(r *v1Rig)) {
	t.Helper()
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(newV1Rig(t, rawDials, c, edit)) })
		})
	}
}

func newV1Rig(t *testing.T, rawDials bool, c rawConfig, edit func(o *ManagerOptions)) *v1Rig {
	t.Helper()
	n := faultconn.NewNetwork()
	logger, log := newLogBook()
	var s *rawServer
	if !rawDials {
		s = listenLone(t, n, c)
	}
	g, raw := newLoneGrid(t, n, rawDials, func(o *ManagerOptions) {
		o.Logger = logger
		if edit != nil {
			edit(o)
		}
	})
	next := func() *rawPeer {
		if rawDials {
			return g.dialLone(raw, c)
		}
		return s.accept()
	}
	r := &v1Rig{T: t, node: g.nodes[0], conn: g.nodes[0].Connection(raw), log: log, next: next}
	r.peer = r.next()
	require.NoError(t, r.conn.WaitForConnect(t.Context()))
	return r
}

// expect requires that the node says this next.
func (r *v1Rig) expect(want rawMsg) {
	r.Helper()
	require.Equal(r, want, r.peer.recv())
}

// quiet requires that the node says nothing more, for now.
func (r *v1Rig) quiet() {
	r.Helper()
	synctest.Wait()
	require.Empty(r, r.peer.pending(), rawDump(r.peer.pending()))
}

// alive requires that the session works, and has nothing else to say.
func (r *v1Rig) alive() {
	r.Helper()
	r.quiet()
	r.peer.send(rawMsg{MuxID: 1 << 60, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: []byte("alive")})
	r.expect(rawMsg{MuxID: 1 << 60, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("alive")})
}

// lost requires that the node ends the session without another message, and
// says why.
func (r *v1Rig) lost(why ...string) {
	r.Helper()
	r.peer.expectClosed()
	synctest.Wait()
	for _, text := range why {
		require.Contains(r, r.conn.Stats().LastError, text)
	}
}

type outcome struct {
	payload []byte
	err     error
}

// call makes a single request on a goroutine of its own.
func (r *v1Rig) call(ctx context.Context, id HandlerID, payload []byte) <-chan outcome {
	c := make(chan outcome, 1)
	go func() {
		b, err := r.conn.SingleRequest(ctx, id, payload)
		c <- outcome{b, err}
	}()
	return c
}

const (
	crcEOF  = rawFlagCRC | rawFlagEOF
	crcErr  = rawFlagCRC | rawFlagPayloadIsErr
	crcZero = rawFlagCRC | rawFlagPayloadIsZero
)

func TestV1OverTCP(t *testing.T) {
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			l, rawListener := listenPair(t, rawDials)
			host, raw := "http://"+l.Addr().String(), "http://"+rawListener.Addr().String()
			var s *rawServer
			if !rawDials {
				s = acceptRaw(t, rawListener, rawConfig{})
			}
			g := &testGrid{t: t, hosts: []string{host}, addrs: []net.Listener{l}, edit: func(_ int, o *ManagerOptions) {
				o.Hosts = []string{host, raw}
			}}
			g.startAll()
			r := &v1Rig{T: t, node: g.nodes[0], conn: g.nodes[0].Connection(raw)}
			if rawDials {
				r.peer = dialRaw(t, host, testToken, raw, 0)
			} else {
				r.peer = s.accept()
			}
			require.NoError(t, r.conn.WaitForConnect(t.Context()))

			done := r.call(t.Context(), 50, []byte("q"))
			r.expect(rawMsg{MuxID: 1, DeadlineMS: 60000, Handler: 50, Op: rawOpRequest, Flags: crcEOF, Payload: []byte("q")})
			r.peer.send(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("a")})
			require.Equal(t, outcome{[]byte("a"), nil}, <-done)

			r.peer.send(rawMsg{MuxID: 1, Handler: uint8(testTwoWay), Op: rawOpConnectMux, Flags: rawFlagCRC})
			r.expect(rawMsg{MuxID: 1, Op: rawOpAckMux, Flags: rawFlagCRC})
			r.peer.send(rawMsg{MuxID: 1, Seq: 1, Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: []byte("x")})
			ops := map[uint8]bool{r.peer.recv().Op: true, r.peer.recv().Op: true}
			require.Equal(t, map[uint8]bool{rawOpUnblockClMux: true, rawOpMuxServerMsg: true}, ops)
			r.peer.send(rawMsg{MuxID: 1, Seq: 2, Op: rawOpMuxClientMsg, Flags: crcEOF})
			r.peer.send(rawMsg{MuxID: 1, Seq: 3, Op: rawOpUnblockSrvMux, Flags: rawFlagCRC})
			r.expect(rawMsg{MuxID: 1, Seq: 3, Op: rawOpMuxServerMsg, Flags: crcEOF})
			r.expect(rawMsg{MuxID: 1, Op: rawOpDisconnectClientMux, Flags: rawFlagCRC})
		})
	}
}

func TestV1MergedMessagesOfAnyCountAreTakenApart(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.peer.sendMerged()
		for _, n := range []int{1, 2, 300} {
			var msgs []rawMsg
			for i := range n {
				msgs = append(msgs, rawMsg{MuxID: uint64(i + 1), Handler: uint8(testEcho), Op: rawOpRequest, Flags: uint8(rawFlagEOF + i%2*rawFlagCRC)})
			}
			r.peer.sendMerged(msgs...)
			seen := map[uint64]bool{}
			for range n {
				seen[r.peer.expect(rawOpResponse).MuxID] = true
			}
			require.Len(r, seen, n)
		}
		r.alive()
	})
}

func TestV1ConnectionPingIsAnswered(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		ping := rawPing(time.Now().Add(-time.Minute))
		ping.Seq = 7
		want, err := rawPong(ping)
		require.NoError(r, err)
		r.peer.send(ping)
		r.expect(want)
		r.peer.sendMerged(ping, ping)
		r.expect(want)
		r.expect(want)
		// A pong that nobody has asked for harms nothing.
		r.peer.send(want)
		r.alive()
		r.peer.send(rawMsg{Op: rawOpPing, Payload: []byte("\x81\xa1t\xa1x")})
		r.lost("Ping")
	})
}

func TestV1ConnectionIsPingedAndGivenUpWithoutPongs(t *testing.T) {
	inV1(t, rawConfig{ManualPings: true}, nil, func(r *v1Rig) {
		r.peer.timeout = time.Minute
		start := time.Now()
		for range 5 {
			ping := r.peer.recv()
			require.LessOrEqual(r, time.Since(start), 10*time.Second)
			require.Greater(r, time.Since(start), 8*time.Second)
			start = time.Now()
			require.Equal(r, rawPing(start), ping, "no checksum, the time inside")
			time.Sleep(100 * time.Millisecond)
			pong, err := rawPong(ping)
			require.NoError(r, err)
			r.peer.send(pong)
			synctest.Wait()
			require.Equal(r, 100*time.Millisecond, r.conn.Stats().RoundTrip)
		}
		pings, _ := r.peer.drain()
		require.NotEmpty(r, pings)
		require.LessOrEqual(r, time.Since(start), 20*time.Second+200*time.Millisecond)
		require.Greater(r, time.Since(start), 17*time.Second)
		r.lost("no pong")
	})
}

func TestV1UnknownOpIsDroppedAndLoggedOnce(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for range 3 {
			for _, op := range []uint8{0, 18, 100, 255} {
				r.peer.send(rawMsg{MuxID: 1, Op: op, Flags: crcEOF, Payload: []byte("new")})
			}
			r.alive()
		}
		require.Len(r, r.log.about("unknown op"), 4)
		for _, op := range []string{"op=0 ", "op=18 ", "op=100 ", "op=255 "} {
			require.Len(r, r.log.about("unknown op", op), 1)
		}
	})
}

// What a peer must not send ends the session: calls on it are told, and so is
// the operator.
func TestV1SessionEndsWithAReason(t *testing.T) {
	bad := rawMsg{MuxID: 9, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF}.encode()
	bad[len(bad)-1]++
	connect := rawConnect{ID: make([]byte, 16), Host: "x", Time: time.Now()}
	tooLarge := rawMsg{MuxID: 9, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: make([]byte, 1001)}
	for name, c := range map[string]struct {
		frame []byte
		why   []string
	}{
		"checksum":           {bad, []string{"Request for mux 9 has checksum", "should be"}},
		"no message":         {[]byte("hello"), []string{"undecodable message of 5 bytes"}},
		"empty":              {nil, []string{"undecodable message of 0 bytes"}},
		"stray bytes":        {append(rawMsg{MuxID: 9, Op: rawOpResponse}.encode(), 1, 2), []string{"Response for mux 9", "2 stray bytes"}},
		"merged twice":       {encodeMerged(rawMsg{Op: rawOpMerged}), []string{"merged message inside a merged one"}},
		"merged lies":        {rawMsg{Op: rawOpMerged, Seq: 3}.encode(), []string{"merged message 1 of 3"}},
		"connect":            {rawMsg{Op: rawOpConnect, Payload: connect.encode()}.encode(), []string{"Connect after the handshake"}},
		"response":           {rawMsg{Op: rawOpConnectResponse, Payload: rawConnectResponse{Accepted: true}.encode()}.encode(), []string{"ConnectResponse after the handshake"}},
		"disconnect":         {rawMsg{Op: rawOpDisconnect}.encode(), []string{"the peer has closed the connection"}},
		"pong":               {rawMsg{Op: rawOpPong, Payload: []byte("x")}.encode(), []string{"Pong for mux 0"}},
		"connect error":      {rawMsg{MuxID: 3, Op: rawOpMuxConnectError, Payload: []byte("\x81\xa5Error\x01")}.encode(), []string{"MuxConnectError for mux 3"}},
		"large payload":      {tooLarge.encode(), []string{"Request for mux 9", "1001 bytes", "is 1000 bytes"}},
		"merged and large":   {encodeMerged(rawMsg{MuxID: 9, Op: rawOpResponse, Flags: rawFlagCRC}, tooLarge), []string{"Request for mux 9", "1001 bytes"}},
		"large message":      {bytes.Repeat([]byte{0xc1}, 1000+frameOverhead+1), []string{"message too large", "1049576 bytes", "is 1000 bytes"}},
		"large, and unknown": {rawMsg{Op: 200, Payload: make([]byte, 1001)}.encode(), []string{"op 200", "1001 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			inV1(t, rawConfig{}, func(o *ManagerOptions) { o.MaxMessageSize = 1000 }, func(r *v1Rig) {
				done := r.call(r.Context(), 50, nil)
				r.peer.expect(rawOpRequest)
				_ = r.peer.trySendBytes(c.frame) // a large one may not be read to its end
				r.lost(c.why...)
				got := <-done
				require.ErrorIs(r, got.err, ErrDisconnected)
				require.NotErrorIs(r, got.err, ErrProtocol)
				for _, why := range c.why {
					require.ErrorContains(r, got.err, why)
				}
				require.Len(r, r.log.about("connection lost", c.why[0]), 1, "%q", r.log.about(""))
				r.peer = r.next()
				r.alive()
			})
		})
	}
	t.Run("text", func(t *testing.T) {
		inV1(t, rawConfig{}, nil, func(r *v1Rig) {
			require.NoError(r, r.peer.ws.WriteMessage(websocket.TextMessage, rawMsg{Op: rawOpPong}.encode()))
			r.lost("not binary")
		})
	})
	t.Run("closed", func(t *testing.T) {
		inV1(t, rawConfig{}, nil, func(r *v1Rig) {
			done := r.call(r.Context(), 50, nil)
			r.peer.expect(rawOpRequest)
			r.peer.close()
			require.ErrorIs(r, (<-done).err, ErrDisconnected)
			synctest.Wait()
			require.Contains(r, r.conn.Stats().LastError, "closed the connection")
		})
	})
}

func TestV1MessagesAtTheSizeLimitAreTaken(t *testing.T) {
	inV1(t, rawConfig{}, func(o *ManagerOptions) { o.MaxMessageSize = 1000 }, func(r *v1Rig) {
		text := strings.Repeat("x", 1000)
		r.peer.send(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: []byte(text)})
		require.Equal(r, text, string(r.peer.expect(rawOpResponse).Payload))
		_, err := r.conn.SingleRequest(r.Context(), 50, make([]byte, 1001))
		require.ErrorIs(r, err, ErrMessageTooLarge)
		r.alive()
	})
}

// Two hosts with secure transports need no checksums; each message says by its
// own flag whether it has one.
func TestV1ChecksumsAreLeftOutOverTLSOnly(t *testing.T) {
	for _, c := range []struct {
		local, remote string
		crc           flags
	}{
		{"https://a:1", "https://b:1", 0},
		{"http://a:1", "https://b:1", flagCRC},
		{"https://a:1", "http://b:1", flagCRC},
		{"http://a:1", "http://b:1", flagCRC},
	} {
		o := testOptions(c.local, []string{c.local, c.remote})
		blocked := make(chan struct{})
		o.BlockConnect = blocked
		m, err := NewManager(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, c.crc, m.Connection(c.remote).crc)
		require.NoError(t, m.Close())
	}
	synctest.Test(t, func(t *testing.T) {
		const host = "https://node0:9000"
		raw := "https://raw:9000"
		for port := 9001; !dialOrder(raw, host); port++ {
			raw = fmt.Sprintf("https://raw:%d", port)
		}
		n := faultconn.NewNetwork()
		g := &testGrid{t: t, net: n, hosts: []string{host}, edit: func(_ int, o *ManagerOptions) { o.Hosts = []string{host, raw} }}
		g.startAll()
		// The names say TLS, which is all that counts here.
		p := dialRawConfig(t, "http://node0:9000", rawConfig{Host: raw, Token: testToken, Dial: n.Dialer(hostAddr(raw))})
		for _, crc := range []uint8{0, rawFlagCRC} {
			p.send(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF | crc})
			require.Equal(t, rawMsg{MuxID: 1, Op: rawOpResponse, Flags: rawFlagEOF}, p.recv())
		}
	})
}
