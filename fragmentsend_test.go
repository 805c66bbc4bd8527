package grid

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Payloads in fragments whose sender or receiver gives up half way.

// kinds are the two that begin with a payload of any size.
var kinds = map[string]struct {
	op   uint8
	call func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error
}{
	"request": {rawOpRequest, func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error {
		_, err := c.SingleRequest(ctx, id, payload)
		return err
	}},
	"stream": {rawOpConnectMux, func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error {
		_, err := c.NewStream(ctx, id, payload)
		return err
	}},
}

// inKinds runs f for both.
func inKinds(t *testing.T, f func(t *testing.T, op uint8, call func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error)) {
	t.Helper()
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { f(t, kind.op, kind.call) })
	}
}

// expectPart requires that the node says the beginning of a payload next, and what
// follows that it returns.
func (r *v1Rig) expectPart(want rawMsg) (next rawMsg, ok bool) {
	r.Helper()
	n := 0
	for {
		synctest.Wait()
		m, ok, err := r.peer.next()
		require.NoError(r, err)
		if !ok || m.Op != want.Op {
			require.Positive(r, n)
			require.Less(r, n, 1<<20, "it did not stop")
			return m, ok
		}
		n += len(m.Payload)
		require.Equal(r, uint8(rawFlagCRC|rawFlagMore), m.Flags)
		requireSame(r.T, want.Payload[n-len(m.Payload):n], m.Payload)
	}
}

func TestFragmentsStopWhenTheCallerGivesUp(t *testing.T) {
	unread := fragmentConfig
	unread.Unread = true
	inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error) {
		inV1(t, unread, nil, func(r *v1Rig) {
			payload := mixed(4 << 20)
			ctx, cancel := context.WithCancelCause(r.Context())
			begun := inBackground(func() error { return call(ctx, r.conn, 50, payload) })
			synctest.Wait()
			behind := inBackground(func() error { return call(ctx, r.conn, 51, payload) }) // not begun
			synctest.Wait()
			require.Empty(r, begun)
			require.Zero(r, elapsed(func() {
				cancel(errTestCause)
				require.Equal(r, errTestCause, <-begun)
				require.Equal(r, errTestCause, <-behind)
			}))
			require.Zero(r, r.conn.Stats().Calls+r.conn.Stats().Streams)
			r.peer.startReading()
			m, ok := r.expectPart(rawMsg{Op: op, Payload: payload})
			require.True(r, ok)
			if op == rawOpConnectMux { // which says so in any case, in any order
				other := r.peer.recv()
				if m.MuxID == 2 {
					m, other = other, m
				}
				require.Equal(r, rawMsg{MuxID: 2, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC}, other)
			}
			require.Equal(r, rawMsg{MuxID: 1, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC}, m)
			r.alive()
		})
	})
}

func TestFragmentsStopWhenTheAnswerComesEarly(t *testing.T) {
	unread := fragmentConfig
	unread.Unread = true
	inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error) {
		for name, answer := range map[string]rawMsg{
			"refusal": {Op: rawOpMuxConnectError, Payload: connectError("go away")},
			"error":   {Op: rawOpResponse, Flags: rawFlagEOF | rawFlagPayloadIsErr, Payload: []byte("go away")},
			"drop":    {Op: rawOpDisconnectClientMux, Flags: rawFlagPayloadIsErr, Payload: []byte("go away")},
		} {
			t.Run(name, func(t *testing.T) {
				inV1(t, unread, nil, func(r *v1Rig) {
					payload := mixed(4 << 20)
					begun := inBackground(func() error { return call(r.Context(), r.conn, 50, payload) })
					synctest.Wait()
					answer.MuxID = 1
					r.peer.send(answer)
					synctest.Wait()
					if op == rawOpConnectMux {
						// A single caller looks when there is room for more.
						if err := <-begun; answer.Op == rawOpResponse {
							require.ErrorIs(r, err, ErrProtocol)
						} else {
							require.Equal(r, NewRemoteErrString("go away"), err)
						}
					}
					r.peer.startReading()
					m, ok := r.expectPart(rawMsg{Op: op, Payload: payload})
					if op == rawOpRequest {
						require.Equal(r, NewRemoteErrString("go away"), <-begun)
						require.True(r, ok)
					}
					if ok {
						m.Payload, m.Flags = nil, rawFlagCRC
						require.Equal(r, rawMsg{MuxID: 1, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC}, m)
					}
					require.Zero(r, r.conn.Stats().Calls+r.conn.Stats().Streams)
					r.alive()
				})
			})
		}
	})
}

// neverRun registers handlers of both kinds that must not be called.
func neverRun(t testing.TB, m *Manager) {
	t.Helper()
	require.NoError(t, m.RegisterSingleHandler(50, func([]byte) ([]byte, *RemoteErr) {
		t.Error("the request's handler ran")
		return nil, nil
	}))
	require.NoError(t, m.RegisterStreamingHandler(51, StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr {
		t.Error("the stream's handler ran")
		return nil
	}}))
}

// toldOfSilence expects that the peer is told that the rest is not waited for.
func toldOfSilence(r *v1Rig) {
	r.Helper()
	require.Contains(r, remoteText(r.T, r.peer.expect(rawOpMuxConnectError).Payload), "gave up waiting")
}

func TestFragmentsOfAnOpeningThatIsGivenUp(t *testing.T) {
	one := func(o *ManagerOptions) { o.MaxHandlers = 1 }
	inKinds(t, func(t *testing.T, op uint8, _ func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error) {
		for name, c := range map[string]struct {
			deadline uint32
			giveUp   func(r *v1Rig, again func())
		}{
			"by its client": {0, func(r *v1Rig, _ func()) {
				r.peer.send(rawMsg{MuxID: 7, Op: rawOpDisconnectServerMux})
				synctest.Wait()
			}},
			"by its client, with a reason": {0, func(r *v1Rig, _ func()) {
				r.peer.send(rawMsg{MuxID: 7, Op: rawOpDisconnectServerMux, Flags: rawFlagPayloadIsErr, Payload: []byte("why not")})
				synctest.Wait()
			}},
			"by its deadline": {5000, func(r *v1Rig, again func()) {
				for range 4 {
					time.Sleep(time.Second)
					again()
				}
				time.Sleep(2*time.Second + time.Millisecond)
			}},
			"by silence": {0, func(r *v1Rig, again func()) {
				for range 4 {
					time.Sleep(59 * time.Second)
					again()
				}
				time.Sleep(61*time.Second + time.Millisecond)
				toldOfSilence(r)
			}},
			"by silence before a deadline": {3_600_000, func(r *v1Rig, again func()) {
				time.Sleep(59 * time.Second)
				again()
				time.Sleep(61*time.Second + time.Millisecond)
				toldOfSilence(r)
			}},
		} {
			t.Run(name, func(t *testing.T) {
				inV1(t, fragmentConfig, one, func(r *v1Rig) {
					neverRun(r.T, r.node.Manager)
					for range 3 {
						first := fragment(op, 7, 0, 50)
						if op == rawOpConnectMux {
							first.Handler = 51
						}
						first.DeadlineMS = c.deadline
						r.peer.send(first)
						seq := uint32(0)
						next := func() rawMsg {
							if op == rawOpConnectMux {
								seq++
							}
							return fragment(op, 7, seq, 0)
						}
						again := func() {
							r.Helper()
							r.peer.send(next())
							r.quiet()
							require.Equal(r, 1, r.conn.Stats().Handlers)
						}
						again()
						require.Zero(r, r.conn.Stats().StreamsServed)
						// It has the only slot.
						r.peer.send(rawMsg{MuxID: 8, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF})
						require.Contains(r, remoteText(r.T, r.peer.expect(rawOpMuxConnectError).Payload), "the limit of MaxHandlers")
						c.giveUp(r, again)
						require.Zero(r, r.conn.Stats().Handlers)
						r.alive()
						// The rest comes late.
						r.peer.send(next())
						last := next()
						last.Flags = rawFlagEOF
						r.peer.send(last)
						r.alive()
					}
				})
			})
		}
	})
}

// The first fragment is refused, and what follows it is dropped.
func TestFragmentsOfAnOpeningThatIsRefused(t *testing.T) {
	one := func(o *ManagerOptions) { o.MaxHandlers = 1 }
	inKinds(t, func(t *testing.T, op uint8, _ func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error) {
		inV1(t, fragmentConfig, one, func(r *v1Rig) {
			started := r.serve(1, 1, "")
			refused := func(handler HandlerID, why string) {
				r.Helper()
				msgs := inPieces(rawMsg{MuxID: 7, Handler: uint8(handler), Op: op, Flags: rawFlagEOF, Payload: []byte("abcdef")}, 1, 2, 2)
				r.peer.send(msgs[0])
				m := r.peer.expect(rawOpMuxConnectError)
				require.Contains(r, remoteText(r.T, m.Payload), why)
				m.Payload = nil
				require.Equal(r, rawMsg{MuxID: 7, Handler: uint8(handler), Op: rawOpMuxConnectError, Flags: rawFlagCRC}, m)
				for _, m := range msgs[1:] {
					r.peer.send(m)
				}
				r.quiet()
			}
			refused(testUnused, "handler with ID 8")
			refused(map[uint8]HandlerID{rawOpRequest: testStream, rawOpConnectMux: testEcho}[op], "only one of the other kind")
			require.Zero(r, r.conn.Stats().Handlers)
			r.alive()
			s := r.askedWide(started, 9, rawMsg{}, 1)
			refused(map[uint8]HandlerID{rawOpRequest: testEcho, rawOpConnectMux: testStream}[op], "the limit of MaxHandlers")
			require.Equal(r, 1, r.conn.Stats().Handlers)
			s.result <- nil
			r.peer.expect(rawOpMuxServerMsg)
			r.alive()
			require.Zero(r, r.conn.Stats().Handlers)
		})
	})
}

// slowPair is two nodes with a slow link from the first returned to the second, where
// neverRun are the handlers.
func slowPair(t *testing.T, edit func(o *ManagerOptions)) (g *testGrid, from, to int) {
	g, from, to = newSlowGrid(t, slowRate, edit)
	neverRun(t, g.nodes[to].Manager)
	return g, from, to
}

// requireIdle requires that nothing is under way between two nodes, and that they
// work.
func (g *testGrid) requireIdle() {
	g.t.Helper()
	synctest.Wait()
	for i := range 2 {
		st := g.conn(i, 1-i).Stats()
		require.Zero(g.t, st.Calls+st.Streams+st.Handlers+st.StreamsServed, "%+v", st)
	}
	g.requireWorks()
}

func TestFragmentsOfACallThatEndsHalfWay(t *testing.T) {
	const half = 3 * time.Second // of sixteen
	for name, end := range map[string]struct {
		strike func(g *testGrid, from, to int, cancel context.CancelCauseFunc)
		is     error
	}{
		"cancel":        {func(_ *testGrid, _, _ int, cancel context.CancelCauseFunc) { cancel(errTestCause) }, errTestCause},
		"deadline":      {func(*testGrid, int, int, context.CancelCauseFunc) {}, context.DeadlineExceeded},
		"lost link":     {func(g *testGrid, from, to int, _ context.CancelCauseFunc) { g.cut(from, to) }, ErrDisconnected},
		"closed":        {func(g *testGrid, from, _ int, _ context.CancelCauseFunc) { g.stop(from) }, ErrDisconnected},
		"remote closed": {func(g *testGrid, _, to int, _ context.CancelCauseFunc) { g.stop(to) }, ErrDisconnected},
	} {
		t.Run(name, func(t *testing.T) {
			inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error) {
				inBubble(t, func(t *testing.T) {
					g, from, to := slowPair(t, nil)
					id := map[uint8]HandlerID{rawOpRequest: 50, rawOpConnectMux: 51}[op]
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					if name == "deadline" {
						var stop context.CancelFunc
						ctx, stop = context.WithTimeout(ctx, half)
						defer stop()
					}
					begin := time.Now()
					ended := inBackground(func() error { return call(ctx, g.conn(from, to), id, mixed(16<<20)) })
					time.Sleep(half - time.Millisecond)
					require.Empty(t, ended)
					server := g.conn(to, from)
					require.Equal(t, 1, server.Stats().Handlers)
					require.Zero(t, server.Stats().StreamsServed)
					time.Sleep(time.Millisecond)
					end.strike(g, from, to, cancel)
					err := <-ended
					require.ErrorIs(t, err, end.is)
					require.Equal(t, half, time.Since(begin))
					time.Sleep(2 * promptly)
					if name == "deadline" { // looked after every second
						time.Sleep(time.Second)
					}
					require.Zero(t, server.Stats().Handlers)
					for _, i := range []int{from, to} {
						if g.nodes[i] == nil {
							g.start(i)
							if i == to {
								neverRun(t, g.nodes[to].Manager)
							}
						}
					}
					g.waitConnected()
					g.requireIdle()
					b, err := g.conn(from, to).SingleRequest(t.Context(), testEcho, mixed(1<<20))
					require.NoError(t, err)
					requireSame(t, mixed(1<<20), b)
				})
			})
		})
	}
}

// lateHost is a session to which something happens just before a message is queued.
type lateHost struct {
	*session
	before func()
}

func (h *lateHost) sendOpening(done <-chan struct{}, m message, seq *sequence, deadline time.Time) error {
	h.before()
	return h.session.sendOpening(done, m, seq, deadline)
}

// No fragment may follow the disconnect of an opening: its server would wait for the
// rest.
func TestFragmentsOfAnOpeningWhoseContextEndsBeforeTheFirst(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		s := c.session.Load()
		ctx, cancel := context.WithCancel(t.Context())
		host := &lateHost{session: s, before: func() { cancel(); synctest.Wait() }}
		m := newMuxClient(ctx, host, c.nextMuxID(), testBlock, capacities{}, true, time.Now())
		require.True(t, s.streams.add(m.id, m))
		require.Equal(t, context.Canceled, m.connect(make([]byte, 4<<20), nil, nil, false))
		time.Sleep(time.Second)
		require.Zero(t, g.conn(1, 0).Stats().Handlers)
	})
}

func TestFragmentsOfOpeningsWhoseContextsEndAtAnyTime(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	payload := make([]byte, 4<<20)
	for range scaled(2000) {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, err := g.conn(0, 1).NewStream(ctx, testBlock, payload)
		cancel()
		if err != nil {
			require.Equal(t, context.Canceled, err)
		}
	}
	require.Eventually(t, func() bool { return g.conn(1, 0).Stats().Handlers == 0 }, 10*time.Second, 10*time.Millisecond)
	require.Zero(t, g.conn(0, 1).Stats().Reconnects)
}

// A refusal is told as soon as the first fragment has arrived, and the rest is not
// sent.
func TestFragmentsOfACallThatIsRefusedAreNotAllSent(t *testing.T) {
	for name, why := range map[string]string{"no handler": "handler with ID", "no slot": "the limit of MaxHandlers", "shutdown": "shutting down"} {
		t.Run(name, func(t *testing.T) {
			inKinds(t, func(t *testing.T, op uint8, call func(ctx context.Context, c *Connection, id HandlerID, payload []byte) error) {
				inBubble(t, func(t *testing.T) {
					g, from, to := slowPair(t, func(o *ManagerOptions) {
						if name == "no slot" {
							o.MaxHandlers = 1
						}
					})
					id := map[uint8]HandlerID{rawOpRequest: 50, rawOpConnectMux: 51}[op]
					conn := g.conn(from, to)
					ended := make(<-chan error)
					if name == "no handler" {
						id = testUnused
					} else {
						st, err := conn.NewStream(t.Context(), testTwoWay, nil)
						require.NoError(t, err)
						defer consume(st)
						defer close(st.Requests)
					}
					if name == "shutdown" {
						ended = inBackground(func() error { return g.nodes[to].Shutdown(t.Context()) })
						synctest.Wait()
					}
					before := conn.Stats().BytesOut
					begin := time.Now()
					err := call(t.Context(), conn, id, mixed(16<<20))
					state := StateConnected
					if name == "shutdown" { // which the caller knows of
						require.ErrorIs(t, err, ErrDisconnected)
						state = StateConnectionError
					} else {
						require.True(t, IsRemoteErr(err), err)
					}
					require.ErrorContains(t, err, why)
					require.LessOrEqual(t, time.Since(begin), 2*promptly)
					time.Sleep(2 * promptly)
					require.Less(t, conn.Stats().BytesOut-before, int64(1<<20))
					require.Zero(t, conn.Stats().Calls)
					require.Equal(t, map[bool]int{true: 1, false: 0}[name != "no handler"], g.conn(to, from).Stats().Handlers)
					require.Equal(t, state, conn.State())
					require.Empty(t, ended)
				})
			})
		})
	}
}

// The answer is on its way when the caller gives up, or the link is lost.
func TestFragmentsOfAnAnswerThatNobodyWaitsFor(t *testing.T) {
	for _, cut := range []bool{false, true} {
		inBubble(t, func(t *testing.T) {
			g, from, to := newSlowGrid(t, slowRate, nil)
			var ran atomic.Int32
			require.NoError(t, g.nodes[from].RegisterSingleHandler(testHandler, func(b []byte) ([]byte, *RemoteErr) {
				ran.Add(1)
				return make([]byte, 4<<20), nil
			}))
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := inBackground(func() error {
				_, err := g.conn(to, from).SingleRequest(ctx, testHandler, nil)
				return err
			})
			time.Sleep(time.Second)
			require.Empty(t, ended)
			require.Equal(t, 1, g.conn(from, to).Stats().Handlers)
			if cut {
				g.cut(from, to)
				require.ErrorIs(t, <-ended, ErrDisconnected)
				synctest.Wait()
				require.Zero(t, g.conn(from, to).Stats().Handlers)
				g.waitConnected()
			} else {
				cancel(errTestCause)
				require.Equal(t, errTestCause, <-ended)
				require.Zero(t, g.conn(to, from).Stats().Calls)
				time.Sleep(4 * time.Second) // the rest is for nobody
			}
			cancel(nil)
			require.EqualValues(t, 1, ran.Load())
			g.requireIdle()
		})
	}
}

// A message of a stream that is cancelled half way is not delivered, on either side,
// and those who send it are let go.
func TestFragmentsOfAStreamMessageThatIsCancelledHalfWay(t *testing.T) {
	for name, cut := range map[string]bool{"cancel": false, "lost link": true} {
		for way, backwards := range map[string]bool{"client": false, "server": true} {
			t.Run(name+" of the "+way, func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					g, from, to := newSlowGrid(t, slowRate, nil)
					client, server := from, to
					if backwards {
						client, server = to, from
					}
					causes, got := make(chan error, 1), make(chan int, 10)
					require.NoError(t, g.nodes[server].RegisterStreamingHandler(testHandler, StreamHandler{
						InCapacity: 1,
						Handle: func(ctx context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
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
					st, err := g.conn(client, server).NewStream(ctx, testHandler, nil)
					require.NoError(t, err)
					sent := inBackground(func() error {
						if backwards {
							return errTestCause
						}
						return errors.Join(st.Send([]byte("first")), st.Send(make([]byte, 4<<20)))
					})
					seen := inBackground(func() error {
						return st.Results(func(b []byte) error { got <- len(b); return nil })
					})
					time.Sleep(time.Second)
					want := errTestCause
					if cut {
						want = ErrDisconnected
						g.cut(from, to)
					} else {
						cancel(errTestCause)
					}
					require.ErrorIs(t, <-seen, want)
					if err := <-sent; !backwards {
						require.ErrorIs(t, err, want)
					}
					if cause := <-causes; cut {
						require.ErrorIs(t, cause, ErrDisconnected)
					} else {
						require.Equal(t, context.Canceled, cause)
					}
					require.Equal(t, len("first"), <-got)
					require.Empty(t, got)
					st.CloseSend()
					time.Sleep(promptly)
					g.waitConnected()
					g.requireIdle()
				})
			})
		}
	}
}

func TestFragmentsOfAnOpeningAndShutdown(t *testing.T) {
	for name, f := range map[string]func(r *v1Rig, rest []rawMsg, ended <-chan error){
		"that is completed": func(r *v1Rig, rest []rawMsg, ended <-chan error) {
			// Nothing new, for which the peer is told why.
			r.peer.send(fragment(rawOpRequest, 8, 0, testEcho))
			require.Contains(r, remoteText(r.T, r.peer.expect(rawOpMuxConnectError).Payload), "shutting down")
			for _, m := range rest {
				r.quiet()
				require.Empty(r, ended)
				r.peer.send(m)
			}
			r.expect(rawMsg{MuxID: 7, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("abcdef")})
			synctest.Wait()
			r.peer.close()
			require.NoError(r, <-ended)
		},
		"that is cancelled": func(r *v1Rig, _ []rawMsg, ended <-chan error) {
			r.peer.send(rawMsg{MuxID: 7, Op: rawOpDisconnectServerMux})
			synctest.Wait()
			r.peer.close()
			require.NoError(r, <-ended)
		},
		"whose rest does not come": func(r *v1Rig, _ []rawMsg, ended <-chan error) {
			time.Sleep(59 * time.Second)
			require.Empty(r, ended)
			require.LessOrEqual(r, elapsed(func() { require.NoError(r, <-ended) }), 2*time.Second+hangUpTime)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inV1(t, fragmentConfig, nil, func(r *v1Rig) {
				msgs := inPieces(rawMsg{MuxID: 7, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF, Payload: []byte("abcdef")}, 1, 2, 2)
				r.peer.send(msgs[0])
				r.quiet()
				ended := inBackground(func() error { return r.node.Shutdown(context.Background()) })
				synctest.Wait()
				require.Empty(r, ended)
				f(r, msgs[1:], ended)
				require.Zero(r, r.conn.Stats().Handlers)
			})
		})
	}
	t.Run("that must wait no longer", func(t *testing.T) {
		inV1(t, fragmentConfig, nil, func(r *v1Rig) {
			r.peer.send(fragment(rawOpRequest, 7, 0, testEcho))
			r.quiet()
			ctx, cancel := context.WithTimeoutCause(r.Context(), time.Second, errTestCause)
			defer cancel()
			require.Equal(r, time.Second, elapsed(func() { require.Equal(r, errTestCause, r.node.Shutdown(ctx)) }))
			require.Zero(r, r.conn.Stats().Handlers)
		})
	})
	t.Run("of the caller", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			g, from, to := newSlowGrid(t, slowRate, nil)
			payload := mixed(4 << 20)
			call := inBackground(func() error {
				b, err := g.conn(from, to).SingleRequest(t.Context(), testEcho, payload)
				if !bytes.Equal(payload, b) {
					t.Error("answer lost or garbled")
				}
				return err
			})
			time.Sleep(time.Second)
			ended := inBackground(func() error { return g.nodes[to].Shutdown(t.Context()) })
			require.NoError(t, g.nodes[from].Shutdown(t.Context()))
			require.NoError(t, <-call)
			require.NoError(t, <-ended)
		})
	})
}
