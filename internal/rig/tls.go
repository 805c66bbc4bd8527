package rig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// Certificate makes a certificate for 127.0.0.1, a and b that vouches for itself, and the pool that
// trusts it.
func Certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
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

// serial is that of the last certificate.
var serial atomic.Int64

// Authority signs certificates for tests.
type Authority struct {
	t    testing.TB
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	Pool *x509.CertPool
}

// NewAuthority makes one, which nobody else trusts.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a := &Authority{t: t, key: key, Pool: x509.NewCertPool()}
	a.Cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "grid test authority"}, KeyUsage: x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true,
	}, &key.PublicKey)
	a.Pool.AddCert(a.Cert)
	return a
}

func (a *Authority) sign(template *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber = big.NewInt(serial.Add(1))
	template.NotBefore, template.NotAfter = time.Unix(0, 0), time.Unix(1<<32, 0) // also in a bubble
	parent := a.Cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return cert
}

// Issue makes a certificate for a host name or an IP address, or several, with spaces in between.
func (a *Authority) Issue(name string, uses ...x509.ExtKeyUsage) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	if len(uses) == 0 {
		uses = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "node"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: uses}
	for name := range strings.SplitSeq(name, " ") {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert := a.sign(template, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// NewTLS starts n nodes with https names on loopback sockets. server is the TLS configuration of
// the HTTP servers; edit must see to that of the diallers. It does not wait until they are
// connected.
func NewTLS(t testing.TB, n int, server *tls.Config, edit func(i int, o *grid.ManagerOptions)) *Grid {
	t.Helper()
	g := Setup{
		TCP: NewLoopback(t, "https", n), Edit: edit, Stopped: true,
		Prepare: func(n *Node) { n.Server.TLSConfig = server.Clone() },
	}.Start(t)
	for i := range n {
		g.Start(i)
	}
	return g
}

// NewBound starts nodes called node0, node1 and so on, in a bubble, that know each other by
// certificates which certs makes. It does not wait until they are connected.
func NewBound(t *testing.T, n int, a *Authority, certs func(i int) (server, client tls.Certificate), edit func(i int, o *grid.ManagerOptions)) *Grid {
	t.Helper()
	config := make(map[string]*tls.Config) // by host
	ready := make(chan struct{})           // nobody dials a host that does not listen yet
	g := Setup{
		Hosts: Names("https", n), Stopped: true,
		Edit: func(i int, o *grid.ManagerOptions) {
			server, client := certs(i)
			config[o.Local] = &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: a.Pool, ClientAuth: tls.RequireAndVerifyClientCert}
			o.TLSConfig = &tls.Config{RootCAs: a.Pool, Certificates: []tls.Certificate{client}}
			o.VerifyPeer = grid.VerifyTLSHost
			o.BlockConnect = ready
			if edit != nil {
				edit(i, o)
			}
		},
		Prepare: func(n *Node) { n.Server.TLSConfig = config[n.Host] },
	}.Start(t)
	for i := range n {
		g.Start(i)
	}
	close(ready)
	return g
}
