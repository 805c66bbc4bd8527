package grid

import (
	"context"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

// A flood is of messages that cost the peer nothing. What the node owes for them has a
// bound, whether the peer reads the answers or not.

// flood is a kind of message that a peer may send without end.
type flood struct {
	name string
	msg  func(i int) rawMsg
	// owed tells that each is answered, so that a peer which does not read must go.
	owed string
}

const (
	postedFlood = "peer makes us answer more than it reads"
	farMux      = 1 << 40 // of which nobody knows
)

func floods() []flood {
	const crc = rawFlagCRC
	answered := func(name string, m rawMsg) flood {
		return flood{name, func(i int) rawMsg {
			m := m
			m.MuxID = farMux + uint64(i)
			return m
		}, postedFlood}
	}
	ignored := func(name string, m rawMsg) flood {
		f := answered(name, m)
		f.owed = ""
		return f
	}
	return []flood{
		{"link pings", func(int) rawMsg { return rawPing(time.Now()) }, postedFlood},
		{"link pongs", func(int) rawMsg { p, _ := rawPong(rawPing(time.Now())); return p }, ""},
		answered("pings of unknown streams", rawMsg{Op: rawOpPing}),
		answered("requests of no handler", rawMsg{Op: rawOpRequest, Handler: 200, Flags: rawFlagEOF}),
		answered("requests under no subroute", rawMsg{Op: rawOpRequest, Handler: uint8(testEcho), Flags: rawFlagEOF | rawFlagSubroute, Subroute: rawSubrouteID(uint8(testEcho), "x")}),
		answered("streams of no handler", rawMsg{Op: rawOpConnectMux, Handler: 200}),
		answered("streams out of sequence", rawMsg{Op: rawOpConnectMux, Handler: uint8(testEcho), Seq: 1}),
		answered("fragments of no handler", rawMsg{Op: rawOpRequest, Handler: 200, Flags: rawFlagMore, Payload: []byte("x")}),
		answered("input of unknown streams", rawMsg{Op: rawOpMuxClientMsg, Payload: []byte("x")}),
		answered("output of unknown streams", rawMsg{Op: rawOpMuxServerMsg, Payload: []byte("x"), Flags: crc}),
		answered("acks", rawMsg{Op: rawOpAckMux}),
		ignored("credits for a server", rawMsg{Op: rawOpUnblockSrvMux}),
		ignored("credits for a client", rawMsg{Op: rawOpUnblockClMux, Flags: crc}),
		ignored("last input", rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagEOF}),
		ignored("last output", rawMsg{Op: rawOpMuxServerMsg, Flags: rawFlagEOF}),
		ignored("responses", rawMsg{Op: rawOpResponse, Flags: rawFlagEOF, Payload: []byte("x")}),
		ignored("fragments of responses", rawMsg{Op: rawOpResponse, Flags: rawFlagMore, Payload: []byte("x")}),
		ignored("fragments of requests that never began", rawMsg{Op: rawOpRequest, Flags: rawFlagMore, Payload: []byte("x")}),
		ignored("refusals", rawMsg{Op: rawOpMuxConnectError, Payload: []byte("\x81\xa5Error\xa1x")}),
		ignored("cancels", rawMsg{Op: rawOpDisconnectServerMux}),
		ignored("drops", rawMsg{Op: rawOpDisconnectClientMux, Flags: rawFlagPayloadIsErr, Payload: []byte("x")}),
		ignored("stream pongs", rawMsg{Op: rawOpPong, Payload: []byte("\x81\xa2nf\xc3")}),
		ignored("an unknown op", rawMsg{Op: 200, Payload: []byte("x")}),
	}
}

// frames are websocket messages of a flood, each of many messages with numbers of
// their own.
func (f flood) frames() [][]byte {
	const frames, messages = 2, 1500 // more numbers than are remembered
	all := make([][]byte, frames)
	for n := range all {
		var msgs []rawMsg
		for i := range messages {
			msgs = append(msgs, f.msg(n*messages+i))
		}
		all[n] = encodeMerged(msgs...)
	}
	return all
}

// in runs f with an attacker of either role; under the race detector, where that takes
// long, the floods take turns.
func (flood) in(t *testing.T, i int, edit func(o *ManagerOptions), f func(a *attacked)) {
	c := rawConfig{Caps: allCaps, Unread: true}
	if bytepool.Strict {
		synctest.Test(t, func(t *testing.T) { runAttack(t, i%2 == 0, c, edit, f) })
		return
	}
	inAttack(t, c, edit, f)
}

// A peer that floods, and reads nothing, is dropped for what it makes the node owe.
// What is owed to nobody costs nothing.
func TestAttackFloodOfAPeerThatReadsNothing(t *testing.T) {
	for i, f := range floods() {
		t.Run(f.name, func(t *testing.T) {
			f.in(t, i, func(o *ManagerOptions) { o.MaxPings = 1 << 30 }, func(a *attacked) {
				p := a.next()
				s := a.session()
				before := bubbleGoroutines()
				frames := f.frames()
				most := 10
				if f.owed != "" {
					most = 400
				}
				a.during(func() {
					for i := range most {
						if p.trySendBytes(frames[i%len(frames)]) != nil {
							break
						}
						a.queueBounds(s)
					}
				})
				if f.owed == "" {
					require.LessOrEqual(a, bubbleGoroutines()-before, 4)
					a.requireGrown(1 << 20)
					require.Same(a, s, a.conn.session.Load())
					require.Empty(a, a.log.about("connection lost"))
					p.startReading()
					a.echoes(p)
				} else {
					a.lost(s, f.owed)
					a.requireGrown(2 << 20)
				}
				a.idle()
			})
		})
	}
}

// One that reads what it asked for may go on, and costs no more.
func TestAttackFloodOfAPeerThatReads(t *testing.T) {
	for i, f := range floods() {
		if f.owed == "" {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			f.in(t, i, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				a.swallow(p)
				frames := f.frames()
				a.during(func() {
					for i := range 10 {
						if p.trySendBytes(frames[i%len(frames)]) != nil {
							break
						}
						a.queueBounds(s)
					}
				})
				synctest.Wait()
				if a.conn.session.Load() != s {
					a.logged("connection lost", postedFlood)
				}
				a.requireGrown(2 << 20)
				a.idle()
			})
		})
	}
}

// Once it is clear that a peer goes, what is still in its message starts no more
// goroutines.
func TestAttackFloodInOneMessageStartsFewGoroutines(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, nil, func(a *attacked) {
		p := a.next()
		s := a.session()
		var msgs []rawMsg
		for i := range 150_000 { // the answers to half of them are too many
			msgs = append(msgs, rawMsg{MuxID: farMux + uint64(i), Op: rawOpRequest, Handler: 200})
		}
		b := encodeMerged(msgs...)
		sample := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
		metrics.Read(sample)
		before := sample[0].Value.Uint64()
		require.NoError(a, p.trySendBytes(b))
		a.lost(s, postedFlood)
		metrics.Read(sample)
		started := sample[0].Value.Uint64() - before
		a.Logf("%d goroutines were started", started)
		require.Less(a, started, uint64(200))
	})
}

// Pings beyond MaxPings get no answer, but their numbers count.
func TestAttackPingsBeyondTheLimitAreNotAnswered(t *testing.T) {
	const limit = 10
	inAttack(t, rawConfig{Caps: allCaps, ManualPings: true, Unread: true}, func(o *ManagerOptions) { o.MaxPings = limit }, func(a *attacked) {
		require.NoError(a, a.node.RegisterStreamingHandler(attackStream, StreamHandler{
			InCapacity: 10, Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
				for b := range in {
					out <- b
				}
				return nil
			},
		}))
		p := a.next()
		var wsPongs atomic.Int64
		p.ws.SetPongHandler(func(string) error { wsPongs.Add(1); return nil })
		p.startReading()
		pongs := func() (n int) {
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, m := range p.in {
				if m.Op == rawOpPong {
					n++
				}
			}
			p.in = nil
			return n
		}
		p.send(rawMsg{MuxID: 1, Handler: uint8(attackStream), Op: rawOpConnectMux})
		seq := uint32(0)
		ping := func() rawMsg { seq++; return rawMsg{MuxID: 1, Seq: seq, Op: rawOpPing} }
		a.during(func() {
			for round := range 5 {
				time.Sleep(time.Second)
				var msgs []rawMsg
				for range 5 * limit {
					msgs = append(msgs, ping(), rawPing(time.Now()), rawMsg{MuxID: farMux, Op: rawOpPing})
				}
				p.sendMerged(msgs...)
				require.Equal(a, limit, pongs(), "round %d", round)
				// The websocket's own count as well.
				require.NoError(a, p.tryWriteRaw(p.rawWS(wsFinal|wsPing, 0, nil)))
				synctest.Wait()
				require.Zero(a, wsPongs.Load())
				// Nothing has got lost on the stream.
				seq++
				p.send(rawMsg{MuxID: 1, Seq: seq, Op: rawOpMuxClientMsg, Payload: []byte("x")})
				require.Zero(a, pongs())
				require.Equal(a, 1, a.conn.Stats().StreamsServed)
			}
		})
		time.Sleep(time.Second)
		p.send(ping())
		require.Equal(a, 1, pongs())
		require.NoError(a, p.tryWriteRaw(p.rawWS(wsFinal|wsPing, 0, nil)))
		synctest.Wait()
		require.EqualValues(a, 1, wsPongs.Load())
		a.logged("limit reached", "pings dropped")
		p.close()
		a.idle()
	})
}

// Pings of the websocket have one answer that waits, however many there are.
func TestAttackFloodOfWebsocketPings(t *testing.T) {
	for name, reads := range map[string]bool{"reads": true, "reads nothing": false} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps, Unread: true}, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				if reads {
					a.swallow(p)
				}
				var b []byte
				for range 1000 {
					b = append(b, p.rawWS(wsFinal|wsPing, 125, make([]byte, 125))...)
				}
				a.during(func() {
					for range 50 {
						require.NoError(a, p.tryWriteRaw(b))
					}
					synctest.Wait()
				})
				a.queueBounds(s)
				a.requireGrown(1 << 20)
				if reads {
					require.Same(a, s, a.conn.session.Load())
					return
				}
				// Nothing of the grid's needs to be read yet: its pings do.
				a.during(func() {
					for range 60 {
						_ = p.tryWriteRaw(b)
						time.Sleep(time.Second)
					}
				})
				a.lost(s)
			})
		})
	}
}

// A peer that reads nothing, while there is much for it, and goes on pinging: the node
// reads on, keeps what it may keep, and gives the link up.
func TestAttackPeerThatStallsItsReaderAndPings(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps, Unread: true}, func(o *ManagerOptions) {
		o.WriteTimeout, o.MaxStreams, o.MaxHandlers = 5*time.Second, 30, 30
	}, func(a *attacked) {
		require.NoError(a, a.node.RegisterStreamingHandler(attackStream, StreamHandler{
			OutCapacity: maxCapacity, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
				for ctx.Err() == nil {
					out <- make([]byte, 10_000)
				}
				return nil
			},
		}))
		p := a.next()
		s := a.session()
		for i := range 30 {
			p.send(rawMsg{MuxID: uint64(i + 1), Handler: uint8(attackStream), Op: rawOpConnectMux})
		}
		began := time.Now()
		a.during(func() {
			for time.Since(began) < time.Minute {
				synctest.Wait()
				before := s.reader.frames.Load()
				if p.trySend(rawPing(time.Now())) != nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
				select {
				case <-s.done:
				default:
					a.queueBounds(s)
					require.Equal(a, before+1, s.reader.frames.Load(), "the node reads on")
				}
			}
		})
		require.Less(a, time.Since(began), 10*time.Second)
		a.lost(s, "the peer has read nothing for 5s")
		a.idle()
		a.requireGrown(2 << 20)
	})
}
