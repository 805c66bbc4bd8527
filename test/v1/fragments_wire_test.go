package v1

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// inFragments runs f as InWire does, with a peer that has the extension, with one that has no
// other, and with those that have what changes credits.
func inFragments(t *testing.T, edit func(o *grid.ManagerOptions), f func(r *wire)) {
	t.Helper()
	const wide = rawpeer.CapWideCredits | rawpeer.CapFragments
	for name, caps := range map[string]uint64{"alone": rawpeer.CapFragments, "wide": wide, "both capacities": wide | rawpeer.CapBothCapacities} {
		t.Run(name, func(t *testing.T) { inWire(t, rawpeer.Config{Caps: caps}, edit, f) })
	}
}

// isNumbered reports whether each fragment of m takes a number.
func isNumbered(op uint8) bool { return op != rawpeer.OpRequest && op != rawpeer.OpResponse }

// inPieces is m in fragments: so large, and the rest. Where m has a number it is that of the first.
func inPieces(m rawpeer.Msg, sizes ...int) (msgs []rawpeer.Msg) {
	rest := m.Payload
	for i := range len(sizes) + 1 {
		piece := m
		piece.Payload, rest = rest, nil
		if i < len(sizes) {
			piece.Payload, rest = piece.Payload[:sizes[i]], piece.Payload[sizes[i]:]
			piece.Flags = piece.Flags&^rawpeer.FlagEOF | rawpeer.FlagMore
		}
		if i > 0 {
			piece.Handler, piece.DeadlineMS, piece.Subroute = 0, 0, nil
			piece.Flags &^= rawpeer.FlagSubroute
		}
		if isNumbered(m.Op) {
			piece.Seq += uint32(i)
		}
		msgs = append(msgs, piece)
	}
	return msgs
}

// expectFragments requires that the node says this next, in fragments if it must be. It returns the
// number that follows.
func (r *wire) expectFragments(want rawpeer.Msg) (seq uint32) {
	r.Helper()
	for i, n := 0, 0; ; i++ {
		m := r.Peer.Recv()
		piece := want
		piece.Payload = nil
		n += len(m.Payload)
		require.LessOrEqual(r, n, len(want.Payload), "%v", m)
		rig.RequireSame(r.T, want.Payload[n-len(m.Payload):n], m.Payload, "fragment %d: %v", i, m)
		if i > 0 {
			piece.Handler, piece.DeadlineMS, piece.Subroute = 0, 0, nil
			piece.Flags &^= rawpeer.FlagSubroute
		}
		if n < len(want.Payload) {
			require.Greater(r, len(want.Payload), 64<<10, "is to be sent whole")
			require.NotEmpty(r, m.Payload)
			piece.Flags = piece.Flags&^rawpeer.FlagEOF | rawpeer.FlagMore
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

func TestFragments_RequestAndResponseOnTheWire(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		require.NoError(r, r.Node.RegisterSingleHandler(50, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, "a"))
		for i, size := range wireSizes {
			payload := rig.Mixed(size)
			ctx, cancel := context.WithTimeout(r.Context(), 1500*time.Millisecond)
			done := make(chan rig.Outcome, 1)
			id := uint64(i + 1)
			go func() {
				b, err := r.Conn.Subroute("a").SingleRequest(ctx, 50, payload)
				done <- rig.Outcome{Payload: b, Err: err}
			}()
			r.expectFragments(rawpeer.Msg{
				MuxID: id, DeadlineMS: 1500, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF | rawpeer.FlagSubroute,
				Payload: payload, Subroute: rawpeer.SubrouteID(50, "a"),
			})
			r.Quiet()
			answer := rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: payload[1:]}
			r.Peer.SendMerged(inPieces(answer, 1, 30_000, 10, 40_000-1-30_000-10)...) // pieces of any size
			got := <-done
			require.NoError(r, got.Err)
			rig.RequireSame(r.T, payload[1:], got.Payload)
			cancel()

			ask := rawpeer.Msg{MuxID: 7, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF | rawpeer.FlagSubroute, Payload: payload, Subroute: rawpeer.SubrouteID(50, "a")}
			for _, m := range inPieces(ask, 64<<10-2, 1) {
				r.Quiet()
				r.Peer.Send(m)
			}
			r.expectFragments(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: payload})
		}
		r.Alive()
	})
}

// ack is what accepts a stream whose handler has that capacity in both directions.
func (r *wire) ack(id uint64, capacity int) rawpeer.Msg {
	payload := rawpeer.AckPayload(r.Peer.Config.Caps, capacity, capacity)
	return rawpeer.Msg{MuxID: id, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: payload}
}

func TestFragments_StreamThatTheNodeOpensOnTheWire(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		r.locally(2, 2)
		for i, size := range wireSizes {
			payload := rig.Mixed(size)
			opened := make(chan *grid.Stream, 1)
			id := uint64(i + 1)
			go func() {
				st, err := r.Conn.NewStream(r.Context(), 50, payload)
				if err != nil {
					r.Error(err)
				}
				opened <- st
			}()
			seq := r.expectFragments(rawpeer.Msg{MuxID: id, Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC, Payload: payload})
			r.Quiet()
			require.Empty(r, opened, "before the ack")
			r.Peer.Send(r.ack(id, 2))
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
			msg := rawpeer.Msg{MuxID: id, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: payload}
			for i := range 3 {
				msg.Seq = seq
				seq = r.expectFragments(msg)
				if i == 1 {
					r.Quiet()
					c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Flags: rawpeer.FlagCRC})
				}
			}
			c.expect(seq, rawpeer.OpMuxClientMsg, rig.CRCEOF)

			// And so it does for the peer, which spends both that it has.
			msg = rawpeer.Msg{MuxID: id, Seq: c.seq, Op: rawpeer.OpMuxServerMsg, Payload: payload}
			r.Peer.SendMerged(inPieces(msg, 1, 2, 30_000)...)
			msg.Seq += 4
			for _, m := range inPieces(msg, 50_000, 10) {
				r.Peer.Send(m)
			}
			r.Quiet()
			require.NoError(r, c.s.Err())
			c.seq = msg.Seq + 3
			c.consume()
			for range 2 {
				rig.RequireSame(r.T, payload, []byte(<-c.msgs))
			}
			synctest.Wait()
			returns := 0
			for range r.Peer.Pending() {
				seq++
				m := r.Peer.Expect(rawpeer.OpUnblockSrvMux)
				require.Equal(r, seq, m.Seq)
				returns += returned(r.T, m)
			}
			require.GreaterOrEqual(r, returns, 2)
			// What comes beside the end is one more message.
			last := rawpeer.Msg{MuxID: id, Seq: c.seq, Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagEOF, Payload: payload}
			r.Peer.SendMerged(inPieces(last, 40_000)...)
			rest, err := c.rest()
			require.NoError(r, err)
			require.Len(r, rest, 1)
			rig.RequireSame(r.T, payload, []byte(rest[0]))
			r.Quiet() // no credit, however fast the consumer is
			r.Alive()
		}
	})
}

func TestFragments_StreamThatTheNodeServesOnTheWire(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		started := r.serve(1, 1, "")
		wide := r.Peer.Config.Caps&rawpeer.CapWideCredits != 0
		for i, size := range wireSizes {
			payload := rig.Mixed(size)
			open := rawpeer.Msg{MuxID: uint64(i + 1), Handler: 50, DeadlineMS: 1500, Op: rawpeer.OpConnectMux, Payload: payload}
			pieces := inPieces(open, 32_639, 1, 32_640-1)
			for _, m := range pieces {
				require.Empty(r, started)
				r.Quiet()
				r.Peer.Send(m)
			}
			begun := time.Now()
			s := <-started
			rig.RequireSame(r.T, payload, s.payload)
			s.id, s.seq = open.MuxID, uint32(len(pieces))
			deadline, ok := s.ctx.Deadline()
			require.True(r, ok)
			require.Equal(r, begun.Add(1500*time.Millisecond), deadline)
			r.Expect(r.ack(s.id, 1))

			// Pings and credits may come between the fragments of a message.
			msg := rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Payload: payload}
			for _, m := range inPieces(msg, 10, 20, 30_000) {
				s.say(m)
				s.say(rawpeer.Msg{Op: rawpeer.OpPing})
				r.Expect(rawpeer.Msg{MuxID: s.id, Seq: s.seq - 1, Op: rawpeer.OpPong, Flags: rawpeer.FlagCRC, Payload: rawpeer.PongPayload(false)})
			}
			rig.RequireSame(r.T, payload, <-s.in)
			require.Equal(r, uint32(1), r.Peer.Expect(rawpeer.OpUnblockClMux).Seq)

			go func() { s.out <- bytes.Clone(payload); s.out <- bytes.Clone(payload); s.result <- nil }()
			msg = rawpeer.Msg{MuxID: s.id, Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC, Seq: 2, Payload: payload}
			msg.Seq = r.expectFragments(msg)
			r.Quiet()
			s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux})
			msg.Seq = r.expectFragments(msg)
			if !wide {
				r.Quiet()
				s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux})
			}
			s.expect(msg.Seq, rawpeer.OpMuxServerMsg, rig.CRCEOF)
			if !wide {
				s.expect(0, rawpeer.OpDisconnectClientMux, rawpeer.FlagCRC)
			}
			r.Alive()
		}
	})
}

// The last fragment of a peer's may be empty, but for a stream's message with the end of its input
// in it: that is an end amid the message.
func TestFragments_WhoseLastIsEmpty(t *testing.T) {
	t.Parallel()
	inWire(t, rig.FragmentConfig, nil, func(r *wire) {
		ask := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("abc")}
		r.Peer.SendMerged(inPieces(ask, 1, 2)...)
		r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("abc")})

		done := r.Call(r.Context(), 50, nil)
		id := r.Peer.Expect(rawpeer.OpRequest).MuxID
		r.Peer.SendMerged(inPieces(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("abc")}, 1, 2)...)
		require.Equal(r, rig.Outcome{Payload: []byte("abc")}, <-done)

		s := r.askedWide(r.serve(1, 1, ""), 2, rawpeer.Msg{}, 1)
		msg := s.numbered(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagEOF, Payload: []byte("abc")})
		r.Peer.SendMerged(inPieces(msg, 1)...)
		require.Equal(r, "abc", string(<-s.in))
		s.requireClosed()
		s.result <- nil
		r.Peer.Expect(rawpeer.OpMuxServerMsg)

		// A stream without input, which only the last fragment of its opening says.
		started := make(chan *served, 1)
		require.NoError(r, r.Node.RegisterStreamingHandler(51, grid.StreamHandler{
			InCapacity: 1,
			Handle: func(ctx context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				started <- &served{r: r, ctx: ctx, payload: payload, in: in}
				return nil
			},
		}))
		open := rawpeer.Msg{MuxID: 3, Handler: 51, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagEOF, Payload: []byte("abc")}
		r.Peer.SendMerged(inPieces(open, 1, 2)...)
		r.Expect(rawpeer.Msg{MuxID: 3, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: rawpeer.Credits(0)})
		r.Expect(rawpeer.Msg{MuxID: 3, Seq: 1, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
		s = <-started
		require.Equal(r, "abc", string(s.payload))
		s.requireClosed()

		c := r.openWide(0)
		msg = c.numbered(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagEOF, Payload: []byte("abc")})
		r.Peer.SendMerged(inPieces(msg, 1)...)
		got, err := rig.Collect(c.s, 0)
		require.NoError(r, err)
		require.Equal(r, []string{"abc"}, got)
		r.Alive()
	})
}

// Hosts with secure names leave the checksums out of fragments, and check those that come with one.
func TestFragments_HaveNoChecksumsBetweenSecureHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const host = "https://node0:9000"
		raw := "https://raw:9000"
		for port := 9001; !rawpeer.DialOrder(raw, host); port++ {
			raw = fmt.Sprintf("https://raw:%d", port)
		}
		n := faultconn.NewNetwork()
		g := rig.Setup{Net: n, Hosts: []string{host}, Edit: func(_ int, o *grid.ManagerOptions) { o.Hosts = []string{host, raw} }}.Start(t)
		p := rawpeer.DialConfig(t, "http://node0:9000", rawpeer.Config{Host: raw, Token: rig.Token, Dial: n.Dialer(rig.HostAddr(raw)), Caps: rig.FragmentConfig.Caps})
		r := &wire{&rig.Wire{T: t, Node: g.Node(0), Conn: g.Manager(0).Connection(raw), Peer: p}}
		payload := rig.Mixed(200_000)
		for _, crc := range []uint8{0, rawpeer.FlagCRC} {
			ask := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF | crc, Payload: payload}
			p.SendMerged(inPieces(ask, 70_000, 70_000)...)
			r.expectFragments(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: payload})
		}
		bad := inPieces(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: payload}, 70_000)[0].Encode()
		bad[len(bad)-100]++
		require.NoError(t, p.TrySendBytes(bad))
		r.Lost("Request for mux 1 has checksum")
	})
}

// A peer without the extension gets none of it, and its flag 64 means nothing.
func TestFragments_AreNothingToAPeerWithoutThem(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	for name, caps := range map[string]uint64{"version 1": 0, "wide": rawpeer.CapWideCredits, "reserved bits": ^uint64(rawpeer.CapFragments | rawpeer.CapFrameChecksum)} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
				r.locally(2, 2)
				payload := rig.Mixed(1 << 20)
				same := func(want, got rawpeer.Msg) {
					r.Helper()
					rig.RequireSame(r.T, want.Payload, got.Payload)
					want.Payload, got.Payload = nil, nil
					require.Equal(r, want, got)
				}
				// A request and its answer, either way.
				done := r.Call(r.Context(), 50, payload)
				same(rawpeer.Msg{MuxID: r.Mux(1), DeadlineMS: 60000, Handler: 50, Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: payload}, r.Peer.Recv())
				r.Peer.Send(rawpeer.Msg{MuxID: r.Mux(1), Op: rawpeer.OpResponse, Flags: rig.CRCEOF | rawpeer.FlagMore, Payload: payload})
				got := <-done
				require.NoError(r, got.Err)
				rig.RequireSame(r.T, payload, got.Payload)
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagMore, Payload: payload})
				same(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: payload}, r.Peer.Recv())
				// What has no handler is not taken for the rest of something.
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpRequest, Flags: rawpeer.FlagMore, Payload: payload})
				require.Contains(r, rawpeer.ConnectErrorText(r.T, r.Peer.Expect(rawpeer.OpMuxConnectError).Payload), "no request handler with ID 0")
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagMore})
				require.Contains(r, rawpeer.ConnectErrorText(r.T, r.Peer.Expect(rawpeer.OpMuxConnectError).Payload), "no stream handler with ID 0")

				// A stream that the node opens.
				c := &v1Stream{r: r, id: r.Mux(2), msgs: make(chan string), end: make(chan error, 1)}
				opened := make(chan error, 1)
				go func() {
					var err error
					c.s, err = r.Conn.NewStream(r.Context(), 50, payload)
					opened <- err
				}()
				same(rawpeer.Msg{MuxID: r.Mux(2), Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC, Payload: payload}, r.Peer.Recv())
				ack := r.ack(2, 2)
				ack.Flags |= rawpeer.FlagMore
				c.say(ack)
				require.NoError(r, <-opened)
				sent := rig.InBackground(func() error { return c.s.Send(payload) })
				same(rawpeer.Msg{MuxID: r.Mux(2), Seq: 1, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: payload}, r.Peer.Recv())
				require.NoError(r, <-sent)
				c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Flags: rawpeer.FlagMore})
				c.consume()
				c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF | rawpeer.FlagMore, Payload: payload})
				rig.RequireSame(r.T, payload, []byte(<-c.msgs))
				require.NoError(r, <-c.end)
				r.Quiet() // no credit, however fast the consumer is
				r.Alive()
			})
			inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
				payload := rig.Mixed(1 << 20)
				started := r.serve(2, 1, "")
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 50, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagMore, Payload: payload})
				s := <-started
				s.id, s.seq = 1, 1
				rig.RequireSame(r.T, payload, s.payload)
				ack := r.ack(1, 1)
				ack.Payload = rawpeer.AckPayload(caps, 1, 2)
				r.Expect(ack)
				s.out <- append(grid.GetByteBufferCap(1<<20), payload...)
				got := r.Peer.Expect(rawpeer.OpMuxServerMsg)
				rig.RequireSame(r.T, payload, got.Payload)
				require.Equal(r, uint8(rawpeer.FlagCRC), got.Flags)
				s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagMore, Payload: payload})
				rig.RequireSame(r.T, payload, <-s.in)
				r.Peer.Expect(rawpeer.OpUnblockClMux)
				s.say(rawpeer.Msg{Op: rawpeer.OpPing, Flags: rawpeer.FlagMore})
				r.Peer.Expect(rawpeer.OpPong)
				s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagEOF | rawpeer.FlagMore})
				s.requireClosed()
				s.result <- nil
				require.Equal(r, uint8(rig.CRCEOF), r.Peer.Expect(rawpeer.OpMuxServerMsg).Flags)
				if caps == 0 {
					r.Peer.Expect(rawpeer.OpDisconnectClientMux)
				}
				ping := rawpeer.Ping(time.Now())
				ping.Flags = rawpeer.FlagMore
				r.Peer.Send(ping)
				r.Peer.Expect(rawpeer.OpPong)
				r.Alive()
			})
		})
	}
}

// Fragments of many muxes come one between the other, also of two that have the same number, one of
// each side, and small messages between them.
func TestFragments_OfManyMuxesInterleave(t *testing.T) {
	t.Parallel()
	inFragments(t, nil, func(r *wire) {
		r.locally(1, 1)
		require.NoError(r, r.Node.RegisterSingleHandler(51, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		payload := func(i int) []byte { return rig.Mixed(60_000 + i) }
		sizes := []int{20_000, 10, 30_000}
		var parts [][]rawpeer.Msg
		calls := make([]<-chan rig.Outcome, 3)
		for i := range calls { // numbers 1 to 3, as the peer's own have
			calls[i] = r.Call(r.Context(), 50, nil)
			r.Peer.Expect(rawpeer.OpRequest)
			parts = append(parts,
				inPieces(rawpeer.Msg{MuxID: uint64(i + 1), Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: payload(i)}, sizes...),
				inPieces(rawpeer.Msg{MuxID: uint64(i + 1), Handler: 51, Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: payload(10 + i)}, sizes...))
		}
		c, _, opened := r.opening(r.Context())
		c.say(r.ack(c.id, 1))
		require.NoError(r, <-opened)
		c.consume()
		parts = append(parts, inPieces(rawpeer.Msg{MuxID: c.id, Seq: 1, Op: rawpeer.OpMuxServerMsg, Payload: payload(20)}, sizes...))
		r.Peer.Send(rawpeer.Msg{MuxID: c.id, Handler: uint8(rig.TwoWay), Op: rawpeer.OpConnectMux})
		r.Expect(r.ack(c.id, 1))
		parts = append(parts, inPieces(rawpeer.Msg{MuxID: c.id, Seq: 1, Op: rawpeer.OpMuxClientMsg, Payload: payload(21)}, sizes...))
		for i := range len(sizes) + 1 {
			var msgs []rawpeer.Msg
			for _, pieces := range parts {
				msgs = append(msgs, pieces[i])
			}
			if i < len(sizes) {
				r.Peer.SendMerged(msgs...)
				r.Alive()
			} else {
				r.Peer.SendMerged(msgs...)
			}
		}
		for i, call := range calls {
			got := <-call
			require.NoError(r, got.Err)
			rig.RequireSame(r.T, payload(i), got.Payload)
		}
		rig.RequireSame(r.T, payload(20), []byte(<-c.msgs))
		synctest.Wait()
		answered := map[uint64]bool{}
		credits, echoes := 0, 0
		for range r.Peer.Pending() {
			switch m := r.Peer.Recv(); m.Op {
			case rawpeer.OpResponse:
				rig.RequireSame(r.T, payload(9+int(m.MuxID)), m.Payload)
				answered[m.MuxID] = true
			case rawpeer.OpMuxServerMsg:
				rig.RequireSame(r.T, payload(21), m.Payload)
				echoes++
			case rawpeer.OpUnblockClMux, rawpeer.OpUnblockSrvMux:
				credits++
			default:
				require.Fail(r, "unexpected", "%v", m)
			}
		}
		require.Len(r, answered, 3)
		require.Equal(r, 1, echoes)
		require.Equal(r, 2, credits)
		c.say(rawpeer.Msg{Seq: 2, Op: rawpeer.OpDisconnectClientMux})
		r.Peer.Send(rawpeer.Msg{MuxID: c.id, Op: rawpeer.OpDisconnectServerMux})
		synctest.Wait()
	})
}
