package grid

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Who claims a name that is not his.
func TestAttackClaimsOfNames(t *testing.T) {
	for name, edit := range map[string]func(a *attacked, hello *rawConnect){
		"unknown":                       func(_ *attacked, h *rawConnect) { h.Host = "http://nobody:9000" },
		"unknown, in capitals":          func(a *attacked, h *rawConnect) { h.Host = strings.ToUpper(a.raw) },
		"the node's own":                func(_ *attacked, h *rawConnect) { h.Host = loneHost },
		"known, with a bad token":       func(a *attacked, h *rawConnect) { h.Token = "guess" },
		"the honest one's, bad token":   func(_ *attacked, h *rawConnect) { h.Host, h.Token = attackOther, "guess" },
		"the honest one's, good token":  func(_ *attacked, h *rawConnect) { h.Host = attackOther },
		"the honest one's, late clock":  func(_ *attacked, h *rawConnect) { h.Host, h.Time = attackOther, time.Unix(0, 0) },
		"long, and with lines in it":    func(_ *attacked, h *rawConnect) { h.Host = strings.Repeat("x\nlevel=ERROR ", 4000) },
		"the node's own, its own ID":    func(a *attacked, h *rawConnect) { h.Host, h.ID = loneHost, a.node.ID[:] },
		"the honest one's, the node ID": func(a *attacked, h *rawConnect) { h.Host, h.ID = attackOther, a.node.ID[:] },
	} {
		t.Run(name, func(t *testing.T) {
			atTheDoor(t, rawConfig{Bare: true}, nil, func(a *attacked) {
				honest := a.node.Connection(attackOther)
				before := honest.session.Load()
				a.during(func() {
					for range 20 {
						p := a.next()
						h := rawConnect{ID: p.c.instance(), Host: a.raw, Time: time.Now(), Token: attackToken}
						edit(a, &h)
						p.send(rawMsg{Op: rawOpConnect, Payload: h.encode()})
						answer, err := decodeRawConnectResponse(p.expect(rawOpConnectResponse).Payload)
						require.NoError(a, err)
						require.False(a, answer.Accepted)
						p.expectClosed()
					}
				})
				a.logged("handshake failed")
				require.Same(a, before, honest.session.Load())
				require.Equal(a, StateUnconnected, a.conn.State())
			})
		})
	}
}

// A host that is to be dialled does not dial.
func TestAttackClaimOfAHostThatIsDialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runAttack(t, false, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
			p := a.next()
			s := a.session()
			a.during(func() {
				for range 20 {
					q := a.dial(rawConfig{Bare: true})
					h := rawConnect{ID: p.c.instance(), Host: a.raw, Time: time.Now(), Token: attackToken}
					q.send(rawMsg{Op: rawOpConnect, Payload: h.encode()})
					answer, err := decodeRawConnectResponse(q.expect(rawOpConnectResponse).Payload)
					require.NoError(a, err)
					require.Contains(a, answer.Reason, "is to be dialled by")
					q.expectClosed()
				}
			})
			require.Same(a, s, a.conn.session.Load())
			a.logged("handshake failed", "is to be dialled by")
			a.echoes(p)
		})
	})
}

// Twins: any number of processes under the name of an honest host, while that is slow to
// read. It is asked whether it is alive, and not flooded by that.
func TestAttackTwinsOfAHostThatIsSlow(t *testing.T) {
	atTheDoor(t, rawConfig{Caps: allCaps}, func(o *ManagerOptions) { o.MaxHandshakes = 500 }, func(a *attacked) {
		p := a.dial(rawConfig{Caps: allCaps, Unread: true}) // honest, and reads nothing for some seconds
		s := a.session()
		// As much as is enough to make the writer wait.
		for i := range uint64(10) {
			p.send(rawMsg{MuxID: i + 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF, Payload: make([]byte, 60_000)})
		}
		synctest.Wait()
		for range 300 {
			q := a.dial(rawConfig{Bare: true, Caps: allCaps})
			h := rawConnect{ID: q.c.instance(), Host: a.raw, Time: time.Now(), Token: attackToken}
			q.send(rawMsg{Op: rawOpConnect, Payload: h.encode()})
		}
		synctest.Wait()
		a.queueBounds(s)
		select {
		case <-s.done:
			require.Fail(a, "the honest link was ended", "%v", s.err)
		default:
		}
		p.startReading()
		synctest.Wait()
		require.Same(a, s, a.conn.session.Load())
		a.echoes(p)
		a.logged("handshake failed", "two processes")
		time.Sleep(10 * time.Second)
		s.watch.mu.Lock()
		defer s.watch.mu.Unlock()
		require.Empty(a, s.watch.probes)
	})
}
