package grid

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// authority signs certificates for tests.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a := &authority{t: t, key: key, pool: x509.NewCertPool()}
	a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "grid test authority"}, KeyUsage: x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true,
	}, &key.PublicKey)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Unix(0, 0), time.Unix(1<<32, 0) // also in a bubble
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return cert
}

// issue makes a certificate for a host name or an IP address.
func (a *authority) issue(name string, uses ...x509.ExtKeyUsage) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	if len(uses) == 0 {
		uses = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "node"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: uses}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	cert := a.sign(template, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// newBoundGrid starts nodes called node0, node1 and so on, in a bubble, that know each
// other by certificates which certs makes. It does not wait until they are connected.
func newBoundGrid(t *testing.T, n int, a *authority, certs func(i int) (server, client tls.Certificate), edit func(i int, o *ManagerOptions)) *testGrid {
	t.Helper()
	g := &testGrid{t: t, net: faultconn.NewNetwork(), nodes: make([]*node, n)}
	for i := range n {
		g.hosts = append(g.hosts, "https://node"+string(rune('0'+i))+":9000")
	}
	configs := make([]*tls.Config, n)
	ready := make(chan struct{}) // nobody dials a host that does not listen yet
	g.edit = func(i int, o *ManagerOptions) {
		server, client := certs(i)
		configs[i] = &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert}
		o.TLSConfig = &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{client}}
		o.VerifyPeer = VerifyTLSHost
		o.BlockConnect = ready
		if edit != nil {
			edit(i, o)
		}
	}
	next := 0
	g.prepare = func(n *node) { n.server.TLSConfig = configs[next]; next++ }
	t.Cleanup(g.stopAll)
	for i := range n {
		g.start(i)
	}
	close(ready)
	return g
}

// Certificates bind the names of hosts, and a secret lets them in, from end to end.
func TestMutualTLSEndToEnd(t *testing.T) {
	a := newAuthority(t)
	synctest.Test(t, func(t *testing.T) {
		g := newBoundGrid(t, 3, a, func(i int) (server, client tls.Certificate) {
			c := a.issue("node" + string(rune('0'+i)))
			return c, c
		}, func(i int, o *ManagerOptions) { o.AuthFn, o.AuthToken = SharedSecret(testKey) })
		g.waitConnected()
		g.requireWorks()
	})
	// The same on real sockets, by IP address.
	c := a.issue("127.0.0.1")
	g := newTLSGrid(t, 2, &tls.Config{Certificates: []tls.Certificate{c}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert}, func(_ int, o *ManagerOptions) {
		o.TLSConfig = &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{c}}
		o.AuthFn, o.AuthToken = SharedSecret(testKey)
		o.VerifyPeer = VerifyTLSHost
	})
	g.waitConnected()
	g.requireWorks()
}

// dialOrderIn returns the indexes of two hosts, the one that dials first.
func dialOrderIn(hosts []string, i, j int) (dialler, acceptor int) {
	if shouldDial(hosts[i], hosts[j]) {
		return i, j
	}
	return j, i
}

// A host with a valid token, and a valid certificate of its own, can't pass for
// another one.
func TestHostThatClaimsAnotherNameIsRefused(t *testing.T) {
	a := newAuthority(t)
	stranger := newAuthority(t)
	for name, c := range map[string]struct {
		client  func(own string) tls.Certificate
		refused string
	}{
		"certificate of another host":      {func(string) tls.Certificate { return a.issue("node2") }, "is not accepted"},
		"certificate of another authority": {func(own string) tls.Certificate { return stranger.issue(own) }, ""},
		"certificate for servers only":     {func(own string) tls.Certificate { return a.issue(own, x509.ExtKeyUsageServerAuth) }, ""},
		"no certificate":                   {func(string) tls.Certificate { return tls.Certificate{} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := []string{"https://node0:9000", "https://node1:9000"}
				liar, honest := dialOrderIn(hosts, 0, 1)
				var log *logBook
				g := newBoundGrid(t, 2, a, func(i int) (server, client tls.Certificate) {
					server = a.issue("node" + string(rune('0'+i)))
					if i == liar {
						return server, c.client("node" + string(rune('0'+i)))
					}
					return server, server
				}, func(i int, o *ManagerOptions) {
					if i == liar {
						o.Logger, log = newLogBook()
					}
				})
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Equal(t, StateConnectionError, g.conn(liar, honest).State())
				require.NotEqual(t, StateConnected, g.conn(honest, liar).State())
				require.Len(t, log.about("level=WARN"), 1)
				if c.refused != "" {
					require.Len(t, log.about(c.refused, "node2", "cannot connect"), 1)
				}
			})
		})
	}
}

func TestVerifyPeerSeesWhoClaimsToBeWhom(t *testing.T) {
	for _, accept := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			hosts := []string{"http://node0:9000", "http://node1:9000"}
			dialler, acceptor := dialOrderIn(hosts, 0, 1)
			var claims []string
			var logs [2]*logBook
			g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: hosts, nodes: make([]*node, 2)}
			g.edit = func(i int, o *ManagerOptions) {
				o.Logger, logs[i] = newLogBook()
				o.VerifyPeer = func(host string, r *http.Request) error {
					require.Equal(t, acceptor, i, "the dialler has verified whom it dialled")
					require.Equal(t, RoutePath, r.URL.Path)
					require.NotEmpty(t, r.RemoteAddr)
					require.NotEqual(t, StateConnected, g.conn(acceptor, dialler).State(), "before the link is taken")
					claims = append(claims, host)
					if !accept {
						return errors.New("not from there")
					}
					return nil
				}
			}
			t.Cleanup(g.stopAll)
			g.start(acceptor)
			g.start(dialler)
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, accept, g.conn(dialler, acceptor).State() == StateConnected)
			require.Equal(t, hosts[dialler], claims[0])
			if !accept {
				for _, log := range logs {
					require.Len(t, log.about("not from there"), 1)
				}
				require.Greater(t, len(claims), 1)
			} else {
				require.Len(t, claims, 1)
			}
		})
	}
}

func TestVerifyTLSHost(t *testing.T) {
	a := newAuthority(t)
	verified := func(name string) *tls.ConnectionState {
		c, err := x509.ParseCertificate(a.issue(name).Certificate[0])
		require.NoError(t, err)
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c, a.cert}}}
	}
	unverified := verified("node1")
	unverified.VerifiedChains = nil
	for _, c := range []struct {
		host string
		tls  *tls.ConnectionState
		err  string
	}{
		{"https://node1:9000", verified("node1"), ""},
		{"https://NODE1", verified("node1"), ""},
		{"https://10.0.0.1:9000", verified("10.0.0.1"), ""},
		{"https://[::1]:9000", verified("::1"), ""},
		{"https://node2:9000", verified("node1"), "node1"},
		{"https://10.0.0.2:9000", verified("10.0.0.1"), "10.0.0.1"},
		{"https://node1:9000", unverified, "not verified"},
		{"https://node1:9000", &tls.ConnectionState{}, "no client certificate"},
		{"http://node1:9000", nil, "no TLS"},
	} {
		err := VerifyTLSHost(c.host, (&http.Request{TLS: c.tls}).WithContext(context.Background()))
		if c.err == "" {
			require.NoError(t, err, c.host)
		} else {
			require.ErrorContains(t, err, c.err, c.host)
		}
	}
}
