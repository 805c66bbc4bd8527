package attack

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Who claims a name that is not his.
func TestHandshake_ClaimsOfNamesAreRefused(t *testing.T) {
	for name, edit := range map[string]func(a *rig.Attacked, hello *rawpeer.Connect){
		"unknown":                       func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host = "http://nobody:9000" },
		"unknown, in capitals":          func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host = "HTTP://NOBODY:9000" },
		"no name at all":                func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host = "nobody" },
		"for another host":              func(a *rig.Attacked, h *rawpeer.Connect) { h.To = rig.AttackOther },
		"for itself":                    func(a *rig.Attacked, h *rawpeer.Connect) { h.To = a.Raw },
		"the node's own":                func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host = rig.LoneHost },
		"known, with a bad token":       func(a *rig.Attacked, h *rawpeer.Connect) { h.Token = "guess" },
		"the honest one's, bad token":   func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host, h.Token = rig.AttackOther, "guess" },
		"the honest one's, good token":  func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host = rig.AttackOther },
		"the honest one's, late clock":  func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host, h.Time = rig.AttackOther, time.Unix(0, 0) },
		"long, and with lines in it":    func(_ *rig.Attacked, h *rawpeer.Connect) { h.Host = strings.Repeat("x\nlevel=ERROR ", 4000) },
		"the node's own, its own ID":    func(a *rig.Attacked, h *rawpeer.Connect) { h.Host, h.ID = rig.LoneHost, a.Node.ID[:] },
		"the honest one's, the node ID": func(a *rig.Attacked, h *rawpeer.Connect) { h.Host, h.ID = rig.AttackOther, a.Node.ID[:] },
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttackByDialler(t, rawpeer.Config{Bare: true}, nil, func(a *rig.Attacked) {
				honest := a.Node.Connection(rig.AttackOther)
				before := rig.LinkOf(honest)
				a.During(func() {
					for range 20 {
						p := a.Next()
						h := rawpeer.Connect{ID: p.Config.Instance(), Host: a.Raw, Time: time.Now(), Token: rig.AttackToken}
						edit(a, &h)
						p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
						answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
						require.NoError(a, err)
						require.False(a, answer.Accepted)
						p.ExpectClosed()
					}
				})
				a.Logged("handshake failed")
				require.False(a, before.Ended())
				require.Equal(a, grid.StateUnconnected, a.Conn.State())
			})
		})
	}
}

// A host that is to be dialled does not dial.
func TestHandshake_ClaimOfAHostThatIsDialledIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig.RunAttack(t, false, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
			p := a.Next()
			s := a.Session()
			a.During(func() {
				for range 20 {
					q := a.Dial(rawpeer.Config{Bare: true})
					h := rawpeer.Connect{ID: p.Config.Instance(), Host: a.Raw, Time: time.Now(), Token: rig.AttackToken}
					q.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
					answer, err := rawpeer.DecodeConnectResponse(q.Expect(rawpeer.OpConnectResponse).Payload)
					require.NoError(a, err)
					require.Contains(a, answer.Reason, "is to be dialled by")
					q.ExpectClosed()
				}
			})
			a.Same(s)
			a.Logged("handshake failed", "is to be dialled by")
			a.Echoes(p)
		})
	})
}
