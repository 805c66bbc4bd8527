package grid

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Rapid reset: what a peer opens and cancels at once costs it nothing, and the node a
// handler that does not look at its context.

func limitHandlers(o *ManagerOptions) { o.MaxHandlers, o.MaxStreams = 50, 40 }

// resets sends many openings, each cancelled at once.
func (a *attacked) resets(p *rawPeer, n int, open func(id uint64) rawMsg) {
	a.Helper()
	const atOnce = 100
	for first := 0; first < n; first += atOnce {
		var msgs []rawMsg
		for i := range atOnce {
			id := uint64(first + i + 1)
			msgs = append(msgs, open(id), rawMsg{MuxID: id, Op: rawOpDisconnectServerMux})
		}
		p.sendMerged(msgs...)
	}
}

func TestAttackRapidResetOfStreams(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, limitHandlers, func(a *attacked) {
		b := a.block(1)
		p := a.next()
		w := a.swallow(p)
		before := bubbleGoroutines()
		n := scaled(20_000)
		a.during(func() {
			a.resets(p, n, func(id uint64) rawMsg {
				return rawMsg{MuxID: id, Handler: uint8(attackStream), Op: rawOpConnectMux, Payload: []byte("payload")}
			})
			synctest.Wait()
		})
		require.EqualValues(a, 40, b.most.Load(), "MaxStreams")
		require.Equal(a, 40, a.conn.Stats().Handlers)
		require.Zero(a, a.conn.Stats().StreamsServed, "all were cancelled")
		require.LessOrEqual(a, bubbleGoroutines()-before, 2*40+20)
		require.Equal(a, n-40, w.count(rawOpMuxConnectError))
		require.EqualValues(a, n-40, w.overloaded.Load())
		a.requireGrown(4 << 20)
		a.logged("limit reached", "MaxStreams")

		// It has slots left for requests.
		p.send(rawMsg{MuxID: 1 << 50, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF})
		synctest.Wait()
		require.Equal(a, 1, w.count(rawOpResponse))
		// Another link does not bring it others.
		p.close()
		p = a.next()
		w = a.swallow(p)
		p.send(rawMsg{MuxID: 1, Handler: uint8(attackStream), Op: rawOpConnectMux})
		synctest.Wait()
		require.EqualValues(a, 1, w.overloaded.Load())
		b.release()
		a.idle()
	})
}

func TestAttackRapidResetOfRequests(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, limitHandlers, func(a *attacked) {
		b := a.block(1)
		p := a.next()
		w := a.swallow(p)
		before := bubbleGoroutines()
		n := scaled(20_000)
		a.during(func() {
			a.resets(p, n, func(id uint64) rawMsg {
				return rawMsg{MuxID: id, Handler: uint8(attackSingle), Op: rawOpRequest, Flags: rawFlagEOF, DeadlineMS: 1, Payload: []byte("payload")}
			})
			synctest.Wait()
		})
		require.EqualValues(a, 50, b.most.Load(), "MaxHandlers")
		require.LessOrEqual(a, bubbleGoroutines()-before, 50+20)
		require.EqualValues(a, n-50, w.overloaded.Load())
		require.EqualValues(a, 50*len("payload"), a.conn.Stats().KeptBytes)
		a.requireGrown(4 << 20)
		a.logged("limit reached", "MaxHandlers")
		b.release()
		a.idle()
	})
}

// What has not arrived in whole has no handler that could run on.
func TestAttackRapidResetOfOpeningsInFragments(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, limitHandlers, func(a *attacked) {
		b := a.block(1)
		p := a.next()
		w := a.swallow(p)
		n := scaled(20_000)
		a.during(func() {
			for op, handler := range map[uint8]HandlerID{rawOpRequest: attackSingle, rawOpConnectMux: attackStream} {
				a.resets(p, n/2, func(id uint64) rawMsg {
					return rawMsg{MuxID: id, Handler: uint8(handler), Op: op, Flags: rawFlagMore, Payload: []byte("payload")}
				})
			}
			synctest.Wait()
		})
		require.Zero(a, b.most.Load())
		require.Zero(a, w.count(rawOpMuxConnectError))
		a.idle()
		a.requireGrown(4 << 20)
	})
}

// cancelMany opens streams, and cancels them all at once.
func cancelMany(t *testing.T, g *testGrid, n int) {
	c := g.conn(1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for range n / 50 {
				if _, err := c.NewStream(ctx, testBlock, nil); err != nil {
					t.Errorf("%d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, n, c.Stats().Streams)
	cancel()
	for i := range 20 {
		require.NoError(t, honestCall(c, i))
	}
	require.Eventually(t, func() bool { return g.conn(0, 1).Stats().Handlers == 0 }, 30*time.Second, time.Millisecond)
	require.Zero(t, c.Stats().Streams)
	require.Zero(t, c.Stats().Reconnects)
	require.Empty(t, c.Stats().LastError)
}

// It is not the number of cancels that makes an attack.
func TestHonestHostCancelsTenThousandStreamsAtOnce(t *testing.T) {
	cancelMany(t, newTCPGrid(t, 2, nil), scaled(10_000))
}

// The same as a peer's frames: ten thousand in one websocket message.
func TestPeerCancelsTenThousandStreamsInOneMessage(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, nil, func(a *attacked) {
		p := a.next()
		s := a.session()
		w := a.swallow(p)
		n := scaled(10_000)
		var opens, cancels []rawMsg
		for i := range n {
			opens = append(opens, rawMsg{MuxID: uint64(i + 1), Handler: uint8(testBlock), Op: rawOpConnectMux})
			cancels = append(cancels, rawMsg{MuxID: uint64(i + 1), Op: rawOpDisconnectServerMux})
		}
		a.during(func() {
			p.sendMerged(opens...)
			synctest.Wait()
			require.Equal(a, n, w.count(rawOpAckMux))
			require.Equal(a, n, a.conn.Stats().StreamsServed)
			p.sendMerged(cancels...)
			synctest.Wait()
		})
		a.idle()
		require.Same(a, s, a.conn.session.Load())
		require.Zero(a, w.overloaded.Load())
	})
}
