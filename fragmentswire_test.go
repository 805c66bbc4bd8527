package grid

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/faultconn"
)

// The second extension of the protocol, towards a scripted peer: what the node
// says, and what it takes.

var fragmentConfig = rawConfig{Caps: rawCapWideCredits | rawCapFragments}

// inFragments runs f as inV1 does, with a peer that has the extension, and with one
// that has no other.
func inFragments(t *testing.T, edit func(o *ManagerOptions), f func(r *v1Rig)) {
	t.Helper()
	for name, caps := range map[string]uint64{"wide": rawCapWideCredits | rawCapFragments, "alone": rawCapFragments} {
		t.Run(name, func(t *testing.T) { inV1(t, rawConfig{Caps: caps}, edit, f) })
	}
}

// isNumbered tells whether each fragment of m takes a number.
func isNumbered(op uint8) bool { return op != rawOpRequest && op != rawOpResponse }

// inPieces is m in fragments: so large, and the rest. Where m has a number it is that
// of the first.
func inPieces(m rawMsg, sizes ...int) (msgs []rawMsg) {
	rest := m.Payload
	for i := range len(sizes) + 1 {
		piece := m
		piece.Payload, rest = rest, nil
		if i < len(sizes) {
			piece.Payload, rest = piece.Payload[:sizes[i]], piece.Payload[sizes[i]:]
			piece.Flags = piece.Flags&^rawFlagEOF | rawFlagMore
		}
		if i > 0 {
			piece.Handler, piece.DeadlineMS, piece.Subroute = 0, 0, nil
			piece.Flags &^= rawFlagSubroute
		}
		if isNumbered(m.Op) {
			piece.Seq += uint32(i)
		}
		msgs = append(msgs, piece)
	}
	return msgs
}

// expectFragments requires that the node says this next, in fragments if it must be.
// It returns the number that follows.
func (r *v1Rig) expectFragments(want rawMsg) (seq uint32) {
	r.Helper()
	for i, n := 0, 0; ; i++ {
		m := r.peer.recv()
		piece := want
		piece.Payload = nil
		n += len(m.Payload)
		require.LessOrEqual(r, n, len(want.Payload), "%v", m)
		requireSame(r.T, want.Payload[n-len(m.Payload):n], m.Payload, "fragment %d: %v", i, m)
		if i > 0 {
			piece.Handler, piece.DeadlineMS, piece.Subroute = 0, 0, nil
			piece.Flags &^= rawFlagSubroute
		}
		if n < len(want.Payload) {
			require.Greater(r, len(want.Payload), 64<<10, "is to be sent whole")
			require.NotEmpty(r, m.Payload)
			piece.Flags = piece.Flags&^rawFlagEOF | rawFlagMore
		}
		require.LessOrEqual(r, len(m.Payload), 64<<10)
		m.Payload = nil
		require.Equal(r, piece, m)
		if isNumbered(want.Op) {
			want.Seq++
		}
		if n == len(want.Payload) {
			return want.Seq
		}
	}
}

// sizes at which the node begins to send in fragments.
var wireSizes = []int{64<<10 - 1, 64 << 10, 64<<10 + 1, 200_000, 1 << 20}

func TestFragmentedRequestAndResponseOnTheWire(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		require.NoError(r, r.node.RegisterSingleHandler(50, func(b []byte) ([]byte, *RemoteErr) { return b, nil }, "a"))
		for _, size := range wireSizes {
			payload := mixed(size)
			ctx, cancel := context.WithTimeout(r.Context(), 1500*time.Millisecond)
			done := make(chan outcome, 1)
			id := r.conn.lastMux.Load() + 1
			go func() {
				b, err := r.conn.Subroute("a").SingleRequest(ctx, 50, payload)
				done <- outcome{b, err}
			}()
			r.expectFragments(rawMsg{
				MuxID: id, DeadlineMS: 1500, Handler: 50, Op: rawOpRequest, Flags: crcEOF | rawFlagSubroute,
				Payload: payload, Subroute: rawSubrouteID(50, "a"),
			})
			r.quiet()
			answer := rawMsg{MuxID: id, Op: rawOpResponse, Flags: crcEOF, Payload: payload[1:]}
			r.peer.sendMerged(inPieces(answer, 1, 30_000, 10, 40_000-1-30_000-10)...) // pieces of any size
			got := <-done
			require.NoError(r, got.err)
			requireSame(r.T, payload[1:], got.payload)
			cancel()

			ask := rawMsg{MuxID: 7, Handler: 50, Op: rawOpRequest, Flags: crcEOF | rawFlagSubroute, Payload: payload, Subroute: rawSubrouteID(50, "a")}
			for _, m := range inPieces(ask, 64<<10-2, 1) {
				r.quiet()
				r.peer.send(m)
			}
			r.expectFragments(rawMsg{MuxID: 7, Op: rawOpResponse, Flags: crcEOF, Payload: payload})
		}
		r.alive()
	})
}

// ack is what accepts a stream whose handler takes so many messages at first.
func (r *v1Rig) ack(id uint64, credits int) rawMsg {
	m := rawMsg{MuxID: id, Op: rawOpAckMux, Flags: rawFlagCRC}
	if r.peer.c.Caps&rawCapWideCredits != 0 {
		m.Payload = msgp.AppendInt(nil, credits)
	}
	return m
}

func TestFragmentedStreamThatTheNodeOpensOnTheWire(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		r.locally(2, 2)
		for _, size := range wireSizes {
			payload := mixed(size)
			opened := make(chan *Stream, 1)
			id := r.conn.lastMux.Load() + 1
			go func() {
				st, err := r.conn.NewStream(r.Context(), 50, payload)
				if err != nil {
					r.Error(err)
				}
				opened <- st
			}()
			seq := r.expectFragments(rawMsg{MuxID: id, Handler: 50, Op: rawOpConnectMux, Flags: rawFlagCRC, Payload: payload})
			r.quiet()
			require.Empty(r, opened, "before the ack")
			r.peer.send(r.ack(id, 2))
			c := &v1Stream{r: r, s: <-opened, id: id, seq: 1, msgs: make(chan string), end: make(chan error, 1)}

			// A message costs one credit, in however many fragments it goes.
			go func() {
				for range 3 {
					if err := c.s.Send(payload); err != nil {
						r.Error(err)
					}
				}
				c.s.CloseSend()
			}()
			msg := rawMsg{MuxID: id, Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: payload}
			for i := range 3 {
				msg.Seq = seq
				seq = r.expectFragments(msg)
				if i == 1 {
					r.quiet()
					c.say(rawMsg{Op: rawOpUnblockClMux, Flags: rawFlagCRC})
				}
			}
			c.expect(seq, rawOpMuxClientMsg, crcEOF)

			// And so it does for the peer, which spends both that it has.
			msg = rawMsg{MuxID: id, Seq: c.seq, Op: rawOpMuxServerMsg, Payload: payload}
			r.peer.sendMerged(inPieces(msg, 1, 2, 30_000)...)
			msg.Seq += 4
			for _, m := range inPieces(msg, 50_000, 10) {
				r.peer.send(m)
			}
			r.quiet()
			require.NoError(r, c.s.Err())
			c.seq = msg.Seq + 3
			c.consume()
			for range 2 {
				requireSame(r.T, payload, []byte(<-c.msgs))
			}
			synctest.Wait()
			returns := 0
			for range r.peer.pending() {
				seq++
				m := r.peer.expect(rawOpUnblockSrvMux)
				require.Equal(r, seq, m.Seq)
				returns += returned(r.T, m)
			}
			require.GreaterOrEqual(r, returns, 2)
			// What comes beside the end is one more message.
			last := rawMsg{MuxID: id, Seq: c.seq, Op: rawOpMuxServerMsg, Flags: rawFlagEOF, Payload: payload}
			r.peer.sendMerged(inPieces(last, 40_000)...)
			rest, err := c.rest()
			require.NoError(r, err)
			require.Len(r, rest, 1)
			requireSame(r.T, payload, []byte(rest[0]))
			synctest.Wait()
			if len(r.peer.pending()) > 0 { // a credit, if that was faster than the end
				r.peer.expect(rawOpUnblockSrvMux)
			}
			r.alive()
		}
	})
}

func TestFragmentedStreamThatTheNodeServesOnTheWire(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		started := r.serve(1, 1, "")
		wide := r.peer.c.Caps&rawCapWideCredits != 0
		for i, size := range wireSizes {
			payload := mixed(size)
			open := rawMsg{MuxID: uint64(i + 1), Handler: 50, DeadlineMS: 1500, Op: rawOpConnectMux, Payload: payload}
			pieces := inPieces(open, 32_639, 1, 32_640-1)
			for _, m := range pieces {
				require.Empty(r, started)
				r.quiet()
				r.peer.send(m)
			}
			begun := time.Now()
			s := <-started
			requireSame(r.T, payload, s.payload)
			s.id, s.seq = open.MuxID, uint32(len(pieces))
			deadline, ok := s.ctx.Deadline()
			require.True(r, ok)
			require.Equal(r, begun.Add(1500*time.Millisecond), deadline)
			r.expect(r.ack(s.id, 1))

			// Pings and credits may come between the fragments of a message.
			msg := rawMsg{Op: rawOpMuxClientMsg, Payload: payload}
			for _, m := range inPieces(msg, 10, 20, 30_000) {
				s.say(m)
				s.say(rawMsg{Op: rawOpPing})
				r.expect(rawMsg{MuxID: s.id, Seq: s.seq - 1, Op: rawOpPong, Flags: rawFlagCRC, Payload: pongPayload(false)})
			}
			requireSame(r.T, payload, <-s.in)
			require.Equal(r, uint32(1), r.peer.expect(rawOpUnblockClMux).Seq)

			go func() { s.out <- bytes.Clone(payload); s.out <- bytes.Clone(payload); s.result <- nil }()
			msg = rawMsg{MuxID: s.id, Op: rawOpMuxServerMsg, Flags: rawFlagCRC, Seq: 2, Payload: payload}
			msg.Seq = r.expectFragments(msg)
			r.quiet()
			s.say(rawMsg{Op: rawOpUnblockSrvMux})
			msg.Seq = r.expectFragments(msg)
			if !wide {
				r.quiet()
				s.say(rawMsg{Op: rawOpUnblockSrvMux})
			}
			s.expect(msg.Seq, rawOpMuxServerMsg, crcEOF)
			if !wide {
				s.expect(0, rawOpDisconnectClientMux, rawFlagCRC)
			}
			r.alive()
		}
	})
}

// The last fragment of a peer's may be empty, but for a stream's message with the end
// of its input in it: that is an end amid the message.
func TestFragmentsWhoseLastIsEmpty(t *testing.T) {
	inV1(t, fragmentConfig, nil, func(r *v1Rig) {
		ask := rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF, Payload: []byte("abc")}
		r.peer.sendMerged(inPieces(ask, 1, 2)...)
		r.expect(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("abc")})

		done := r.call(r.Context(), 50, nil)
		id := r.peer.expect(rawOpRequest).MuxID
		r.peer.sendMerged(inPieces(rawMsg{MuxID: id, Op: rawOpResponse, Flags: rawFlagEOF, Payload: []byte("abc")}, 1, 2)...)
		require.Equal(r, outcome{[]byte("abc"), nil}, <-done)

		s := r.askedWide(r.serve(1, 1, ""), 2, rawMsg{}, 1)
		msg := s.numbered(rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagEOF, Payload: []byte("abc")})
		r.peer.sendMerged(inPieces(msg, 1)...)
		require.Equal(r, "abc", string(<-s.in))
		s.requireClosed()
		s.result <- nil
		r.peer.expect(rawOpMuxServerMsg)

		// A stream without input, which only the last fragment of its opening says.
		started := make(chan *served, 1)
		require.NoError(r, r.node.RegisterStreamingHandler(51, StreamHandler{
			InCapacity: 1,
			Handle: func(ctx context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
				started <- &served{r: r, ctx: ctx, payload: payload, in: in}
				return nil
			},
		}))
		open := rawMsg{MuxID: 3, Handler: 51, Op: rawOpConnectMux, Flags: rawFlagEOF, Payload: []byte("abc")}
		r.peer.sendMerged(inPieces(open, 1, 2)...)
		r.expect(rawMsg{MuxID: 3, Op: rawOpAckMux, Flags: rawFlagCRC, Payload: credits(0)})
		r.expect(rawMsg{MuxID: 3, Seq: 1, Op: rawOpMuxServerMsg, Flags: crcEOF})
		s = <-started
		require.Equal(r, "abc", string(s.payload))
		s.requireClosed()

		c := r.openWide(0)
		msg = c.numbered(rawMsg{Op: rawOpMuxServerMsg, Flags: rawFlagEOF, Payload: []byte("abc")})
		r.peer.sendMerged(inPieces(msg, 1)...)
		synctest.Wait() // the end has come, so no credit is returned
		got, err := collect(c.s, 0)
		require.NoError(r, err)
		require.Equal(r, []string{"abc"}, got)
		r.alive()
	})
}

// Hosts with secure names leave the checksums out of fragments, and check those that
// come with one.
func TestFragmentsHaveNoChecksumsBetweenSecureHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const host = "https://node0:9000"
		raw := "https://raw:9000"
		for port := 9001; !dialOrder(raw, host); port++ {
			raw = fmt.Sprintf("https://raw:%d", port)
		}
		n := faultconn.NewNetwork()
		g := &testGrid{t: t, net: n, hosts: []string{host}, edit: func(_ int, o *ManagerOptions) { o.Hosts = []string{host, raw} }}
		g.startAll()
		p := dialRawConfig(t, "http://node0:9000", rawConfig{Host: raw, Token: testToken, Dial: n.Dialer(hostAddr(raw)), Caps: fragmentConfig.Caps})
		r := &v1Rig{T: t, node: g.nodes[0], conn: g.nodes[0].Connection(raw), peer: p}
		payload := mixed(200_000)
		for _, crc := range []uint8{0, rawFlagCRC} {
			ask := rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF | crc, Payload: payload}
			p.sendMerged(inPieces(ask, 70_000, 70_000)...)
			r.expectFragments(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: rawFlagEOF, Payload: payload})
		}
		bad := inPieces(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: payload}, 70_000)[0].encode()
		bad[len(bad)-100]++
		require.NoError(t, p.trySendBytes(bad))
		r.lost("Request for mux 1 has checksum")
	})
}

// A peer without the extension gets none of it, and its flag 64 means nothing.
func TestFragmentsAreNothingToAPeerWithoutThem(t *testing.T) {
	for name, caps := range map[string]uint64{"version 1": 0, "wide": rawCapWideCredits, "reserved bits": ^uint64(rawCapFragments)} {
		t.Run(name, func(t *testing.T) {
			inV1(t, rawConfig{Caps: caps}, nil, func(r *v1Rig) {
				r.locally(2, 2)
				payload := mixed(1 << 20)
				same := func(want, got rawMsg) {
					r.Helper()
					requireSame(r.T, want.Payload, got.Payload)
					want.Payload, got.Payload = nil, nil
					require.Equal(r, want, got)
				}
				// A request and its answer, either way.
				done := r.call(r.Context(), 50, payload)
				same(rawMsg{MuxID: 1, DeadlineMS: 60000, Handler: 50, Op: rawOpRequest, Flags: crcEOF, Payload: payload}, r.peer.recv())
				r.peer.send(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF | rawFlagMore, Payload: payload})
				got := <-done
				require.NoError(r, got.err)
				requireSame(r.T, payload, got.payload)
				r.peer.send(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagMore, Payload: payload})
				same(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: payload}, r.peer.recv())
				// What has no handler is not taken for the rest of something.
				r.peer.send(rawMsg{MuxID: 1, Op: rawOpRequest, Flags: rawFlagMore, Payload: payload})
				require.Contains(r, remoteText(r.T, r.peer.expect(rawOpMuxConnectError).Payload), "no request handler with ID 0")
				r.peer.send(rawMsg{MuxID: 1, Op: rawOpConnectMux, Flags: rawFlagMore})
				require.Contains(r, remoteText(r.T, r.peer.expect(rawOpMuxConnectError).Payload), "no stream handler with ID 0")

				// A stream that the node opens.
				c := &v1Stream{r: r, id: 2, msgs: make(chan string), end: make(chan error, 1)}
				opened := make(chan error, 1)
				go func() {
					var err error
					c.s, err = r.conn.NewStream(r.Context(), 50, payload)
					opened <- err
				}()
				same(rawMsg{MuxID: 2, Handler: 50, Op: rawOpConnectMux, Flags: rawFlagCRC, Payload: payload}, r.peer.recv())
				ack := r.ack(2, 2)
				ack.Flags |= rawFlagMore
				c.say(ack)
				require.NoError(r, <-opened)
				sent := inBackground(func() error { return c.s.Send(payload) })
				same(rawMsg{MuxID: 2, Seq: 1, Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: payload}, r.peer.recv())
				require.NoError(r, <-sent)
				c.say(rawMsg{Op: rawOpUnblockClMux, Flags: rawFlagMore})
				c.consume()
				c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF | rawFlagMore, Payload: payload})
				requireSame(r.T, payload, []byte(<-c.msgs))
				require.NoError(r, <-c.end)
				synctest.Wait()
				if len(r.peer.pending()) > 0 { // a credit, if that was faster than the end
					r.peer.expect(rawOpUnblockSrvMux)
				}
				r.alive()
			})
			inV1(t, rawConfig{Caps: caps}, nil, func(r *v1Rig) {
				payload := mixed(1 << 20)
				started := r.serve(2, 1, "")
				r.peer.send(rawMsg{MuxID: 1, Handler: 50, Op: rawOpConnectMux, Flags: rawFlagMore, Payload: payload})
				s := <-started
				s.id, s.seq = 1, 1
				requireSame(r.T, payload, s.payload)
				r.expect(r.ack(1, 1))
				s.out <- append(GetByteBufferCap(1<<20), payload...)
				got := r.peer.expect(rawOpMuxServerMsg)
				requireSame(r.T, payload, got.Payload)
				require.Equal(r, uint8(rawFlagCRC), got.Flags)
				s.say(rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagMore, Payload: payload})
				requireSame(r.T, payload, <-s.in)
				r.peer.expect(rawOpUnblockClMux)
				s.say(rawMsg{Op: rawOpPing, Flags: rawFlagMore})
				r.peer.expect(rawOpPong)
				s.say(rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagEOF | rawFlagMore})
				s.requireClosed()
				s.result <- nil
				require.Equal(r, uint8(crcEOF), r.peer.expect(rawOpMuxServerMsg).Flags)
				if caps == 0 {
					r.peer.expect(rawOpDisconnectClientMux)
				}
				ping := rawPing(time.Now())
				ping.Flags = rawFlagMore
				r.peer.send(ping)
				r.peer.expect(rawOpPong)
				r.alive()
			})
		})
	}
}

// Fragments of many muxes come one between the other, also of two that have the same
// number, one of each side, and small messages between them.
func TestFragmentsOfManyMuxesInterleave(t *testing.T) {
	inFragments(t, nil, func(r *v1Rig) {
		r.locally(1, 1)
		require.NoError(r, r.node.RegisterSingleHandler(51, func(b []byte) ([]byte, *RemoteErr) { return b, nil }))
		payload := func(i int) []byte { return mixed(60_000 + i) }
		sizes := []int{20_000, 10, 30_000}
		var parts [][]rawMsg
		calls := make([]<-chan outcome, 3)
		for i := range calls { // numbers 1 to 3, as the peer's own have
			calls[i] = r.call(r.Context(), 50, nil)
			r.peer.expect(rawOpRequest)
			parts = append(parts,
				inPieces(rawMsg{MuxID: uint64(i + 1), Op: rawOpResponse, Flags: rawFlagEOF, Payload: payload(i)}, sizes...),
				inPieces(rawMsg{MuxID: uint64(i + 1), Handler: 51, Op: rawOpRequest, Flags: rawFlagEOF, Payload: payload(10 + i)}, sizes...))
		}
		c, _, opened := r.opening(r.Context())
		c.say(r.ack(c.id, 1))
		require.NoError(r, <-opened)
		c.consume()
		parts = append(parts, inPieces(rawMsg{MuxID: c.id, Seq: 1, Op: rawOpMuxServerMsg, Payload: payload(20)}, sizes...))
		r.peer.send(rawMsg{MuxID: c.id, Handler: uint8(testTwoWay), Op: rawOpConnectMux})
		r.expect(r.ack(c.id, 1))
		parts = append(parts, inPieces(rawMsg{MuxID: c.id, Seq: 1, Op: rawOpMuxClientMsg, Payload: payload(21)}, sizes...))
		for i := range len(sizes) + 1 {
			var msgs []rawMsg
			for _, pieces := range parts {
				msgs = append(msgs, pieces[i])
			}
			if i < len(sizes) {
				r.peer.sendMerged(msgs...)
				r.alive()
			} else {
				r.peer.sendMerged(msgs...)
			}
		}
		for i, call := range calls {
			got := <-call
			require.NoError(r, got.err)
			requireSame(r.T, payload(i), got.payload)
		}
		requireSame(r.T, payload(20), []byte(<-c.msgs))
		synctest.Wait()
		answered := map[uint64]bool{}
		credits, echoes := 0, 0
		for range r.peer.pending() {
			switch m := r.peer.recv(); m.Op {
			case rawOpResponse:
				requireSame(r.T, payload(9+int(m.MuxID)), m.Payload)
				answered[m.MuxID] = true
			case rawOpMuxServerMsg:
				requireSame(r.T, payload(21), m.Payload)
				echoes++
			case rawOpUnblockClMux, rawOpUnblockSrvMux:
				credits++
			default:
				require.Fail(r, "unexpected", "%v", m)
			}
		}
		require.Len(r, answered, 3)
		require.Equal(r, 1, echoes)
		require.Equal(r, 2, credits)
		c.say(rawMsg{Seq: 2, Op: rawOpDisconnectClientMux})
		r.peer.send(rawMsg{MuxID: c.id, Op: rawOpDisconnectServerMux})
		synctest.Wait()
	})
}
