package attack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Who is no host, has a valid token, and asks to be taken in.

// approach dials the node as a host of any name.
func approach(a *rig.Attacked, name string) *rawpeer.Peer {
	a.Helper()
	p := rawpeer.DialConfig(a, rig.LoneHost, rawpeer.Config{
		Bare: true, Host: a.Raw, Token: rig.AttackToken, Dial: a.Grid.Net.Dialer(rig.HostAddr(a.Raw)),
	})
	h := rawpeer.Connect{ID: []byte("0123456789abcdef"), Host: name, Time: time.Now(), Token: rig.AttackToken, To: rig.LoneHost}
	p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
	return p
}

// stranger is approach, and returns what the node has answered.
func stranger(a *rig.Attacked, name string) rawpeer.ConnectResponse {
	a.Helper()
	p := approach(a, name)
	answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
	require.NoError(a, err)
	if !answer.Accepted {
		p.ExpectClosed()
	}
	return answer
}

// inventedNames are hosts that dial the node.
func inventedNames(n int) (names []string) {
	for i := 0; len(names) < n; i++ {
		if name := fmt.Sprintf("http://invented%d:1", i); rawpeer.DialOrder(name, rig.LoneHost) {
			names = append(names, name)
		}
	}
	return names
}

// askedAbout notes which hosts AcceptHost is asked about.
type askedAbout struct {
	mu    sync.Mutex
	hosts []string
}

func (l *askedAbout) add(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, host)
}

func (l *askedAbout) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	hosts := l.hosts
	l.hosts = nil
	return hosts
}

// Where AcceptHost takes in whoever comes, whoever comes may be many: there is an end to it, and the
// hosts that there were are served.
func TestStrangers_InventedNamesAreBounded(t *testing.T) {
	const most = 40
	synctest.Test(t, func(t *testing.T) {
		a := rig.NewAttacked(t, true, rawpeer.Config{}, func(o *grid.ManagerOptions) {
			o.MaxHosts = most
			o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
		})
		a.During(func() {
			for i, name := range inventedNames(10 * most) {
				answer := stranger(a, name)
				require.Equal(a, i < most-3, answer.Accepted, answer.Reason) // it knows three
				if !answer.Accepted {
					require.Contains(a, answer.Reason, "is not accepted: there are 40 hosts, MaxHosts is 40")
				}
			}
		})
		require.Len(a, a.Node.Targets(), most-1)
		a.LoggedFew("handshake failed", "MaxHosts is 40")
		// The known one comes in.
		a.Echoes(a.Next())
		a.Served()
		require.Empty(a, a.Book.About(rig.AttackToken))
	})
}

// One process that comes in under several names is told about.
func TestStrangers_NamesOfOneProcessAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := rig.NewAttacked(t, true, rawpeer.Config{}, func(o *grid.ManagerOptions) {
			o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
		})
		names := inventedNames(2)
		require.True(t, stranger(a, names[0]).Accepted)
		require.Empty(t, a.Book.About("two hosts are one process"))
		require.True(t, stranger(a, names[1]).Accepted)
		synctest.Wait() // until it is written
		require.Len(t, a.Book.About("level=WARN", "grid: two hosts are one process", "remote="+names[1], "it is connected as "+names[0]), 1)
	})
}

// Those who ask to be dialled are bounded too.
func TestStrangers_InventedNamesThatKnockAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		var asked askedAbout
		g, _ := rig.NewLone(t, n, true, func(o *grid.ManagerOptions) {
			o.MaxHosts = 20
			o.AcceptHost = func(_ context.Context, host string, _ *http.Request) error { asked.add(host); return nil }
		})
		g.Guests = true
		for i, taken := 0, 0; i < 1000; i++ {
			name := fmt.Sprintf("http://invented%d:1", i)
			if rawpeer.DialOrder(name, rig.LoneHost) {
				continue
			}
			status, text := knockAs(t, n, name, rig.Token)
			if taken++; taken <= 18 {
				require.Equal(t, http.StatusAccepted, status, text)
			} else {
				require.Equal(t, http.StatusForbidden, status)
				require.Contains(t, text, "there are 20 hosts")
			}
		}
		require.Len(t, g.Manager(0).Targets(), 19)
		require.Len(t, asked.take(), 18)
	})
}

// knockAs asks the node of a lone grid to dial a host.
func knockAs(t *testing.T, n *faultconn.Network, name, token string) (status int, text string) {
	t.Helper()
	tr := &http.Transport{DialContext: n.Dialer("stranger:1"), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, rig.LoneHost+grid.RoutePath, nil)
	require.NoError(t, err)
	req.Header = rig.Bearer(token)
	req.Header.Set("Grid-Knock", name)
	req.Header.Set("Grid-Knock-To", rig.LoneHost)
	req.Header.Set("Grid-Knock-Id", strings.Repeat("0", 32))
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// An AcceptHost that does not answer takes half of the places, and one for each name.
func TestStrangers_LeaveRoomForHosts(t *testing.T) {
	stuck := make(chan struct{})
	rig.InAttackByDialler(t, rawpeer.Config{}, func(o *grid.ManagerOptions) {
		stuck = make(chan struct{})
		o.MaxHandshakes = 6
		o.AcceptHost = func(context.Context, string, *http.Request) error { <-stuck; return errors.New("at last") }
	}, func(a *rig.Attacked) {
		names := inventedNames(20)
		a.During(func() {
			for _, name := range names[:3] {
				approach(a, name)
			}
			synctest.Wait()
			for _, name := range names[3:] {
				require.Contains(a, stranger(a, name).Reason, "is not accepted: 3 unknown hosts are on their way in, half of MaxHandshakes")
			}
			for _, name := range []string{names[0], strings.ToUpper(names[0]), strings.Replace(names[0], ":1", ".:0001", 1)} {
				require.Contains(a, stranger(a, name).Reason, "it is on its way in already, in the handshake, in AcceptHost")
			}
			time.Sleep(time.Minute) // they were refused, and what was asked has not returned
			require.Contains(a, stranger(a, names[0]).Reason, "it is on its way in already")
			a.Echoes(a.Next())
			close(stuck)
			synctest.Wait()
			require.Contains(a, stranger(a, names[0]).Reason, "is not accepted: at last")
		})
		require.Len(a, a.Node.Targets(), 2)
	})
}

// It is asked about names of hosts alone, in the form in which names are compared.
func TestStrangers_NamesInOtherSpellings(t *testing.T) {
	var asked askedAbout
	rig.InAttackByDialler(t, rawpeer.Config{}, func(o *grid.ManagerOptions) {
		o.AcceptHost = func(_ context.Context, host string, _ *http.Request) error { asked.add(host); return nil }
	}, func(a *rig.Attacked) {
		name := inventedNames(1)[0]
		for _, spelled := range []string{strings.ToUpper(name), name, strings.Replace(name, ":1", ".:0001", 1)} {
			require.True(a, stranger(a, spelled).Accepted)
		}
		require.Equal(a, []string{name}, asked.take())
		require.Contains(a, a.Node.Targets(), name)
		for _, wrong := range []string{
			"", "nobody", "http://", "ftp://x:1", "http://x:1/path", "http://x:99999", "http://u:p@x:1", "http://[fe80::1%25eth0]:1",
			rig.LoneHost, "HTTP://NODE0.:09000", strings.Repeat("h", 60_000), "http://" + strings.Repeat("h", 300) + ":1",
			strings.Repeat("x\nlevel=ERROR ", 4000),
		} {
			answer := stranger(a, wrong)
			require.False(a, answer.Accepted)
			require.LessOrEqual(a, len(answer.Reason), 2<<10)
			require.Contains(a, answer.Reason, "is not accepted: that is ")
		}
		require.Empty(a, asked.take())
		require.Len(a, a.Node.Targets(), 3)
	})
}

// A host with http is not let into a cluster with https, whatever AcceptHost would say.
func TestStrangers_WithHTTPBesideHTTPS(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		rig.InBubble(t, func(t *testing.T) {
			n := faultconn.NewNetwork()
			l, err := n.Listen("node0:9000")
			require.NoError(t, err)
			const local = "https://node0:9000"
			o := rig.Options(local, []string{local})
			var asked askedAbout
			o.AcceptHost = func(_ context.Context, host string, _ *http.Request) error { asked.add(host); return nil }
			o.AllowHTTPHosts = allowed
			o.Dialer = n.Dialer("node0:9000")
			m, err := grid.NewManager(t.Context(), o)
			require.NoError(t, err)
			defer m.Close()
			server := &http.Server{Handler: m.Handler()}
			go server.Serve(l) // behind a proxy, as it were
			defer server.Close()
			name := ""
			for i := 0; name == "" || !rawpeer.DialOrder(name, local); i++ {
				name = fmt.Sprintf("http://stranger%d:1", i)
			}
			ws, _, err := rawpeer.Upgrade(t.Context(), "http://node0:9000", rawpeer.Config{Token: rig.Token, Dial: n.Dialer("stranger:1")})
			require.NoError(t, err)
			p := rawpeer.NewPeer(t, ws, rawpeer.Config{})
			p.StartReading()
			defer p.Close()
			p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: rawpeer.Connect{ID: make([]byte, 16), Host: name, Time: time.Now(), Token: rig.Token}.Encode()})
			answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
			require.NoError(t, err)
			require.Equal(t, allowed, answer.Accepted)
			if !allowed {
				require.Contains(t, answer.Reason, "AllowHTTPHosts is not set")
				require.Empty(t, asked.take())
			}
		})
	}
}

// Who has a certificate for one name does not get in under another, and AcceptHost is not asked
// about that.
func TestStrangers_WithACertificateForAnotherName(t *testing.T) {
	for i, shown := range []string{"node1", "another"} {
		rig.InBubble(t, func(t *testing.T) {
			a := rig.NewAuthority(t)
			var asked askedAbout
			g := rig.NewBound(t, 2, a, func(i int) (server, client tls.Certificate) {
				name := fmt.Sprint("node", i)
				server, client = a.Issue(name), a.Issue(name, x509.ExtKeyUsageClientAuth)
				if i == 1 {
					client = a.Issue(shown, x509.ExtKeyUsageClientAuth)
				}
				return server, client
			}, func(i int, o *grid.ManagerOptions) {
				o.Hosts = []string{o.Local}
				if i == 0 {
					o.AcceptHost = func(_ context.Context, host string, _ *http.Request) error { asked.add(host); return nil }
				}
			})
			require.NoError(t, g.Manager(1).AddHost(g.Host(0)))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := g.Conn(1, 0).WaitForConnect(ctx)
			if i == 0 {
				require.NoError(t, err)
				require.Equal(t, []string{g.Host(1)}, asked.take())
				return
			}
			require.ErrorIs(t, err, grid.ErrNotAccepted)
			require.ErrorContains(t, err, "not node1")
			require.Empty(t, asked.take())
			require.Empty(t, g.Manager(0).Targets())
		})
	}
}

// A knock that was read on its way does not bring back a host that was removed.
func TestStrangers_KnockThatIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		var asked atomic.Int64
		var open atomic.Bool
		name := hostNamed(t, "stranger", false, rig.LoneHost)
		g, _ := rig.NewLone(t, n, true, func(o *grid.ManagerOptions) {
			rig.WithSecret(o, rig.Key)
			o.AcceptHost = func(context.Context, string, *http.Request) error {
				if asked.Add(1); !open.Load() {
					return errors.New("not yet")
				}
				return nil
			}
		})
		g.Guests = true
		pass := func() string { return rawpeer.KnockPass(rig.Key, name, rig.LoneHost, time.Now()) }
		refused, unknown, known := pass(), pass(), pass()
		status, _ := knockAs(t, n, name, refused)
		require.Equal(t, http.StatusForbidden, status)
		open.Store(true)
		status, text := knockAs(t, n, name, unknown)
		require.Equal(t, http.StatusAccepted, status, text)
		status, text = knockAs(t, n, name, known) // while it is a host
		require.Equal(t, http.StatusAccepted, status, text)
		require.EqualValues(t, 2, asked.Load())

		replay := func() {
			for _, token := range []string{refused, unknown, known} {
				status, text := knockAs(t, n, name, token)
				require.Equal(t, http.StatusForbidden, status)
				require.Equal(t, "grid: forbidden\n", text)
			}
		}
		replay()
		require.NoError(t, g.Manager(0).RemoveHost(name))
		for range 4 {
			replay()
			require.NotContains(t, g.Manager(0).Targets(), name)
			time.Sleep(time.Minute)
		}
		require.EqualValues(t, 2, asked.Load())
		status, _ = knockAs(t, n, name, pass())
		require.Equal(t, http.StatusAccepted, status, "it has come back itself")
	})
}
