package cluster

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A peer that makes what the protocol says, by itself, is let in and believed, in both roles.
func TestSecret_PeerThatProvesTheKeyIsLetIn(t *testing.T) {
	t.Parallel()
	for _, rawDials := range []bool{true, false} {
		c := rawpeer.Config{Key: rig.Key, To: rig.LoneHost, Says: rig.PeerHost(t, false), Caps: uint64(rig.AllCaps)}
		rig.InWireOnce(t, rawDials, c, func(o *grid.ManagerOptions) { rig.WithSecret(o, rig.Key) }, func(r *rig.Wire) {
			r.Alive()
			r.Peer.Close()
			r.Peer = r.Next()
			require.NoError(r, r.Conn.WaitForConnect(r.Context()))
			r.Alive()
		})
	}
}

// Keys are changed on a cluster that works, one host after the other, and each link is made anew
// after each step.
func TestSecret_IsChangedOnALiveCluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 3
		g := rig.New(t, n, func(_ int, o *grid.ManagerOptions) { rig.WithSecret(o, rig.Key) })
		for _, keys := range [][][]byte{{rig.Key, rig.OtherKey}, {rig.OtherKey, rig.Key}, {rig.OtherKey}} {
			for i := range n {
				require.NoError(t, g.Manager(i).SetSharedSecret(keys...))
				for j := range n {
					if j != i {
						require.Equal(t, grid.StateConnected, g.Conn(i, j).State(), "links that there are go on")
						g.Cut(i, j)
					}
				}
				synctest.Wait()
				g.WaitConnected()
				g.RequireWorks()
			}
		}
		// The old key is not good any more.
		require.NoError(t, g.Manager(0).SetSharedSecret(rig.Key))
		g.Cut(0, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NotEqual(t, grid.StateConnected, g.Conn(0, 1).State())
		require.Equal(t, grid.StateConnected, g.Conn(1, 2).State())
	})
}

func TestSecret_SetWhatIsWrongChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { rig.WithSecret(o, rig.Key) })
		require.ErrorContains(t, g.Manager(0).SetSharedSecret(), "no key")
		require.ErrorContains(t, g.Manager(0).SetSharedSecret(rig.OtherKey, []byte("short")), "key 2 has 5 bytes")
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
	})
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		require.ErrorContains(t, g.Manager(0).SetSharedSecret(rig.Key), "made without SharedSecret")
		g.RequireWorks()
	})
}

// A cluster of hosts with https does not get one with http later either.
func TestHosts_WithHTTPAreNotAddedToOneWithHTTPS(t *testing.T) {
	t.Parallel()
	const local, other, insecure = "https://node0:9000", "https://node1:9000", "HTTP://node2:9000"
	m, err := grid.NewManager(t.Context(), rig.Options(local, []string{local, other}))
	require.NoError(t, err)
	defer m.Close()
	const text = `has http, the local host "https://node0:9000" https, and AllowHTTPHosts is not set`
	require.ErrorContains(t, m.AddHost(insecure), text)
	require.ErrorContains(t, m.SetHosts([]string{local, insecure}), text)
	require.Equal(t, []string{other}, m.Targets())

	o := rig.Options(local, []string{local, other})
	o.AllowHTTPHosts = true
	allowing, err := grid.NewManager(t.Context(), o)
	require.NoError(t, err)
	defer allowing.Close()
	require.NoError(t, allowing.AddHost(insecure))
	require.Len(t, allowing.Targets(), 2)
}

// Two spellings are one host, wherever they come in.
func TestHosts_OtherSpellingsAreTheSameHost(t *testing.T) {
	t.Parallel()
	const local, other, added = "http://node0:9000", "http://node1", "http://[2001:db8::1]:9000"
	o := rig.Options("HTTP://Node0.:09000", []string{"http://NODE0:9000", "HTTP://node1.:80"})
	o.LocalCalls = true
	m, err := grid.NewManager(t.Context(), o)
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, local, m.HostName())
	require.Equal(t, []string{other}, m.Targets())
	c := m.Connection(other)
	require.NotNil(t, c)
	require.Same(t, c, m.Connection("HTTP://NODE1:80"))
	require.NotNil(t, m.Connection(local))
	require.Same(t, m.Connection(local), m.Connection("http://NODE0.:9000"))
	require.Nil(t, m.Connection("http://node1:81"))
	require.Nil(t, m.Connection("node1"))

	require.NoError(t, m.AddHost("http://NODE1"))
	require.Equal(t, []string{other}, m.Targets())
	require.NoError(t, m.AddHost("http://[2001:DB8:0::01]:9000"))
	require.Equal(t, []string{added, other}, m.Targets())
	require.NoError(t, m.RemoveHost("http://[2001:0db8::1]:9000"))
	require.Equal(t, []string{other}, m.Targets())
	require.ErrorContains(t, m.RemoveHost("HTTP://node0:9000"), "local host")
	require.ErrorContains(t, m.SetHosts([]string{local, other, "http://Node1:80"}), `host "http://Node1:80" is given twice, also as "http://node1"`)
	require.ErrorContains(t, m.AddHost("http://bücher:1"), "with xn--")
	require.ErrorContains(t, m.AddHost("http://[fe80::1%25eth0]:1"), `zone "eth0"`)
	require.NoError(t, m.SetHosts([]string{"HTTP://NODE0:9000", "HTTP://NODE1"}))
	require.Same(t, c, m.Connection(other), "it has stayed")
}

// A token that HTTP would alter is not sent, and the reason is told where it was made.
func TestToken_ThatHTTPWouldAlterIsToldByWhoDials(t *testing.T) {
	t.Parallel()
	for token, why := range map[string]string{
		"s3cr3t of the cluster\n": "AuthFn: token has the control character 0x0a, which HTTP does not carry, at byte 21",
		" s3cr3t of the cluster":  "AuthFn: token begins or ends with white space, which HTTP removes",
	} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			logger, log := rig.NewLogBook()
			g := rig.Setup{Hosts: rig.Names("http", 2), Stopped: true, Edit: func(_ int, o *grid.ManagerOptions) {
				o.Logger = logger
				o.AuthFn = func() string { return token }
				o.AuthToken = func(string) error { asked.Add(1); return nil }
			}}.Start(t)
			g.Start(0)
			g.Start(1)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			dialler, acceptor := dialOrderIn(g.Hosts(), 0, 1)
			require.Equal(t, why, g.Conn(dialler, acceptor).Stats().LastError)
			require.Len(t, log.About("cannot connect", why), 1)
			require.Zero(t, asked.Load())
			require.NotContains(t, strings.Join(log.About(""), "\n")+fmt.Sprint(g.Manager(0).Stats()), "s3cr3t of")
		})
	}
}
