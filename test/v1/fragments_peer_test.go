package v1

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
	"github.com/gridrpc/grid/internal/seed"
)

// The end of the input amid a message is none of the message: the handler must not see what there
// was of it as the whole.
func TestFragments_ThatEndAmidAMessageEndTheirStream(t *testing.T) {
	t.Parallel()
	inWire(t, rig.FragmentConfig, nil, func(r *wire) {
		s := r.askedWide(r.serve(1, 1, ""), 2, rawpeer.Msg{}, 1)
		s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagMore, Payload: []byte("abc")})
		s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagEOF})
		s.dropped(grid.ErrProtocol)
		r.Alive()
	})
}

// What must not be in fragments, or not so, ends the session with a reason.
func TestFragments_ThatBreakTheLink(t *testing.T) {
	t.Parallel()
	with := func(m rawpeer.Msg, change func(m *rawpeer.Msg)) rawpeer.Msg { change(&m); return m }
	tests := map[string]struct {
		send []rawpeer.Msg
		why  []string
	}{
		"opened twice": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo), rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo)},
			[]string{"Request", "mux 7 opened twice"},
		},
		"stream opened twice": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpConnectMux, 7, 0, rig.TwoWay), rawpeer.Fragment(rawpeer.OpConnectMux, 7, 0, rig.TwoWay)},
			[]string{"ConnectMux", "mux 7 opened twice"},
		},
		"opened as both": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo), rawpeer.Fragment(rawpeer.OpConnectMux, 7, 0, rig.TwoWay)},
			[]string{"ConnectMux", "mux 7 opened twice"},
		},
		"opened whole amid another": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo), {MuxID: 7, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF}},
			[]string{"Request", "mux 7 opened twice"},
		},
		"stream opened whole amid another": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpConnectMux, 7, 0, rig.TwoWay), {MuxID: 7, Handler: uint8(rig.TwoWay), Op: rawpeer.OpConnectMux}},
			[]string{"ConnectMux", "mux 7 opened twice"},
		},
		"request goes on as a stream": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo), rawpeer.Fragment(rawpeer.OpConnectMux, 7, 1, 0)},
			[]string{"ConnectMux for mux 7 amid a Request"},
		},
		"stream goes on as a request": {
			[]rawpeer.Msg{rawpeer.Fragment(rawpeer.OpConnectMux, 7, 0, rig.TwoWay), with(rawpeer.Fragment(rawpeer.OpRequest, 7, 0, 0), func(m *rawpeer.Msg) { m.Flags = rawpeer.FlagEOF })},
			[]string{"Request for mux 7 amid a ConnectMux"},
		},
	}
	for _, op := range []uint8{
		rawpeer.OpPing, rawpeer.OpPong, rawpeer.OpMuxConnectError, rawpeer.OpDisconnectClientMux, rawpeer.OpDisconnectServerMux, rawpeer.OpUnblockSrvMux,
		rawpeer.OpUnblockClMux, rawpeer.OpAckMux, rawpeer.OpDisconnect, rawpeer.OpConnect, rawpeer.OpConnectResponse,
	} {
		for _, id := range []uint64{0, 7} {
			tests[fmt.Sprint(rawpeer.OpName(op), " of mux ", id)] = struct {
				send []rawpeer.Msg
				why  []string
			}{[]rawpeer.Msg{rawpeer.Fragment(op, id, 0, 0)}, []string{"protocol violated", rawpeer.OpName(op) + " in fragments"}}
		}
	}
	for _, op := range []uint8{rawpeer.OpRequest, rawpeer.OpResponse, rawpeer.OpConnectMux, rawpeer.OpMuxClientMsg, rawpeer.OpMuxServerMsg} {
		for name, change := range map[string]func(m *rawpeer.Msg){
			"with EOF":           func(m *rawpeer.Msg) { m.Flags |= rawpeer.FlagEOF },
			"with an error":      func(m *rawpeer.Msg) { m.Flags |= rawpeer.FlagPayloadIsErr },
			"without payload":    func(m *rawpeer.Msg) { m.Payload = nil },
			"with empty payload": func(m *rawpeer.Msg) { m.Payload = nil; m.Flags |= rawpeer.FlagPayloadIsZero },
		} {
			m := with(rawpeer.Fragment(op, 7, 0, rig.Echo), change)
			tests[rawpeer.OpName(op)+" "+name] = struct {
				send []rawpeer.Msg
				why  []string
			}{[]rawpeer.Msg{m}, []string{"protocol violated", rawpeer.OpName(op) + " for mux 7: bad fragment of"}}
		}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			inWire(t, rig.FragmentConfig, nil, func(r *wire) {
				done := r.Call(r.Context(), 50, nil)
				r.Peer.Expect(rawpeer.OpRequest)
				r.Peer.SendMerged(test.send...)
				r.Lost(test.why...)
				got := <-done
				require.ErrorIs(r, got.Err, grid.ErrDisconnected)
				require.ErrorContains(r, got.Err, test.why[0])
				require.Zero(r, r.Conn.Stats().Handlers)
				require.Len(r, r.Book.About("connection lost"), 1, "%q", r.Book.About(""))
				r.Peer = r.Next()
				r.Alive()
			})
		})
	}
}

// Fragments that belong to nothing are dropped, or answered as whole messages are.
func TestFragments_OfNothingAreDropped(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		last := func(m rawpeer.Msg) rawpeer.Msg { m.Flags = rawpeer.FlagEOF; return m }
		for range 3 {
			for _, m := range []rawpeer.Msg{
				rawpeer.Fragment(rawpeer.OpRequest, 7, 0, 0), rawpeer.Fragment(rawpeer.OpConnectMux, 7, 5, 0), rawpeer.Fragment(rawpeer.OpResponse, 7, 0, 0),
			} {
				r.Peer.Send(m)
				r.Peer.Send(last(m))
				r.Quiet()
			}
		}
		r.Peer.Send(rawpeer.Fragment(rawpeer.OpMuxClientMsg, 7, 5, 0))
		r.Expect(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
		r.Peer.Send(last(rawpeer.Fragment(rawpeer.OpMuxClientMsg, 7, 5, 0)))
		r.Peer.Send(rawpeer.Fragment(rawpeer.OpMuxServerMsg, 7, 5, 0))
		r.Expect(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
		r.Peer.Send(last(rawpeer.Fragment(rawpeer.OpMuxServerMsg, 7, 5, 0)))
		require.Zero(r, r.Conn.Stats().Handlers)
		r.Alive()
	})
}

func TestFragments_OfAResponseThatEndsOtherwise(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		ask := func(ctx context.Context) (id uint64, done <-chan rig.Outcome) {
			done = r.Call(ctx, 50, nil)
			id = r.Peer.Expect(rawpeer.OpRequest).MuxID
			for range 3 {
				r.Peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0))
			}
			r.Quiet()
			require.Empty(r, done)
			return id, done
		}
		for _, m := range []rawpeer.Msg{
			{Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("boom")},
			{Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError("boom")},
			{Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte("boom")},
		} {
			id, done := ask(r.Context())
			m.MuxID = id
			r.Peer.Send(m)
			require.Equal(r, rig.Outcome{Err: grid.NewRemoteErrString("boom")}, <-done)
			r.Peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0)) // nobody waits for more
			r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("late")})
			r.Alive()
		}
		id, done := ask(r.Context())
		r.Peer.Send(rawpeer.Msg{MuxID: id, Seq: 1, Op: rawpeer.OpMuxServerMsg, Payload: []byte("x")})
		require.ErrorIs(r, (<-done).Err, grid.ErrProtocol)
		r.Peer.Expect(rawpeer.OpDisconnectServerMux)

		// The caller gives up, and the rest is dropped.
		ctx, cancel := context.WithCancel(r.Context())
		id, done = ask(ctx)
		cancel()
		require.ErrorIs(r, (<-done).Err, context.Canceled)
		r.Peer.Send(rawpeer.Fragment(rawpeer.OpResponse, id, 0, 0))
		r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("late")})
		r.Alive()

		// Whoever calls next has none of it in his answer.
		id, done = ask(r.Context())
		r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF})
		require.Equal(r, rig.Outcome{Payload: []byte("abcabcabc")}, <-done)
		r.Alive()
	})
}

// A stream whose messages are out of order, or not allowed, ends; the link lives.
func TestFragments_ThatEndTheirStream(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		send []rawpeer.Msg
		want error
	}{
		"gap":              {[]rawpeer.Msg{rawpeer.Fragment(0, 0, 1, 0), rawpeer.Fragment(0, 0, 3, 0)}, grid.ErrIncorrectSequence},
		"repeat":           {[]rawpeer.Msg{rawpeer.Fragment(0, 0, 1, 0), rawpeer.Fragment(0, 0, 1, 0)}, grid.ErrIncorrectSequence},
		"no number":        {[]rawpeer.Msg{rawpeer.Fragment(0, 0, 1, 0), rawpeer.Fragment(0, 0, 0, 0)}, grid.ErrIncorrectSequence},
		"without a credit": {[]rawpeer.Msg{{Seq: 1, Payload: []byte("x")}, rawpeer.Fragment(0, 0, 2, 0)}, grid.ErrFlowControl},
		"without a credit, after a whole": {
			[]rawpeer.Msg{rawpeer.Fragment(0, 0, 1, 0), {Seq: 2, Payload: []byte("x")}, rawpeer.Fragment(0, 0, 3, 0)}, grid.ErrFlowControl,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inFragments(t, nil, func(r *wire) {
				send := func(op uint8, id uint64) {
					var msgs []rawpeer.Msg
					for _, m := range test.send {
						m.Op, m.MuxID = op, id
						msgs = append(msgs, m)
					}
					m := rawpeer.Fragment(op, id, 9, 0) // what is on its way when the end comes
					msgs = append(msgs, m, m, m)
					r.Peer.SendMerged(msgs...)
				}
				got := make(chan string, 10)
				causes := make(chan error, 1)
				require.NoError(r, r.Node.RegisterStreamingHandler(51, grid.StreamHandler{
					InCapacity: 1,
					Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
						<-ctx.Done()
						time.Sleep(time.Millisecond) // until all of the stream has ended
						causes <- context.Cause(ctx)
						for b := range in {
							got <- string(b)
						}
						return nil
					},
				}))
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 51, Op: rawpeer.OpConnectMux})
				r.Expect(r.ack(1, 1))
				send(rawpeer.OpMuxClientMsg, 1)
				require.ErrorIs(r, <-causes, test.want)
				r.expectDropped(rawpeer.OpDisconnectClientMux, 1, test.want)
				for range 3 {
					r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
				}
				r.Quiet()
				require.Empty(r, got, "half of a message")
				require.Zero(r, r.Conn.Stats().Handlers+r.Conn.Stats().StreamsServed)

				if caps := r.Peer.Config.Caps; caps&rawpeer.CapWideCredits > 0 && caps&rawpeer.CapBothCapacities == 0 && test.want == grid.ErrFlowControl {
					return // what such a peer has, the node does not know
				}
				r.locally(1, 1)
				c, _, opened := r.opening(r.Context())
				r.Peer.Send(r.ack(c.id, 1))
				require.NoError(r, <-opened)
				send(rawpeer.OpMuxServerMsg, c.id)
				r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, test.want)
				<-c.s.Done()
				msgs, err := rig.Collect(c.s, 0)
				require.ErrorIs(r, err, test.want)
				if strings.HasPrefix(name, "without") {
					require.Len(r, msgs, 1)
				} else {
					require.Empty(r, msgs, "half of a message")
				}
				for range 3 {
					r.Expect(rawpeer.Msg{MuxID: c.id, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
				}
				require.Zero(r, r.Conn.Stats().Streams)
				r.Alive()
			})
		})
	}
}

// The opening of a stream has numbers, too.
func TestFragments_OfAnOpeningOutOfSequenceAreRefused(t *testing.T) {
	t.Parallel()
	for name, seqs := range map[string][]uint32{"gap": {0, 1, 3}, "repeat": {0, 1, 1}, "no number": {0, 0}, "back": {0, 1, 2, 1}, "not from 0": {1, 2}} {
		t.Run(name, func(t *testing.T) {
			inFragments(t, nil, func(r *wire) {
				for i, seq := range seqs {
					r.Quiet()
					m := rawpeer.Fragment(rawpeer.OpConnectMux, 7, seq, 0)
					if i == 0 {
						m.Handler = uint8(rig.TwoWay)
					}
					r.Peer.Send(m)
					if seq == 0 && i == 0 {
						synctest.Wait()
						require.Equal(r, 1, r.Conn.Stats().Handlers)
					}
					if name == "not from 0" {
						break
					}
				}
				text := rawpeer.ConnectErrorText(r.T, r.Peer.Expect(rawpeer.OpMuxConnectError).Payload)
				require.Contains(r, text, grid.ErrIncorrectSequence.Error())
				require.Contains(r, text, "ConnectMux has number")
				require.Zero(r, r.Conn.Stats().Handlers)
				r.Peer.Send(rawpeer.Msg{MuxID: 7, Seq: seqs[len(seqs)-1] + 1, Op: rawpeer.OpConnectMux})
				r.Alive()
				require.Zero(r, r.Conn.Stats().StreamsServed)
			})
		})
	}
}

// A stream that ends otherwise amid the fragments of a message: that is not delivered.
func TestFragments_OfAServerMessageThatEndsOtherwise(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		r.locally(2, 2)
		for _, end := range []rawpeer.Msg{
			{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("boom")},
			{Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte("boom")},
			{Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError("boom")},
			{Op: rawpeer.OpDisconnectClientMux},
			{Op: rawpeer.OpPong, Payload: rawpeer.PongPayload(true)},
		} {
			c, _, opened := r.opening(r.Context())
			c.say(r.ack(c.id, 2))
			require.NoError(r, <-opened)
			c.say(serverMsg("whole"))
			c.say(rawpeer.Fragment(rawpeer.OpMuxServerMsg, 0, 0, 0))
			c.say(rawpeer.Fragment(rawpeer.OpMuxServerMsg, 0, 0, 0))
			c.say(end)
			<-c.s.Done()
			got, err := rig.Collect(c.s, 0)
			require.Equal(r, []string{"whole"}, got)
			if end.Payload == nil || end.Op == rawpeer.OpPong {
				require.ErrorIs(r, err, grid.ErrDisconnected)
			} else {
				require.Equal(r, grid.NewRemoteErrString("boom"), err)
			}
			r.Quiet()
		}
		r.Alive()
	})
}

// What has not come takes no room, whatever may come.
func TestFragments_OfManyOpeningsTakeNoRoomAhead(t *testing.T) {
	inWire(t, rig.FragmentConfig, nil, func(r *wire) {
		const n = 4000
		var msgs []rawpeer.Msg
		for i := range n {
			m := rawpeer.Fragment([]uint8{rawpeer.OpRequest, rawpeer.OpConnectMux}[i%2], uint64(i+1), 0, []grid.HandlerID{rig.Echo, rig.Block}[i%2])
			msgs = append(msgs, m)
		}
		before := rig.Heap()
		r.Peer.SendMerged(msgs...)
		r.Quiet()
		require.Equal(r, n, r.Conn.Stats().Handlers)
		grown := rig.Heap() - before
		r.Logf("heap has grown by %d bytes", grown)
		require.Less(r, grown, int64(n*2<<10))
		time.Sleep(62 * time.Second)
		require.Zero(r, r.Conn.Stats().Handlers)
		for range n {
			toldOfSilence(r)
		}
		r.Alive()
	})
}

// A whole that is too large ends the session, however small its parts are.
func TestFragments_BeyondTheSizeLimitEndTheSession(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	small := func(o *grid.ManagerOptions) { o.MaxMessageSize = limit }
	// begin gets the node to where the peer may send m, the whole.
	for name, begin := range map[string]func(r *wire) (m rawpeer.Msg, ended <-chan error){
		"request": func(r *wire) (rawpeer.Msg, <-chan error) {
			return rawpeer.Msg{MuxID: 7, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF}, nil
		},
		"opening": func(r *wire) (rawpeer.Msg, <-chan error) {
			return rawpeer.Msg{MuxID: 7, Handler: uint8(rig.TwoWay), Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC}, nil
		},
		"response": func(r *wire) (rawpeer.Msg, <-chan error) {
			ended := rig.InBackground(func() error { _, err := r.Conn.SingleRequest(r.Context(), 50, nil); return err })
			return rawpeer.Msg{MuxID: r.Peer.Expect(rawpeer.OpRequest).MuxID, Op: rawpeer.OpResponse, Flags: rig.CRCEOF}, ended
		},
		"client message": func(r *wire) (rawpeer.Msg, <-chan error) {
			ended := rig.BlockHandler(r.T, r.Node.Manager, 50)
			r.Peer.Send(rawpeer.Msg{MuxID: 7, Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC})
			r.Peer.Expect(rawpeer.OpAckMux)
			return rawpeer.Msg{MuxID: 7, Seq: 1, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC}, ended
		},
		"server message": func(r *wire) (rawpeer.Msg, <-chan error) {
			c := r.openWide(0)
			ended := rig.InBackground(func() error { return rig.Consume(c.s) })
			return rawpeer.Msg{MuxID: c.id, Seq: 1, Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC}, ended
		},
	} {
		for size, sizes := range map[string][]int{
			"in the last":    {limit / 2, limit / 2},
			"in one between": {limit / 2, limit/2 + 1},
			"by far":         {limit - 1, limit, limit},
		} {
			t.Run(name+" "+size, func(t *testing.T) {
				inWire(t, rig.FragmentConfig, small, func(r *wire) {
					m, ended := begin(r)
					m.Payload = make([]byte, 1)
					for _, n := range sizes {
						m.Payload = append(m.Payload, make([]byte, n)...)
					}
					_ = r.Peer.TrySendBytes(rawpeer.EncodeMerged(inPieces(m, sizes...)...))
					msgs, _ := r.Peer.Drain()
					require.Empty(r, msgs, rawpeer.Dump(msgs))
					synctest.Wait()
					for _, why := range []string{"message too large", fmt.Sprintf("%s for mux %d", rawpeer.OpName(m.Op), m.MuxID), "is 100000 bytes"} {
						require.Contains(r, r.Conn.Stats().LastError, why)
					}
					if ended != nil {
						err := <-ended
						require.ErrorContains(r, err, "message too large")
						if name != "response" || size != "in the last" { // known, and reported
							require.ErrorIs(r, err, grid.ErrDisconnected)
							require.NotErrorIs(r, err, grid.ErrMessageTooLarge)
						}
					}
					synctest.Wait()
					require.Zero(r, r.Conn.Stats().Handlers)
					r.Peer = r.Next()
					r.Alive()
				})
			})
		}
		t.Run(name+" at the limit", func(t *testing.T) {
			inWire(t, rig.FragmentConfig, small, func(r *wire) {
				m, _ := begin(r)
				m.Payload = rig.Mixed(limit)
				r.Peer.SendMerged(inPieces(m, limit/2, limit/2-1)...)
				synctest.Wait()
				require.Equal(r, grid.StateConnected, r.Conn.State())
				require.Empty(r, r.Book.About("lost"))
			})
		})
	}
}

// Whatever a peer sends, in whatever order, nothing is stuck and no slot is lost.
func TestFragments_InAnyOrderLeaveNothing(t *testing.T) {
	drawn := seed.Of(t)
	for i := range uint64(rig.Scaled(50)) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			inWire(t, rig.FragmentConfig, func(o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHandlers = 40, 8 }, func(r *wire) {
				random := rand.New(rand.NewPCG(drawn, i))
				ids := func() uint64 { return 1 + random.Uint64N(3) }
				seqs := map[uint64]uint32{}
				sessions := 0
				for range 1500 {
					m := rawpeer.Msg{MuxID: ids(), Payload: rig.Mixed(1 + random.IntN(9))}
					m.Op = []uint8{
						rawpeer.OpRequest, rawpeer.OpRequest, rawpeer.OpResponse, rawpeer.OpConnectMux, rawpeer.OpConnectMux, rawpeer.OpMuxClientMsg, rawpeer.OpMuxClientMsg,
						rawpeer.OpMuxServerMsg, rawpeer.OpMuxServerMsg, rawpeer.OpDisconnectServerMux, rawpeer.OpDisconnectClientMux, rawpeer.OpAckMux, rawpeer.OpUnblockSrvMux,
						rawpeer.OpUnblockClMux, rawpeer.OpPing,
					}[random.IntN(15)]
					switch m.Op {
					case rawpeer.OpRequest, rawpeer.OpResponse, rawpeer.OpConnectMux, rawpeer.OpMuxClientMsg, rawpeer.OpMuxServerMsg:
						m.Flags = []uint8{0, rawpeer.FlagMore, rawpeer.FlagMore, rawpeer.FlagMore, rawpeer.FlagEOF, rawpeer.FlagPayloadIsErr}[random.IntN(6)]
					case rawpeer.OpAckMux:
						m.Payload = rawpeer.Credits(1)
					default:
						m.Payload = nil
					}
					// A stream that is opened whole amid its own opening is for a test of its own.
					handler := map[uint8]grid.HandlerID{rawpeer.OpRequest: rig.Echo, rawpeer.OpConnectMux: rig.TwoWay}[m.Op]
					if m.Op == rawpeer.OpConnectMux {
						m.MuxID += 10
						m.Flags |= rawpeer.FlagMore
						m.Flags &^= rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr
						if random.IntN(3) > 0 {
							handler = 0
							m.Flags &^= uint8(random.IntN(2)) * rawpeer.FlagMore
						} else if random.IntN(2) > 0 {
							seqs[m.MuxID] = 0
						}
					} else if random.IntN(3) > 0 {
						handler = 0
					}
					m.Handler = uint8(handler)
					if m.Op == rawpeer.OpMuxClientMsg {
						m.MuxID += 10
					}
					if isNumbered(m.Op) && random.IntN(30) > 0 {
						m.Seq = seqs[m.MuxID]
						seqs[m.MuxID]++
					}
					if random.IntN(50) == 0 {
						m.Handler = uint8(rig.Unused)
					}
					if random.IntN(20) == 0 {
						ctx, cancel := context.WithTimeout(r.Context(), time.Duration(random.IntN(1000))*time.Millisecond)
						go func() {
							defer cancel()
							_, _ = r.Conn.SingleRequest(ctx, 50, nil)
							if st, err := r.Conn.NewStream(ctx, 50, nil); err == nil {
								_ = st.Send([]byte("x"))
								st.CloseSend()
								_ = rig.Consume(st)
							}
						}()
					}
					if random.IntN(50) == 0 {
						time.Sleep(time.Duration(random.IntN(20_000)) * time.Millisecond)
					}
					if r.Peer.TrySend(m) != nil || r.Conn.State() != grid.StateConnected {
						r.Peer.Close()
						synctest.Wait()
						require.Zero(r, r.Conn.Stats().Handlers)
						r.Peer = r.Next()
						require.NoError(r, r.Conn.WaitForConnect(r.Context()))
						clear(seqs)
						sessions++
					}
				}
				synctest.Wait()
				r.Peer.Close()
				time.Sleep(time.Second)
				require.Zero(r, r.Conn.Stats().Handlers)
				require.Zero(r, r.Conn.Stats().Calls+r.Conn.Stats().Streams)
				if i == 0 {
					r.Log(sessions, "sessions")
				}
			})
		})
	}
}
