package gridtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
)

// A network that the test has made has other hosts than the nodes, and faults of its own.
func TestGrid_UsesANetworkOfTheTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := faultconn.NewNetwork()
		g := New(t, 2, WithNetwork(net), WithHandlers(register), WithOptions(shortPings),
			WithHosts(func(node int, addr string) string {
				require.Equal(t, map[int]string{0: "node0:9000", 1: "node1:9000"}[node], addr)
				return map[int]string{0: "http://anna:1", 1: "http://bert:2"}[node]
			}))
		require.Equal(t, []string{"http://anna:1", "http://bert:2"}, g.Hosts())
		requireReach(t, g, everyone)

		guest, err := net.Dialer("guest:3")(t.Context(), "tcp", "anna:1")
		require.NoError(t, err)
		require.NoError(t, guest.Close())

		net.Stall("anna:1", "bert:2", true)
		time.Sleep(time.Second)
		require.NotEqual(t, grid.StateConnected, g.Conn(1, 0).State())
		net.Stall("anna:1", "bert:2", false)
		g.WaitConnected()
		g.Cut(0, 1)
		g.Partition([]int{1})
		require.ErrorIs(t, ask(g, 0, 1), grid.ErrDisconnected)
		g.Heal()
		g.WaitConnected()
		requireReach(t, g, everyone)
		requireNothingLeft(t, g)
		require.Zero(t, net.Conns())
	})
}

func TestGrid_ChangesItsServers(t *testing.T) {
	cert, pool := certificate(t)
	tested := make(chan time.Duration, 10)
	inBoth(t, 2, func(t *testing.T, g *Grid) {
		require.Contains(t, g.Host(0), "https://")
		requireReach(t, g, everyone)
		g.Restart(1)
		g.WaitConnected()
		requireReach(t, g, everyone)
		require.Len(t, tested, 3)
		for len(tested) > 0 {
			require.Zero(t, <-tested, "the server is new")
		}

		c := g.Client(0)
		c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
		resp, err := c.Get(g.Host(1) + "/health")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusTeapot, resp.StatusCode)
		g.Close()
		// The client closes what it has used when it finds the time.
		require.Eventually(t, func() bool { return g.net.open() == 0 }, 10*time.Second, time.Millisecond)
	}, WithHosts(func(_ int, addr string) string { return "https://" + addr }),
		WithOptions(func(_ int, o *grid.ManagerOptions) { o.TLSConfig = &tls.Config{RootCAs: pool} }),
		WithRoutes(func(_ int, mux *http.ServeMux) {
			mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
		}),
		WithServer(func(_ int, s *http.Server) {
			tested <- s.ReadTimeout
			s.ReadTimeout = time.Second
			s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
		}))
}

// certificate is one of the nodes, and the pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), // also in a bubble
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"node0", "node1"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
