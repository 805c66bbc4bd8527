package grid

import (
	"bytes"
	"encoding/binary"
	"math"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/bytepool"
)

// A length that is claimed is not a length that has come: nothing is allocated for it.

// allocated is how many bytes were allocated ever.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// claimed requires that f, however much it claims, has little allocated.
func (a *attacked) claimed(most uint64, f func()) {
	a.Helper()
	if bytepool.Strict { // allocates for the honest host, too
		most += 8 << 20
	}
	before := allocated()
	f()
	synctest.Wait()
	require.Less(a, allocated()-before, most, "bytes were allocated")
}

// claims are MessagePack values of which nothing follows but their head.
func claims() map[string][]byte {
	four := func(lead byte) []byte { return []byte{lead, 0xff, 0xff, 0xff, 0xff} }
	return map[string][]byte{
		"bin32": four(0xc6), "str32": four(0xdb), "array32": four(0xdd), "map32": four(0xdf),
		"ext32": append(four(0xc9), 5), "bin16": {0xc5, 0xff, 0xff}, "map16": {0xde, 0xff, 0xff}, "time of 4 GiB": append(four(0xc9), 0xff),
	}
}

// inEveryPlace puts a claim where each value of a map is, where a value that nobody
// knows is, where a key is, and where the map is.
func inEveryPlace(keys []string, claim []byte) (all [][]byte) {
	for _, key := range append(keys, "New") {
		all = append(all, append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), key), claim...))
	}
	return append(all, append(msgp.AppendMapHeader(nil, 1), claim...), claim)
}

// deep is a value inside a value, and so on.
func deep(n int) []byte { return append(bytes.Repeat([]byte{0x91}, n), 0xc0) }

// A frame's header is believed only in that the frame is too large.
func TestAttackFrameThatClaimsEverything(t *testing.T) {
	for name, length := range map[string]uint64{"2^63-1": math.MaxInt64, "2^64-1": math.MaxUint64, "4 GiB": 1 << 32, "the limit": 64 << 20} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				a.during(func() {
					a.claimed(1<<20, func() { _ = p.tryWriteRaw(p.rawWS(wsFinal|wsBinary, length, []byte("some"))) })
				})
				a.lost(s)
			})
		})
	}
}

// In a message: the array, its fields, its payload, and what is merged.
func TestAttackMessageThatClaimsEverything(t *testing.T) {
	all := map[string][]byte{
		"a merged count": rawMsg{Op: rawOpMerged, Seq: math.MaxUint32}.encode(),
		"a merged count of some": append(rawMsg{Op: rawOpMerged, Seq: math.MaxUint32}.encode(),
			msgp.AppendBytes(nil, rawMsg{MuxID: 1, Op: rawOpResponse}.encode())...),
	}
	for name, claim := range claims() {
		all[name+" as the message"] = claim
		head := msgp.AppendArrayHeader(nil, 7)
		for field := range 7 {
			b := bytes.Clone(head)
			for range field {
				b = append(b, 1)
			}
			all[name+" as field "+string(rune('1'+field))] = append(b, claim...)
		}
		all[name+" as a merged one"] = append(rawMsg{Op: rawOpMerged, Seq: 1}.encode(), claim...)
	}
	for name, b := range all {
		t.Run(name, func(t *testing.T) {
			atTheDoor(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				a.claimed(1<<20, func() { require.NoError(a, p.trySendBytes(b)) })
				a.lost(s, ErrProtocol.Error())
			})
		})
	}
}

// In what the messages of a session carry in their payloads. Some of that is an error
// of the link, some of a stream, some of nobody.
func TestAttackPayloadThatClaimsEverything(t *testing.T) {
	const mux = 77
	for op, keys := range map[uint8][]string{
		rawOpPing: {"t"}, rawOpPong: {"nf", "e", "t"}, rawOpMuxConnectError: {"Error"},
		rawOpAckMux: nil, rawOpUnblockSrvMux: nil, rawOpUnblockClMux: nil,
	} {
		t.Run(rawOpName(op), func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps, Unread: true}, func(o *ManagerOptions) { o.MaxMessageSize = 2 << 20 }, func(a *attacked) {
				payloads := map[string][]byte{}
				if keys != nil {
					payloads["deep"] = append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "New"), deep(99_000)...)
					payloads["deeper"] = append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "New"), deep(2<<20-1000)...)
				}
				for name, claim := range claims() {
					for i, b := range inEveryPlace(keys, claim) {
						payloads[name+string(rune('a'+i))] = b
					}
				}
				a.during(func() {
					for name, payload := range payloads {
						p := a.next()
						s := a.session()
						a.swallow(p)
						p.send(rawMsg{MuxID: mux, Handler: uint8(testTwoWay), Op: rawOpConnectMux})
						synctest.Wait()
						for _, id := range []uint64{mux, 0} {
							a.claimed(8<<20, func() { _ = p.trySend(rawMsg{MuxID: id, Seq: 1, Op: op, Payload: payload}) })
						}
						_ = p.trySend(rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF})
						synctest.Wait()
						p.close()
						a.ended(s)
						require.Error(a, s.err, name)
						synctest.Wait()
					}
				})
				a.idle()
				a.requireGrown(2 << 20)
			})
		})
	}
}

// A number of credits takes five bytes. One that is longer is no number, and not worth
// repeating: not in an error, nor in the cause of a context.
func TestAttackCreditsOfManyBytes(t *testing.T) {
	const size = 120_000 // more than that of what grid itself sends ends the link
	t.Run("to a stream that is served", func(t *testing.T) {
		inAttack(t, rawConfig{Caps: allCaps, Unread: true}, nil, func(a *attacked) {
			b := a.block(1)
			p := a.next()
			a.swallow(p)
			const streams = 100
			a.during(func() {
				for i := range uint64(streams) {
					p.send(rawMsg{MuxID: i + 1, Handler: uint8(attackStream), Op: rawOpConnectMux})
					p.send(rawMsg{MuxID: i + 1, Seq: 1, Op: rawOpUnblockSrvMux, Payload: make([]byte, size)})
				}
			})
			synctest.Wait()
			require.Zero(a, a.conn.Stats().StreamsServed, "all have failed")
			a.requireGrown(4 << 20) // the handlers themselves
			b.release()
			a.idle()
		})
	})
	for _, op := range []uint8{rawOpAckMux, rawOpUnblockClMux} {
		t.Run("to a stream that was opened, "+rawOpName(op), func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
				p := a.next()
				opened := inBackground(func() error {
					st, err := a.conn.NewStream(a.Context(), 50, nil)
					if err == nil {
						st.CloseSend()
						err = consume(st)
					}
					return err
				})
				id, seq := p.expect(rawOpConnectMux).MuxID, uint32(0)
				if op != rawOpAckMux {
					p.send(rawMsg{MuxID: id, Op: rawOpAckMux, Payload: []byte{1}})
					seq++
				}
				synctest.Wait()
				p.send(rawMsg{MuxID: id, Seq: seq, Op: op, Payload: make([]byte, size)})
				err := <-opened
				require.ErrorIs(a, err, ErrProtocol)
				require.Less(a, len(err.Error()), 1000)
				a.idle()
			})
		})
	}
}

// In the handshake, of somebody who dials.
func TestAttackConnectThatClaimsEverything(t *testing.T) {
	atTheDoor(t, rawConfig{Bare: true}, nil, func(a *attacked) {
		var payloads [][]byte
		for _, claim := range claims() {
			payloads = append(payloads, inEveryPlace([]string{"ID", "Host", "Time", "Token", "Caps"}, claim)...)
		}
		for _, n := range []int{1000, 60_000} {
			for _, key := range []string{"New", "Host", "Time"} {
				payloads = append(payloads, append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), key), deep(n)...))
			}
		}
		a.during(func() {
			for _, payload := range payloads {
				p := a.next()
				// The stack of a deep one counts, too.
				a.claimed(1<<20, func() { p.send(rawMsg{Op: rawOpConnect, Payload: payload}) })
				m := p.expect(rawOpConnectResponse)
				answer, err := decodeRawConnectResponse(m.Payload)
				require.NoError(a, err)
				require.False(a, answer.Accepted)
				p.expectClosed()
			}
		})
		a.logged("handshake failed")
		a.requireGrown(2 << 20)

		// What nobody knows is skipped, also if it is deep.
		hello := rawConnect{ID: make([]byte, 16), Host: a.raw, Time: time.Now(), Token: attackToken}.encode()
		hello[0]++
		p := a.next()
		p.send(rawMsg{Op: rawOpConnect, Payload: append(msgp.AppendString(hello, "New"), deep(60_000)...)})
		p.expect(rawOpConnectResponse)
		a.echoes(p)
	})
}

// In the answer of somebody who was dialled.
func TestAttackConnectResponseThatClaimsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runAttack(t, false, rawConfig{Bare: true}, nil, func(a *attacked) {
			var payloads [][]byte
			for _, claim := range claims() {
				payloads = append(payloads, inEveryPlace([]string{"ID", "Accepted", "RejectedReason", "Caps"}, claim)...)
			}
			payloads = append(payloads, append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "RejectedReason"), deep(60_000)...))
			a.during(func() {
				for _, payload := range payloads {
					p := a.next()
					p.expect(rawOpConnect)
					a.claimed(1<<20, func() { p.send(rawMsg{Op: rawOpConnectResponse, Payload: payload}) })
					p.expectClosed()
				}
			})
			a.logged("cannot connect", "ConnectResponse")
			a.requireGrown(2 << 20)
			p := a.next()
			p.expect(rawOpConnect)
			answer := rawConnectResponse{ID: make([]byte, 16), Accepted: true}.encode()
			answer[0]++
			p.send(rawMsg{Op: rawOpConnectResponse, Payload: append(msgp.AppendString(answer, "New"), deep(60_000)...)})
			a.session()
			a.echoes(p)
		})
	})
}

// Compression is not taken, so a frame that says it is compressed ends the link.
func TestAttackCompressedFrame(t *testing.T) {
	inAttack(t, rawConfig{Caps: allCaps}, nil, func(a *attacked) {
		for _, reserved := range []byte{0x40, 0x20, 0x10} {
			p := a.next()
			s := a.session()
			a.during(func() {
				m := rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest}.encode()
				require.NoError(a, p.tryWriteRaw(p.rawWS(wsFinal|wsBinary|reserved, uint64(len(m)), m)))
				a.ended(s)
			})
			require.ErrorContains(a, s.err, "RSV")
			p.close()
		}
		a.logged("connection lost", "RSV1 set")
		p := a.next()
		a.echoes(p)
	})
}

// Lengths that lie inside of what has come.
func TestAttackMergedCountThatLies(t *testing.T) {
	one := msgp.AppendBytes(nil, rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest}.encode())
	for name, b := range map[string][]byte{
		"one too many":   append(rawMsg{Op: rawOpMerged, Seq: 2}.encode(), one...),
		"one too few":    append(rawMsg{Op: rawOpMerged, Seq: 0}.encode(), one...),
		"many too many":  append(rawMsg{Op: rawOpMerged, Seq: math.MaxUint32}.encode(), bytes.Repeat(one, 1000)...),
		"a length of it": append(rawMsg{Op: rawOpMerged, Seq: 1}.encode(), binary.BigEndian.AppendUint32([]byte{0xc6}, math.MaxUint32)...),
		"an empty one":   append(rawMsg{Op: rawOpMerged, Seq: 1}.encode(), 0xc4, 0),
	} {
		t.Run(name, func(t *testing.T) {
			inAttack(t, rawConfig{Caps: allCaps, Unread: true}, nil, func(a *attacked) {
				p := a.next()
				s := a.session()
				a.during(func() {
					a.claimed(8<<20, func() { require.NoError(a, p.trySendBytes(b)) })
				})
				a.lost(s, ErrProtocol.Error())
				a.idle()
			})
		})
	}
}
