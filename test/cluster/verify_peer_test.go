package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Certificates bind the names of hosts, and a secret lets them in, from end to end.
func TestTLS_MutualEndToEnd(t *testing.T) {
	t.Parallel()
	a := rig.NewAuthority(t)
	synctest.Test(t, func(t *testing.T) {
		g := rig.NewBound(t, 3, a, func(i int) (server, client tls.Certificate) {
			c := a.Issue("node" + string(rune('0'+i)))
			return c, c
		}, func(i int, o *grid.ManagerOptions) {
			o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, [][]byte{rig.Key}
		})
		g.WaitConnected()
		g.RequireWorks()
	})
	// The same on real sockets, by IP address.
	c := a.Issue("127.0.0.1")
	g := rig.NewTLS(t, 2, &tls.Config{Certificates: []tls.Certificate{c}, ClientCAs: a.Pool, ClientAuth: tls.RequireAndVerifyClientCert}, func(_ int, o *grid.ManagerOptions) {
		o.TLSConfig = &tls.Config{RootCAs: a.Pool, Certificates: []tls.Certificate{c}}
		o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, [][]byte{rig.Key}
		o.VerifyPeer = grid.VerifyTLSHost
	})
	g.WaitConnected()
	g.RequireWorks()
}

// dialOrderIn returns the indexes of two hosts, the one that dials first.
func dialOrderIn(hosts []string, i, j int) (dialler, acceptor int) {
	if rawpeer.DialOrder(hosts[i], hosts[j]) {
		return i, j
	}
	return j, i
}

// A host with a valid token, and a valid certificate of its own, can't pass for another one.
func TestTLS_HostThatClaimsAnotherNameIsRefused(t *testing.T) {
	t.Parallel()
	a := rig.NewAuthority(t)
	stranger := rig.NewAuthority(t)
	for name, c := range map[string]struct {
		client  func(own string) tls.Certificate
		refused string
	}{
		"certificate of another host":      {func(string) tls.Certificate { return a.Issue("node2") }, "is not accepted"},
		"certificate of another authority": {func(own string) tls.Certificate { return stranger.Issue(own) }, ""},
		"certificate for servers only":     {func(own string) tls.Certificate { return a.Issue(own, x509.ExtKeyUsageServerAuth) }, ""},
		"no certificate":                   {func(string) tls.Certificate { return tls.Certificate{} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := []string{"https://node0:9000", "https://node1:9000"}
				impostor, honest := dialOrderIn(hosts, 0, 1)
				var log *rig.LogBook
				g := rig.NewBound(t, 2, a, func(i int) (server, client tls.Certificate) {
					server = a.Issue("node" + string(rune('0'+i)))
					if i == impostor {
						return server, c.client("node" + string(rune('0'+i)))
					}
					return server, server
				}, func(i int, o *grid.ManagerOptions) {
					if i == impostor {
						o.Logger, log = rig.NewLogBook()
					}
				})
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Equal(t, grid.StateConnectionError, g.Conn(impostor, honest).State())
				require.NotEqual(t, grid.StateConnected, g.Conn(honest, impostor).State())
				// The alert, and the end of the socket where that was first.
				require.NotEmpty(t, log.About("level=WARN"))
				require.LessOrEqual(t, len(log.About("level=WARN")), 2)
				if c.refused != "" {
					require.Len(t, log.About("level=WARN"), 1)
					require.Len(t, log.About(c.refused, "node2", "cannot connect"), 1)
				}
			})
		})
	}
}

func TestTLS_VerifyPeerSeesWhoClaimsToBeWhom(t *testing.T) {
	t.Parallel()
	for _, accept := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			hosts := []string{"http://node0:9000", "http://node1:9000"}
			dialler, acceptor := dialOrderIn(hosts, 0, 1)
			var claims []string
			var logs [2]*rig.LogBook
			var g *rig.Grid
			g = rig.Setup{Hosts: hosts, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
				o.Logger, logs[i] = rig.NewLogBook()
				o.VerifyPeer = func(host string, r *http.Request) error {
					if r.Method == http.MethodPost {
						require.Equal(t, dialler, i, "who dials is asked to")
						require.Equal(t, hosts[acceptor], host)
						return nil
					}
					require.Equal(t, acceptor, i, "the dialler has verified whom it dialled")
					require.Equal(t, grid.RoutePath, r.URL.Path)
					require.NotEmpty(t, r.RemoteAddr)
					require.NotEqual(t, grid.StateConnected, g.Conn(acceptor, dialler).State(), "before the link is taken")
					claims = append(claims, host)
					if !accept {
						return errors.New("not from there")
					}
					return nil
				}
			}}.Start(t)
			g.Start(acceptor)
			g.Start(dialler)
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, accept, g.Conn(dialler, acceptor).State() == grid.StateConnected)
			require.Equal(t, hosts[dialler], claims[0])
			if !accept {
				for _, log := range logs {
					require.Len(t, log.About("not from there"), 1)
				}
				require.Greater(t, len(claims), 1)
			} else {
				require.Len(t, claims, 1)
			}
		})
	}
}

func TestTLS_VerifyTLSHost(t *testing.T) {
	t.Parallel()
	a := rig.NewAuthority(t)
	verified := func(name string) *tls.ConnectionState {
		c, err := x509.ParseCertificate(a.Issue(name).Certificate[0])
		require.NoError(t, err)
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c, a.Cert}}}
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
		err := grid.VerifyTLSHost(c.host, (&http.Request{TLS: c.tls}).WithContext(context.Background()))
		if c.err == "" {
			require.NoError(t, err, c.host)
		} else {
			require.ErrorContains(t, err, c.err, c.host)
		}
	}
}
