package grid

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Messages that do not belong where they come.

// allOps are every op that there is, and some that there are not.
func allOps() (ops []uint8) {
	for op := range uint8(20) {
		ops = append(ops, op)
	}
	return append(ops, 127, 255)
}

// Before the handshake nothing is taken but what begins it.
func TestAttackOtherOpsInPlaceOfTheHandshake(t *testing.T) {
	inAttack(t, rawConfig{Bare: true, Caps: allCaps}, nil, func(a *attacked) {
		var ran atomic.Int64
		require.NoError(a, a.node.RegisterSingleHandler(attackAnswer, func(b []byte) ([]byte, *RemoteErr) { ran.Add(1); return b, nil }))
		hello := rawConnect{ID: make([]byte, 16), Host: a.raw, Time: time.Now(), Token: attackToken, Caps: allCaps}.encode()
		answer := rawConnectResponse{ID: make([]byte, 16), Accepted: true, Caps: allCaps}.encode()
		a.during(func() {
			for _, op := range allOps() {
				p := a.next()
				want, payload := uint8(rawOpConnect), hello
				if p.request != nil {
					p.expect(rawOpConnect)
					want, payload = rawOpConnectResponse, answer
				}
				if op == want {
					p.close()
					continue
				}
				m := rawMsg{MuxID: 1, Handler: uint8(attackAnswer), Op: op, Payload: payload}
				b := m.encode()
				if op == rawOpMerged {
					b = encodeMerged(rawMsg{Op: want, Payload: payload})
				}
				require.NoError(a, p.trySendBytes(b))
				msgs, _ := p.drain()
				if p.request == nil {
					require.Len(a, msgs, 1, "op %d", op)
					got, err := decodeRawConnectResponse(msgs[0].Payload)
					require.NoError(a, err)
					require.False(a, got.Accepted)
					require.Contains(a, got.Reason, "in place of Connect")
				} else {
					require.Empty(a, msgs, "op %d", op)
				}
				require.NotEqual(a, StateConnected, a.conn.State())
			}
		})
		require.Zero(a, ran.Load())
		a.logged("in place of Connect")
	})
}

// After it neither may come again.
func TestAttackSecondHandshake(t *testing.T) {
	for _, op := range []uint8{rawOpConnect, rawOpConnectResponse} {
		t.Run(rawOpName(op), func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				payload := rawConnect{ID: make([]byte, 16), Host: attackOther, Time: time.Now(), Token: attackToken}.encode()
				a.during(func() {
					p.send(rawMsg{Op: op, Payload: payload})
					a.ended(s)
				})
				a.lost(s, rawOpName(op)+" after the handshake")
				a.idle()
			})
		})
	}
}

// What comes behind a message that ends the link is not acted on, in the same websocket
// message or the next.
func TestAttackMessagesBehindTheEnd(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, nil, func(a *attacked) {
		var ran atomic.Int64
		require.NoError(a, a.node.RegisterSingleHandler(attackAnswer, func(b []byte) ([]byte, *RemoteErr) { ran.Add(1); return b, nil }))
		request := rawMsg{MuxID: 1, Handler: uint8(attackAnswer), Op: rawOpRequest, Flags: rawFlagEOF}
		for _, end := range []rawMsg{
			{Op: rawOpMerged},
			{Op: rawOpConnect},
			{Op: rawOpPing, Payload: []byte("no ping")},
			{MuxID: 7, Op: rawOpDisconnect},
			{MuxID: 7, Op: rawOpPing, Flags: rawFlagMore, Payload: []byte("x")},
		} {
			p := a.next()
			s := a.session()
			a.during(func() {
				if p.trySendBytes(encodeMerged(end, request, request)) == nil {
					for range 100 {
						_ = p.trySend(request)
					}
				}
				a.ended(s)
			})
			synctest.Wait()
			require.Zero(a, ran.Load(), "%v", end)
			p.close()
		}
		a.logged("connection lost")
		a.idle()
	})
}

// An op that nobody knows is dropped, and told of once, however often its peer connects.
func TestAttackUnknownOpOnManyLinks(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
		a.during(func() {
			for range 10 {
				p := a.next()
				p.send(rawMsg{Op: 200, Payload: []byte("x")})
				a.echoes(p)
				p.close()
				synctest.Wait()
			}
		})
		a.logged("unknown op", "op=200")
	})
}

// A Disconnect without extension 4, or for a mux, is the end.
func TestAttackDisconnectThatIsNoDrain(t *testing.T) {
	for name, c := range map[string]struct {
		caps uint64
		m    rawMsg
	}{
		"without the extension": {rawCapWideCredits | rawCapFragments, rawMsg{Op: rawOpDisconnect}},
		"for a mux":             {allCaps, rawMsg{MuxID: 1, Op: rawOpDisconnect}},
		"in fragments":          {allCaps, rawMsg{Op: rawOpDisconnect, Flags: rawFlagMore, Payload: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: c.caps}, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				calls := inBackground(func() error { _, err := a.conn.SingleRequest(a.Context(), 50, nil); return err })
				p.expect(rawOpRequest)
				a.during(func() {
					_ = p.trySendBytes(encodeMerged(c.m, c.m, c.m))
					require.ErrorIs(a, <-calls, ErrDisconnected)
				})
				a.lost(s)
				a.idle()
			})
		})
	}
}

// A peer that says again and again that it shuts down, goes on with calls, and never
// closes: it is served, nothing is asked of it, and it is told of once.
func TestAttackDrainThatDoesNotEnd(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, func(o *ManagerOptions) { o.MaxHandlers, o.MaxStreams = 40, 10 }, func(a *attacked) {
		b := a.block(1)
		p := a.next()
		s := a.session()
		w := a.swallow(p)
		before := bubbleGoroutines()
		a.during(func() {
			for round := range uint64(50) {
				var msgs []rawMsg
				for i := range uint64(20) {
					msgs = append(msgs, rawMsg{Op: rawOpDisconnect},
						rawMsg{MuxID: 1000*round + i + 1, Handler: uint8(attackStream), Op: rawOpConnectMux},
						rawMsg{MuxID: 1000*round + i + 500, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF})
				}
				p.sendMerged(msgs...)
				time.Sleep(time.Second)
			}
			synctest.Wait()
		})
		require.Equal(a, 10, a.conn.Stats().Handlers)
		require.EqualValues(a, 10, b.most.Load())
		require.Equal(a, 50*20, w.count(rawOpResponse))
		require.LessOrEqual(a, bubbleGoroutines()-before, 2*10+20)
		select {
		case <-s.done:
			require.Fail(a, "the link was ended", "%v", s.err)
		default:
		}
		_, err := a.conn.SingleRequest(a.Context(), 50, nil)
		require.ErrorIs(a, err, ErrDisconnected)
		require.ErrorContains(a, err, "shutting down")
		a.logged("shutting down")
		b.release()
		p.close()
		a.ended(s)
		a.idle()
		// It comes back, and all is well.
		p = a.next()
		s = a.session()
		w = a.swallow(p)
		p.send(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF})
		synctest.Wait()
		require.Equal(a, 1, w.count(rawOpResponse))
		require.Same(a, s, a.conn.session.Load())
	})
}

// A peer that says it shuts down, and connects again at once, without end: there are
// two links of it at most, and few lines in the log.
func TestAttackDrainAndReconnectWithoutEnd(t *testing.T) {
	for name, closes := range map[string]bool{"closes the last": true, "leaves the last": false} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
				before := bubbleGoroutines()
				a.during(func() {
					var last *rawPeer
					for range 50 {
						p := a.next()
						a.session()
						p.send(rawMsg{Op: rawOpDisconnect})
						synctest.Wait()
						if closes || !a.conn.dials {
							require.LessOrEqual(a, len(a.conn.sessions()), 2)
						}
						if closes || a.conn.dials { // else it would not be dialled again
							p.close()
						} else if last != nil {
							last.expectClosed()
						}
						last = p
						synctest.Wait()
					}
				})
				// Reader and writer, and what the peer has itself.
				require.LessOrEqual(a, bubbleGoroutines()-before, 20)
				a.requireGrown(2 << 20)
				lines := a.log.about("level=INFO")
				require.LessOrEqual(a, len(lines), 6, "%q", lines)
			})
		})
	}
}

// Both shut down at once, and the peer floods with calls that come too late.
func TestAttackFloodOfAShutdown(t *testing.T) {
	for name, bits := range map[string]uint64{"with the extension": allCaps, "without": 0} {
		t.Run(name, func(t *testing.T) {
			for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
				t.Run(name, func(t *testing.T) { floodShutdown(t, rawDials, bits) })
			}
		})
	}
}

func floodShutdown(t *testing.T, rawDials bool, bits uint64) {
	synctest.Test(t, func(t *testing.T) {
		r := newV1Rig(t, rawDials, rawConfig{Caps: bits, Unread: true}, nil)
		a := &attacked{T: t, node: r.node, conn: r.conn, log: r.log, before: heap()}
		b := a.block(1)
		w := a.swallow(r.peer)
		r.peer.send(rawMsg{MuxID: 1, Handler: uint8(attackSingle), Op: rawOpRequest, Flags: rawFlagEOF})
		synctest.Wait()
		before := bubbleGoroutines()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		s := a.session()
		shutdown := inBackground(func() error { return r.node.Shutdown(ctx) })
		synctest.Wait()
		if bits != 0 {
			require.Equal(t, 1, w.count(rawOpDisconnect))
			r.peer.send(rawMsg{Op: rawOpDisconnect})
		}
		const n = 20_000
		for i := range n / 100 {
			var msgs []rawMsg
			for j := range 100 {
				op, handler := uint8(rawOpRequest), attackSingle
				if j%2 == 0 {
					op, handler = rawOpConnectMux, attackStream
				}
				msgs = append(msgs, rawMsg{MuxID: uint64(100*i + j + 2), Handler: uint8(handler), Op: op})
			}
			r.peer.sendMerged(msgs...)
			a.queueBounds(s)
		}
		synctest.Wait()
		require.EqualValues(t, 1, b.most.Load())
		require.Equal(t, n, w.count(rawOpMuxConnectError))
		require.Zero(t, w.count(rawOpAckMux))
		require.LessOrEqual(t, bubbleGoroutines()-before, 10)
		a.requireGrown(2 << 20)
		require.Empty(t, shutdown)
		b.release()
		require.NoError(t, <-shutdown)
		synctest.Wait()
		require.Equal(t, 1, w.count(rawOpResponse), "what was under way is answered")
		a.checkLog()
	})
}

// Calls that are sent together with the Connect, before the answer to it has come, are
// those of somebody who is let in; or of somebody who is not.
func TestAttackCallsBeforeTheAnswerToTheHandshake(t *testing.T) {
	for token, served := range map[string]bool{attackToken: true, "guess": false} {
		t.Run(fmt.Sprint("served ", served), func(t *testing.T) {
			atTheDoor(t, rawConfig{Bare: true}, nil, func(a *attacked) {
				var ran atomic.Int64
				require.NoError(a, a.node.RegisterSingleHandler(attackAnswer, func(b []byte) ([]byte, *RemoteErr) { ran.Add(1); return b, nil }))
				p := a.next()
				p.send(rawMsg{Op: rawOpConnect, Payload: rawConnect{ID: make([]byte, 16), Host: a.raw, Time: time.Now(), Token: token}.encode()})
				for i := range uint64(10) {
					_ = p.trySend(rawMsg{MuxID: i + 1, Handler: uint8(attackAnswer), Op: rawOpRequest, Flags: rawFlagEOF})
				}
				synctest.Wait()
				if served {
					require.EqualValues(a, 10, ran.Load())
				} else {
					require.Zero(a, ran.Load())
					a.logged("handshake failed", "invalid token")
				}
			})
		})
	}
}
