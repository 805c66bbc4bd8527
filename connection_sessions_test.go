package grid_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A peer that says it shuts down, and connects again at once, without end: there are two links of
// it at most, and few lines in the log.
func TestShutdown_DrainAndReconnectWithoutEndKeepsTwoLinks(t *testing.T) {
	for name, closes := range map[string]bool{"closes the last": true, "leaves the last": false} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
				before := rig.BubbleGoroutines()
				a.During(func() {
					var last *rawpeer.Peer
					for range 50 {
						p := a.Next()
						a.Session()
						p.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
						synctest.Wait()
						if closes || !a.Conn.Stats().Dials {
							require.LessOrEqual(a, grid.Sessions(a.Conn), 2)
						}
						if closes || a.Conn.Stats().Dials { // else it would not be dialled again
							p.Close()
						} else if last != nil {
							last.ExpectClosed()
						}
						last = p
						synctest.Wait()
					}
				})
				// Reader and writer, and what the peer has itself.
				require.LessOrEqual(a, rig.BubbleGoroutines()-before, 20)
				a.RequireGrown(2 << 20)
				lines := a.Book.About("level=INFO")
				require.LessOrEqual(a, len(lines), 6, "%q", lines)
			})
		})
	}
}

// Of those that shut down and come back without end, one old link is kept.
func TestShutdown_AgainAndAgainKeepsOneOldLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rig.NewWire(t, true, rig.DrainConfig, nil)
		var old []*rawpeer.Peer
		for range 5 {
			old = append(old, r.Peer)
			r.Peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
			synctest.Wait()
			r.Peer = r.Next()
		}
		for _, p := range old[:4] {
			p.ExpectClosed()
		}
		require.Equal(r, 2, grid.Sessions(r.Conn))
		r.Alive()
		require.NoError(r, r.Node.Close())
		old[4].ExpectClosed()
		r.Peer.ExpectClosed()
	})
}

// Lesson 17.
func TestReconnect_AnswerOfAnOldSessionNeverReachesTheNewCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := map[string]chan struct{}{}
		g := rig.New(t, 2, nil)
		for i := range 20 {
			for _, who := range []string{"old", "new"} {
				release[fmt.Sprintf("%s %d", who, i)] = make(chan struct{})
			}
		}
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
			<-release[string(b)]
			return b, nil
		}))
		call := func(text string) <-chan error {
			return rig.InBackground(func() error {
				b, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, []byte(text))
				if err == nil && string(b) != text {
					err = fmt.Errorf("%q was answered with %q", text, b)
				}
				return err
			})
		}
		ids := func() uint64 { return grid.LastMux(g.Conn(0, 1)) }
		for i := range 20 {
			before := ids()
			old := call(fmt.Sprint("old ", i))
			synctest.Wait()
			require.Equal(t, before+1, ids())
			if i%2 == 0 { // a new process counts from 1 again
				g.Stop(0)
				require.ErrorIs(t, <-old, grid.ErrDisconnected)
				g.Start(0)
				before = 0
			} else {
				g.Cut(0, 1)
				require.ErrorIs(t, <-old, grid.ErrDisconnected)
				before++
			}
			g.WaitConnected()
			young := call(fmt.Sprint("new ", i))
			synctest.Wait()
			require.Equal(t, before+1, ids(), "the case is not what it should be")
			close(release[fmt.Sprint("old ", i)])
			synctest.Wait()
			require.Empty(t, young, "the answer to another's call")
			close(release[fmt.Sprint("new ", i)])
			require.NoError(t, <-young)
			if i%2 == 1 {
				g.Stop(0)
				g.Start(0)
				g.WaitConnected()
			}
		}
	})
}
