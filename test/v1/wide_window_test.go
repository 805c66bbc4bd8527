package v1

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// How the window of a stream grows, as a scripted sender sees it.

// wideSender is the peer, in the role of a stream's sender that uses up its credits whenever it has
// some.
type wideSender struct {
	r    *wire
	size int
	// have are the credits, under way the messages that were not taken.
	have, underway int
	msg            func(payload string) rawpeer.Msg // the next
	taken          func() bool                      // takes a message, if there is one
	most           int                              // credits and messages under way at any time
}

// fill sends until there are no credits left, also of those that are returned meanwhile.
func (w *wideSender) fill() {
	w.r.Helper()
	payload := string(make([]byte, w.size))
	for {
		synctest.Wait()
		for range w.r.Peer.Pending() {
			w.have += returned(w.r.T, w.r.Peer.Recv())
		}
		w.most = max(w.most, w.have+w.underway)
		if w.have == 0 {
			return
		}
		var msgs []rawpeer.Msg
		for ; w.have > 0; w.have-- {
			msgs = append(msgs, w.msg(payload))
			w.underway++
		}
		w.r.Peer.SendMerged(msgs...)
	}
}

// take has up to n messages taken.
func (w *wideSender) take(n int) {
	for waited := false; n > 0; {
		switch {
		case w.taken():
			w.underway--
			n--
			waited = false
		case waited:
			return
		default:
			synctest.Wait()
			waited = true
		}
	}
}

// withWideSenders runs f with the peer as the client of a stream that the node serves, and as the
// server of one that it opens; capacity is the handler's in that direction. extra is what may be
// under way beyond the window: the message that a client's consumer has in hand, and one more where
// a client learns the server's capacity from what comes. overrun has the peer send without a
// credit; it is nil where the node does not know that.
func withWideSenders(t *testing.T, capacity int, f func(w *wideSender, extra int, overrun func())) {
	t.Helper()
	for _, c := range []rawpeer.Config{wideConfig, capacitiesConfig} {
		withWideSender(t, c, capacity, f)
	}
}

func withWideSender(t *testing.T, config rawpeer.Config, capacity int, f func(w *wideSender, extra int, overrun func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newWire(t, true, config, nil)
		s := r.askedWide(r.serve(1, capacity, ""), 1, rawpeer.Msg{}, capacity)
		w := &wideSender{r: r, have: capacity}
		w.msg = func(payload string) rawpeer.Msg { return s.numbered(clientMsg(payload)) }
		w.taken = func() bool {
			select {
			case b := <-s.in:
				grid.PutByteBuffer(b)
				return true
			default:
				return false
			}
		}
		f(w, 0, func() {
			s.say(clientMsg("x"))
			s.dropped(grid.ErrFlowControl)
		})
	})
	synctest.Test(t, func(t *testing.T) {
		r := newWire(t, true, config, nil)
		c := r.openAcked(rawpeer.AckPayload(config.Caps, 0, capacity))
		c.consume()
		w := &wideSender{r: r, have: capacity}
		w.msg = func(payload string) rawpeer.Msg { return c.numbered(serverMsg(payload)) }
		w.taken = func() bool {
			select {
			case <-c.msgs:
				return true
			default:
				return false
			}
		}
		if config.Caps&rawpeer.CapBothCapacities == 0 {
			f(w, 2, nil)
			return
		}
		f(w, 1, func() {
			c.say(serverMsg("x"))
			r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrFlowControl)
		})
	})
}

func TestWindow_GrowsForAConsumerThatKeepsUp(t *testing.T) {
	t.Parallel()
	for size, rounds := range map[int]int{10: 12, 40 << 10: 6, 600 << 10: 2} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			withWideSenders(t, 1, func(w *wideSender, extra int, overrun func()) {
				w.size = size
				for range rounds {
					w.fill()
					w.take(rig.MaxCapacity)
				}
				w.fill()
				limit := min(rig.MaxWindow, max(1, rig.MaxWindowBytes/size)) + extra
				require.LessOrEqual(w.r, w.most, limit)
				require.Greater(w.r, 2*w.most, limit, "it has grown")
				// It stalls now, with no more than its window.
				if overrun != nil {
					overrun()
				}
				w.r.Alive()
			})
		})
	}
}

func TestWindow_StaysForAConsumerThatLagsBehind(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{2, 8} {
		withWideSenders(t, capacity, func(w *wideSender, extra int, overrun func()) {
			for range 100 {
				w.fill()
				w.take(1)
			}
			w.fill()
			require.GreaterOrEqual(w.r, w.most, capacity)
			require.LessOrEqual(w.r, w.most, capacity+extra)
			if overrun != nil {
				overrun()
			}
			w.r.Alive()
		})
	}
}
