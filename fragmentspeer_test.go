package grid

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The second extension of the protocol, towards a peer that gets it wrong.

// fragment is a first, or further, fragment of three bytes.
func fragment(op uint8, id uint64, seq uint32, handler HandlerID) rawMsg {
	return rawMsg{MuxID: id, Seq: seq, Handler: uint8(handler), Op: op, Flags: rawFlagMore, Payload: []byte("abc")}
}

// The end of the input amid a message is none of the message: the handler must not
// see what there was of it as the whole.
func TestFragmentsThatEndAmidAMessageEndTheirStream(t *testing.T) {
	inV1(t, fragmentConfig, nil, func(r *v1Rig) {
		s := r.askedWide(r.serve(1, 1, ""), 2, rawMsg{}, 1)
		s.say(rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagMore, Payload: []byte("abc")})
		s.say(rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagEOF})
		s.dropped(ErrProtocol)
		r.alive()
	})
}

// What must not be in fragments, or not so, ends the session with a reason.
func TestFragmentsThatBreakTheLink(t *testing.T) {
	with := func(m rawMsg, change func(m *rawMsg)) rawMsg { change(&m); return m }
	tests := map[string]struct {
		send []rawMsg
		why  []string
	}{
		"opened twice": {
			[]rawMsg{fragment(rawOpRequest, 7, 0, testEcho), fragment(rawOpRequest, 7, 0, testEcho)},
			[]string{"Request", "mux 7 opened twice"},
		},
		"stream opened twice": {
			[]rawMsg{fragment(rawOpConnectMux, 7, 0, testTwoWay), fragment(rawOpConnectMux, 7, 0, testTwoWay)},
			[]string{"ConnectMux", "mux 7 opened twice"},
		},
		"opened as both": {
			[]rawMsg{fragment(rawOpRequest, 7, 0, testEcho), fragment(rawOpConnectMux, 7, 0, testTwoWay)},
			[]string{"ConnectMux", "mux 7 opened twice"},
		},
		"opened whole amid another": {
			[]rawMsg{fragment(rawOpRequest, 7, 0, testEcho), {MuxID: 7, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF}},
			[]string{"Request", "mux 7 opened twice"},
		},
		"stream opened whole amid another": {
			[]rawMsg{fragment(rawOpConnectMux, 7, 0, testTwoWay), {MuxID: 7, Handler: uint8(testTwoWay), Op: rawOpConnectMux}},
			[]string{"ConnectMux", "mux 7 opened twice"},
		},
		"request goes on as a stream": {
			[]rawMsg{fragment(rawOpRequest, 7, 0, testEcho), fragment(rawOpConnectMux, 7, 1, 0)},
			[]string{"ConnectMux for mux 7 amid a Request"},
		},
		"stream goes on as a request": {
			[]rawMsg{fragment(rawOpConnectMux, 7, 0, testTwoWay), with(fragment(rawOpRequest, 7, 0, 0), func(m *rawMsg) { m.Flags = rawFlagEOF })},
			[]string{"Request for mux 7 amid a ConnectMux"},
		},
	}
	for _, op := range []uint8{
		rawOpPing, rawOpPong, rawOpMuxConnectError, rawOpDisconnectClientMux, rawOpDisconnectServerMux, rawOpUnblockSrvMux,
		rawOpUnblockClMux, rawOpAckMux, rawOpDisconnect, rawOpConnect, rawOpConnectResponse,
	} {
		for _, id := range []uint64{0, 7} {
			tests[fmt.Sprint(rawOpName(op), " of mux ", id)] = struct {
				send []rawMsg
				why  []string
			}{[]rawMsg{fragment(op, id, 0, 0)}, []string{"protocol violated", rawOpName(op) + " in fragments"}}
		}
	}
	for _, op := range []uint8{rawOpRequest, rawOpResponse, rawOpConnectMux, rawOpMuxClientMsg, rawOpMuxServerMsg} {
		for name, change := range map[string]func(m *rawMsg){
			"with EOF":           func(m *rawMsg) { m.Flags |= rawFlagEOF },
			"with an error":      func(m *rawMsg) { m.Flags |= rawFlagPayloadIsErr },
			"without payload":    func(m *rawMsg) { m.Payload = nil },
			"with empty payload": func(m *rawMsg) { m.Payload = nil; m.Flags |= rawFlagPayloadIsZero },
		} {
			m := with(fragment(op, 7, 0, testEcho), change)
			tests[rawOpName(op)+" "+name] = struct {
				send []rawMsg
				why  []string
			}{[]rawMsg{m}, []string{"protocol violated", rawOpName(op) + " for mux 7: bad fragment of"}}
		}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			inV1(t, fragmentConfig, nil, func(r *v1Rig) {
				done := r.call(r.Context(), 50, nil)
				r.peer.expect(rawOpRequest)
				r.peer.sendMerged(test.send...)
				r.lost(test.why...)
				got := <-done
				require.ErrorIs(r, got.err, ErrDisconnected)
				require.ErrorContains(r, got.err, test.why[0])
				require.Zero(r, r.conn.Stats().Handlers)
				require.Len(r, r.log.about("connection lost"), 1, "%q", r.log.about(""))
				r.peer = r.next()
				r.alive()
			})
		})
	}
}

// Fragments that belong to nothing are dropped, or answered as whole messages are.
func TestFragmentsOfNothingAreDropped(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		last := func(m rawMsg) rawMsg { m.Flags = rawFlagEOF; return m }
		for range 3 {
			for _, m := range []rawMsg{
				fragment(rawOpRequest, 7, 0, 0), fragment(rawOpConnectMux, 7, 5, 0), fragment(rawOpResponse, 7, 0, 0),
			} {
				r.peer.send(m)
				r.peer.send(last(m))
				r.quiet()
			}
		}
		r.peer.send(fragment(rawOpMuxClientMsg, 7, 5, 0))
		r.expect(rawMsg{MuxID: 7, Op: rawOpDisconnectClientMux, Flags: rawFlagCRC})
		r.peer.send(last(fragment(rawOpMuxClientMsg, 7, 5, 0)))
		r.peer.send(fragment(rawOpMuxServerMsg, 7, 5, 0))
		r.expect(rawMsg{MuxID: 7, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC})
		r.peer.send(last(fragment(rawOpMuxServerMsg, 7, 5, 0)))
		require.Zero(r, r.conn.Stats().Handlers)
		r.alive()
	})
}

func TestFragmentsOfAResponseThatEndsOtherwise(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		ask := func(ctx context.Context) (id uint64, done <-chan outcome) {
			done = r.call(ctx, 50, nil)
			id = r.peer.expect(rawOpRequest).MuxID
			for range 3 {
				r.peer.send(fragment(rawOpResponse, id, 0, 0))
			}
			r.quiet()
			require.Empty(r, done)
			return id, done
		}
		for _, m := range []rawMsg{
			{Op: rawOpResponse, Flags: rawFlagEOF | rawFlagPayloadIsErr, Payload: []byte("boom")},
			{Op: rawOpMuxConnectError, Payload: connectError("boom")},
			{Op: rawOpDisconnectClientMux, Flags: rawFlagPayloadIsErr, Payload: []byte("boom")},
		} {
			id, done := ask(r.Context())
			m.MuxID = id
			r.peer.send(m)
			require.Equal(r, outcome{nil, NewRemoteErrString("boom")}, <-done)
			r.peer.send(fragment(rawOpResponse, id, 0, 0)) // nobody waits for more
			r.peer.send(rawMsg{MuxID: id, Op: rawOpResponse, Flags: rawFlagEOF, Payload: []byte("late")})
			r.alive()
		}
		id, done := ask(r.Context())
		r.peer.send(rawMsg{MuxID: id, Seq: 1, Op: rawOpMuxServerMsg, Payload: []byte("x")})
		require.ErrorIs(r, (<-done).err, ErrProtocol)
		r.peer.expect(rawOpDisconnectServerMux)

		// The caller gives up, and the rest is dropped.
		ctx, cancel := context.WithCancel(r.Context())
		id, done = ask(ctx)
		cancel()
		require.Equal(r, outcome{nil, context.Canceled}, <-done)
		r.peer.send(fragment(rawOpResponse, id, 0, 0))
		r.peer.send(rawMsg{MuxID: id, Op: rawOpResponse, Flags: rawFlagEOF, Payload: []byte("late")})
		r.alive()

		// Whoever calls next has none of it in his answer.
		id, done = ask(r.Context())
		r.peer.send(rawMsg{MuxID: id, Op: rawOpResponse, Flags: rawFlagEOF})
		require.Equal(r, outcome{[]byte("abcabcabc"), nil}, <-done)
		r.alive()
	})
}

// A stream whose messages are out of order, or not allowed, ends; the link lives.
func TestFragmentsThatEndTheirStream(t *testing.T) {
	for name, test := range map[string]struct {
		send []rawMsg
		want error
	}{
		"gap":              {[]rawMsg{fragment(0, 0, 1, 0), fragment(0, 0, 3, 0)}, ErrIncorrectSequence},
		"repeat":           {[]rawMsg{fragment(0, 0, 1, 0), fragment(0, 0, 1, 0)}, ErrIncorrectSequence},
		"no number":        {[]rawMsg{fragment(0, 0, 1, 0), fragment(0, 0, 0, 0)}, ErrIncorrectSequence},
		"without a credit": {[]rawMsg{{Seq: 1, Payload: []byte("x")}, fragment(0, 0, 2, 0)}, ErrFlowControl},
		"without a credit, after a whole": {
			[]rawMsg{fragment(0, 0, 1, 0), {Seq: 2, Payload: []byte("x")}, fragment(0, 0, 3, 0)}, ErrFlowControl,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inFragments(t, nil, func(r *v1Rig) {
				send := func(op uint8, id uint64) {
					var msgs []rawMsg
					for _, m := range test.send {
						m.Op, m.MuxID = op, id
						msgs = append(msgs, m)
					}
					m := fragment(op, id, 9, 0) // what is on its way when the end comes
					msgs = append(msgs, m, m, m)
					r.peer.sendMerged(msgs...)
				}
				got := make(chan string, 10)
				causes := make(chan error, 1)
				require.NoError(r, r.node.RegisterStreamingHandler(51, StreamHandler{
					InCapacity: 1,
					Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
						<-ctx.Done()
						time.Sleep(time.Millisecond) // until all of the stream has ended
						causes <- context.Cause(ctx)
						for b := range in {
							got <- string(b)
						}
						return nil
					},
				}))
				r.peer.send(rawMsg{MuxID: 1, Handler: 51, Op: rawOpConnectMux})
				r.expect(r.ack(1, 1))
				send(rawOpMuxClientMsg, 1)
				require.ErrorIs(r, <-causes, test.want)
				r.expectDropped(rawOpDisconnectClientMux, 1, test.want)
				for range 3 {
					r.expect(rawMsg{MuxID: 1, Op: rawOpDisconnectClientMux, Flags: rawFlagCRC})
				}
				r.quiet()
				require.Empty(r, got, "half of a message")
				require.Zero(r, r.conn.Stats().Handlers+r.conn.Stats().StreamsServed)

				if r.peer.c.Caps&rawCapWideCredits != 0 && test.want == ErrFlowControl {
					return // what a peer with wide credits has, the node does not know
				}
				r.locally(1, 1)
				c, _, opened := r.opening(r.Context())
				r.peer.send(r.ack(c.id, 1))
				require.NoError(r, <-opened)
				send(rawOpMuxServerMsg, c.id)
				r.expectDropped(rawOpDisconnectServerMux, c.id, test.want)
				<-c.s.Done()
				msgs, err := collect(c.s, 0)
				require.ErrorIs(r, err, test.want)
				if strings.HasPrefix(name, "without") {
					require.Len(r, msgs, 1)
				} else {
					require.Empty(r, msgs, "half of a message")
				}
				for range 3 {
					r.expect(rawMsg{MuxID: c.id, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC})
				}
				require.Zero(r, r.conn.Stats().Streams)
				r.alive()
			})
		})
	}
}

// The opening of a stream has numbers, too.
func TestFragmentsOfAnOpeningOutOfSequenceAreRefused(t *testing.T) {
	for name, seqs := range map[string][]uint32{"gap": {0, 1, 3}, "repeat": {0, 1, 1}, "no number": {0, 0}, "back": {0, 1, 2, 1}, "not from 0": {1, 2}} {
		t.Run(name, func(t *testing.T) {
			inFragments(t, nil, func(r *v1Rig) {
				for i, seq := range seqs {
					r.quiet()
					m := fragment(rawOpConnectMux, 7, seq, 0)
					if i == 0 {
						m.Handler = uint8(testTwoWay)
					}
					r.peer.send(m)
					if seq == 0 && i == 0 {
						synctest.Wait()
						require.Equal(r, 1, r.conn.Stats().Handlers)
					}
					if name == "not from 0" {
						break
					}
				}
				text := remoteText(r.T, r.peer.expect(rawOpMuxConnectError).Payload)
				require.Contains(r, text, ErrIncorrectSequence.Error())
				require.Contains(r, text, "ConnectMux has number")
				require.Zero(r, r.conn.Stats().Handlers)
				r.peer.send(rawMsg{MuxID: 7, Seq: seqs[len(seqs)-1] + 1, Op: rawOpConnectMux})
				r.alive()
				require.Zero(r, r.conn.Stats().StreamsServed)
			})
		})
	}
}

// A stream that ends otherwise amid the fragments of a message: that is not
// delivered.
func TestFragmentsOfAServerMessageThatEndsOtherwise(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		r.locally(2, 2)
		for _, end := range []rawMsg{
			{Op: rawOpMuxServerMsg, Flags: rawFlagEOF | rawFlagPayloadIsErr, Payload: []byte("boom")},
			{Op: rawOpDisconnectClientMux, Flags: rawFlagPayloadIsErr, Payload: []byte("boom")},
			{Op: rawOpMuxConnectError, Payload: connectError("boom")},
			{Op: rawOpDisconnectClientMux},
			{Op: rawOpPong, Payload: pongPayload(true)},
		} {
			c, _, opened := r.opening(r.Context())
			c.say(r.ack(c.id, 2))
			require.NoError(r, <-opened)
			c.say(serverMsg("whole"))
			c.say(fragment(rawOpMuxServerMsg, 0, 0, 0))
			c.say(fragment(rawOpMuxServerMsg, 0, 0, 0))
			c.say(end)
			<-c.s.Done()
			got, err := collect(c.s, 0)
			require.Equal(r, []string{"whole"}, got)
			if end.Payload == nil || end.Op == rawOpPong {
				require.ErrorIs(r, err, ErrDisconnected)
			} else {
				require.Equal(r, NewRemoteErrString("boom"), err)
			}
			r.quiet()
		}
		r.alive()
	})
}

// What has not come takes no room, whatever may come.
func TestFragmentsOfManyOpeningsTakeNoRoomAhead(t *testing.T) {
	inV1(t, fragmentConfig, nil, func(r *v1Rig) {
		const n = 4000
		var msgs []rawMsg
		for i := range n {
			m := fragment([]uint8{rawOpRequest, rawOpConnectMux}[i%2], uint64(i+1), 0, []HandlerID{testEcho, testBlock}[i%2])
			msgs = append(msgs, m)
		}
		before := heap()
		r.peer.sendMerged(msgs...)
		r.quiet()
		require.Equal(r, n, r.conn.Stats().Handlers)
		grown := heap() - before
		r.Logf("heap has grown by %d bytes", grown)
		require.Less(r, grown, int64(n*2<<10))
		time.Sleep(62 * time.Second)
		require.Zero(r, r.conn.Stats().Handlers)
		for range n {
			toldOfSilence(r)
		}
		r.alive()
	})
}

// A whole that is too large ends the session, however small its parts are.
func TestFragmentsBeyondTheSizeLimitEndTheSession(t *testing.T) {
	const limit = 100_000
	small := func(o *ManagerOptions) { o.MaxMessageSize = limit }
	// begin gets the node to where the peer may send m, the whole.
	for name, begin := range map[string]func(r *v1Rig) (m rawMsg, ended <-chan error){
		"request": func(r *v1Rig) (rawMsg, <-chan error) {
			return rawMsg{MuxID: 7, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF}, nil
		},
		"opening": func(r *v1Rig) (rawMsg, <-chan error) {
			return rawMsg{MuxID: 7, Handler: uint8(testTwoWay), Op: rawOpConnectMux, Flags: rawFlagCRC}, nil
		},
		"response": func(r *v1Rig) (rawMsg, <-chan error) {
			ended := inBackground(func() error { _, err := r.conn.SingleRequest(r.Context(), 50, nil); return err })
			return rawMsg{MuxID: r.peer.expect(rawOpRequest).MuxID, Op: rawOpResponse, Flags: crcEOF}, ended
		},
		"client message": func(r *v1Rig) (rawMsg, <-chan error) {
			ended := blockHandler(r.T, r.node.Manager, 50)
			r.peer.send(rawMsg{MuxID: 7, Handler: 50, Op: rawOpConnectMux, Flags: rawFlagCRC})
			r.peer.expect(rawOpAckMux)
			return rawMsg{MuxID: 7, Seq: 1, Op: rawOpMuxClientMsg, Flags: rawFlagCRC}, ended
		},
		"server message": func(r *v1Rig) (rawMsg, <-chan error) {
			c := r.openWide(0)
			ended := inBackground(func() error { return consume(c.s) })
			return rawMsg{MuxID: c.id, Seq: 1, Op: rawOpMuxServerMsg, Flags: rawFlagCRC}, ended
		},
	} {
		for size, sizes := range map[string][]int{
			"in the last":    {limit / 2, limit / 2},
			"in one between": {limit / 2, limit/2 + 1},
			"by far":         {limit - 1, limit, limit},
		} {
			t.Run(name+" "+size, func(t *testing.T) {
				inV1(t, fragmentConfig, small, func(r *v1Rig) {
					m, ended := begin(r)
					m.Payload = make([]byte, 1)
					for _, n := range sizes {
						m.Payload = append(m.Payload, make([]byte, n)...)
					}
					_ = r.peer.trySendBytes(encodeMerged(inPieces(m, sizes...)...))
					msgs, _ := r.peer.drain()
					require.Empty(r, msgs, rawDump(msgs))
					synctest.Wait()
					for _, why := range []string{"message too large", fmt.Sprintf("%s for mux %d", rawOpName(m.Op), m.MuxID), "is 100000 bytes"} {
						require.Contains(r, r.conn.Stats().LastError, why)
					}
					if ended != nil {
						err := <-ended
						require.ErrorContains(r, err, "message too large")
						if name != "response" || size != "in the last" { // known, and reported
							require.ErrorIs(r, err, ErrDisconnected)
							require.NotErrorIs(r, err, ErrMessageTooLarge)
						}
					}
					synctest.Wait()
					require.Zero(r, r.conn.Stats().Handlers)
					r.peer = r.next()
					r.alive()
				})
			})
		}
		t.Run(name+" at the limit", func(t *testing.T) {
			inV1(t, fragmentConfig, small, func(r *v1Rig) {
				m, _ := begin(r)
				m.Payload = mixed(limit)
				r.peer.sendMerged(inPieces(m, limit/2, limit/2-1)...)
				synctest.Wait()
				require.Equal(r, StateConnected, r.conn.State())
				require.Empty(r, r.log.about("lost"))
			})
		})
	}
}

// Whatever a peer sends, in whatever order, nothing is stuck and no slot is lost.
func TestFragmentsInAnyOrderLeaveNothing(t *testing.T) {
	for seed := range uint64(scaled(50)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inV1(t, fragmentConfig, func(o *ManagerOptions) { o.MaxMessageSize, o.MaxHandlers = 40, 8 }, func(r *v1Rig) {
				random := rand.New(rand.NewPCG(seed, 0))
				ids := func() uint64 { return 1 + random.Uint64N(3) }
				seqs := map[uint64]uint32{}
				sessions := 0
				for range 1500 {
					m := rawMsg{MuxID: ids(), Payload: mixed(1 + random.IntN(9))}
					m.Op = []uint8{
						rawOpRequest, rawOpRequest, rawOpResponse, rawOpConnectMux, rawOpConnectMux, rawOpMuxClientMsg, rawOpMuxClientMsg,
						rawOpMuxServerMsg, rawOpMuxServerMsg, rawOpDisconnectServerMux, rawOpDisconnectClientMux, rawOpAckMux, rawOpUnblockSrvMux,
						rawOpUnblockClMux, rawOpPing,
					}[random.IntN(15)]
					switch m.Op {
					case rawOpRequest, rawOpResponse, rawOpConnectMux, rawOpMuxClientMsg, rawOpMuxServerMsg:
						m.Flags = []uint8{0, rawFlagMore, rawFlagMore, rawFlagMore, rawFlagEOF, rawFlagPayloadIsErr}[random.IntN(6)]
					case rawOpAckMux:
						m.Payload = credits(1)
					default:
						m.Payload = nil
					}
					// A stream that is opened whole amid its own opening is
					// for a test of its own.
					handler := map[uint8]HandlerID{rawOpRequest: testEcho, rawOpConnectMux: testTwoWay}[m.Op]
					if m.Op == rawOpConnectMux {
						m.MuxID += 10
						m.Flags |= rawFlagMore
						m.Flags &^= rawFlagEOF | rawFlagPayloadIsErr
						if random.IntN(3) > 0 {
							handler = 0
							m.Flags &^= uint8(random.IntN(2)) * rawFlagMore
						} else if random.IntN(2) > 0 {
							seqs[m.MuxID] = 0
						}
					} else if random.IntN(3) > 0 {
						handler = 0
					}
					m.Handler = uint8(handler)
					if m.Op == rawOpMuxClientMsg {
						m.MuxID += 10
					}
					if isNumbered(m.Op) && random.IntN(30) > 0 {
						m.Seq = seqs[m.MuxID]
						seqs[m.MuxID]++
					}
					if random.IntN(50) == 0 {
						m.Handler = uint8(testUnused)
					}
					if random.IntN(20) == 0 {
						ctx, cancel := context.WithTimeout(r.Context(), time.Duration(random.IntN(1000))*time.Millisecond)
						go func() {
							defer cancel()
							_, _ = r.conn.SingleRequest(ctx, 50, nil)
							if st, err := r.conn.NewStream(ctx, 50, nil); err == nil {
								_ = st.Send([]byte("x"))
								st.CloseSend()
								_ = consume(st)
							}
						}()
					}
					if random.IntN(50) == 0 {
						time.Sleep(time.Duration(random.IntN(20_000)) * time.Millisecond)
					}
					if r.peer.trySend(m) != nil || r.conn.State() != StateConnected {
						r.peer.close()
						synctest.Wait()
						require.Zero(r, r.conn.Stats().Handlers)
						r.peer = r.next()
						require.NoError(r, r.conn.WaitForConnect(r.Context()))
						clear(seqs)
						sessions++
					}
				}
				synctest.Wait()
				r.peer.close()
				time.Sleep(time.Second)
				require.Zero(r, r.conn.Stats().Handlers)
				require.Zero(r, r.conn.Stats().Calls+r.conn.Stats().Streams)
				if seed == 0 {
					r.Log(sessions, "sessions")
				}
			})
		})
	}
}
