package attack

import (
	"context"
	"net"
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

// Who answers under another name than the one that is dialled.

// The address of a host is given to another one: its calls are not served there, with tokens that
// are good at both and with a secret, and the link that there is to the other one stays.
func TestHandshake_AddressGivenToAnotherHostServesNoCalls(t *testing.T) {
	for name, secret := range map[string]bool{"bearer tokens": false, "a secret": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				moved := rig.PeerHost(t, false)
				other := hostNamed(t, "other", false, rig.LoneHost)
				var runs atomic.Int64
				logger, book := rig.NewLogBook()
				g := rig.Setup{Net: n, Hosts: []string{rig.LoneHost, other}, Edit: func(i int, o *grid.ManagerOptions) {
					o.Hosts = append([]string{moved}, o.Hosts...)
					o.Logger = logger
					if secret {
						rig.WithSecret(o, rig.Key)
					}
					if i == 0 {
						o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
							if addr == rig.HostAddr(moved) {
								addr = rig.HostAddr(other)
							}
							return n.Dialer(rig.HostAddr(rig.LoneHost))(ctx, network, addr)
						}
					}
				}, Prepare: func(n *rig.Node) {
					require.NoError(t, n.RegisterSingleHandler(countRuns, func(b []byte) ([]byte, *grid.RemoteErr) {
						runs.Add(1)
						return b, nil
					}))
				}}.Start(t)
				require.NoError(t, g.Conn(0, 1).WaitForConnect(t.Context()))
				link := rig.LinkOf(g.Conn(0, 1))
				back := rig.LinkOf(g.Conn(1, 0))
				conn := g.Manager(0).Connection(moved)
				for range 10 {
					time.Sleep(time.Second)
					_, err := conn.SingleRequest(t.Context(), countRuns, nil)
					require.ErrorIs(t, err, grid.ErrDisconnected)
				}
				require.Zero(t, runs.Load())
				require.False(t, link.Ended(), "the link was ended: %s", link.Err())
				require.False(t, back.Ended(), "the link was ended: %s", back.Err())
				_, err := g.Conn(0, 1).SingleRequest(t.Context(), countRuns, nil)
				require.NoError(t, err)
				if secret {
					require.NotEmpty(t, book.About("upgrade refused", "or for another host"))
				} else {
					why := "this is " + other + ", not "
					require.Contains(t, conn.Stats().LastError, why)
					require.Len(t, book.About("cannot connect", why), 1)
					require.Len(t, book.About("handshake failed", why), 1)
				}
			})
		})
	}
}

// An acceptor that says it is another host is not taken for the one that was dialled.
func TestHandshake_AcceptorOfAnotherNameIsNotTaken(t *testing.T) {
	raw := rig.PeerHost(t, false)
	for says, taken := range map[string]bool{
		"":                                      true, // version 1
		raw:                                     true,
		strings.ToUpper(raw):                    true,
		strings.Replace(raw, ":", ":0", 2):      false, // what is no name
		rig.AttackOther:                         false,
		rig.LoneHost:                            false,
		strings.Repeat("x\nlevel=ERROR ", 4000): false,
	} {
		synctest.Test(t, func(t *testing.T) {
			rig.RunAttack(t, false, rawpeer.Config{Says: says}, nil, func(a *rig.Attacked) {
				p := a.Next()
				if taken {
					require.NoError(t, a.Conn.WaitForConnect(t.Context()))
					return
				}
				p.ExpectClosed()
				synctest.Wait()
				require.NotEqual(t, grid.StateConnected, a.Conn.State())
				require.Contains(t, a.Conn.Stats().LastError, "it was ")
				a.Logged("cannot connect", "that answered")
			})
		})
	}
}

// A peer that spells names in another way is the host that it is, and has one link.
func TestHandshake_OtherSpellingsAreTheSameHost(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{Bare: true}, nil, func(a *rig.Attacked) {
		spell := func(p *rawpeer.Peer, host, to string) {
			h := rawpeer.Connect{ID: []byte("0123456789abcdef"), Host: host, Time: time.Now(), Token: rig.AttackToken, To: to}
			p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
			answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
			require.NoError(a, err)
			require.True(a, answer.Accepted, answer.Reason)
			require.Equal(a, rig.LoneHost, answer.Host)
		}
		first := a.Next()
		spell(first, a.Raw, rig.LoneHost)
		s := a.Session()
		second := a.Next()
		spell(second, strings.Replace(strings.ToUpper(a.Raw), "RAW:", "RAW.:0", 1), "HTTP://NODE0.:09000")
		first.ExpectClosed()
		require.True(a, s.Ended(), "it has replaced the first one")
		a.Echoes(second)
		require.Len(a, a.Node.Targets(), 2)
	})
}
