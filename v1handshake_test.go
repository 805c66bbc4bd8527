package grid

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/faultconn"
)

// acceptor is a node that is dialled, and how a scripted peer dials it.
type acceptor struct {
	*testing.T
	node *node
	raw  string // the peer's name
	log  *logBook
	dial func() *rawPeer // leaves the handshake to the test
}

// newAcceptor starts a node. The peer is the one that should dial, or is not.
func newAcceptor(t *testing.T, rawDials bool) *acceptor {
	t.Helper()
	logger, log := newLogBook()
	g, raw := newLoneGrid(t, faultconn.NewNetwork(), rawDials, func(o *ManagerOptions) { o.Logger = logger })
	return &acceptor{T: t, node: g.nodes[0], raw: raw, log: log, dial: func() *rawPeer {
		return g.dialLone(raw, rawConfig{Bare: true})
	}}
}

// hello is a Connect that is accepted.
func (a *acceptor) hello() rawConnect {
	return rawConnect{ID: []byte("0123456789abcdef"), Host: a.raw, Time: time.Now(), Token: testToken}
}

func connectMsg(payload []byte) rawMsg { return rawMsg{Op: rawOpConnect, Payload: payload} }

// accepted requires that a first message is answered with the node's own
// Connect response, and that the session works.
func (a *acceptor) accepted(first rawMsg) *rawPeer {
	a.Helper()
	p := a.dial()
	p.send(first)
	want := rawConnectResponse{ID: a.node.ID[:], Accepted: true, Caps: uint64(ourCaps)}
	require.Equal(a, rawMsg{Op: rawOpConnectResponse, Payload: want.encode()}, p.recv(), "no checksum, no flag")
	p.send(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF})
	p.expect(rawOpResponse)
	return p
}

// refused requires that a first message is answered with a refusal, and that
// the node closes. It returns the reason.
func (a *acceptor) refused(first []byte) string {
	a.Helper()
	p := a.dial()
	require.NoError(a, p.trySendBytes(first))
	m := p.expect(rawOpConnectResponse)
	got, err := decodeRawConnectResponse(m.Payload)
	require.NoError(a, err)
	require.NotEmpty(a, got.Reason)
	want := rawConnectResponse{ID: a.node.ID[:], Reason: got.Reason}
	require.Equal(a, rawMsg{Op: rawOpConnectResponse, Payload: want.encode()}, m, "names no extensions")
	p.expectClosed()
	require.NotEqual(a, StateConnected, a.node.Connection(a.raw).State())
	return got.Reason
}

func TestV1ConnectIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		for _, skew := range []time.Duration{0, 5 * time.Minute, -5 * time.Minute} {
			hello := a.hello()
			hello.Time = time.Now().Add(skew)
			p := a.accepted(connectMsg(hello.encode()))
			require.Equal(t, StateConnected, a.node.Connection(a.raw).State())
			require.Zero(t, a.node.Connection(a.raw).session.Load().caps)
			p.close()
		}
		// A checksum is not asked for, but looked at.
		m := connectMsg(a.hello().encode())
		m.Flags = rawFlagCRC
		a.accepted(m)
	})
}

// What is wrong is put right, one thing after the other: so the reasons come in
// the order of the protocol.
func TestV1ConnectIsCheckedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, false) // the node should dial this host
		m := rawMsg{Op: rawOpRequest, Payload: []byte("garbage")}
		require.Contains(t, a.refused([]byte("garbage")), "undecodable message of 7 bytes")
		require.Contains(t, a.refused(m.encode()), "Request in place of Connect")
		m.Op = rawOpConnect
		require.Contains(t, a.refused(m.encode()), "Connect: ")
		hello := rawConnect{ID: make([]byte, 15), Host: "http://stranger:9000", Time: time.Now().Add(-301 * time.Second), Token: "wrong"}
		require.Contains(t, a.refused(connectMsg(hello.encode()).encode()), "Connect: ", "a short ID")
		hello.ID = make([]byte, 16)
		require.Equal(t, `unknown incoming host: "http://stranger:9000"`, a.refused(connectMsg(hello.encode()).encode()))
		hello.Host = a.raw
		require.Contains(t, a.refused(connectMsg(hello.encode()).encode()), "clocks differ by 5m1s")
		hello.Time = time.Now().Add(301 * time.Second)
		require.Contains(t, a.refused(connectMsg(hello.encode()).encode()), "clocks differ by 5m1s")
		hello.Time = time.Now()
		require.Equal(t, "invalid token: wrong token", a.refused(connectMsg(hello.encode()).encode()))
		hello.Token = testToken
		require.Contains(t, a.refused(connectMsg(hello.encode()).encode()), a.raw+" is to be dialled by "+loneHost)
	})
}

func TestV1ConnectThatIsRefused(t *testing.T) {
	with := func(edit func(a *acceptor, hello *rawConnect)) func(a *acceptor) []byte {
		return func(a *acceptor) []byte {
			hello := a.hello()
			edit(a, &hello)
			return connectMsg(hello.encode()).encode()
		}
	}
	for name, c := range map[string]struct {
		first func(a *acceptor) []byte
		why   string
	}{
		"itself":    {with(func(a *acceptor, h *rawConnect) { h.Host = loneHost }), "unknown incoming host"},
		"no host":   {with(func(a *acceptor, h *rawConnect) { h.Host = "" }), "unknown incoming host"},
		"long host": {with(func(a *acceptor, h *rawConnect) { h.Host = strings.Repeat("h", 60000) }), "unknown incoming host"},
		"no token":  {with(func(a *acceptor, h *rawConnect) { h.Token = "" }), "invalid token"},
		"no time":   {with(func(a *acceptor, h *rawConnect) { h.Time = time.Time{} }), "clocks differ"},
		"far time":  {with(func(a *acceptor, h *rawConnect) { h.Time = time.Unix(1<<40, 0) }), "clocks differ"},
		"no map":    {func(*acceptor) []byte { return connectMsg(nil).encode() }, "Connect: "},
		"empty map": {func(*acceptor) []byte { return connectMsg([]byte{0x80}).encode() }, "unknown incoming host"},
		"cut": {func(a *acceptor) []byte {
			b := a.hello().encode()
			return connectMsg(b[:len(b)-1]).encode()
		}, "Connect: "},
		"merged": {func(a *acceptor) []byte { return encodeMerged(connectMsg(a.hello().encode())) }, "Merged in place of Connect"},
		"checksum": {func(a *acceptor) []byte {
			m := connectMsg(a.hello().encode())
			m.Flags = rawFlagCRC
			b := m.encode()
			b[len(b)-1]++
			return b
		}, "checksum"},
		"ping first": {func(*acceptor) []byte { return rawPing(time.Now()).encode() }, "Ping in place of Connect"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAcceptor(t, true)
				reason := a.refused(c.first(a))
				require.Contains(t, reason, c.why)
				require.Less(t, len(reason), 300, "nothing long of the peer's making")
				synctest.Wait()
				require.Len(t, a.log.about("handshake failed", c.why), 1)
				a.accepted(connectMsg(a.hello().encode())).close()
			})
		})
	}
}

func TestV1PeerThatNeverSaysConnectIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		p := a.dial()
		p.timeout = time.Minute
		require.Equal(t, 10*time.Second, elapsed(p.expectClosed))
	})
}

// manyKeys is a map with the pairs of another between ones that nobody knows.
func manyKeys(t *testing.T, b []byte) []byte {
	n, rest, err := msgp.ReadMapHeaderBytes(b)
	require.NoError(t, err)
	unknown := []any{nil, 1, -1.5, "text", []byte("bin"), true, time.Now(), []any{1, "a", []any{}}, map[string]any{"ID": 1, "x": []any{nil}}}
	out := msgp.AppendMapHeader(nil, n+uint32(len(unknown)))
	for i, v := range unknown {
		if i < int(n) {
			after, err := msgp.Skip(rest) // the key
			require.NoError(t, err)
			after, err = msgp.Skip(after)
			require.NoError(t, err)
			out, rest = append(out, rest[:len(rest)-len(after)]...), after
		}
		out = msgp.AppendString(out, fmt.Sprintf("New%d", i))
		out, err = msgp.AppendIntf(out, v)
		require.NoError(t, err)
	}
	require.Empty(t, rest)
	return out
}

func TestV1UnknownKeysOfTheHandshakeAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		a.accepted(connectMsg(manyKeys(t, a.hello().encode())))
		require.Equal(t, "0123456789abcdef", string(a.node.Connection(a.raw).session.Load().peerID[:]))
	})
	synctest.Test(t, func(t *testing.T) {
		d := newDialler(t)
		answer := rawConnectResponse{ID: []byte("0123456789abcdef"), Accepted: true}
		d.accept().send(rawMsg{Op: rawOpConnectResponse, Payload: manyKeys(t, answer.encode())})
		require.NoError(t, d.conn.WaitForConnect(t.Context()))
		require.Equal(t, "0123456789abcdef", string(d.conn.session.Load().peerID[:]))
	})
}

func TestV1UnknownCapsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		hello := a.hello()
		hello.Caps = ^uint64(0)
		a.accepted(connectMsg(hello.encode()))
		require.Equal(t, ourCaps, a.node.Connection(a.raw).session.Load().caps)
	})
}

// dialler is a node that dials a scripted peer, which leaves the handshake to
// the test.
type dialler struct {
	*rawServer
	node *node
	conn *Connection
	log  *logBook
}

func newDialler(t *testing.T) *dialler {
	n := faultconn.NewNetwork()
	s := listenLone(t, n, rawConfig{Bare: true})
	logger, log := newLogBook()
	g, raw := newLoneGrid(t, n, false, func(o *ManagerOptions) { o.Logger = logger })
	return &dialler{s, g.nodes[0], g.nodes[0].Connection(raw), log}
}

// accept returns the next peer, when it has been greeted.
func (d *dialler) accept() *rawPeer {
	d.t.Helper()
	p := d.rawServer.accept()
	require.Equal(d.t, "Bearer "+testToken, p.request.Header.Get("Authorization"))
	require.Equal(d.t, RoutePath, p.request.URL.Path)
	want := rawConnect{ID: d.node.ID[:], Host: loneHost, Time: time.Now(), Token: testToken, Caps: uint64(ourCaps)}
	require.Equal(d.t, connectMsg(want.encode()), p.recv(), "no checksum, no flag")
	return p
}

func TestV1DiallerIsToldWhyItIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		answer []byte
		why    string
	}{
		"refused":         {rawMsg{Op: rawOpConnectResponse, Payload: rawConnectResponse{ID: make([]byte, 16), Reason: "not today"}.encode()}.encode(), "rejected: not today"},
		"without reason":  {rawMsg{Op: rawOpConnectResponse, Payload: rawConnectResponse{ID: make([]byte, 16)}.encode()}.encode(), "rejected"},
		"another op":      {rawMsg{Op: rawOpResponse}.encode(), "Response in place of ConnectResponse"},
		"a Connect":       {connectMsg(rawConnect{}.encode()).encode(), "Connect in place of ConnectResponse"},
		"garbage":         {[]byte("garbage"), "undecodable message of 7 bytes"},
		"no map":          {rawMsg{Op: rawOpConnectResponse, Payload: []byte{1}}.encode(), "ConnectResponse: "},
		"nothing in it":   {rawMsg{Op: rawOpConnectResponse}.encode(), "ConnectResponse: "},
		"empty map":       {rawMsg{Op: rawOpConnectResponse, Payload: []byte{0x80}}.encode(), "rejected"},
		"merged":          {encodeMerged(rawMsg{Op: rawOpConnectResponse}), "Merged in place of ConnectResponse"},
		"wrong checksum":  {append(rawMsg{Op: rawOpConnectResponse, Flags: 0, Payload: rawConnectResponse{Accepted: true}.encode()}.encode(), 0), "stray bytes"},
		"closed":          {nil, "unexpected EOF"},
		"ID of 17 bytes":  {rawMsg{Op: rawOpConnectResponse, Payload: rawConnectResponse{ID: make([]byte, 17), Accepted: true}.encode()}.encode(), "ConnectResponse: "},
		"ID that is text": {rawMsg{Op: rawOpConnectResponse, Payload: []byte("\x81\xa2ID\xa10")}.encode(), "ConnectResponse: "},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDialler(t)
				for range 3 { // and goes on dialling
					p := d.accept()
					if c.answer == nil {
						p.close()
					} else {
						require.NoError(t, p.trySendBytes(c.answer))
						p.expectClosed()
					}
					synctest.Wait()
					require.NotEqual(t, StateConnected, d.conn.State())
					require.Contains(t, d.conn.Stats().LastError, c.why)
					_, err := d.conn.SingleRequest(t.Context(), testEcho, nil)
					require.ErrorIs(t, err, ErrDisconnected)
				}
				require.Len(t, d.log.about("cannot connect", c.why), 1, "told once")
			})
		})
	}
}

func TestV1AcceptorThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialler(t)
		p := d.accept()
		p.timeout = time.Minute
		require.Equal(t, 10*time.Second, elapsed(p.expectClosed))
		d.accept()
	})
}

// A handler of before answers nobody: the numbers of its caller begin anew.
func TestV1PeerThatWasRestartedGetsNoAnswersOfBefore(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		release := make(chan struct{})
		require.NoError(r, r.node.RegisterSingleHandler(50, func([]byte) ([]byte, *RemoteErr) {
			<-release
			return []byte("old"), nil
		}))
		done := r.call(r.Context(), 50, nil)
		r.expect(rawMsg{MuxID: 1, DeadlineMS: 60000, Handler: 50, Op: rawOpRequest, Flags: crcEOF})
		r.peer.send(rawMsg{MuxID: 1, Handler: 50, Op: rawOpRequest, Flags: crcEOF})
		r.quiet()
		r.peer.close()
		require.ErrorIs(r, (<-done).err, ErrDisconnected)

		r.peer = r.next() // with a new ID
		require.NoError(r, r.conn.WaitForConnect(r.Context()))
		close(release)
		r.quiet()
		r.peer.send(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: []byte("new")})
		r.expect(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("new")})
		// Ours do not begin anew.
		done = r.call(r.Context(), 50, nil)
		require.EqualValues(r, 2, r.peer.expect(rawOpRequest).MuxID)
		r.peer.send(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("late")})
		r.peer.send(rawMsg{MuxID: 2, Op: rawOpResponse, Flags: crcEOF})
		require.Equal(r, outcome{}, <-done)
	})
}

func TestV1NewConnectionReplacesTheOldOne(t *testing.T) {
	for name, c := range map[string]struct {
		config rawConfig
		within time.Duration
	}{
		"same process":               {rawConfig{ID: []byte("0123456789abcdef")}, 0},
		"restarted, old one is mute": {rawConfig{ManualPings: true}, probeTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newV1Rig(t, true, c.config, nil)
				old := r.peer
				done := r.call(t.Context(), 50, nil)
				old.expect(rawOpRequest)
				require.Equal(t, c.within, elapsed(func() { r.peer = r.next() }))
				err := (<-done).err
				require.ErrorIs(t, err, ErrDisconnected)
				require.ErrorContains(t, err, "replaced")
				msgs, _ := old.drain()
				for _, m := range msgs {
					require.Equal(t, uint8(rawOpPing), m.Op)
				}
				r.alive()
				require.Equal(t, StateConnected, r.conn.State())
			})
		})
	}
}
