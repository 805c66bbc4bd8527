package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What comes in parts must come to an end: the node does not wait for the rest longer
// than MessageTimeout, nor keep more of it than MaxHostBytes.

// dripLimits are small, so that a test reaches them.
func dripLimits(o *ManagerOptions) {
	o.MessageTimeout = 3 * time.Second
	o.MaxMessageSize = 1 << 20
	o.MaxHostBytes = 4 << 20
	o.MaxStreamBytes = 2 << 20
	o.PingInterval = time.Second
}

// Endless frames that are empty, or nearly so, are not a message that grows.
func TestAttackMessageInEmptyFrames(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps}, dripLimits, func(a *attacked) {
		p := a.next()
		s := a.session()
		require.NoError(a, p.tryWriteRaw(p.rawWS(wsBinary, 1, []byte{0x97})))
		var b []byte
		for range 1000 {
			b = append(b, p.rawWS(wsContinued, 0, nil)...)
		}
		sent := 0
		a.during(func() {
			for p.tryWriteRaw(b) == nil && sent < 10<<20 {
				sent += len(b)
				synctest.Wait()
			}
		})
		require.LessOrEqual(a, sent, 200<<10)
		a.lost(s, "message in empty frames")
		a.requireGrown(1 << 20)
	})
}

// A frame for each byte is slow, and no crime, until it takes too long.
func TestAttackMessageInFramesOfOneByte(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, ManualPings: true}, dripLimits, func(a *attacked) {
		p := a.next()
		s := a.session()
		inFrames := func(m []byte) (b []byte) {
			b = p.rawWS(wsBinary, 0, nil)
			for i := range m {
				b = append(b, p.rawWS(wsContinued, 1, m[i:i+1])...)
			}
			return b
		}
		request := rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: make([]byte, 10_000)}
		a.during(func() {
			require.NoError(a, p.tryWriteRaw(append(inFrames(request.encode()), p.rawWS(wsFinal|wsContinued, 0, nil)...)))
			require.Equal(a, request.Payload, p.expect(rawOpResponse).Payload)

			began := time.Now()
			require.NoError(a, p.tryWriteRaw(p.rawWS(wsBinary, 0, nil)))
			for time.Since(began) < 20*time.Second && p.tryWriteRaw(p.rawWS(wsContinued, 1, []byte{1})) == nil {
				time.Sleep(100 * time.Millisecond)
			}
			require.GreaterOrEqual(a, time.Since(began), 2900*time.Millisecond)
			require.Less(a, time.Since(began), 4*time.Second)
		})
		a.lost(s, "not complete within 3s")
		a.requireGrown(1 << 20)
	})
}

// One frame, a byte at a time.
func TestAttackMessageAByteAtATime(t *testing.T) {
	for name, c := range map[string]struct {
		from int // bytes that come at once
		why  string
	}{
		"of its payload": {14, "not complete within 3s"},
		// There is no message yet, and nothing else either.
		"of its header": {0, "no pong"},
	} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps, ManualPings: true}, dripLimits, func(a *attacked) {
				p := a.next()
				s := a.session()
				a.during(func() {
					b := p.rawWS(wsFinal|wsBinary, 1<<20, make([]byte, 1000))
					began := time.Now()
					_ = p.tryWriteRaw(b[:c.from])
					pause := 100 * time.Millisecond
					if c.from == 0 {
						pause = time.Second
					}
					for _, octet := range b[c.from:] {
						if p.tryWriteRaw([]byte{octet}) != nil {
							break
						}
						time.Sleep(pause)
					}
					require.Less(a, time.Since(began), 5*time.Second)
				})
				a.lost(s, c.why)
				a.requireGrown(1 << 20)
			})
		})
	}
}

// Openings whose payload never completes hold what MaxHostBytes allows, until they have
// taken too long.
func TestAttackOpeningsThatNeverComplete(t *testing.T) {
	for op, handler := range map[uint8]HandlerID{rawOpRequest: attackSingle, rawOpConnectMux: attackStream} {
		t.Run(rawOpName(op), func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps, Unread: true}, dripLimits, func(a *attacked) {
				a.block(1).release()
				p := a.next()
				s := a.session()
				w := a.swallow(p)
				const size = 64_000
				n := scaled(1000)
				fits := s.opts.MaxHostBytes / size
				a.during(func() {
					for i := range n {
						p.send(rawMsg{MuxID: uint64(i + 1), Handler: uint8(handler), Op: op, Flags: rawFlagMore, Payload: make([]byte, size)})
						// Their rest, from those who take no notice of the refusal.
						p.send(rawMsg{MuxID: uint64(i + 1), Seq: 1, Op: op, Flags: rawFlagMore, Payload: make([]byte, 100)})
					}
					synctest.Wait()
				})
				kept := a.conn.Stats().KeptBytes
				require.LessOrEqual(a, kept, int64(s.opts.MaxHostBytes))
				require.GreaterOrEqual(a, kept, int64(s.opts.MaxHostBytes-size))
				require.LessOrEqual(a, a.conn.Stats().Handlers, fits)
				require.EqualValues(a, n-a.conn.Stats().Handlers, w.overloaded.Load())
				// A fragment is kept in the frame that it came in, or in a buffer with room.
				a.requireGrown(3*int64(s.opts.MaxHostBytes) + 2<<20)
				a.logged("limit reached", "MaxHostBytes")
				time.Sleep(s.opts.MessageTimeout + time.Second)
				a.idle()
				require.Equal(a, n, w.count(rawOpMuxConnectError), "all were refused at last")
				require.Same(a, s, a.conn.session.Load())
			})
		})
	}
}

// A frame is kept with the fragment in it only where that makes up a good part of it: a
// fifth, so MaxHostBytes holds five times as much at the very worst.
func TestAttackFragmentsInLargeFramesThatNeverComplete(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, func(o *ManagerOptions) {
		dripLimits(o)
		o.MessageTimeout = time.Hour
	}, func(a *attacked) {
		a.block(1).release()
		p := a.next()
		s := a.session()
		a.swallow(p)
		for _, c := range []struct{ size, filler, times int }{
			{1, 200_000, 2},
			{1000, 200_000, 2},
			{33_000, 131_000, 2},
			{52_500, 208_000, 5}, // the read buffer is of 256 KiB
			{64_000, 10, 2},
		} {
			const n = 90 // MaxHostBytes takes 80 of the largest but one
			id := uint64(c.size) << 20
			a.during(func() {
				for range n {
					id++
					p.sendMerged(
						rawMsg{MuxID: id, Handler: uint8(attackSingle), Op: rawOpRequest, Flags: rawFlagMore, Payload: make([]byte, c.size)},
						rawMsg{Op: 200, Payload: make([]byte, c.filler)}, // nobody wants it
					)
				}
				synctest.Wait()
			})
			kept := a.conn.Stats().KeptBytes
			require.LessOrEqual(a, kept, int64(s.opts.MaxHostBytes))
			a.Logf("fragments of %d bytes: %d KiB count", c.size, kept>>10)
			a.requireGrown(int64(c.times)*kept + 2<<20)
			for i := range uint64(n) {
				p.send(rawMsg{MuxID: id - i, Op: rawOpDisconnectServerMux})
			}
			a.idle()
		}
	})
}

// Messages of streams that never complete.
func TestAttackStreamMessagesThatNeverComplete(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, dripLimits, func(a *attacked) {
		b := a.block(16)
		p := a.next()
		s := a.session()
		w := a.swallow(p)
		const size = 64_000
		n := scaled(1000)
		a.during(func() {
			for i := range n {
				id := uint64(i + 1)
				p.send(rawMsg{MuxID: id, Handler: uint8(attackStream), Op: rawOpConnectMux})
				p.send(rawMsg{MuxID: id, Seq: 1, Op: rawOpMuxClientMsg, Flags: rawFlagMore, Payload: make([]byte, size)})
			}
			synctest.Wait()
		})
		kept := a.conn.Stats().KeptBytes
		require.LessOrEqual(a, kept, int64(s.opts.MaxHostBytes))
		require.GreaterOrEqual(a, kept, int64(s.opts.MaxHostBytes-size))
		require.EqualValues(a, n-s.opts.MaxHostBytes/size, w.overloaded.Load())
		// Two goroutines for each handler that runs on are no payload.
		a.requireGrown(int64(s.opts.MaxHostBytes) + 2<<20 + int64(n)*(16<<10))
		a.logged("limit reached", "MaxHostBytes")
		time.Sleep(s.opts.MessageTimeout + time.Second)
		require.Equal(a, n, w.count(rawOpDisconnectClientMux), "all were dropped at last")
		require.Zero(a, a.conn.Stats().KeptBytes)
		b.release()
		a.idle()
		require.Same(a, s, a.conn.session.Load())
	})
}

// partialAnswers lets the node make calls, each of which is answered in part.
func (a *attacked) partialAnswers(p *rawPeer, ctx context.Context, n, size int) (answers []<-chan error) {
	a.Helper()
	for range n {
		answers = append(answers, inBackground(func() error {
			b, err := a.conn.SingleRequest(ctx, 50, nil)
			PutByteBuffer(b)
			return err
		}))
	}
	for range n {
		p.send(rawMsg{MuxID: p.expect(rawOpRequest).MuxID, Op: rawOpResponse, Flags: rawFlagMore, Payload: make([]byte, size)})
	}
	synctest.Wait()
	return answers
}

// Answers that never complete hold what MaxHostBytes allows. What they held is given
// back when their callers have gone.
func TestAttackAnswersThatNeverComplete(t *testing.T) {
	const n, size = 200, 64_000
	for name, end := range map[string]func(a *attacked, p *rawPeer, cancel func()){
		"the caller gives up": func(_ *attacked, _ *rawPeer, cancel func()) { cancel() },
		"the default deadline passes": func(*attacked, *rawPeer, func()) {
			time.Sleep(2 * time.Minute)
		},
		"an error takes their place": func(_ *attacked, p *rawPeer, _ func()) {
			for id := range uint64(n) {
				p.send(rawMsg{MuxID: id + 1, Op: rawOpResponse, Flags: rawFlagEOF | rawFlagPayloadIsErr, Payload: []byte("no")})
			}
		},
		"the wrong kind takes their place": func(_ *attacked, p *rawPeer, _ func()) {
			for id := range uint64(n) {
				p.send(rawMsg{MuxID: id + 1, Op: rawOpAckMux})
			}
		},
		"the link is lost": func(_ *attacked, p *rawPeer, _ func()) { p.close() },
	} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps}, dripLimits, func(a *attacked) {
				p := a.next()
				s := a.session()
				ctx, cancel := context.WithCancel(a.Context())
				defer cancel()
				var answers []<-chan error
				a.during(func() { answers = a.partialAnswers(p, ctx, n, size) })
				require.LessOrEqual(a, a.conn.Stats().KeptBytes, int64(s.opts.MaxHostBytes))
				require.LessOrEqual(a, a.conn.Stats().Calls, s.opts.MaxHostBytes/size)
				a.requireGrown(int64(s.opts.MaxHostBytes) + 2<<20)
				end(a, p, cancel)
				for _, answer := range answers {
					require.Error(a, <-answer)
				}
				a.idle()
			})
		})
	}
}

// MessageTimeout holds for an answer as well, however patient its caller is.
func TestAttackAnswerInFragmentsThatTakesTooLong(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps}, dripLimits, func(a *attacked) {
		p := a.next()
		s := a.session()
		ctx, cancel := context.WithTimeout(a.Context(), 2*time.Hour)
		defer cancel()
		began := time.Now()
		answers := a.partialAnswers(p, ctx, 1, 1000)
		a.during(func() {
			for range 200 { // a byte now and then
				select {
				case <-answers[0]:
					return
				default:
				}
				p.send(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: rawFlagMore, Payload: []byte{1}})
				time.Sleep(100 * time.Millisecond)
			}
		})
		require.Less(a, time.Since(began), s.opts.MessageTimeout+2*time.Second, "the call waits on")
		require.Same(a, s, a.conn.session.Load())
	})
}
