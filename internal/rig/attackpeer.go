package rig

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// What an attacker is made of, and the handlers that it calls.

// Swallower reads all that a peer is sent, answers pings of the link, and keeps none of it: only
// how many there were.
type Swallower struct {
	ops        [256]atomic.Int64
	Overloaded atomic.Int64 // refusals for that reason
}

// Swallow is for a peer that was made with Unread.
func (a *Attacked) Swallow(p *rawpeer.Peer) *Swallower {
	w := new(Swallower)
	p.ReadAll(func(b []byte) error {
		msgs, err := rawpeer.DecodeMerged(b)
		if err != nil {
			a.Errorf("undecodable: %v", err)
			return err
		}
		for _, m := range msgs {
			w.ops[m.Op].Add(1)
			switch {
			case m.Op == rawpeer.OpPing && m.MuxID == 0:
				pong, err := rawpeer.Pong(m)
				if err != nil {
					a.Error(err)
				}
				_ = p.TrySend(pong)
			case strings.Contains(string(m.Payload), grid.ErrOverloaded.Error()+": "):
				w.Overloaded.Add(1)
			}
		}
		return nil
	})
	return w
}

// Count is how many came with that op.
func (w *Swallower) Count(op uint8) int { return int(w.ops[op].Load()) }

// Blocker is handlers that ignore everything until they are released.
type Blocker struct {
	Release       func()
	released      chan struct{}
	running, Most atomic.Int64
}

func (b *Blocker) wait() {
	n := b.running.Add(1)
	for old := b.Most.Load(); n > old && !b.Most.CompareAndSwap(old, n); old = b.Most.Load() {
	}
	<-b.released
	b.running.Add(-1)
}

func (b *Blocker) single(p []byte) ([]byte, *grid.RemoteErr) {
	b.wait()
	grid.PutByteBuffer(p)
	return nil, nil
}

func (b *Blocker) stream(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
	b.wait()
	return nil
}

const (
	BlockSingle grid.HandlerID = iota + 100
	BlockStream
	AttackAnswer
)

// Block registers handlers that ignore their contexts, until the test ends.
func (a *Attacked) Block(inCapacity int) *Blocker {
	a.Helper()
	b := &Blocker{released: make(chan struct{})}
	b.Release = sync.OnceFunc(func() { close(b.released) })
	a.Cleanup(b.Release)
	require.NoError(a, a.Node.RegisterSingleHandler(BlockSingle, b.single))
	require.NoError(a, a.Node.RegisterStreamingHandler(BlockStream, grid.StreamHandler{Handle: b.stream, InCapacity: inCapacity}))
	return b
}

// DripLimits are small, so that a test reaches them.
func DripLimits(o *grid.ManagerOptions) {
	o.MessageTimeout = 3 * time.Second
	o.MaxMessageSize = 1 << 20
	o.MaxHostBytes = 4 << 20
	o.MaxStreamBytes = 2 << 20
	o.PingInterval = time.Second
}

// LimitHandlers makes the slots few.
func LimitHandlers(o *grid.ManagerOptions) { o.MaxHandlers, o.MaxStreams = 50, 40 }

// Resets sends many openings, each cancelled at once.
func (a *Attacked) Resets(p *rawpeer.Peer, n int, open func(id uint64) rawpeer.Msg) {
	a.Helper()
	const atOnce = 100
	for first := 0; first < n; first += atOnce {
		var msgs []rawpeer.Msg
		for i := range atOnce {
			id := uint64(first + i + 1)
			msgs = append(msgs, open(id), rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux})
		}
		p.SendMerged(msgs...)
	}
}
