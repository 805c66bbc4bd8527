package grid_test

import (
	"fmt"
	"strings"
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

// Two hosts with secure transports need no checksums; each message says by its own flag whether it
// has one.
func TestV1Session_ChecksumsAreLeftOutOverTLSOnly(t *testing.T) {
	for _, c := range []struct {
		local, remote string
		crc           bool
	}{
		{"https://a:1", "https://b:1", false},
		{"http://a:1", "https://b:1", true},
		{"https://a:1", "http://b:1", true},
		{"http://a:1", "http://b:1", true},
	} {
		o := rig.Options(c.local, []string{c.local, c.remote})
		o.AllowHTTPHosts = true
		blocked := make(chan struct{})
		o.BlockConnect = blocked
		m, err := grid.NewManager(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, c.crc, grid.Checksums(m.Connection(c.remote)))
		require.NoError(t, m.Close())
	}
	synctest.Test(t, func(t *testing.T) {
		const host = "https://node0:9000"
		raw := "https://raw:9000"
		for port := 9001; !rawpeer.DialOrder(raw, host); port++ {
			raw = fmt.Sprintf("https://raw:%d", port)
		}
		n := faultconn.NewNetwork()
		rig.Setup{Net: n, Hosts: []string{host}, Edit: func(_ int, o *grid.ManagerOptions) { o.Hosts = []string{host, raw} }}.Start(t)
		// The names say TLS, which is all that counts here.
		p := rawpeer.DialConfig(t, "http://node0:9000", rawpeer.Config{Host: raw, Token: rig.Token, Dial: n.Dialer(rig.HostAddr(raw))})
		for _, crc := range []uint8{0, rawpeer.FlagCRC} {
			p.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF | crc})
			require.Equal(t, rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF}, p.Recv())
		}
	})
}

// acceptor is a node that is dialled by a scripted peer.
type acceptor struct{ *rig.Wire }

// newAcceptor starts a node. The peer is the one that should dial, or is not.
func newAcceptor(t *testing.T, rawDials bool) *acceptor {
	t.Helper()
	return &acceptor{rig.NewWire(t, rawDials, rawpeer.Config{Bare: true}, nil)}
}

// dial leaves the handshake to the test.
func (a *acceptor) dial() *rawpeer.Peer {
	a.Helper()
	return a.Grid.DialLone(a.Raw, rawpeer.Config{Bare: true})
}

// hello is a Connect that is accepted.
func (a *acceptor) hello() rawpeer.Connect {
	return rawpeer.Connect{ID: []byte("0123456789abcdef"), Host: a.Raw, Time: time.Now(), Token: rig.Token}
}

func connectMsg(payload []byte) rawpeer.Msg {
	return rawpeer.Msg{Op: rawpeer.OpConnect, Payload: payload}
}

// accepted requires that a first message is answered with the node's own Connect response, and that
// the session works.
func (a *acceptor) accepted(first rawpeer.Msg) *rawpeer.Peer {
	a.Helper()
	p := a.dial()
	p.Send(first)
	want := rawpeer.ConnectResponse{ID: a.Node.ID[:], Accepted: true, Caps: rig.AllCaps | rawpeer.CapFrameChecksum, Host: rig.LoneHost, Told: rig.DefaultsTold}
	require.Equal(a, rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: want.Encode()}, p.Recv(), "no checksum, no flag")
	p.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
	p.Expect(rawpeer.OpResponse)
	return p
}

// refused requires that a first message is answered with a refusal, and that the node closes. It
// returns the reason.
func (a *acceptor) refused(first []byte) string {
	a.Helper()
	p := a.dial()
	require.NoError(a, p.TrySendBytes(first))
	m := p.Expect(rawpeer.OpConnectResponse)
	got, err := rawpeer.DecodeConnectResponse(m.Payload)
	require.NoError(a, err)
	require.NotEmpty(a, got.Reason)
	want := rawpeer.ConnectResponse{ID: a.Node.ID[:], Reason: got.Reason, Host: rig.LoneHost}
	require.Equal(a, rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: want.Encode()}, m, "names no extensions")
	p.ExpectClosed()
	require.NotEqual(a, grid.StateConnected, a.Conn.State())
	return got.Reason
}

func TestV1Handshake_IsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		for _, skew := range []time.Duration{0, 5 * time.Minute, -5 * time.Minute} {
			hello := a.hello()
			hello.Time = time.Now().Add(skew)
			p := a.accepted(connectMsg(hello.Encode()))
			require.Equal(t, grid.StateConnected, a.Conn.State())
			require.Zero(t, grid.SessionOf(a.Conn).Caps())
			p.Close()
		}
		// A checksum is not asked for, but looked at.
		m := connectMsg(a.hello().Encode())
		m.Flags = rawpeer.FlagCRC
		a.accepted(m)
	})
}

// What is wrong is put right, one thing after the other: so the reasons come in the order of the
// protocol.
func TestV1Handshake_IsCheckedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, false) // the node should dial this host
		m := rawpeer.Msg{Op: rawpeer.OpRequest, Payload: []byte("garbage")}
		require.Contains(t, a.refused([]byte("garbage")), "undecodable message of 7 bytes")
		require.Contains(t, a.refused(m.Encode()), "Request in place of Connect")
		m.Op = rawpeer.OpConnect
		require.Contains(t, a.refused(m.Encode()), "Connect: ")
		hello := rawpeer.Connect{ID: make([]byte, 15), Host: "http://stranger:9000", Time: time.Now().Add(-301 * time.Second), Token: "wrong"}
		require.Contains(t, a.refused(connectMsg(hello.Encode()).Encode()), "Connect: ", "a short ID")
		hello.ID = make([]byte, 16)
		require.Equal(t, `unknown incoming host: "http://stranger:9000"`, a.refused(connectMsg(hello.Encode()).Encode()))
		hello.Host = a.Raw
		require.Contains(t, a.refused(connectMsg(hello.Encode()).Encode()), "clocks differ by 5m1s")
		hello.Time = time.Now().Add(301 * time.Second)
		require.Contains(t, a.refused(connectMsg(hello.Encode()).Encode()), "clocks differ by 5m1s")
		hello.Time = time.Now()
		require.Equal(t, "invalid token: wrong token", a.refused(connectMsg(hello.Encode()).Encode()))
		hello.Token = rig.Token
		require.Contains(t, a.refused(connectMsg(hello.Encode()).Encode()), a.Raw+" is to be dialled by "+rig.LoneHost)
	})
}

func TestV1Handshake_ThatIsRefused(t *testing.T) {
	with := func(edit func(a *acceptor, hello *rawpeer.Connect)) func(a *acceptor) []byte {
		return func(a *acceptor) []byte {
			hello := a.hello()
			edit(a, &hello)
			return connectMsg(hello.Encode()).Encode()
		}
	}
	for name, c := range map[string]struct {
		first func(a *acceptor) []byte
		why   string
	}{
		"itself":    {with(func(a *acceptor, h *rawpeer.Connect) { h.Host = rig.LoneHost }), "unknown incoming host"},
		"no host":   {with(func(a *acceptor, h *rawpeer.Connect) { h.Host = "" }), "unknown incoming host"},
		"long host": {with(func(a *acceptor, h *rawpeer.Connect) { h.Host = strings.Repeat("h", 60000) }), "unknown incoming host"},
		"no token":  {with(func(a *acceptor, h *rawpeer.Connect) { h.Token = "" }), "invalid token"},
		"no time":   {with(func(a *acceptor, h *rawpeer.Connect) { h.Time = time.Time{} }), "clocks differ"},
		"far time":  {with(func(a *acceptor, h *rawpeer.Connect) { h.Time = time.Unix(1<<40, 0) }), "clocks differ"},
		"no map":    {func(*acceptor) []byte { return connectMsg(nil).Encode() }, "Connect: "},
		"empty map": {func(*acceptor) []byte { return connectMsg([]byte{0x80}).Encode() }, "unknown incoming host"},
		"cut": {func(a *acceptor) []byte {
			b := a.hello().Encode()
			return connectMsg(b[:len(b)-1]).Encode()
		}, "Connect: "},
		"merged": {func(a *acceptor) []byte { return rawpeer.EncodeMerged(connectMsg(a.hello().Encode())) }, "Merged in place of Connect"},
		"checksum": {func(a *acceptor) []byte {
			m := connectMsg(a.hello().Encode())
			m.Flags = rawpeer.FlagCRC
			b := m.Encode()
			b[len(b)-1]++
			return b
		}, "checksum"},
		"ping first": {func(*acceptor) []byte { return rawpeer.Ping(time.Now()).Encode() }, "Ping in place of Connect"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAcceptor(t, true)
				reason := a.refused(c.first(a))
				require.Contains(t, reason, c.why)
				require.Less(t, len(reason), 300, "nothing long of the peer's making")
				synctest.Wait()
				require.Len(t, a.Book.About("handshake failed", c.why), 1)
				a.accepted(connectMsg(a.hello().Encode())).Close()
			})
		})
	}
}

func TestV1Handshake_PeerThatNeverSaysConnectIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		p := a.dial()
		p.Timeout = time.Minute
		require.Equal(t, 10*time.Second, rig.Elapsed(p.ExpectClosed))
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

func TestV1Handshake_UnknownKeysAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		a.accepted(connectMsg(manyKeys(t, a.hello().Encode())))
		require.Equal(t, "0123456789abcdef", grid.SessionOf(a.Conn).PeerID())
	})
	synctest.Test(t, func(t *testing.T) {
		d := newDialler(t)
		answer := rawpeer.ConnectResponse{ID: []byte("0123456789abcdef"), Accepted: true}
		d.accept().Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: manyKeys(t, answer.Encode())})
		require.NoError(t, d.Conn.WaitForConnect(t.Context()))
		require.Equal(t, "0123456789abcdef", grid.SessionOf(d.Conn).PeerID())
	})
}

func TestV1Handshake_UnknownCapsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAcceptor(t, true)
		hello := a.hello()
		hello.Caps = ^uint64(rawpeer.CapFrameChecksum) // which this peer would not send
		a.accepted(connectMsg(hello.Encode()))
		require.EqualValues(t, rig.AllCaps, grid.SessionOf(a.Conn).Caps())
	})
}

// dialler is a node that dials a scripted peer, which leaves the handshake to the test.
type dialler struct{ *rig.Wire }

func newDialler(t *testing.T) *dialler {
	t.Helper()
	return &dialler{rig.NewWire(t, false, rawpeer.Config{Bare: true}, nil)}
}

// accept returns the next peer, when it has been greeted.
func (d *dialler) accept() *rawpeer.Peer {
	d.Helper()
	p := d.Next()
	require.Equal(d, "Bearer "+rig.Token, p.Request.Header.Get("Authorization"))
	require.Equal(d, grid.RoutePath, p.Request.URL.Path)
	want := rawpeer.Connect{ID: d.Node.ID[:], Host: rig.LoneHost, Time: time.Now(), Token: rig.Token, Caps: rig.AllCaps | rawpeer.CapFrameChecksum, To: d.Raw, Told: rig.DefaultsTold}
	require.Equal(d, connectMsg(want.Encode()), p.Recv(), "no checksum, no flag")
	return p
}

func TestV1Handshake_DiallerIsToldWhyItIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		answer []byte
		why    string
	}{
		"refused":         {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{ID: make([]byte, 16), Reason: "not today"}.Encode()}.Encode(), "rejected: not today"},
		"without reason":  {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{ID: make([]byte, 16)}.Encode()}.Encode(), "rejected"},
		"another op":      {rawpeer.Msg{Op: rawpeer.OpResponse}.Encode(), "Response in place of ConnectResponse"},
		"a Connect":       {connectMsg(rawpeer.Connect{}.Encode()).Encode(), "Connect in place of ConnectResponse"},
		"garbage":         {[]byte("garbage"), "undecodable message of 7 bytes"},
		"no map":          {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: []byte{1}}.Encode(), "ConnectResponse: "},
		"nothing in it":   {rawpeer.Msg{Op: rawpeer.OpConnectResponse}.Encode(), "ConnectResponse: "},
		"empty map":       {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: []byte{0x80}}.Encode(), "rejected"},
		"merged":          {rawpeer.EncodeMerged(rawpeer.Msg{Op: rawpeer.OpConnectResponse}), "Merged in place of ConnectResponse"},
		"wrong checksum":  {append(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Flags: 0, Payload: rawpeer.ConnectResponse{Accepted: true}.Encode()}.Encode(), 0), "stray bytes"},
		"closed":          {nil, "unexpected EOF"},
		"ID of 17 bytes":  {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{ID: make([]byte, 17), Accepted: true}.Encode()}.Encode(), "ConnectResponse: "},
		"ID that is text": {rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: []byte("\x81\xa2ID\xa10")}.Encode(), "ConnectResponse: "},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDialler(t)
				for range 3 { // and goes on dialling
					p := d.accept()
					if c.answer == nil {
						p.Close()
					} else {
						require.NoError(t, p.TrySendBytes(c.answer))
						p.ExpectClosed()
					}
					synctest.Wait()
					require.NotEqual(t, grid.StateConnected, d.Conn.State())
					require.Contains(t, d.Conn.Stats().LastError, c.why)
					_, err := d.Conn.SingleRequest(t.Context(), rig.Echo, nil)
					require.ErrorIs(t, err, grid.ErrDisconnected)
				}
				require.Len(t, d.Book.About("cannot connect", c.why), 1, "told once")
			})
		})
	}
}

func TestV1Handshake_AcceptorThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialler(t)
		p := d.accept()
		p.Timeout = time.Minute
		require.Equal(t, 10*time.Second, rig.Elapsed(p.ExpectClosed))
		d.accept()
	})
}

// A handler of before answers nobody: the numbers of its caller begin anew.
func TestV1Handshake_PeerThatWasRestartedGetsNoAnswersOfBefore(t *testing.T) {
	rig.InWire(t, rawpeer.Config{}, nil, func(r *rig.Wire) {
		release := make(chan struct{})
		require.NoError(r, r.Node.RegisterSingleHandler(50, func([]byte) ([]byte, *grid.RemoteErr) {
			<-release
			return []byte("old"), nil
		}))
		done := r.Call(r.Context(), 50, nil)
		r.Expect(rawpeer.Msg{MuxID: r.Mux(1), DeadlineMS: 60000, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
		r.Quiet()
		r.Peer.Close()
		require.ErrorIs(r, (<-done).Err, grid.ErrDisconnected)

		r.Peer = r.Next() // with a new ID
		require.NoError(r, r.Conn.WaitForConnect(r.Context()))
		close(release)
		r.Quiet()
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: []byte("new")})
		r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("new")})
		// Ours do not begin anew.
		done = r.Call(r.Context(), 50, nil)
		require.Equal(r, r.Mux(2), r.Peer.Expect(rawpeer.OpRequest).MuxID)
		r.Peer.Send(rawpeer.Msg{MuxID: r.Mux(1), Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("late")})
		r.Peer.Send(rawpeer.Msg{MuxID: r.Mux(2), Op: rawpeer.OpResponse, Flags: rig.CRCEOF})
		require.Equal(r, rig.Outcome{}, <-done)
	})
}

func TestV1Handshake_NewConnectionReplacesTheOldOne(t *testing.T) {
	for name, c := range map[string]struct {
		config rawpeer.Config
		within time.Duration
	}{
		"same process":               {rawpeer.Config{ID: []byte("0123456789abcdef")}, 0},
		"restarted, old one is mute": {rawpeer.Config{ManualPings: true}, rig.ProbeTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rig.NewWire(t, true, c.config, nil)
				old := r.Peer
				done := r.Call(t.Context(), 50, nil)
				old.Expect(rawpeer.OpRequest)
				require.Equal(t, c.within, rig.Elapsed(func() { r.Peer = r.Next() }))
				err := (<-done).Err
				require.ErrorIs(t, err, grid.ErrDisconnected)
				require.ErrorContains(t, err, "replaced")
				msgs, _ := old.Drain()
				for _, m := range msgs {
					require.Equal(t, uint8(rawpeer.OpPing), m.Op)
				}
				r.Alive()
				require.Equal(t, grid.StateConnected, r.Conn.State())
			})
		})
	}
}
