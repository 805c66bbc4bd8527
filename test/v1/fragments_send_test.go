package v1

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Payloads in fragments whose sender or receiver gives up half way.

// kinds are the two that begin with a payload of any size.
var kinds = map[string]struct {
	op   uint8
	call func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error
}{
	"request": {rawpeer.OpRequest, func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error {
		_, err := c.SingleRequest(ctx, id, payload)
		return err
	}},
	"stream": {rawpeer.OpConnectMux, func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error {
		_, err := c.NewStream(ctx, id, payload)
		return err
	}},
}

// inKinds runs f for both.
func inKinds(t *testing.T, f func(t *testing.T, op uint8, call func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error)) {
	t.Helper()
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { f(t, kind.op, kind.call) })
	}
}

// expectPart requires that the node says the beginning of a payload next, and what follows that it
// returns.
func (r *wire) expectPart(want rawpeer.Msg) (next rawpeer.Msg, ok bool) {
	r.Helper()
	n := 0
	for {
		synctest.Wait()
		m, ok, err := r.Peer.Next()
		require.NoError(r, err)
		if !ok || m.Op != want.Op {
			require.Positive(r, n)
			require.Less(r, n, 1<<20, "it did not stop")
			return m, ok
		}
		n += len(m.Payload)
		require.Equal(r, uint8(rawpeer.FlagCRC|rawpeer.FlagMore), m.Flags)
		rig.RequireSame(r.T, want.Payload[n-len(m.Payload):n], m.Payload)
	}
}

func TestFragments_StopWhenTheCallerGivesUp(t *testing.T) {
	t.Parallel()
	unread := rig.FragmentConfig
	unread.Unread = true
	inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error) {
		inWire(t, unread, nil, func(r *wire) {
			payload := rig.Mixed(4 << 20)
			ctx, cancel := context.WithCancelCause(r.Context())
			begun := rig.InBackground(func() error { return call(ctx, r.Conn, 50, payload) })
			synctest.Wait()
			behind := rig.InBackground(func() error { return call(ctx, r.Conn, 51, payload) }) // not begun
			synctest.Wait()
			require.Empty(r, begun)
			require.Zero(r, rig.Elapsed(func() {
				cancel(rig.ErrCause)
				require.ErrorIs(r, <-begun, rig.ErrCause)
				require.ErrorIs(r, <-behind, rig.ErrCause)
			}))
			require.Zero(r, r.Conn.Stats().Calls+r.Conn.Stats().Streams)
			r.Peer.StartReading()
			m, ok := r.expectPart(rawpeer.Msg{Op: op, Payload: payload})
			require.True(r, ok)
			if op == rawpeer.OpConnectMux { // which says so in any case, in any order
				other := r.Peer.Recv()
				if m.MuxID == 2 {
					m, other = other, m
				}
				require.Equal(r, rawpeer.Msg{MuxID: 2, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC}, other)
			}
			require.Equal(r, rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC}, m)
			r.Alive()
		})
	})
}

func TestFragments_StopWhenTheAnswerComesEarly(t *testing.T) {
	t.Parallel()
	unread := rig.FragmentConfig
	unread.Unread = true
	inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error) {
		for name, answer := range map[string]rawpeer.Msg{
			"refusal": {Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError("go away")},
			"error":   {Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("go away")},
			"drop":    {Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte("go away")},
		} {
			t.Run(name, func(t *testing.T) {
				inWire(t, unread, nil, func(r *wire) {
					payload := rig.Mixed(4 << 20)
					begun := rig.InBackground(func() error { return call(r.Context(), r.Conn, 50, payload) })
					synctest.Wait()
					answer.MuxID = 1
					r.Peer.Send(answer)
					synctest.Wait()
					if op == rawpeer.OpConnectMux {
						// A single caller looks when there is room for more.
						if err := <-begun; answer.Op == rawpeer.OpResponse {
							require.ErrorIs(r, err, grid.ErrProtocol)
						} else {
							require.Equal(r, grid.NewRemoteErrString("go away"), err)
						}
					}
					r.Peer.StartReading()
					m, ok := r.expectPart(rawpeer.Msg{Op: op, Payload: payload})
					if op == rawpeer.OpRequest {
						require.Equal(r, grid.NewRemoteErrString("go away"), <-begun)
						require.True(r, ok)
					}
					if ok {
						m.Payload, m.Flags = nil, rawpeer.FlagCRC
						require.Equal(r, rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC}, m)
					}
					require.Zero(r, r.Conn.Stats().Calls+r.Conn.Stats().Streams)
					r.Alive()
				})
			})
		}
	})
}

// neverRun registers handlers of both kinds that must not be called.
func neverRun(t testing.TB, m *grid.Manager) {
	t.Helper()
	require.NoError(t, m.RegisterSingleHandler(50, func([]byte) ([]byte, *grid.RemoteErr) {
		t.Error("the request's handler ran")
		return nil, nil
	}))
	require.NoError(t, m.RegisterStreamingHandler(51, grid.StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
		t.Error("the stream's handler ran")
		return nil
	}}))
}

// toldOfSilence expects that the peer is told that the rest is not waited for.
func toldOfSilence(r *wire) {
	r.Helper()
	require.Contains(r, rawpeer.ConnectErrorText(r.T, r.Peer.Expect(rawpeer.OpMuxConnectError).Payload), "gave up waiting")
}

func TestFragments_OfAnOpeningThatIsGivenUp(t *testing.T) {
	t.Parallel()
	one := func(o *grid.ManagerOptions) { o.MaxHandlers = 1 }
	inKinds(t, func(t *testing.T, op uint8, _ func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error) {
		for name, c := range map[string]struct {
			deadline uint32
			giveUp   func(r *wire, again func())
		}{
			"by its client": {0, func(r *wire, _ func()) {
				r.Peer.Send(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpDisconnectServerMux})
				synctest.Wait()
			}},
			"by its client, with a reason": {0, func(r *wire, _ func()) {
				r.Peer.Send(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte("why not")})
				synctest.Wait()
			}},
			"by its deadline": {5000, func(r *wire, again func()) {
				for range 4 {
					time.Sleep(time.Second)
					again()
				}
				time.Sleep(2*time.Second + time.Millisecond)
			}},
			"by silence": {0, func(r *wire, again func()) {
				for range 4 {
					time.Sleep(59 * time.Second)
					again()
				}
				time.Sleep(61*time.Second + time.Millisecond)
				toldOfSilence(r)
			}},
			"by silence before a deadline": {3_600_000, func(r *wire, again func()) {
				time.Sleep(59 * time.Second)
				again()
				time.Sleep(61*time.Second + time.Millisecond)
				toldOfSilence(r)
			}},
		} {
			t.Run(name, func(t *testing.T) {
				inWire(t, rig.FragmentConfig, one, func(r *wire) {
					neverRun(r.T, r.Node.Manager)
					for range 3 {
						first := rawpeer.Fragment(op, 7, 0, 50)
						if op == rawpeer.OpConnectMux {
							first.Handler = 51
						}
						first.DeadlineMS = c.deadline
						r.Peer.Send(first)
						seq := uint32(0)
						next := func() rawpeer.Msg {
							if op == rawpeer.OpConnectMux {
								seq++
							}
							return rawpeer.Fragment(op, 7, seq, 0)
						}
						again := func() {
							r.Helper()
							r.Peer.Send(next())
							r.Quiet()
							require.Equal(r, 1, r.Conn.Stats().Handlers)
						}
						again()
						require.Zero(r, r.Conn.Stats().StreamsServed)
						// It has the only slot.
						r.Peer.Send(rawpeer.Msg{MuxID: 8, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
						require.Contains(r, rawpeer.ConnectErrorText(r.T, r.Peer.Expect(rawpeer.OpMuxConnectError).Payload), "the limit of MaxHandlers")
						c.giveUp(r, again)
						require.Zero(r, r.Conn.Stats().Handlers)
						r.Alive()
						// The rest comes late.
						r.Peer.Send(next())
						last := next()
						last.Flags = rawpeer.FlagEOF
						r.Peer.Send(last)
						r.Alive()
					}
				})
			})
		}
	})
}

// The first fragment is refused, and what follows it is dropped.
func TestFragments_OfAnOpeningThatIsRefused(t *testing.T) {
	t.Parallel()
	one := func(o *grid.ManagerOptions) { o.MaxHandlers = 1 }
	inKinds(t, func(t *testing.T, op uint8, _ func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error) {
		inWire(t, rig.FragmentConfig, one, func(r *wire) {
			started := r.serve(1, 1, "")
			refused := func(handler grid.HandlerID, why string) {
				r.Helper()
				msgs := inPieces(rawpeer.Msg{MuxID: 7, Handler: uint8(handler), Op: op, Flags: rawpeer.FlagEOF, Payload: []byte("abcdef")}, 1, 2, 2)
				r.Peer.Send(msgs[0])
				m := r.Peer.Expect(rawpeer.OpMuxConnectError)
				require.Contains(r, rawpeer.ConnectErrorText(r.T, m.Payload), why)
				m.Payload = nil
				require.Equal(r, rawpeer.Msg{MuxID: 7, Handler: uint8(handler), Op: rawpeer.OpMuxConnectError, Flags: rawpeer.FlagCRC}, m)
				for _, m := range msgs[1:] {
					r.Peer.Send(m)
				}
				r.Quiet()
			}
			refused(rig.Unused, "handler with ID 8")
			refused(map[uint8]grid.HandlerID{rawpeer.OpRequest: rig.Stream, rawpeer.OpConnectMux: rig.Echo}[op], "only one of the other kind")
			require.Zero(r, r.Conn.Stats().Handlers)
			r.Alive()
			s := r.askedWide(started, 9, rawpeer.Msg{}, 1)
			refused(map[uint8]grid.HandlerID{rawpeer.OpRequest: rig.Echo, rawpeer.OpConnectMux: rig.Stream}[op], "the limit of MaxHandlers")
			require.Equal(r, 1, r.Conn.Stats().Handlers)
			s.result <- nil
			r.Peer.Expect(rawpeer.OpMuxServerMsg)
			r.Alive()
			require.Zero(r, r.Conn.Stats().Handlers)
		})
	})
}

// slowPair is two nodes with a slow link from the first returned to the second, where neverRun are
// the handlers.
func slowPair(t *testing.T, edit func(o *grid.ManagerOptions)) (g *rig.Grid, from, to int) {
	g, from, to = rig.NewSlow(t, rig.SlowRate, edit)
	neverRun(t, g.Manager(to))
	return g, from, to
}

// requireIdle requires that nothing is under way between two nodes, and that they work.
func requireIdle(g *rig.Grid) {
	g.T.Helper()
	synctest.Wait()
	for i := range 2 {
		st := g.Conn(i, 1-i).Stats()
		require.Zero(g.T, st.Calls+st.Streams+st.Handlers+st.StreamsServed, "%+v", st)
	}
	g.RequireWorks()
}

// stopAtOnce stops a node, and takes no time for it.
func stopAtOnce(g *rig.Grid, i int) {
	_ = g.Manager(i).Close()
	synctest.Wait() // so that there is nobody to wait for
	g.Stop(i)
}

func TestFragments_OfACallThatEndsHalfWay(t *testing.T) {
	t.Parallel()
	const half = 3 * time.Second // of sixteen
	for name, end := range map[string]struct {
		strike func(g *rig.Grid, from, to int, cancel context.CancelCauseFunc)
		is     error
	}{
		"cancel":        {func(_ *rig.Grid, _, _ int, cancel context.CancelCauseFunc) { cancel(rig.ErrCause) }, rig.ErrCause},
		"deadline":      {func(*rig.Grid, int, int, context.CancelCauseFunc) {}, context.DeadlineExceeded},
		"lost link":     {func(g *rig.Grid, from, to int, _ context.CancelCauseFunc) { g.Cut(from, to) }, grid.ErrDisconnected},
		"closed":        {func(g *rig.Grid, from, _ int, _ context.CancelCauseFunc) { stopAtOnce(g, from) }, grid.ErrDisconnected},
		"remote closed": {func(g *rig.Grid, _, to int, _ context.CancelCauseFunc) { stopAtOnce(g, to) }, grid.ErrDisconnected},
	} {
		t.Run(name, func(t *testing.T) {
			inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error) {
				rig.InBubble(t, func(t *testing.T) {
					g, from, to := slowPair(t, nil)
					id := map[uint8]grid.HandlerID{rawpeer.OpRequest: 50, rawpeer.OpConnectMux: 51}[op]
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					if name == "deadline" {
						var stop context.CancelFunc
						ctx, stop = context.WithTimeout(ctx, half)
						defer stop()
					}
					begin := time.Now()
					ended := rig.InBackground(func() error { return call(ctx, g.Conn(from, to), id, rig.Mixed(16<<20)) })
					time.Sleep(half - time.Millisecond)
					require.Empty(t, ended)
					server := g.Conn(to, from)
					require.Equal(t, 1, server.Stats().Handlers)
					require.Zero(t, server.Stats().StreamsServed)
					time.Sleep(time.Millisecond)
					end.strike(g, from, to, cancel)
					err := <-ended
					require.ErrorIs(t, err, end.is)
					require.Equal(t, half, time.Since(begin))
					time.Sleep(2 * rig.Promptly)
					if name == "deadline" { // looked after every second
						time.Sleep(time.Second)
					}
					require.Zero(t, server.Stats().Handlers)
					for _, i := range []int{from, to} {
						if g.Node(i) == nil {
							g.Start(i)
							if i == to {
								neverRun(t, g.Manager(to))
							}
						}
					}
					g.WaitConnected()
					requireIdle(g)
					b, err := g.Conn(from, to).SingleRequest(t.Context(), rig.Echo, rig.Mixed(1<<20))
					require.NoError(t, err)
					rig.RequireSame(t, rig.Mixed(1<<20), b)
				})
			})
		})
	}
}

func TestFragments_OfOpeningsWhoseContextsEndAtAnyTime(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	payload := make([]byte, 4<<20)
	for range rig.Scaled(2000) {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, err := g.Conn(0, 1).NewStream(ctx, rig.Block, payload)
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
	}
	require.Eventually(t, func() bool { return g.Conn(1, 0).Stats().Handlers == 0 }, 10*time.Second, 10*time.Millisecond)
	require.Zero(t, g.Conn(0, 1).Stats().Reconnects)
}

// A refusal is told as soon as the first fragment has arrived, and the rest is not sent.
func TestFragments_OfACallThatIsRefusedAreNotAllSent(t *testing.T) {
	t.Parallel()
	for name, why := range map[string]string{"no handler": "handler with ID", "no slot": "the limit of MaxHandlers", "shutdown": "shutting down"} {
		t.Run(name, func(t *testing.T) {
			inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload []byte) error) {
				rig.InBubble(t, func(t *testing.T) {
					g, from, to := slowPair(t, func(o *grid.ManagerOptions) {
						if name == "no slot" {
							o.MaxHandlers = 1
						}
					})
					id := map[uint8]grid.HandlerID{rawpeer.OpRequest: 50, rawpeer.OpConnectMux: 51}[op]
					conn := g.Conn(from, to)
					ended := make(<-chan error)
					if name == "no handler" {
						id = rig.Unused
					} else {
						st, err := conn.NewStream(t.Context(), rig.TwoWay, nil)
						require.NoError(t, err)
						defer rig.Consume(st)
						defer close(st.Requests)
					}
					if name == "shutdown" {
						ended = rig.InBackground(func() error { return g.Manager(to).Shutdown(t.Context()) })
						synctest.Wait()
					}
					before := conn.Stats().BytesOut
					begin := time.Now()
					err := call(t.Context(), conn, id, rig.Mixed(16<<20))
					state := grid.StateConnected
					if name == "shutdown" { // which the caller knows of
						require.ErrorIs(t, err, grid.ErrDisconnected)
						state = grid.StateConnectionError
					} else {
						require.True(t, grid.IsRemoteErr(err), err)
					}
					require.ErrorContains(t, err, why)
					require.LessOrEqual(t, time.Since(begin), 2*rig.Promptly)
					time.Sleep(2 * rig.Promptly)
					require.Less(t, conn.Stats().BytesOut-before, int64(1<<20))
					require.Zero(t, conn.Stats().Calls)
					require.Equal(t, map[bool]int{true: 1, false: 0}[name != "no handler"], g.Conn(to, from).Stats().Handlers)
					require.Equal(t, state, conn.State())
					require.Empty(t, ended)
				})
			})
		})
	}
}

// The answer is on its way when the caller gives up, or the link is lost.
func TestFragments_OfAnAnswerThatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	for _, cut := range []bool{false, true} {
		rig.InBubble(t, func(t *testing.T) {
			g, from, to := rig.NewSlow(t, rig.SlowRate, nil)
			var ran atomic.Int32
			require.NoError(t, g.Manager(from).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
				ran.Add(1)
				return make([]byte, 4<<20), nil
			}))
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := rig.InBackground(func() error {
				_, err := g.Conn(to, from).SingleRequest(ctx, rig.Handler, nil)
				return err
			})
			time.Sleep(time.Second)
			require.Empty(t, ended)
			require.Equal(t, 1, g.Conn(from, to).Stats().Handlers)
			if cut {
				g.Cut(from, to)
				require.ErrorIs(t, <-ended, grid.ErrDisconnected)
				synctest.Wait()
				require.Zero(t, g.Conn(from, to).Stats().Handlers)
				g.WaitConnected()
			} else {
				cancel(rig.ErrCause)
				require.ErrorIs(t, <-ended, rig.ErrCause)
				require.Zero(t, g.Conn(to, from).Stats().Calls)
				time.Sleep(4 * time.Second) // the rest is for nobody
			}
			cancel(nil)
			require.EqualValues(t, 1, ran.Load())
			requireIdle(g)
		})
	}
}

// A message of a stream that is cancelled half way is not delivered, on either side, and those who
// send it are let go.
func TestFragments_OfAStreamMessageThatIsCancelledHalfWay(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]bool{"cancel": false, "lost link": true} {
		for way, backwards := range map[string]bool{"client": false, "server": true} {
			t.Run(name+" of the "+way, func(t *testing.T) {
				rig.InBubble(t, func(t *testing.T) {
					g, from, to := rig.NewSlow(t, rig.SlowRate, nil)
					client, server := from, to
					if backwards {
						client, server = to, from
					}
					causes, got := make(chan error, 1), make(chan int, 10)
					require.NoError(t, g.Manager(server).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
						InCapacity: 1,
						Handle: func(ctx context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
							if backwards {
								out <- []byte("first")
								out <- make([]byte, 4<<20)
								out <- []byte("last")
							}
							for b := range in {
								got <- len(b)
							}
							causes <- context.Cause(ctx)
							return nil
						},
					}))
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					st, err := g.Conn(client, server).NewStream(ctx, rig.Handler, nil)
					require.NoError(t, err)
					sent := rig.InBackground(func() error {
						if backwards {
							return rig.ErrCause
						}
						return errors.Join(st.Send([]byte("first")), st.Send(make([]byte, 4<<20)))
					})
					seen := rig.InBackground(func() error {
						return st.Results(func(b []byte) error { got <- len(b); return nil })
					})
					time.Sleep(time.Second)
					want := rig.ErrCause
					if cut {
						want = grid.ErrDisconnected
						g.Cut(from, to)
					} else {
						cancel(rig.ErrCause)
					}
					require.ErrorIs(t, <-seen, want)
					if err := <-sent; !backwards {
						require.ErrorIs(t, err, want)
					}
					if cause := <-causes; cut {
						require.ErrorIs(t, cause, grid.ErrDisconnected)
					} else {
						require.Equal(t, context.Canceled, cause)
					}
					require.Equal(t, len("first"), <-got)
					require.Empty(t, got)
					st.CloseSend()
					time.Sleep(rig.Promptly)
					g.WaitConnected()
					requireIdle(g)
				})
			})
		}
	}
}

func TestFragments_OfAnOpeningAndShutdown(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(r *wire, rest []rawpeer.Msg, ended <-chan error){
		"that is completed": func(r *wire, rest []rawpeer.Msg, ended <-chan error) {
			// Nothing new, which a peer without drain takes for a lost link.
			r.Peer.Send(rawpeer.Fragment(rawpeer.OpRequest, 8, 0, rig.Echo))
			r.Expect(rawpeer.Msg{MuxID: 8, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
			for _, m := range rest {
				r.Quiet()
				require.Empty(r, ended)
				r.Peer.Send(m)
			}
			r.Expect(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("abcdef")})
			synctest.Wait()
			r.Peer.Close()
			require.NoError(r, <-ended)
		},
		"that is cancelled": func(r *wire, _ []rawpeer.Msg, ended <-chan error) {
			r.Peer.Send(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpDisconnectServerMux})
			synctest.Wait()
			r.Peer.Close()
			require.NoError(r, <-ended)
		},
		"whose rest does not come": func(r *wire, _ []rawpeer.Msg, ended <-chan error) {
			time.Sleep(59 * time.Second)
			require.Empty(r, ended)
			require.LessOrEqual(r, rig.Elapsed(func() { require.NoError(r, <-ended) }), 2*time.Second+rig.HangUpTime)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rig.FragmentConfig, nil, func(r *wire) {
				msgs := inPieces(rawpeer.Msg{MuxID: 7, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("abcdef")}, 1, 2, 2)
				r.Peer.Send(msgs[0])
				r.Quiet()
				ended := rig.InBackground(func() error { return r.Node.Shutdown(context.Background()) })
				synctest.Wait()
				require.Empty(r, ended)
				f(r, msgs[1:], ended)
				require.Zero(r, r.Conn.Stats().Handlers)
			})
		})
	}
	t.Run("that must wait no longer", func(t *testing.T) {
		inWire(t, rig.FragmentConfig, nil, func(r *wire) {
			r.Peer.Send(rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo))
			r.Quiet()
			ctx, cancel := context.WithTimeoutCause(r.Context(), time.Second, rig.ErrCause)
			defer cancel()
			require.Equal(r, time.Second, rig.Elapsed(func() { require.ErrorIs(r, r.Node.Shutdown(ctx), rig.ErrCause) }))
			require.Zero(r, r.Conn.Stats().Handlers)
		})
	})
	t.Run("of the caller", func(t *testing.T) {
		rig.InBubble(t, func(t *testing.T) {
			g, from, to := rig.NewSlow(t, rig.SlowRate, nil)
			payload := rig.Mixed(4 << 20)
			call := rig.InBackground(func() error {
				b, err := g.Conn(from, to).SingleRequest(t.Context(), rig.Echo, payload)
				if !bytes.Equal(payload, b) {
					t.Error("answer lost or garbled")
				}
				return err
			})
			time.Sleep(time.Second)
			ended := rig.InBackground(func() error { return g.Manager(to).Shutdown(t.Context()) })
			require.NoError(t, g.Manager(from).Shutdown(t.Context()))
			require.NoError(t, <-call)
			require.NoError(t, <-ended)
		})
	})
}
