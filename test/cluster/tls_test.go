package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestTLS_EndToEnd(t *testing.T) {
	t.Parallel()
	cert, pool := rig.Certificate(t)
	for name, c := range map[string]struct{ server, client *tls.Config }{
		"server certificate": {
			&tls.Config{Certificates: []tls.Certificate{cert}},
			&tls.Config{RootCAs: pool},
		},
		"both certificates": {
			&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
			&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}},
		},
		// A websocket needs HTTP/1.1, whatever else the two could speak.
		"HTTP/2 offered by both": {
			&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}},
			&tls.Config{RootCAs: pool, NextProtos: []string{"h2", "http/1.1"}},
		},
		"server name given": {
			&tls.Config{Certificates: []tls.Certificate{cert}},
			&tls.Config{RootCAs: pool, ServerName: "127.0.0.1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := rig.NewTLS(t, 2, c.server, func(_ int, o *grid.ManagerOptions) { o.TLSConfig = c.client })
			g.WaitConnected()
			g.RequireWorks()
			b, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, make([]byte, 1<<20))
			require.NoError(t, err)
			require.Len(t, b, 1<<20)
		})
	}
}

func TestTLS_CertificateIsVerified(t *testing.T) {
	t.Parallel()
	cert, pool := rig.Certificate(t)
	for name, c := range map[string]struct {
		server, client *tls.Config
		culprit        string
	}{
		"unknown authority": {&tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{}, "unknown authority"},
		"another name":      {&tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{RootCAs: pool, ServerName: "node1"}, "node1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := rig.Setup{
					Hosts: []string{"https://a:9000", "https://b:9000"}, Stopped: true,
					Edit:    func(_ int, o *grid.ManagerOptions) { o.TLSConfig = c.client },
					Prepare: func(n *rig.Node) { n.Server.TLSConfig = c.server },
				}.Start(t)
				g.Start(0)
				g.Start(1)
				dialler := g.Conn(0, 1)
				if !dialler.Stats().Dials {
					dialler = g.Conn(1, 0)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				require.Equal(t, grid.StateConnectionError, dialler.State())
				require.Contains(t, dialler.Stats().LastError, c.culprit)
			})
		})
	}
}

func TestTLS_NeedsNoChecksums(t *testing.T) {
	t.Parallel()
	cert, pool := rig.Certificate(t)
	var g *rig.Grid
	var raw string
	g = rig.NewTLS(t, 1, &tls.Config{Certificates: []tls.Certificate{cert}}, func(_ int, o *grid.ManagerOptions) {
		for port := 9000; raw == "" || !rawpeer.DialOrder(raw, o.Local); port++ {
			raw = fmt.Sprintf("https://raw:%d", port)
		}
		o.Hosts = append(o.Hosts[:1:1], raw)
	})
	p := rawpeer.DialConfig(t, "http://"+g.Addr(0), rawpeer.Config{
		Host: raw, Token: rig.Token,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&tls.Dialer{Config: &tls.Config{RootCAs: pool}}).DialContext(ctx, network, addr)
		},
	})
	requireChecksums(t, p, g.Manager(0).Connection(raw), false)
}

// requireChecksums makes every kind of message pass, and looks at their flags.
func requireChecksums(t *testing.T, p *rawpeer.Peer, c *grid.Connection, want bool) {
	t.Helper()
	check := func(op uint8) rawpeer.Msg {
		t.Helper()
		m := p.Expect(op)
		require.Equal(t, want, m.Flags&rawpeer.FlagCRC != 0, "%v", m)
		return m
	}
	p.Send(rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 1, Handler: uint8(rig.Echo), Flags: rawpeer.FlagEOF, Payload: []byte("q")})
	check(rawpeer.OpResponse)
	p.Send(rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 2, Handler: uint8(rig.Unused), Flags: rawpeer.FlagEOF | rawpeer.FlagCRC})
	check(rawpeer.OpMuxConnectError)
	p.Send(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 3, Handler: uint8(rig.Stream), Flags: rawpeer.FlagEOF, Payload: []byte("x")})
	check(rawpeer.OpAckMux)
	check(rawpeer.OpMuxServerMsg)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := c.SingleRequest(ctx, rig.Echo, []byte("q"))
		failed <- err
	}()
	check(rawpeer.OpRequest)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
}

func TestTLS_ChecksumsUnlessBothHostsAreSecure(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		local, raw string
		want       bool
	}{
		{"http", "http", true},
		{"https", "http", true},
		{"http", "https", true},
		{"https", "https", false},
	} {
		t.Run(c.local+" and "+c.raw, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				local := c.local + "://node0:9000"
				raw := ""
				for port := 9000; raw == "" || !rawpeer.DialOrder(raw, local); port++ {
					raw = fmt.Sprintf("%s://raw:%d", c.raw, port)
				}
				g := rig.Setup{Hosts: []string{local}, Edit: func(_ int, o *grid.ManagerOptions) {
					o.Hosts, o.AllowHTTPHosts = []string{local, raw}, true
				}}.Start(t)
				p := rawpeer.DialConfig(t, rig.LoneHost, rawpeer.Config{Host: raw, Token: rig.Token, Dial: g.Net.Dialer(rig.HostAddr(raw))})
				requireChecksums(t, p, g.Manager(0).Connection(raw), c.want)
			})
		})
	}
}
