package rawpeer

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

func TestRawPeer_FramesMatchTheVectors(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "vectors.json"))
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
		if v.Fields == nil || v.Fields.Op == OpMerged {
			continue
		}
		m := Msg{
			MuxID: v.Fields.MuxID, Seq: v.Fields.Seq, DeadlineMS: v.Fields.DeadlineMS,
			Handler: v.Fields.Handler, Op: v.Fields.Op, Flags: v.Fields.Flags,
		}
		if v.Fields.Payload != nil {
			m.Payload, err = hex.DecodeString(*v.Fields.Payload)
			require.NoError(t, err)
		}
		if v.Fields.Subroute != "" {
			m.Subroute = SubrouteID(m.Handler, v.Fields.Subroute)
		}
		require.Equal(t, wire[v.Name], m.Encode(), v.Name)
		got, err := Decode(wire[v.Name])
		require.NoError(t, err, v.Name)
		require.Equal(t, m, got, v.Name)
	}

	pair := []Msg{}
	for _, name := range []string{"request_crc", "response_crc"} {
		m, err := Decode(wire[name])
		require.NoError(t, err)
		pair = append(pair, m)
	}
	require.Equal(t, wire["merged"], EncodeMerged(pair...))
	got, err := DecodeMerged(wire["merged"])
	require.NoError(t, err)
	require.Equal(t, pair, got)
	require.Equal(t, wire["subroute_id"], SubrouteID(9, "asubroute"))
	require.Equal(t, wire["subroute_id_joined"], SubrouteID(0, "subroute/1"))

	hello, err := DecodeConnect(wire["connect_req_payload"])
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:9001", hello.Host)
	require.True(t, hello.Time.Equal(time.Unix(1700000000, 123456789)))
	require.Equal(t, wire["connect_req_payload"], hello.Encode())
	for _, name := range []string{"connect_response_ok", "connect_response_no"} {
		m, err := Decode(wire[name])
		require.NoError(t, err)
		answer, err := DecodeConnectResponse(m.Payload)
		require.NoError(t, err)
		require.Equal(t, m.Payload, answer.Encode())
	}
	require.Equal(t, wire["ping_conn"], Ping(hello.Time).Encode())
	ping, err := Decode(wire["ping_conn"])
	require.NoError(t, err)
	pong, err := Pong(ping)
	require.NoError(t, err)
	require.Equal(t, wire["pong_conn"], pong.Encode())
}

func TestRawPeer_DecoderRefusesBadFrames(t *testing.T) {
	t.Parallel()
	whole := Msg{MuxID: 1, Op: OpRequest, Flags: FlagCRC | FlagSubroute, Subroute: SubrouteID(1, "a")}.Encode()
	for cut := range whole {
		_, err := DecodeMerged(whole[:cut])
		require.Error(t, err, "%d bytes", cut)
	}
	_, err := DecodeMerged(append(whole, 0))
	require.Error(t, err)
	whole[1] ^= 2
	_, err = DecodeMerged(whole[:len(whole):len(whole)])
	require.ErrorContains(t, err, "checksum")

	nested := Msg{Op: OpMerged}
	_, err = DecodeMerged(EncodeMerged(nested))
	require.ErrorContains(t, err, "merged itself")
	lying := EncodeMerged(Msg{Op: OpPong}, Msg{Op: OpPong})
	lying[2]++
	_, err = DecodeMerged(lying)
	require.Error(t, err)
	lying[2] -= 2
	_, err = DecodeMerged(lying)
	require.Error(t, err)
}

func TestRawPeer_CapsAreLeftOutUnlessNamed(t *testing.T) {
	t.Parallel()
	for _, bits := range []uint64{0, CapWideCredits | CapFragments | CapDrain} {
		hello := Connect{ID: []byte("id"), Host: "h", Time: time.Unix(1, 0), Caps: bits}
		require.Equal(t, bits != 0, hello.Encode()[0] == 0x85)
		gotHello, err := DecodeConnect(hello.Encode())
		require.NoError(t, err)
		require.Equal(t, bits, gotHello.Caps)
		answer := ConnectResponse{ID: []byte("id"), Accepted: true, Caps: bits}
		gotAnswer, err := DecodeConnectResponse(answer.Encode())
		require.NoError(t, err)
		require.Equal(t, answer, gotAnswer)
	}
}

func TestRawPeer_DialOrder(t *testing.T) {
	t.Parallel()
	require.True(t, DialOrder("b", "a"))
	require.False(t, DialOrder("a", "b"))
	require.True(t, DialOrder("http://127.0.0.1:9001", "http://127.0.0.1:9002"))
	require.False(t, DialOrder("http://127.0.0.1:9002", "http://127.0.0.1:9001"))
	require.True(t, DialOrder("https://node1:9000", "https://node2:9000"))
	for _, rawDials := range []bool{true, false} {
		local, raw := HostPair(t, rawDials)
		require.Equal(t, rawDials, DialOrder(raw, local))
		require.Equal(t, !rawDials, DialOrder(local, raw))
		l, r := ListenPair(t, rawDials)
		require.Equal(t, rawDials, DialOrder("http://"+r.Addr().String(), "http://"+l.Addr().String()))
	}
}

func TestRawPeer_TwoOfThemTalk(t *testing.T) {
	t.Parallel()
	talk := func(t *testing.T, l net.Listener, dial Config) {
		dial.Host, dial.Token, dial.Caps = "http://dialler:9000", "secret", CapDrain
		s := Serve(t, l, Config{})
		d := DialConfig(t, s.URL, dial)
		a := s.Accept()
		require.Equal(t, "/grid/v1", a.Request.URL.Path)
		require.Equal(t, "Bearer secret", a.Request.Header.Get("Authorization"))
		require.Equal(t, "http://dialler:9000", a.Connect.Host)
		require.Equal(t, uint64(CapDrain), a.Connect.Caps)
		require.Zero(t, d.Response.Caps)

		d.Send(Msg{Op: OpRequest, MuxID: 1, Flags: FlagCRC | FlagEOF, Payload: []byte("q")})
		require.Equal(t, "q", string(a.Expect(OpRequest).Payload))
		// The ping in their midst is answered, and not shown.
		a.SendMerged(Msg{Op: OpResponse, MuxID: 1}, Ping(time.Now()), Msg{Op: OpAckMux, MuxID: 2})
		d.Expect(OpResponse)
		d.Expect(OpAckMux)
		a.Expect(OpPong)
		require.Empty(t, d.Pending())

		d.Close()
		a.ExpectClosed()
	}
	t.Run("in memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := faultconn.NewNetwork()
			l, err := n.Listen("acceptor:9000")
			require.NoError(t, err)
			talk(t, l, Config{Dial: n.Dialer("dialler:9000")})
		})
	})
	t.Run("TCP", func(t *testing.T) { talk(t, nil, Config{}) })
}

func TestRawPeer_ServerRefuses(t *testing.T) {
	t.Parallel()
	s := Serve(t, nil, Config{Refuse: "not today"})
	d := DialConfig(t, s.URL, Config{Bare: true})
	d.Send(Msg{Op: OpConnect, Payload: Connect{Host: "http://x:1", Time: time.Now()}.Encode()})
	answer, err := DecodeConnectResponse(d.Expect(OpConnectResponse).Payload)
	require.NoError(t, err)
	require.False(t, answer.Accepted)
	require.Equal(t, "not today", answer.Reason)
	require.Equal(t, "http://x:1", s.Accept().Connect.Host)
	d.ExpectClosed()
}

func TestRawPeer_LeavesTheHandshakeToABareTest(t *testing.T) {
	t.Parallel()
	s := Serve(t, nil, Config{Bare: true})
	d := DialConfig(t, s.URL, Config{Bare: true})
	a := s.Accept()
	require.NoError(t, d.TrySendBytes([]byte("no message")))
	_, err := a.Drain()
	require.ErrorContains(t, err, "undecodable")
	d.ExpectClosed()
}

func TestRawPeer_ShowsPingsOnDemand(t *testing.T) {
	t.Parallel()
	s := Serve(t, nil, Config{ManualPings: true})
	d := Dial(t, s.URL, "secret", "http://dialler:9000", CapWideCredits)
	a := s.Accept()
	require.Equal(t, uint64(CapWideCredits), a.Connect.Caps)
	d.Send(Ping(time.Now()))
	a.Expect(OpPing)
	require.Empty(t, d.Pending())
}

func TestRawPeer_ThatReadsNothingLeavesTheSocketFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		l, err := n.Listen("acceptor:9000")
		require.NoError(t, err)
		s := Serve(t, l, Config{})
		d := DialConfig(t, s.URL, Config{Dial: n.Dialer("dialler:9000"), Unread: true})
		a := s.Accept()
		big := Msg{Op: OpResponse, MuxID: 1, Payload: make([]byte, 2*faultconn.DefaultBuffer)}
		sent := make(chan error, 1)
		go func() { sent <- a.TrySend(big) }()
		synctest.Wait()
		require.Empty(t, sent)
		d.StartReading()
		require.NoError(t, <-sent)
		require.Equal(t, big, d.Recv())
	})
}
