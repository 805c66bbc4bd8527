package attack

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// What comes in parts must come to an end: the node does not wait for the rest longer than
// MessageTimeout, nor keep more of it than MaxHostBytes.

// Endless frames that are empty, or nearly so, are not a message that grows.
func TestWebsocket_MessageInEmptyFramesDoesNotGoOn(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, rig.DripLimits, func(a *rig.Attacked) {
		p := a.Next()
		s := a.Session()
		require.NoError(a, p.TryWrite(p.Frame(rawpeer.FrameBinary, 1, []byte{0x97})))
		var b []byte
		for range 1000 {
			b = append(b, p.Frame(rawpeer.FrameContinued, 0, nil)...)
		}
		sent := 0
		a.During(func() {
			for p.TryWrite(b) == nil && sent < 10<<20 {
				sent += len(b)
				synctest.Wait()
			}
		})
		require.LessOrEqual(a, sent, 200<<10)
		a.Lost(s, "message in empty frames")
		a.RequireGrown(1 << 20)
	})
}

// A frame for each byte is slow, and no crime, until it takes too long.
func TestWebsocket_MessageInFramesOfOneByteTakesTooLong(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, ManualPings: true}, rig.DripLimits, func(a *rig.Attacked) {
		p := a.Next()
		s := a.Session()
		inFrames := func(m []byte) (b []byte) {
			b = p.Frame(rawpeer.FrameBinary, 0, nil)
			for i := range m {
				b = append(b, p.Frame(rawpeer.FrameContinued, 1, m[i:i+1])...)
			}
			return b
		}
		request := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: make([]byte, 10_000)}
		a.During(func() {
			require.NoError(a, p.TryWrite(append(inFrames(request.Encode()), p.Frame(rawpeer.FrameFinal|rawpeer.FrameContinued, 0, nil)...)))
			require.Equal(a, request.Payload, p.Expect(rawpeer.OpResponse).Payload)

			began := time.Now()
			require.NoError(a, p.TryWrite(p.Frame(rawpeer.FrameBinary, 0, nil)))
			for time.Since(began) < 20*time.Second && p.TryWrite(p.Frame(rawpeer.FrameContinued, 1, []byte{1})) == nil {
				time.Sleep(100 * time.Millisecond)
			}
			require.GreaterOrEqual(a, time.Since(began), 2900*time.Millisecond)
			require.Less(a, time.Since(began), 4*time.Second)
		})
		a.Lost(s, "not complete within 3s")
		a.RequireGrown(1 << 20)
	})
}

// One frame, a byte at a time.
func TestWebsocket_MessageAByteAtATimeTakesTooLong(t *testing.T) {
	for name, c := range map[string]struct {
		from int // bytes that come at once
		why  string
	}{
		"of its payload": {14, "not complete within 3s"},
		// There is no message yet, and nothing else either.
		"of its header": {0, "no pong"},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, ManualPings: true}, rig.DripLimits, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				a.During(func() {
					b := p.Frame(rawpeer.FrameFinal|rawpeer.FrameBinary, 1<<20, make([]byte, 1000))
					began := time.Now()
					_ = p.TryWrite(b[:c.from])
					pause := 100 * time.Millisecond
					if c.from == 0 {
						pause = time.Second
					}
					for _, octet := range b[c.from:] {
						if p.TryWrite([]byte{octet}) != nil {
							break
						}
						time.Sleep(pause)
					}
					require.Less(a, time.Since(began), 5*time.Second)
				})
				a.Lost(s, c.why)
				a.RequireGrown(1 << 20)
			})
		})
	}
}

// Messages of streams that never complete.
func TestFragments_OfStreamMessagesThatNeverComplete(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.DripLimits, func(a *rig.Attacked) {
		b := a.Block(16)
		p := a.Next()
		s := a.Session()
		w := a.Swallow(p)
		const size = 64_000
		n := rig.Scaled(1000)
		a.During(func() {
			for i := range n {
				id := uint64(i + 1)
				p.Send(rawpeer.Msg{MuxID: id, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
				p.Send(rawpeer.Msg{MuxID: id, Seq: 1, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagMore, Payload: make([]byte, size)})
			}
			synctest.Wait()
		})
		kept := a.Conn.Stats().KeptBytes
		require.LessOrEqual(a, kept, int64(s.Opts.MaxHostBytes))
		require.GreaterOrEqual(a, kept, int64(s.Opts.MaxHostBytes-size))
		require.EqualValues(a, n-s.Opts.MaxHostBytes/size, w.Overloaded.Load())
		// Two goroutines for each handler that runs on are no payload.
		a.RequireGrown(int64(s.Opts.MaxHostBytes) + 2<<20 + int64(n)*(16<<10))
		a.Logged("limit reached", "MaxHostBytes")
		time.Sleep(s.Opts.MessageTimeout + time.Second)
		require.Equal(a, n, w.Count(rawpeer.OpDisconnectClientMux), "all were dropped at last")
		require.Zero(a, a.Conn.Stats().KeptBytes)
		b.Release()
		a.Idle()
		a.Same(s)
	})
}

// partialAnswers lets the node make calls, each of which is answered in part.
func partialAnswers(a *rig.Attacked, p *rawpeer.Peer, ctx context.Context, n, size int) (answers []<-chan error) {
	a.Helper()
	for range n {
		answers = append(answers, rig.InBackground(func() error {
			b, err := a.Conn.SingleRequest(ctx, 50, nil)
			grid.PutByteBuffer(b)
			return err
		}))
	}
	for range n {
		p.Send(rawpeer.Msg{MuxID: p.Expect(rawpeer.OpRequest).MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagMore, Payload: make([]byte, size)})
	}
	synctest.Wait()
	return answers
}

// Answers that never complete hold what MaxHostBytes allows. What they held is given back when
// their callers have gone.
func TestFragments_OfAnswersThatNeverComplete(t *testing.T) {
	rig.Long(t)
	const n, size = 200, 64_000
	for name, end := range map[string]func(a *rig.Attacked, p *rawpeer.Peer, cancel func()){
		"the caller gives up": func(_ *rig.Attacked, _ *rawpeer.Peer, cancel func()) { cancel() },
		"the default deadline passes": func(*rig.Attacked, *rawpeer.Peer, func()) {
			time.Sleep(2 * time.Minute)
		},
		"an error takes their place": func(_ *rig.Attacked, p *rawpeer.Peer, _ func()) {
			for id := range uint64(n) {
				p.Send(rawpeer.Msg{MuxID: id + 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("no")})
			}
		},
		"the wrong kind takes their place": func(_ *rig.Attacked, p *rawpeer.Peer, _ func()) {
			for id := range uint64(n) {
				p.Send(rawpeer.Msg{MuxID: id + 1, Op: rawpeer.OpAckMux})
			}
		},
		"the link is lost": func(_ *rig.Attacked, p *rawpeer.Peer, _ func()) { p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, rig.DripLimits, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				ctx, cancel := context.WithCancel(a.Context())
				defer cancel()
				var answers []<-chan error
				a.During(func() { answers = partialAnswers(a, p, ctx, n, size) })
				require.LessOrEqual(a, a.Conn.Stats().KeptBytes, int64(s.Opts.MaxHostBytes))
				require.LessOrEqual(a, a.Conn.Stats().Calls, s.Opts.MaxHostBytes/size)
				a.RequireGrown(int64(s.Opts.MaxHostBytes) + 2<<20)
				end(a, p, cancel)
				for _, answer := range answers {
					require.Error(a, <-answer)
				}
				a.Idle()
			})
		})
	}
}

// MessageTimeout holds for an answer as well, however patient its caller is.
func TestFragments_OfAnAnswerThatTakesTooLong(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, rig.DripLimits, func(a *rig.Attacked) {
		p := a.Next()
		s := a.Session()
		ctx, cancel := context.WithTimeout(a.Context(), 2*time.Hour)
		defer cancel()
		began := time.Now()
		answers := partialAnswers(a, p, ctx, 1, 1000)
		a.During(func() {
			for range 200 { // a byte now and then
				select {
				case <-answers[0]:
					return
				default:
				}
				p.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagMore, Payload: []byte{1}})
				time.Sleep(100 * time.Millisecond)
			}
		})
		require.Less(a, time.Since(began), s.Opts.MessageTimeout+2*time.Second, "the call waits on")
		a.Same(s)
	})
}
