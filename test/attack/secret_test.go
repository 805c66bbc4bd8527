package attack

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
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

// Who is dialled, or dials, and does not know the key of the cluster, but has what others show.

// hostNamed makes up a host that dials another one, or is dialled by it.
func hostNamed(t *testing.T, name string, dials bool, other string) string {
	t.Helper()
	for port := range 1000 {
		if host := fmt.Sprintf("http://%s:%d", name, 9000+port); rawpeer.DialOrder(host, other) == dials {
			return host
		}
	}
	require.Fail(t, "no such host")
	return ""
}

// secretGrid starts nodes with a shared secret, which know guests as well. Each has a handler that
// counts its runs.
type secretGrid struct {
	*rig.Grid
	runs atomic.Int64
	book *rig.LogBook
	open bool // whoever comes is let through to the handshake
}

const countRuns = 50

func newSecretGrid(t *testing.T, n *faultconn.Network, open bool, hosts, guests []string, edit func(i int, o *grid.ManagerOptions)) *secretGrid {
	t.Helper()
	g := &secretGrid{book: new(rig.LogBook), open: open}
	g.Grid = rig.Setup{
		Net: n, Hosts: hosts, Guests: true,
		Edit: func(i int, o *grid.ManagerOptions) {
			o.Hosts = append(append([]string(nil), hosts...), guests...)
			o.Logger = slog.New(slog.NewTextHandler(g.book, &slog.HandlerOptions{Level: slog.LevelDebug}))
			rig.WithSecret(o, rig.Key)
			if edit != nil {
				edit(i, o)
			}
		},
		Prepare: func(n *rig.Node) {
			require.NoError(t, n.RegisterSingleHandler(countRuns, func(b []byte) ([]byte, *grid.RemoteErr) {
				g.runs.Add(1)
				return b, nil
			}))
			if open {
				n.Server.Handler = n.Handler(func(*http.Request) error { return nil })
			}
		},
	}.Start(t)
	return g
}

// passOf is what a dialler has sent.
func passOf(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// refusedWith shows a token to a node over a websocket that was upgraded, and a request behind it,
// and requires that both are refused. It returns the reason.
func refusedWith(t *testing.T, p *rawpeer.Peer, hello rawpeer.Connect) string {
	t.Helper()
	p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()})
	_ = p.TrySend(rawpeer.Msg{MuxID: 1, Handler: countRuns, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
	m := p.Expect(rawpeer.OpConnectResponse)
	answer, err := rawpeer.DecodeConnectResponse(m.Payload)
	require.NoError(t, err)
	require.False(t, answer.Accepted)
	require.Nil(t, answer.Proof, "who has not proved the key is shown nothing")
	p.ExpectClosed()
	return answer.Reason
}

// relay lets one node dial a host that does not know the key, which goes with all that it is shown
// to a victim, under the name as: first with the pass, and where that is not asked for with the
// response to the victim's own challenge.
func relay(t *testing.T, g *secretGrid, n *faultconn.Network, raw, victim, as string) {
	t.Helper()
	l, err := n.Listen(rig.HostAddr(raw))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	backs := make(chan *rawpeer.Peer, 100)
	statuses := make(chan int, 100)
	s := rawpeer.Serve(t, l, rawpeer.Config{Bare: true, Challenge: func(r *http.Request) []byte {
		c := rawpeer.Config{Token: passOf(r), Dial: n.Dialer(rig.HostAddr(as))}
		ws, resp, err := rawpeer.Upgrade(context.Background(), victim, c)
		if resp != nil {
			statuses <- resp.StatusCode
		}
		if err != nil {
			backs <- nil
			return rawpeer.Nonce()
		}
		p := rawpeer.NewPeer(t, ws, c)
		p.StartReading()
		backs <- p
		return rawpeer.ParseNonce(resp.Header.Get(rawpeer.ChallengeHeader))
	}})
	for range 3 {
		p := s.Accept()
		hello, err := rawpeer.DecodeConnect(p.Expect(rawpeer.OpConnect).Payload)
		require.NoError(t, err)
		back, status := <-backs, <-statuses
		if !g.open {
			require.Equal(t, http.StatusForbidden, status)
			p.Close()
			continue
		}
		require.Equal(t, http.StatusSwitchingProtocols, status)
		hello.Host, hello.To = as, victim
		require.Contains(t, refusedWith(t, back, hello), "invalid token: token signed with another key, or for another host")
		back.Close()
		// No answer of the attacker's is taken either.
		p.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.ConnectResponse{
			ID: make([]byte, 16), Accepted: true, Host: raw, Proof: []byte(hello.Token),
		}.Encode()})
		p.ExpectClosed()
	}
	synctest.Wait()
	require.Zero(t, g.runs.Load())
}

// bothDoors runs f where passes are asked for, and where functions of the application stand for
// them, so that the handshake is all that is left.
func bothDoors(t *testing.T, f func(t *testing.T, open bool)) {
	t.Helper()
	for name, open := range map[string]bool{"passes": false, "open door": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, open) })
		})
	}
}

func TestSecret_TokensReflectedToTheirMakerAreRefused(t *testing.T) {
	bothDoors(t, func(t *testing.T, open bool) {
		n := faultconn.NewNetwork()
		raw := rig.PeerHost(t, false)
		third := hostNamed(t, "third", true, rig.LoneHost)
		g := newSecretGrid(t, n, open, []string{rig.LoneHost}, []string{raw, third}, nil)
		relay(t, g, n, raw, rig.LoneHost, third)
		require.NotEqual(t, grid.StateConnected, g.Manager(0).Connection(third).State())
	})
}

func TestSecret_TokensRelayedToAThirdHostAreRefused(t *testing.T) {
	bothDoors(t, func(t *testing.T, open bool) {
		n := faultconn.NewNetwork()
		raw := rig.PeerHost(t, false)
		victim := hostNamed(t, "victim", false, rig.LoneHost)
		g := newSecretGrid(t, n, open, []string{rig.LoneHost, victim}, []string{raw}, nil)
		require.NoError(t, g.Conn(1, 0).WaitForConnect(t.Context()))
		link := rig.LinkOf(g.Conn(1, 0))
		relay(t, g, n, raw, victim, rig.LoneHost)
		require.False(t, link.Ended(), "the honest link was ended: %s", link.Err())
	})
}

// Who sits at the acceptor's address for a while gets what is meant for it, and brings it there
// later.
func TestSecret_TokensRelayedToTheirAcceptorAfterwardsAreRefused(t *testing.T) {
	bothDoors(t, func(t *testing.T, open bool) {
		n := faultconn.NewNetwork()
		acceptor := hostNamed(t, "acceptor", false, rig.LoneHost)
		var diverted atomic.Bool
		diverted.Store(true)
		s := rawpeer.Serve(t, rig.ListenMemory(t, n, "http://mallory:1"), rawpeer.Config{
			Bare: true, Challenge: func(*http.Request) []byte { return rawpeer.Nonce() },
		})
		ready := make(chan *rawpeer.Peer)
		go func() { ready <- s.Accept() }()
		var pass string
		var hello rawpeer.Connect
		taken := make(chan struct{})
		go func() {
			defer close(taken)
			p := <-ready
			pass = passOf(p.Request)
			m, err := p.TryRecv()
			if err == nil {
				hello, err = rawpeer.DecodeConnect(m.Payload)
			}
			if err != nil {
				t.Error(err)
			}
			diverted.Store(false)
			p.Close()
		}()
		g := newSecretGrid(t, n, open, []string{rig.LoneHost, acceptor}, nil, func(i int, o *grid.ManagerOptions) {
			if i == 0 {
				o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if diverted.Load() {
						addr = "mallory:1"
					}
					return n.Dialer(rig.HostAddr(rig.LoneHost))(ctx, network, addr)
				}
			}
		})
		<-taken
		require.NoError(t, g.Conn(0, 1).WaitForConnect(t.Context()))
		link := rig.LinkOf(g.Conn(1, 0))
		for i := range 3 {
			ws, resp, err := rawpeer.Upgrade(t.Context(), acceptor, rawpeer.Config{Token: pass, Dial: n.Dialer("mallory:2")})
			if i > 0 && !open {
				require.Equal(t, http.StatusForbidden, resp.StatusCode, "the pass was used")
				continue
			}
			require.NoError(t, err) // a websocket, and no more
			p := rawpeer.NewPeer(t, ws, rawpeer.Config{})
			p.StartReading()
			require.Contains(t, refusedWith(t, p, hello), "invalid token")
			p.Close()
		}
		synctest.Wait()
		require.Zero(t, g.runs.Load())
		require.False(t, link.Ended(), "the honest link was ended: %s", link.Err())
		if !open {
			require.NotEmpty(t, g.book.About("upgrade refused", "token was used before"))
		}
	})
}

// An acceptor that does not know the key is sent no request, whatever it answers, and the dialler
// says why.
func TestSecret_AcceptorWithoutTheKeyGetsNoRequest(t *testing.T) {
	raw := rig.PeerHost(t, false)
	const noSecret = "who has answered has no SharedSecret"
	const noProof = "who has answered does not know the SharedSecret"
	for name, c := range map[string]struct {
		config    rawpeer.Config
		challenge bool // though it has no key
		answer    func(p *rawpeer.Peer, hello rawpeer.Connect) rawpeer.ConnectResponse
		why       string
	}{
		"version 1":     {config: rawpeer.Config{}, why: noSecret},
		"without a key": {config: rawpeer.Config{Says: raw, Caps: rig.AllCaps}, why: noSecret},
		"another key":   {config: rawpeer.Config{Says: raw, Caps: rig.AllCaps, Key: rig.OtherKey}, why: noProof},
		"no proof": {challenge: true, why: noProof, answer: func(*rawpeer.Peer, rawpeer.Connect) rawpeer.ConnectResponse {
			return rawpeer.ConnectResponse{Accepted: true, Host: raw}
		}},
		"the response as proof": {challenge: true, why: noProof, answer: func(_ *rawpeer.Peer, h rawpeer.Connect) rawpeer.ConnectResponse {
			return rawpeer.ConnectResponse{Accepted: true, Host: raw, Proof: []byte(h.Token)}
		}},
		"a proof for another host": {challenge: true, why: noProof, answer: func(p *rawpeer.Peer, h rawpeer.Connect) rawpeer.ConnectResponse {
			id := make([]byte, 16)
			return rawpeer.ConnectResponse{ID: id, Accepted: true, Host: raw, Proof: rawpeer.Meeting{
				Dialler: h.Host, Acceptor: "http://other:1", Challenge: p.Challenge, DiallerID: h.ID, AcceptorID: id,
			}.Proof(rig.Key, h.Token)}
		}},
		"a proof for another challenge": {challenge: true, why: noProof, answer: func(_ *rawpeer.Peer, h rawpeer.Connect) rawpeer.ConnectResponse {
			id := make([]byte, 16)
			return rawpeer.ConnectResponse{ID: id, Accepted: true, Host: raw, Proof: rawpeer.Meeting{
				Dialler: h.Host, Acceptor: raw, Challenge: rawpeer.Nonce(), DiallerID: h.ID, AcceptorID: id,
			}.Proof(rig.Key, h.Token)}
		}},
		"a proof by another process": {challenge: true, why: noProof, answer: func(p *rawpeer.Peer, h rawpeer.Connect) rawpeer.ConnectResponse {
			return rawpeer.ConnectResponse{ID: make([]byte, 16), Accepted: true, Host: raw, Proof: rawpeer.Meeting{
				Dialler: h.Host, Acceptor: raw, Challenge: p.Challenge, DiallerID: h.ID, AcceptorID: []byte("0123456789abcdef"),
			}.Proof(rig.Key, h.Token)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				c.config.Bare = true
				if c.challenge {
					c.config.Challenge = func(*http.Request) []byte { return rawpeer.Nonce() }
				}
				s := rawpeer.Serve(t, rig.ListenMemory(t, n, raw), c.config)
				g := newSecretGrid(t, n, false, []string{rig.LoneHost}, []string{raw}, nil)
				conn := g.Manager(0).Connection(raw)
				for range 3 {
					p := s.Accept()
					if c.why == noSecret {
						p.ExpectClosed() // it is not even told who dials
					} else {
						hello, err := rawpeer.DecodeConnect(p.Expect(rawpeer.OpConnect).Payload)
						require.NoError(t, err)
						answer := rawpeer.ConnectResponse{ID: make([]byte, 16), Accepted: true, Host: raw, Caps: rig.AllCaps}
						if c.answer != nil {
							answer = c.answer(p, hello)
						} else {
							answer.Proof = rawpeer.Meeting{
								Dialler: hello.Host, Acceptor: raw, Challenge: p.Challenge, DiallerID: hello.ID, AcceptorID: answer.ID,
							}.Proof(c.config.Key, hello.Token)
						}
						if answer.ID == nil {
							answer.ID = make([]byte, 16)
						}
						p.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: answer.Encode()})
						p.ExpectClosed()
					}
					_, err := conn.SingleRequest(t.Context(), countRuns, nil)
					require.ErrorIs(t, err, grid.ErrDisconnected)
				}
				synctest.Wait()
				require.Contains(t, conn.Stats().LastError, c.why)
				require.Len(t, g.book.About("level=WARN", "cannot connect", c.why), 1)
			})
		})
	}
}

// A peer that dials and does not know the key gets no further than the door, whatever it shows.
func TestSecret_DiallerWithoutTheKeyIsRefused(t *testing.T) {
	bothDoors(t, func(t *testing.T, open bool) {
		n := faultconn.NewNetwork()
		raw := rig.PeerHost(t, true)
		g := newSecretGrid(t, n, open, []string{rig.LoneHost}, []string{raw}, nil)
		stale := map[string]bool{
			rawpeer.Pass(rig.Key, raw, rig.LoneHost, time.Now().Add(-6*time.Minute)): true,
			rawpeer.Pass(rig.Key, raw, rig.LoneHost, time.Now().Add(6*time.Minute)):  true,
		}
		for _, token := range append(slices.Collect(maps.Keys(stale)),
			"", "token", rawpeer.Pass(rig.OtherKey, raw, rig.LoneHost, time.Now()), rawpeer.Pass(rig.Key, raw, "http://other:1", time.Now()),
		) {
			ws, resp, err := rawpeer.Upgrade(t.Context(), rig.LoneHost, rawpeer.Config{Token: token, Dial: n.Dialer(rig.HostAddr(raw))})
			if !open {
				require.Equal(t, http.StatusForbidden, resp.StatusCode)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				if stale[token] { // who has the key is told so, since the handshake can't
					require.Equal(t, "grid: forbidden: token older than 5m0s, or from a clock too far ahead\n", string(body))
				} else {
					require.Equal(t, "grid: forbidden\n", string(body))
				}
				continue
			}
			require.NoError(t, err)
			p := rawpeer.NewPeer(t, ws, rawpeer.Config{})
			p.StartReading()
			// A pass is no response.
			refusedWith(t, p, rawpeer.Connect{ID: make([]byte, 16), Host: raw, To: rig.LoneHost, Time: time.Now(), Token: token})
			p.Close()
		}
		// Without the key a pass that somebody else has made opens no more than a websocket.
		ws, resp, err := rawpeer.Upgrade(t.Context(), rig.LoneHost, rawpeer.Config{
			Token: rawpeer.Pass(rig.Key, raw, rig.LoneHost, time.Now()), Dial: n.Dialer(rig.HostAddr(raw)),
		})
		require.NoError(t, err)
		p := rawpeer.NewPeer(t, ws, rawpeer.Config{})
		p.StartReading()
		hello := rawpeer.Connect{ID: make([]byte, 16), Host: raw, To: rig.LoneHost, Time: time.Now()}
		hello.Token = rawpeer.Meeting{
			Dialler: raw, Acceptor: rig.LoneHost, Challenge: rawpeer.ParseNonce(resp.Header.Get(rawpeer.ChallengeHeader)), DiallerID: hello.ID,
		}.Response(rig.OtherKey)
		require.Contains(t, refusedWith(t, p, hello), "invalid token")
		p.Close()
		require.Zero(t, g.runs.Load())
	})
}

// Who knows the key and floods the node with passes, of its own and in the names of others, keeps
// nobody out, and is remembered within a bound.
func TestSecret_FloodOfPassesLocksNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		raw := rig.PeerHost(t, true)
		honest := hostNamed(t, "honest", true, rig.LoneHost)
		g := newSecretGrid(t, n, false, []string{rig.LoneHost, honest}, []string{raw}, nil)
		require.NoError(t, g.Conn(1, 0).WaitForConnect(t.Context()))
		a := &rig.Attacked{T: t, Grid: g.Grid, Node: g.Node(0), Raw: raw, Book: g.book}
		before := rig.Heap()
		passes := 20_000
		if testing.Short() {
			passes = 5_000 // three of five are the honest host's, so more than are remembered
		}
		for i := range passes {
			name := [...]string{raw, honest, strings.ToUpper(honest), fmt.Sprintf("http://nobody:%d", 1+i), strings.Replace(honest, ":9", ":0009", 1)}[i%5]
			ws, _, err := rawpeer.Upgrade(t.Context(), rig.LoneHost, rawpeer.Config{
				Token: rawpeer.Pass(rig.Key, name, rig.LoneHost, time.Now()), Dial: n.Dialer("flood:1"),
			})
			require.NoError(t, err)
			ws.Close()
			if i%1000 == 0 {
				a.Served()
			}
		}
		synctest.Wait()
		a.Before = before
		a.RequireGrown(8 << 20)
		reconnects(a)
	})
}
