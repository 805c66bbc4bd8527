package grid

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// testCertificate makes a certificate for 127.0.0.1, a and b that vouches for
// itself, and the pool that trusts it.
func testCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "grid test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), // also in a bubble
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"a", "b"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// newTLSGrid starts n nodes with https names on loopback sockets. server is the
// TLS configuration of the HTTP servers; edit must see to that of the diallers.
func newTLSGrid(t testing.TB, n int, server *tls.Config, edit func(i int, o *ManagerOptions)) *testGrid {
	t.Helper()
	g := &testGrid{t: t, edit: edit, prepare: func(n *node) { n.server.TLSConfig = server.Clone() }}
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		g.addrs = append(g.addrs, l)
		g.hosts = append(g.hosts, "https://"+l.Addr().String())
	}
	g.nodes = make([]*node, n)
	for i := range n {
		g.start(i)
	}
	t.Cleanup(g.stopAll)
	return g
}

func TestTLSEndToEnd(t *testing.T) {
	cert, pool := testCertificate(t)
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
			g := newTLSGrid(t, 2, c.server, func(_ int, o *ManagerOptions) { o.TLSConfig = c.client })
			g.waitConnected()
			g.requireWorks()
			b, err := g.conn(0, 1).SingleRequest(t.Context(), testEcho, make([]byte, 1<<20))
			require.NoError(t, err)
			require.Len(t, b, 1<<20)
		})
	}
}

func TestTLSCertificateIsVerified(t *testing.T) {
	cert, pool := testCertificate(t)
	for name, c := range map[string]struct {
		server, client *tls.Config
		culprit        string
	}{
		"unknown authority": {&tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{}, "unknown authority"},
		"another name":      {&tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{RootCAs: pool, ServerName: "node1"}, "node1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: []string{"https://a:9000", "https://b:9000"}}
				g.nodes = make([]*node, 2)
				g.edit = func(_ int, o *ManagerOptions) { o.TLSConfig = c.client }
				g.prepare = func(n *node) { n.server.TLSConfig = c.server }
				t.Cleanup(g.stopAll)
				g.start(0)
				g.start(1)
				dialler := g.conn(0, 1)
				if !dialler.dials {
					dialler = g.conn(1, 0)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				require.Equal(t, StateConnectionError, dialler.State())
				require.Contains(t, dialler.Stats().LastError, c.culprit)
			})
		})
	}
}

func TestNoChecksumsUnderTLS(t *testing.T) {
	cert, pool := testCertificate(t)
	var g *testGrid
	var raw string
	g = newTLSGrid(t, 1, &tls.Config{Certificates: []tls.Certificate{cert}}, func(_ int, o *ManagerOptions) {
		for port := 9000; raw == "" || !dialOrder(raw, o.Local); port++ {
			raw = fmt.Sprintf("https://raw:%d", port)
		}
		o.Hosts = append(o.Hosts[:1:1], raw)
	})
	p := dialRawConfig(t, "http://"+g.addr(0), rawConfig{
		Host: raw, Token: testToken,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&tls.Dialer{Config: &tls.Config{RootCAs: pool}}).DialContext(ctx, network, addr)
		},
	})
	requireChecksums(t, p, g.nodes[0].Connection(raw), false)
}

// requireChecksums makes every kind of message pass, and looks at their flags.
func requireChecksums(t *testing.T, p *rawPeer, c *Connection, want bool) {
	t.Helper()
	check := func(op uint8) rawMsg {
		t.Helper()
		m := p.expect(op)
		require.Equal(t, want, m.Flags&rawFlagCRC != 0, "%v", m)
		return m
	}
	p.send(rawMsg{Op: rawOpRequest, MuxID: 1, Handler: uint8(testEcho), Flags: rawFlagEOF, Payload: []byte("q")})
	check(rawOpResponse)
	p.send(rawMsg{Op: rawOpRequest, MuxID: 2, Handler: uint8(testUnused), Flags: rawFlagEOF | rawFlagCRC})
	check(rawOpMuxConnectError)
	p.send(rawMsg{Op: rawOpConnectMux, MuxID: 3, Handler: uint8(testStream), Flags: rawFlagEOF, Payload: []byte("x")})
	check(rawOpAckMux)
	check(rawOpMuxServerMsg)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := c.SingleRequest(ctx, testEcho, []byte("q"))
		failed <- err
	}()
	check(rawOpRequest)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
}

func TestChecksumsUnlessBothHostsAreSecure(t *testing.T) {
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
				for port := 9000; raw == "" || !dialOrder(raw, local); port++ {
					raw = fmt.Sprintf("%s://raw:%d", c.raw, port)
				}
				g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: []string{local}}
				g.edit = func(_ int, o *ManagerOptions) { o.Hosts = []string{local, raw} }
				g.startAll()
				p := dialRawConfig(t, loneHost, rawConfig{Host: raw, Token: testToken, Dial: g.net.Dialer(hostAddr(raw))})
				requireChecksums(t, p, g.nodes[0].Connection(raw), c.want)
			})
		})
	}
}
