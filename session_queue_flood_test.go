package grid_test

import (
	"context"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A flood is of messages that cost the peer nothing. What the node owes for them has a bound,
// whether the peer reads the answers or not.

// flood is a kind of message that a peer may send without end.
type flood struct {
	name string
	msg  func(i int) rawpeer.Msg
	// owed tells that each is answered, so that a peer which does not read must go.
	owed string
}

const (
	postedFlood = "peer makes us answer more than it reads"
	farMux      = 1 << 40 // of which nobody knows
)

func floods() []flood {
	const crc = rawpeer.FlagCRC
	answered := func(name string, m rawpeer.Msg) flood {
		return flood{name, func(i int) rawpeer.Msg {
			m := m
			m.MuxID = farMux + uint64(i)
			return m
		}, postedFlood}
	}
	ignored := func(name string, m rawpeer.Msg) flood {
		f := answered(name, m)
		f.owed = ""
		return f
	}
	return []flood{
		{"link pings", func(int) rawpeer.Msg { return rawpeer.Ping(time.Now()) }, postedFlood},
		{"link pongs", func(int) rawpeer.Msg { p, _ := rawpeer.Pong(rawpeer.Ping(time.Now())); return p }, ""},
		answered("pings of unknown streams", rawpeer.Msg{Op: rawpeer.OpPing}),
		answered("requests of no handler", rawpeer.Msg{Op: rawpeer.OpRequest, Handler: 200, Flags: rawpeer.FlagEOF}),
		answered("requests under no subroute", rawpeer.Msg{Op: rawpeer.OpRequest, Handler: uint8(rig.Echo), Flags: rawpeer.FlagEOF | rawpeer.FlagSubroute, Subroute: rawpeer.SubrouteID(uint8(rig.Echo), "x")}),
		answered("streams of no handler", rawpeer.Msg{Op: rawpeer.OpConnectMux, Handler: 200}),
		answered("streams out of sequence", rawpeer.Msg{Op: rawpeer.OpConnectMux, Handler: uint8(rig.Echo), Seq: 1}),
		answered("fragments of no handler", rawpeer.Msg{Op: rawpeer.OpRequest, Handler: 200, Flags: rawpeer.FlagMore, Payload: []byte("x")}),
		answered("input of unknown streams", rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Payload: []byte("x")}),
		answered("output of unknown streams", rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Payload: []byte("x"), Flags: crc}),
		answered("acks", rawpeer.Msg{Op: rawpeer.OpAckMux}),
		ignored("credits for a server", rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux}),
		ignored("credits for a client", rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Flags: crc}),
		ignored("last input", rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagEOF}),
		ignored("last output", rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagEOF}),
		ignored("responses", rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("x")}),
		ignored("fragments of responses", rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rawpeer.FlagMore, Payload: []byte("x")}),
		ignored("fragments of requests that never began", rawpeer.Msg{Op: rawpeer.OpRequest, Flags: rawpeer.FlagMore, Payload: []byte("x")}),
		ignored("refusals", rawpeer.Msg{Op: rawpeer.OpMuxConnectError, Payload: []byte("\x81\xa5Error\xa1x")}),
		ignored("cancels", rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux}),
		ignored("drops", rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte("x")}),
		ignored("stream pongs", rawpeer.Msg{Op: rawpeer.OpPong, Payload: []byte("\x81\xa2nf\xc3")}),
		ignored("an unknown op", rawpeer.Msg{Op: 200, Payload: []byte("x")}),
	}
}

// frames are websocket messages of a flood, each of many messages with numbers of their own.
func (f flood) frames() [][]byte {
	const frames, messages = 2, 1500 // more numbers than are remembered
	all := make([][]byte, frames)
	for n := range all {
		var msgs []rawpeer.Msg
		for i := range messages {
			msgs = append(msgs, f.msg(n*messages+i))
		}
		all[n] = rawpeer.EncodeMerged(msgs...)
	}
	return all
}

// in runs f with an attacker of either role; under the race detector, where that takes long, the
// floods take turns.
func (flood) in(t *testing.T, i int, edit func(o *grid.ManagerOptions), f func(a *rig.Attacked)) {
	c := rawpeer.Config{Caps: rig.AllCaps, Unread: true}
	if bytepool.Strict {
		synctest.Test(t, func(t *testing.T) { rig.RunAttack(t, i%2 == 0, c, edit, f) })
		return
	}
	rig.InAttack(t, c, edit, f)
}

// A peer that floods, and reads nothing, is dropped for what it makes the node owe. What is owed to
// nobody costs nothing.
func TestFlood_OfAPeerThatReadsNothingEndsItsLink(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make test-long runs it")
	}
	for i, f := range floods() {
		t.Run(f.name, func(t *testing.T) {
			f.in(t, i, func(o *grid.ManagerOptions) { o.MaxPings = 1 << 30 }, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				inside := grid.SessionOf(a.Conn)
				before := rig.BubbleGoroutines()
				frames := f.frames()
				most := 10
				if f.owed != "" {
					most = 400
				}
				a.During(func() {
					for i := range most {
						if p.TrySendBytes(frames[i%len(frames)]) != nil {
							break
						}
						require.NoError(a, inside.QueueBounds())
					}
				})
				if f.owed == "" {
					require.LessOrEqual(a, rig.BubbleGoroutines()-before, 4)
					a.RequireGrown(1 << 20)
					a.Same(s)
					require.Empty(a, a.Book.About("connection lost"))
					p.StartReading()
					a.Echoes(p)
				} else {
					a.Lost(s, f.owed)
					a.RequireGrown(2 << 20)
				}
				idle(a)
			})
		})
	}
}

// One that reads what it asked for may go on, and costs no more.
func TestFlood_OfAPeerThatReadsMayGoOn(t *testing.T) {
	for i, f := range floods() {
		if f.owed == "" {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			f.in(t, i, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				inside := grid.SessionOf(a.Conn)
				a.Swallow(p)
				frames := f.frames()
				a.During(func() {
					for i := range 10 {
						if p.TrySendBytes(frames[i%len(frames)]) != nil {
							break
						}
						require.NoError(a, inside.QueueBounds())
					}
				})
				synctest.Wait()
				if s.Ended() {
					a.Logged("connection lost", postedFlood)
				}
				a.RequireGrown(2 << 20)
				idle(a)
			})
		})
	}
}

// Once it is clear that a peer goes, what is still in its message starts no more goroutines.
func TestFlood_InOneMessageStartsFewGoroutines(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
		p := a.Next()
		s := a.Session()
		var msgs []rawpeer.Msg
		for i := range 150_000 { // the answers to half of them are too many
			msgs = append(msgs, rawpeer.Msg{MuxID: farMux + uint64(i), Op: rawpeer.OpRequest, Handler: 200})
		}
		b := rawpeer.EncodeMerged(msgs...)
		sample := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
		metrics.Read(sample)
		before := sample[0].Value.Uint64()
		require.NoError(a, p.TrySendBytes(b))
		a.Lost(s, postedFlood)
		metrics.Read(sample)
		started := sample[0].Value.Uint64() - before
		a.Logf("%d goroutines were started", started)
		require.Less(a, started, uint64(200))
	})
}

// Pings beyond MaxPings get no answer, but their numbers count.
func TestPing_BeyondTheLimitIsNotAnswered(t *testing.T) {
	const limit = 10
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, ManualPings: true, Unread: true}, func(o *grid.ManagerOptions) { o.MaxPings = limit }, func(a *rig.Attacked) {
		require.NoError(a, a.Node.RegisterStreamingHandler(rig.BlockStream, grid.StreamHandler{
			InCapacity: 10, Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				for b := range in {
					out <- b
				}
				return nil
			},
		}))
		p := a.Next()
		var wsPongs atomic.Int64
		p.WS.SetPongHandler(func(string) error { wsPongs.Add(1); return nil })
		p.StartReading()
		pongs := func() (n int) {
			synctest.Wait()
			for _, m := range p.Take() {
				if m.Op == rawpeer.OpPong {
					n++
				}
			}
			return n
		}
		p.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
		seq := uint32(0)
		ping := func() rawpeer.Msg { seq++; return rawpeer.Msg{MuxID: 1, Seq: seq, Op: rawpeer.OpPing} }
		a.During(func() {
			for round := range 5 {
				time.Sleep(time.Second)
				var msgs []rawpeer.Msg
				for range 5 * limit {
					msgs = append(msgs, ping(), rawpeer.Ping(time.Now()), rawpeer.Msg{MuxID: farMux, Op: rawpeer.OpPing})
				}
				p.SendMerged(msgs...)
				require.Equal(a, limit, pongs(), "round %d", round)
				// The websocket's own count as well.
				require.NoError(a, p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FramePing, 0, nil)))
				synctest.Wait()
				require.Zero(a, wsPongs.Load())
				// Nothing has got lost on the stream.
				seq++
				p.Send(rawpeer.Msg{MuxID: 1, Seq: seq, Op: rawpeer.OpMuxClientMsg, Payload: []byte("x")})
				require.Zero(a, pongs())
				require.Equal(a, 1, a.Conn.Stats().StreamsServed)
			}
		})
		time.Sleep(time.Second)
		p.Send(ping())
		require.Equal(a, 1, pongs())
		require.NoError(a, p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FramePing, 0, nil)))
		synctest.Wait()
		require.EqualValues(a, 1, wsPongs.Load())
		a.Logged("limit reached", "pings dropped")
		p.Close()
		idle(a)
	})
}

// Pings of the websocket have one answer that waits, however many there are.
func TestWebsocket_FloodOfPingsHasOneAnswerThatWaits(t *testing.T) {
	for name, reads := range map[string]bool{"reads": true, "reads nothing": false} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				inside := grid.SessionOf(a.Conn)
				if reads {
					a.Swallow(p)
				}
				var b []byte
				for range 1000 {
					b = append(b, p.Frame(rawpeer.FrameFinal|rawpeer.FramePing, 125, make([]byte, 125))...)
				}
				a.During(func() {
					for range 50 {
						require.NoError(a, p.TryWrite(b))
					}
					synctest.Wait()
				})
				require.NoError(a, inside.QueueBounds())
				a.RequireGrown(1 << 20)
				if reads {
					a.Same(s)
					return
				}
				// Nothing of the grid's needs to be read yet: its pings do.
				a.During(func() {
					for range 60 {
						_ = p.TryWrite(b)
						time.Sleep(time.Second)
					}
				})
				a.Lost(s)
			})
		})
	}
}

// A peer that reads nothing, while there is much for it, and goes on pinging: the node reads on,
// keeps what it may keep, and gives the link up.
func TestPing_OfAPeerThatStallsItsReaderDoesNotKeepTheLink(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, func(o *grid.ManagerOptions) {
		o.WriteTimeout, o.MaxStreams, o.MaxHandlers = 5*time.Second, 30, 30
	}, func(a *rig.Attacked) {
		require.NoError(a, a.Node.RegisterStreamingHandler(rig.BlockStream, grid.StreamHandler{
			OutCapacity: rig.MaxCapacity, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				for ctx.Err() == nil {
					out <- make([]byte, 10_000)
				}
				return nil
			},
		}))
		p := a.Next()
		s := a.Session()
		inside := grid.SessionOf(a.Conn)
		for i := range 30 {
			p.Send(rawpeer.Msg{MuxID: uint64(i + 1), Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
		}
		began := time.Now()
		a.During(func() {
			for time.Since(began) < time.Minute {
				synctest.Wait()
				before := inside.MessagesRead()
				if p.TrySend(rawpeer.Ping(time.Now())) != nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
				if !inside.Ended() {
					require.NoError(a, inside.QueueBounds())
					require.Equal(a, before+1, inside.MessagesRead(), "the node reads on")
				}
			}
		})
		require.Less(a, time.Since(began), 10*time.Second)
		a.Lost(s, "the peer has read nothing for 5s")
		idle(a)
		a.RequireGrown(2 << 20)
	})
}

// Requests with large answers, which nobody reads.
func TestLimits_LargeAnswersThatAreNotRead(t *testing.T) {
	const size = 250_000
	for name, bits := range map[string]uint64{"with fragments": rig.AllCaps, "of version 1": 0} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: bits, Unread: true}, rig.KeptLimits, func(a *rig.Attacked) {
				var answered atomic.Int64
				require.NoError(a, a.Node.RegisterSingleHandler(rig.AttackAnswer, func([]byte) ([]byte, *grid.RemoteErr) {
					answered.Add(1)
					return make([]byte, size), nil
				}))
				// fill leaves little room for the texts that take the place of answers.
				fill := func(p *rawpeer.Peer, s *rig.Link) {
					taken := func() int {
						synctest.Wait()
						return grid.SessionOf(a.Conn).SmallTaken()
					}
					for id := uint64(1 << 20); taken() < s.Opts.MaxQueuedBytes-10_000; id += 10 {
						var msgs []rawpeer.Msg
						for i := range uint64(10) {
							msgs = append(msgs, rawpeer.Msg{MuxID: id + i, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: make([]byte, 500)})
						}
						p.SendMerged(msgs...)
					}
				}
				ask := func(p *rawpeer.Peer, n int) {
					for i := range n {
						p.Send(rawpeer.Msg{MuxID: uint64(i + 1), Handler: uint8(rig.AttackAnswer), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
					}
					synctest.Wait()
				}
				p := a.Next()
				s := a.Session()
				inside := grid.SessionOf(a.Conn)
				before := rig.BubbleGoroutines()
				a.During(func() {
					fill(p, s)
					ask(p, 1000)
				})
				require.LessOrEqual(a, answered.Load(), int64(1000))
				kept := a.Conn.Stats().KeptBytes
				require.LessOrEqual(a, kept, int64(s.Opts.MaxHostBytes))
				// One of the answers that wait may have found room after the last handler had run.
				require.GreaterOrEqual(a, kept, int64(s.Opts.MaxHostBytes-2*size))
				require.LessOrEqual(a, a.Conn.Stats().Handlers, s.Opts.MaxHandlers)
				time.Sleep(2 * time.Second) // workers that are idle are let go
				require.LessOrEqual(a, rig.BubbleGoroutines()-before, s.Opts.MaxHandlers+10)
				require.NoError(a, inside.QueueBounds())
				a.RequireGrown(int64(s.Opts.MaxHostBytes) + 8<<20)
				require.NotEmpty(a, a.Book.About("limit reached"))
				a.During(func() { a.Lost(s, "the peer has read nothing for 5s") })
				idle(a)

				// One who reads at last has as many as fitted, and hears of the others.
				p = a.Next()
				ask(p, 300)
				w := a.Swallow(p)
				synctest.Wait()
				require.Equal(a, 300, w.Count(rawpeer.OpMuxConnectError)+answersOf(w, bits != 0, size))
				require.GreaterOrEqual(a, w.Overloaded.Load(), int64(200))
				idle(a)
			})
		})
	}
}

// answersOf is how many answers have come in whole.
func answersOf(w *rig.Swallower, fragments bool, size int) int {
	if !fragments {
		return w.Count(rawpeer.OpResponse)
	}
	return w.Count(rawpeer.OpResponse) / ((size + rig.FragmentSize - 1) / rig.FragmentSize)
}

// Any number of processes under the name of an honest host, while that is slow to read. It is asked
// whether it is alive, and not flooded by that.
func TestSameName_SecondProcessesDoNotReplaceASlowHost(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) { o.MaxHandshakes = 500 }, func(a *rig.Attacked) {
		p := a.Dial(rawpeer.Config{Caps: rig.AllCaps, Unread: true}) // honest, and reads nothing for some seconds
		s := a.Session()
		inside := grid.SessionOf(a.Conn)
		// As much as is enough to make the writer wait.
		for i := range uint64(10) {
			p.Send(rawpeer.Msg{MuxID: i + 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: make([]byte, 60_000)})
		}
		synctest.Wait()
		for range 300 {
			q := a.Dial(rawpeer.Config{Bare: true, Caps: rig.AllCaps})
			h := rawpeer.Connect{ID: q.Config.Instance(), Host: a.Raw, Time: time.Now(), Token: rig.AttackToken}
			q.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: h.Encode()})
		}
		synctest.Wait()
		require.NoError(a, inside.QueueBounds())
		require.False(a, inside.Ended(), "the honest link was ended: %v", s.Err())
		p.StartReading()
		synctest.Wait()
		a.Same(s)
		a.Echoes(p)
		a.Logged("handshake failed", "two processes")
		time.Sleep(10 * time.Second)
		require.Zero(a, inside.Probes())
	})
}

// Both shut down at once, and the peer floods with calls that come too late.
func TestShutdown_UnderAFloodOfCallsThatComeTooLate(t *testing.T) {
	for name, bits := range map[string]uint64{"with the extension": rig.AllCaps, "without": 0} {
		t.Run(name, func(t *testing.T) {
			for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
				t.Run(name, func(t *testing.T) { floodShutdown(t, rawDials, bits) })
			}
		})
	}
}

func floodShutdown(t *testing.T, rawDials bool, bits uint64) {
	synctest.Test(t, func(t *testing.T) {
		r := rig.NewWire(t, rawDials, rawpeer.Config{Caps: bits, Unread: true}, nil)
		a := &rig.Attacked{T: t, Node: r.Node, Conn: r.Conn, Book: r.Book, Before: rig.Heap()}
		b := a.Block(1)
		w := a.Swallow(r.Peer)
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.BlockSingle), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
		synctest.Wait()
		before := rig.BubbleGoroutines()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		a.Session()
		inside := grid.SessionOf(a.Conn)
		shutdown := rig.InBackground(func() error { return r.Node.Shutdown(ctx) })
		synctest.Wait()
		if bits != 0 {
			require.Equal(t, 1, w.Count(rawpeer.OpDisconnect))
			r.Peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
		}
		const n = 20_000
		for i := range n / 100 {
			var msgs []rawpeer.Msg
			for j := range 100 {
				op, handler := uint8(rawpeer.OpRequest), rig.BlockSingle
				if j%2 == 0 {
					op, handler = rawpeer.OpConnectMux, rig.BlockStream
				}
				msgs = append(msgs, rawpeer.Msg{MuxID: uint64(100*i + j + 2), Handler: uint8(handler), Op: op})
			}
			r.Peer.SendMerged(msgs...)
			require.NoError(a, inside.QueueBounds())
		}
		synctest.Wait()
		require.EqualValues(t, 1, b.Most.Load())
		told := uint8(rawpeer.OpMuxConnectError)
		if bits == 0 {
			told = rawpeer.OpDisconnectClientMux // as by a lost link
		}
		require.Equal(t, n, w.Count(told))
		require.Zero(t, w.Count(rawpeer.OpAckMux))
		require.LessOrEqual(t, rig.BubbleGoroutines()-before, 10)
		a.RequireGrown(2 << 20)
		require.Empty(t, shutdown)
		b.Release()
		require.NoError(t, <-shutdown)
		synctest.Wait()
		require.Equal(t, 1, w.Count(rawpeer.OpResponse), "what was under way is answered")
		a.CheckLog()
	})
}
