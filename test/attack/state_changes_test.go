package attack

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// stuckHook is an OnStateChange that does not return before it is released.
type stuckHook struct {
	release func()
	stuck   chan struct{}

	mu   sync.Mutex
	told []grid.StateChange
}

func newStuckHook() *stuckHook {
	h := &stuckHook{stuck: make(chan struct{})}
	h.release = sync.OnceFunc(func() { close(h.stuck) })
	return h
}

func (h *stuckHook) onChange(c grid.StateChange) {
	<-h.stuck
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, c)
}

// of returns what was told of a host.
func (h *stuckHook) of(host string) (told []grid.StateChange) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.told {
		if c.Host == host {
			told = append(told, c)
		}
	}
	return told
}

// comeBriefly connects, without what a peer that is made by the rig leaves for the end of the test.
func comeBriefly(a *rig.Attacked) (leave func()) {
	a.Helper()
	c := rawpeer.Config{Token: rig.AttackToken, Dial: a.Grid.Net.Dialer(rig.HostAddr(a.Raw))}
	ws, _, err := rawpeer.Upgrade(a.Context(), rig.LoneHost, c)
	require.NoError(a, err)
	p := rawpeer.NewPeer(a, ws, c)
	hello := rawpeer.Connect{ID: c.Instance(), Host: a.Raw, Time: time.Now(), Token: c.Token}
	p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()})
	_, err = p.ReadHandshake(rawpeer.OpConnectResponse)
	require.NoError(a, err)
	return p.Close
}

// A peer that connects and leaves makes changes as fast as it likes, and the application may take
// its time with each.
func TestStateChange_ThoseOfAHostThatComesAndGoesDoNotAddUp(t *testing.T) {
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newStuckHook()
				rig.RunAttack(t, rawDials, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) { o.OnStateChange = h.onChange }, func(a *rig.Attacked) {
					a.Cleanup(h.release)
					flap := func(times int) {
						for range times {
							var leave func()
							if rawDials {
								leave = comeBriefly(a)
							} else {
								leave = a.Next().Close
							}
							s := a.Session()
							leave()
							a.RequireEnded(s)
						}
					}
					flap(20) // now as much waits as may
					a.Before = rig.Heap()
					n := 200 // of which each takes a second or more, by the backoff
					if rawDials {
						n = 5000
					}
					if testing.Short() {
						n = 30 // that shows what waits, if not in the heap
					}
					a.During(func() { flap(n) })
					if rawDials { // else the peers are kept for the end of the test
						a.RequireGrown(512 << 10)
					}
					require.Empty(a, h.of(a.Raw))
					require.GreaterOrEqual(a, a.Node.Stats().StateChangesMissed, int64(2*n))

					h.release()
					synctest.Wait()
					told := h.of(a.Raw)
					require.LessOrEqual(a, len(told), 17)
					state, missed := grid.StateUnconnected, 0
					for i, c := range told {
						require.Equal(a, state, c.From, "%v", c)
						state = c.To
						missed += c.Missed
						if i > 0 {
							require.False(a, c.Time.Before(told[i-1].Time))
						}
					}
					require.EqualValues(a, a.Node.Stats().StateChangesMissed, missed)
					last := told[len(told)-1]
					require.Positive(a, last.Missed)
					require.Error(a, last.Err, "it was lost in between")

					// Now it keeps up.
					p := a.Next()
					a.Session()
					synctest.Wait()
					told = h.of(a.Raw)
					last = told[len(told)-1]
					require.Equal(a, grid.StateConnected, last.To)
					require.Zero(a, last.Missed)
					a.Echoes(p)
				})
			})
		})
	}
}

// Close tells all that waits, where that is possible within a second.
func TestStateChange_OfAHostThatComesAndGoesIsToldBeforeCloseReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newStuckHook()
		r := rig.NewWire(t, true, rawpeer.Config{}, func(o *grid.ManagerOptions) { o.OnStateChange = h.onChange })
		for range 100 {
			r.Peer.Close()
			rig.WaitState(t, r.Conn, grid.StateConnectionError)
			r.Peer = r.Next()
		}
		time.AfterFunc(time.Second/2, h.release)
		require.NoError(t, r.Node.Close())
		told := h.of(r.Raw)
		require.Len(t, told, 17)
		require.Equal(t, grid.StateShutdown, told[16].To)
		require.Equal(t, 202-17, told[16].Missed)
	})
}
