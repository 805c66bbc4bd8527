package grid

import (
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// The scripted peer is only worth something if it is right itself.

func TestRawFramesMatchTheVectors(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	require.NoError(t, err)
	var vectors []struct {
		Name, Hex string
		Fields    *struct {
			MuxID      uint64  `json:"mux_id"`
			Seq        uint32  `json:"seq"`
			DeadlineMS uint32  `json:"deadline_ms"`
			Handler    uint8   `json:"handler"`
			Op         uint8   `json:"op"`
			Flags      uint8   `json:"flags"`
			Payload    *string `json:"payload_hex"`
			Subroute   string  `json:"subroute"`
		}
	}
	require.NoError(t, json.Unmarshal(b, &vectors))
	wire := map[string][]byte{}
	for _, v := range vectors {
		wire[v.Name], err = hex.DecodeString(v.Hex)
		require.NoError(t, err)
		if v.Fields == nil || v.Fields.Op == rawOpMerged {
			continue
		}
		m := rawMsg{
			MuxID: v.Fields.MuxID, Seq: v.Fields.Seq, DeadlineMS: v.Fields.DeadlineMS,
			Handler: v.Fields.Handler, Op: v.Fields.Op, Flags: v.Fields.Flags,
		}
		if v.Fields.Payload != nil {
			m.Payload, err = hex.DecodeString(*v.Fields.Payload)
			require.NoError(t, err)
		}
		if v.Fields.Subroute != "" {
			m.Subroute = rawSubrouteID(m.Handler, v.Fields.Subroute)
		}
		require.Equal(t, wire[v.Name], m.encode(), v.Name)
		got, err := decodeRaw(wire[v.Name])
		require.NoError(t, err, v.Name)
		require.Equal(t, m, got, v.Name)
	}

	pair := []rawMsg{}
	for _, name := range []string{"request_crc", "response_crc"} {
		m, err := decodeRaw(wire[name])
		require.NoError(t, err)
		pair = append(pair, m)
	}
	require.Equal(t, wire["merged"], encodeMerged(pair...))
	got, err := decodeMerged(wire["merged"])
	require.NoError(t, err)
	require.Equal(t, pair, got)
	require.Equal(t, wire["subroute_id"], rawSubrouteID(9, "asubroute"))
	require.Equal(t, wire["subroute_id_joined"], rawSubrouteID(0, "subroute/1"))

	hello, err := decodeRawConnect(wire["connect_req_payload"])
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:9001", hello.Host)
	require.True(t, hello.Time.Equal(time.Unix(1700000000, 123456789)))
	require.Equal(t, wire["connect_req_payload"], hello.encode())
	for _, name := range []string{"connect_response_ok", "connect_response_no"} {
		m, err := decodeRaw(wire[name])
		require.NoError(t, err)
		answer, err := decodeRawConnectResponse(m.Payload)
		require.NoError(t, err)
		require.Equal(t, m.Payload, answer.encode())
	}
	require.Equal(t, wire["ping_conn"], rawPing(hello.Time).encode())
	ping, err := decodeRaw(wire["ping_conn"])
	require.NoError(t, err)
	pong, err := rawPong(ping)
	require.NoError(t, err)
	require.Equal(t, wire["pong_conn"], pong.encode())
}

func TestRawDecoderRefusesBadFrames(t *testing.T) {
	whole := rawMsg{MuxID: 1, Op: rawOpRequest, Flags: rawFlagCRC | rawFlagSubroute, Subroute: rawSubrouteID(1, "a")}.encode()
	for cut := range whole {
		_, err := decodeMerged(whole[:cut])
		require.Error(t, err, "%d bytes", cut)
	}
	_, err := decodeMerged(append(whole, 0))
	require.Error(t, err)
	whole[1] ^= 2
	_, err = decodeMerged(whole[:len(whole):len(whole)])
	require.ErrorContains(t, err, "checksum")

	nested := rawMsg{Op: rawOpMerged}
	_, err = decodeMerged(encodeMerged(nested))
	require.ErrorContains(t, err, "merged itself")
	lying := encodeMerged(rawMsg{Op: rawOpPong}, rawMsg{Op: rawOpPong})
	lying[2]++
	_, err = decodeMerged(lying)
	require.Error(t, err)
	lying[2] -= 2
	_, err = decodeMerged(lying)
	require.Error(t, err)
}

func TestRawCapsAreLeftOutUnlessNamed(t *testing.T) {
	for _, bits := range []uint64{0, rawCapWideCredits | rawCapFragments | rawCapDrain} {
		hello := rawConnect{ID: []byte("id"), Host: "h", Time: time.Unix(1, 0), Caps: bits}
		require.Equal(t, bits != 0, hello.encode()[0] == 0x85)
		gotHello, err := decodeRawConnect(hello.encode())
		require.NoError(t, err)
		require.Equal(t, bits, gotHello.Caps)
		answer := rawConnectResponse{ID: []byte("id"), Accepted: true, Caps: bits}
		gotAnswer, err := decodeRawConnectResponse(answer.encode())
		require.NoError(t, err)
		require.Equal(t, answer, gotAnswer)
	}
}

func TestRawDialOrder(t *testing.T) {
	require.True(t, dialOrder("b", "a"))
	require.False(t, dialOrder("a", "b"))
	require.True(t, dialOrder("http://127.0.0.1:9001", "http://127.0.0.1:9002"))
	require.False(t, dialOrder("http://127.0.0.1:9002", "http://127.0.0.1:9001"))
	require.True(t, dialOrder("https://node1:9000", "https://node2:9000"))
	for _, rawDials := range []bool{true, false} {
		local, raw := hostPair(t, rawDials)
		require.Equal(t, rawDials, dialOrder(raw, local))
		require.Equal(t, !rawDials, dialOrder(local, raw))
		l, r := listenPair(t, rawDials)
		require.Equal(t, rawDials, dialOrder("http://"+r.Addr().String(), "http://"+l.Addr().String()))
	}
}

func TestRawPeersTalk(t *testing.T) {
	talk := func(t *testing.T, l net.Listener, dial rawConfig) {
		dial.Host, dial.Token, dial.Caps = "http://dialler:9000", "secret", rawCapDrain
		s := acceptRaw(t, l, rawConfig{})
		d := dialRawConfig(t, s.URL, dial)
		a := s.accept()
		require.Equal(t, "/grid/v1", a.request.URL.Path)
		require.Equal(t, "Bearer secret", a.request.Header.Get("Authorization"))
		require.Equal(t, "http://dialler:9000", a.connect.Host)
		require.Equal(t, uint64(rawCapDrain), a.connect.Caps)
		require.Zero(t, d.response.Caps)

		d.send(rawMsg{Op: rawOpRequest, MuxID: 1, Flags: rawFlagCRC | rawFlagEOF, Payload: []byte("q")})
		require.Equal(t, "q", string(a.expect(rawOpRequest).Payload))
		// The ping in their midst is answered, and not shown.
		a.sendMerged(rawMsg{Op: rawOpResponse, MuxID: 1}, rawPing(time.Now()), rawMsg{Op: rawOpAckMux, MuxID: 2})
		d.expect(rawOpResponse)
		d.expect(rawOpAckMux)
		a.expect(rawOpPong)
		require.Empty(t, d.pending())

		d.close()
		a.expectClosed()
	}
	t.Run("in memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := faultconn.NewNetwork()
			l, err := n.Listen("acceptor:9000")
			require.NoError(t, err)
			talk(t, l, rawConfig{Dial: n.Dialer("dialler:9000")})
		})
	})
	t.Run("TCP", func(t *testing.T) { talk(t, nil, rawConfig{}) })
}

func TestRawServerRefuses(t *testing.T) {
	s := acceptRaw(t, nil, rawConfig{Refuse: "not today"})
	d := dialRawConfig(t, s.URL, rawConfig{Bare: true})
	d.send(rawMsg{Op: rawOpConnect, Payload: rawConnect{Host: "http://x:1", Time: time.Now()}.encode()})
	answer, err := decodeRawConnectResponse(d.expect(rawOpConnectResponse).Payload)
	require.NoError(t, err)
	require.False(t, answer.Accepted)
	require.Equal(t, "not today", answer.Reason)
	require.Equal(t, "http://x:1", s.accept().connect.Host)
	d.expectClosed()
}

func TestRawPeerLeavesTheHandshakeToABareTest(t *testing.T) {
	s := acceptRaw(t, nil, rawConfig{Bare: true})
	d := dialRawConfig(t, s.URL, rawConfig{Bare: true})
	a := s.accept()
	require.NoError(t, d.trySendBytes([]byte("no message")))
	_, err := a.drain()
	require.ErrorContains(t, err, "undecodable")
	d.expectClosed()
}

func TestRawPeerShowsPingsOnDemand(t *testing.T) {
	s := acceptRaw(t, nil, rawConfig{ManualPings: true})
	d := dialRaw(t, s.URL, "secret", "http://dialler:9000", rawCapWideCredits)
	a := s.accept()
	require.Equal(t, uint64(rawCapWideCredits), a.connect.Caps)
	d.send(rawPing(time.Now()))
	a.expect(rawOpPing)
	require.Empty(t, d.pending())
}

func TestRawPeerThatReadsNothingLeavesTheSocketFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		l, err := n.Listen("acceptor:9000")
		require.NoError(t, err)
		s := acceptRaw(t, l, rawConfig{})
		d := dialRawConfig(t, s.URL, rawConfig{Dial: n.Dialer("dialler:9000"), Unread: true})
		a := s.accept()
		big := rawMsg{Op: rawOpResponse, MuxID: 1, Payload: make([]byte, 2*faultconn.DefaultBuffer)}
		sent := make(chan error, 1)
		go func() { sent <- a.trySend(big) }()
		synctest.Wait()
		require.Empty(t, sent)
		d.startReading()
		require.NoError(t, <-sent)
		require.Equal(t, big, d.recv())
	})
}
