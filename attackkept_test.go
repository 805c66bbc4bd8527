package grid

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a peer makes the node keep in whole: requests, answers, reasons.

func keptLimits(o *ManagerOptions) {
	o.MaxMessageSize = 1 << 20
	o.MaxHostBytes = 4 << 20
	o.MaxStreamBytes = 1 << 20
	o.MaxHandlers, o.MaxStreams = 400, 300
	o.WriteTimeout = 5 * time.Second
}

// Requests of the largest size to handlers that do not return.
func TestAttackLargeRequestsToHandlersThatBlock(t *testing.T) {
	for name, c := range map[string]struct {
		op      uint8
		handler HandlerID
	}{"requests": {rawOpRequest, attackSingle}, "streams": {rawOpConnectMux, attackStream}} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps, Unread: true}, keptLimits, func(a *attacked) {
				b := a.block(1)
				p := a.next()
				s := a.session()
				w := a.swallow(p)
				n := scaled(100)
				fit := s.opts.MaxHostBytes / s.opts.MaxMessageSize
				a.during(func() {
					for i := range uint64(n) {
						p.send(rawMsg{MuxID: i + 1, Handler: uint8(c.handler), Op: c.op, Flags: rawFlagEOF, Payload: make([]byte, s.opts.MaxMessageSize)})
					}
					synctest.Wait()
				})
				require.EqualValues(a, fit, b.most.Load())
				require.EqualValues(a, s.opts.MaxHostBytes, a.conn.Stats().KeptBytes)
				require.EqualValues(a, n-fit, w.overloaded.Load())
				require.Equal(a, n-fit, w.count(rawOpMuxConnectError))
				a.requireGrown(2*int64(s.opts.MaxHostBytes) + 2<<20)
				a.logged("limit reached", "MaxHostBytes is 4194304")
				// Small ones must wait for their turn, too; those of others need not.
				p.send(rawMsg{MuxID: 1000, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF, Payload: []byte("x")})
				synctest.Wait()
				require.Zero(a, w.count(rawOpResponse))
				// A link of its own does not help.
				p.close()
				p = a.next()
				w = a.swallow(p)
				p.send(rawMsg{MuxID: 1, Handler: uint8(c.handler), Op: c.op, Flags: rawFlagEOF, Payload: make([]byte, s.opts.MaxMessageSize)})
				synctest.Wait()
				require.EqualValues(a, 1, w.overloaded.Load())
				b.release()
				a.idle()
			})
		})
	}
}

// Requests with large answers, which nobody reads.
func TestAttackLargeAnswersThatAreNotRead(t *testing.T) {
	const size = 250_000
	for name, bits := range map[string]uint64{"with fragments": allCaps, "of version 1": 0} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: bits, Unread: true}, keptLimits, func(a *attacked) {
				var answered atomic.Int64
				require.NoError(a, a.node.RegisterSingleHandler(attackAnswer, func([]byte) ([]byte, *RemoteErr) {
					answered.Add(1)
					return make([]byte, size), nil
				}))
				// fill leaves little room for the texts that take the place of answers.
				fill := func(p *rawPeer, s *session) {
					taken := func() int {
						synctest.Wait()
						s.out.mu.Lock()
						defer s.out.mu.Unlock()
						return s.out.small.taken
					}
					for id := uint64(1 << 20); taken() < s.opts.MaxQueuedBytes-10_000; id += 10 {
						var msgs []rawMsg
						for i := range uint64(10) {
							msgs = append(msgs, rawMsg{MuxID: id + i, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF, Payload: make([]byte, 500)})
						}
						p.sendMerged(msgs...)
					}
				}
				ask := func(p *rawPeer, n int) {
					for i := range n {
						p.send(rawMsg{MuxID: uint64(i + 1), Handler: uint8(attackAnswer), Op: rawOpRequest, Flags: rawFlagEOF})
					}
					synctest.Wait()
				}
				p := a.next()
				s := a.session()
				before := bubbleGoroutines()
				a.during(func() {
					fill(p, s)
					ask(p, 1000)
				})
				require.LessOrEqual(a, answered.Load(), int64(1000))
				kept := a.conn.Stats().KeptBytes
				require.LessOrEqual(a, kept, int64(s.opts.MaxHostBytes))
				require.GreaterOrEqual(a, kept, int64(s.opts.MaxHostBytes-size))
				require.LessOrEqual(a, a.conn.Stats().Handlers, s.opts.MaxHandlers)
				time.Sleep(2 * time.Second) // workers that are idle are let go
				require.LessOrEqual(a, bubbleGoroutines()-before, s.opts.MaxHandlers+10)
				a.queueBounds(s)
				a.requireGrown(int64(s.opts.MaxHostBytes) + 8<<20)
				require.NotEmpty(a, a.log.about("limit reached"))
				a.during(func() { a.lost(s, "the peer has read nothing for 5s") })
				a.idle()

				// One who reads at last has as many as fitted, and hears of the others.
				p = a.next()
				ask(p, 300)
				w := a.swallow(p)
				synctest.Wait()
				require.Equal(a, 300, w.count(rawOpMuxConnectError)+answersOf(w, bits != 0, size))
				require.GreaterOrEqual(a, w.overloaded.Load(), int64(200))
				a.idle()
			})
		})
	}
}

// answersOf is how many answers have come in whole.
func answersOf(w *swallower, fragments bool, size int) int {
	if !fragments {
		return w.count(rawOpResponse)
	}
	return w.count(rawOpResponse) / ((size + fragmentSize - 1) / fragmentSize)
}

// The reason of a cancel is kept with the context of a handler that does not end. It is
// the peer's text, so it must not be long.
func TestAttackCancelWithALongReason(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, keptLimits, func(a *attacked) {
		b := a.block(1)
		p := a.next()
		s := a.session()
		a.swallow(p)
		n := scaled(100)
		a.during(func() {
			for i := range uint64(n) {
				p.send(rawMsg{MuxID: i + 1, Handler: uint8(attackStream), Op: rawOpConnectMux})
				p.send(rawMsg{MuxID: i + 1, Op: rawOpDisconnectServerMux, Flags: rawFlagPayloadIsErr, Payload: make([]byte, s.opts.MaxMessageSize)})
			}
			synctest.Wait()
		})
		require.Equal(a, n, a.conn.Stats().Handlers)
		require.Zero(a, a.conn.Stats().StreamsServed)
		a.requireGrown(int64(s.opts.MaxHostBytes) + 4<<20 + int64(n)*maxErrorText)
		b.release()
		a.idle()
	})
}

// Messages that a handler does not take wait within MaxStreamBytes.
func TestAttackLargeMessagesThatNoHandlerTakes(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, keptLimits, func(a *attacked) {
		b := a.block(1000)
		p := a.next()
		s := a.session()
		w := a.swallow(p)
		const messages, size = 50, 60_000
		require.Greater(a, (messages-maxInBuffer-1)*size, s.opts.MaxStreamBytes)
		a.during(func() {
			for i := range uint64(20) {
				p.send(rawMsg{MuxID: i + 1, Handler: uint8(attackStream), Op: rawOpConnectMux})
				for seq := range uint32(messages) {
					p.send(rawMsg{MuxID: i + 1, Seq: seq + 1, Op: rawOpMuxClientMsg, Payload: make([]byte, size)})
				}
				synctest.Wait()
				require.LessOrEqual(a, a.conn.Stats().KeptBytes, int64(s.opts.MaxStreamBytes))
			}
		})
		require.Zero(a, a.conn.Stats().StreamsServed)
		require.EqualValues(a, 20, w.overloaded.Load())
		a.requireGrown(int64(s.opts.MaxHostBytes) + 4<<20)
		b.release()
		a.idle()
	})
}

// What has been handed on to a handler that takes nothing waits as well, and counts.
func TestAttackMessagesInTheChannelsOfHandlersCount(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, keptLimits, func(a *attacked) {
		b := a.block(2 * maxInBuffer)
		p := a.next()
		s := a.session()
		a.swallow(p)
		const size = 200_000
		a.during(func() {
			for i := range uint64(10) {
				p.send(rawMsg{MuxID: i + 1, Handler: uint8(attackStream), Op: rawOpConnectMux})
				for seq := range uint32(maxInBuffer) {
					p.send(rawMsg{MuxID: i + 1, Seq: seq + 1, Op: rawOpMuxClientMsg, Payload: make([]byte, size)})
					synctest.Wait()
				}
			}
		})
		a.Logf("%d KiB count", a.conn.Stats().KeptBytes>>10)
		a.requireGrown(2*int64(s.opts.MaxHostBytes) + 2<<20)
		b.release()
		a.idle()
	})
}

// A handler that has taken all its input, and waits for more, leaves nothing that
// counts: else idle streams would use up what their host may have.
func TestInputThatAHandlerHasTakenDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		took := 0
		require.NoError(t, g.nodes[0].RegisterStreamingHandler(testUnused, StreamHandler{
			InCapacity: 32, Handle: func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
				for b := range in {
					took++
					PutByteBuffer(b)
				}
				return nil
			},
		}))
		st, err := g.conn(1, 0).NewStream(t.Context(), testUnused, nil)
		require.NoError(t, err)
		for range 16 {
			require.NoError(t, st.Send(make([]byte, 60_000)))
		}
		synctest.Wait()
		require.Equal(t, 16, took)
		time.Sleep(2 * time.Second)
		require.Less(t, g.conn(0, 1).Stats().KeptBytes, int64(60_000))
		st.CloseSend()
		require.NoError(t, consume(st))
	})
}
