package attack

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

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A length that is claimed is not a length that has come: nothing is allocated for it.

// allocated is how many bytes were allocated ever.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// claimed requires that f, however much it claims, has little allocated.
func claimed(a *rig.Attacked, most uint64, f func()) {
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

// inEveryPlace puts a claim where each value of a map is, where a value that nobody knows is, where
// a key is, and where the map is.
func inEveryPlace(keys []string, claim []byte) (all [][]byte) {
	for _, key := range append(keys, "New") {
		all = append(all, append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), key), claim...))
	}
	return append(all, append(msgp.AppendMapHeader(nil, 1), claim...), claim)
}

// deep is a value inside a value, and so on.
func deep(n int) []byte { return append(bytes.Repeat([]byte{0x91}, n), 0xc0) }

// A frame's header is believed only in that the frame is too large.
func TestWebsocket_FrameThatClaimsEverything(t *testing.T) {
	for name, length := range map[string]uint64{"2^63-1": math.MaxInt64, "2^64-1": math.MaxUint64, "4 GiB": 1 << 32, "the limit": 64 << 20} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				a.During(func() {
					claimed(a, 1<<20, func() { _ = p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FrameBinary, length, []byte("some"))) })
				})
				a.Lost(s)
			})
		})
	}
}

// In a message: the array, its fields, its payload, and what is merged.
func TestMsg_ThatClaimsEverything(t *testing.T) {
	all := map[string][]byte{
		"a merged count": rawpeer.Msg{Op: rawpeer.OpMerged, Seq: math.MaxUint32}.Encode(),
		"a merged count of some": append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: math.MaxUint32}.Encode(),
			msgp.AppendBytes(nil, rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse}.Encode())...),
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
		all[name+" as a merged one"] = append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 1}.Encode(), claim...)
	}
	for name, b := range all {
		t.Run(name, func(t *testing.T) {
			rig.InAttackByDialler(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				claimed(a, 1<<20, func() { require.NoError(a, p.TrySendBytes(b)) })
				a.Lost(s, grid.ErrProtocol.Error())
			})
		})
	}
}

// In what the messages of a session carry in their payloads. Some of that is an error of the link,
// some of a stream, some of nobody.
func TestMsg_PayloadThatClaimsEverything(t *testing.T) {
	rig.Long(t)
	const mux = 77
	for op, keys := range map[uint8][]string{
		rawpeer.OpPing: {"t"}, rawpeer.OpPong: {"nf", "e", "t"}, rawpeer.OpMuxConnectError: {"Error"},
		rawpeer.OpAckMux: nil, rawpeer.OpUnblockSrvMux: nil, rawpeer.OpUnblockClMux: nil,
	} {
		t.Run(rawpeer.OpName(op), func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, func(o *grid.ManagerOptions) { o.MaxMessageSize = 2 << 20 }, func(a *rig.Attacked) {
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
				a.During(func() {
					for name, payload := range payloads {
						p := a.Next()
						s := a.Session()
						a.Swallow(p)
						p.Send(rawpeer.Msg{MuxID: mux, Handler: uint8(rig.TwoWay), Op: rawpeer.OpConnectMux})
						synctest.Wait()
						for _, id := range []uint64{mux, 0} {
							claimed(a, 8<<20, func() { _ = p.TrySend(rawpeer.Msg{MuxID: id, Seq: 1, Op: op, Payload: payload}) })
						}
						_ = p.TrySend(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
						synctest.Wait()
						p.Close()
						a.RequireEnded(s)
						require.NotEmpty(a, s.Err(), name)
						synctest.Wait()
					}
				})
				a.Idle()
				a.RequireGrown(2 << 20)
			})
		})
	}
}

// A number of credits takes five bytes. One that is longer is no number, and not worth repeating:
// not in an error, nor in the cause of a context.
func TestCredits_OfManyBytesAreNotRepeated(t *testing.T) {
	const size = 120_000 // more than that of what grid itself sends ends the link
	t.Run("to a stream that is served", func(t *testing.T) {
		rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
			b := a.Block(1)
			p := a.Next()
			a.Swallow(p)
			const streams = 100
			a.During(func() {
				for i := range uint64(streams) {
					p.Send(rawpeer.Msg{MuxID: i + 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
					p.Send(rawpeer.Msg{MuxID: i + 1, Seq: 1, Op: rawpeer.OpUnblockSrvMux, Payload: make([]byte, size)})
				}
			})
			synctest.Wait()
			require.Zero(a, a.Conn.Stats().StreamsServed, "all have failed")
			a.RequireGrown(4 << 20) // the handlers themselves
			b.Release()
			a.Idle()
		})
	})
	for _, op := range []uint8{rawpeer.OpAckMux, rawpeer.OpUnblockClMux} {
		t.Run("to a stream that was opened, "+rawpeer.OpName(op), func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
				p := a.Next()
				opened := rig.InBackground(func() error {
					st, err := a.Conn.NewStream(a.Context(), 50, nil)
					if err == nil {
						st.CloseSend()
						err = rig.Consume(st)
					}
					return err
				})
				id, seq := p.Expect(rawpeer.OpConnectMux).MuxID, uint32(0)
				if op != rawpeer.OpAckMux {
					p.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(rig.AllCaps, 1, 1)})
					seq++
				}
				synctest.Wait()
				p.Send(rawpeer.Msg{MuxID: id, Seq: seq, Op: op, Payload: make([]byte, size)})
				err := <-opened
				require.ErrorIs(a, err, grid.ErrProtocol)
				require.Less(a, len(err.Error()), 1000)
				a.Idle()
			})
		})
	}
}

// In the handshake, of somebody who dials.
func TestHandshake_ConnectThatClaimsEverything(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{Bare: true}, nil, func(a *rig.Attacked) {
		var payloads [][]byte
		for _, claim := range claims() {
			payloads = append(payloads, inEveryPlace([]string{"ID", "Host", "Time", "Token", "Caps"}, claim)...)
		}
		for _, n := range []int{33, 1000, 60_000} {
			for _, key := range []string{"New", "Host", "Time"} {
				payloads = append(payloads, append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), key), deep(n)...))
			}
		}
		a.During(func() {
			for _, payload := range payloads {
				p := a.Next()
				// The stack of a deep one counts, too.
				claimed(a, 1<<20, func() { p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: payload}) })
				m := p.Expect(rawpeer.OpConnectResponse)
				answer, err := rawpeer.DecodeConnectResponse(m.Payload)
				require.NoError(a, err)
				require.False(a, answer.Accepted)
				p.ExpectClosed()
			}
		})
		a.LoggedFew("handshake failed")
		a.RequireGrown(2 << 20)

		// What nobody knows is skipped, also if it is nested.
		hello := rawpeer.Connect{ID: make([]byte, 16), Host: a.Raw, Time: time.Now(), Token: rig.AttackToken}.Encode()
		hello[0]++
		p := a.Next()
		p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: append(msgp.AppendString(hello, "New"), deep(20)...)})
		p.Expect(rawpeer.OpConnectResponse)
		a.Echoes(p)
	})
}

// In the answer of somebody who was dialled.
func TestHandshake_ConnectResponseThatClaimsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig.RunAttack(t, false, rawpeer.Config{Bare: true}, nil, func(a *rig.Attacked) {
			var payloads [][]byte
			for _, claim := range claims() {
				payloads = append(payloads, inEveryPlace([]string{"ID", "Accepted", "RejectedReason", "Caps"}, claim)...)
			}
			payloads = append(payloads, append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "RejectedReason"), deep(60_000)...))
			a.During(func() {
				for _, payload := range payloads {
					p := a.Next()
					p.Expect(rawpeer.OpConnect)
					claimed(a, 1<<20, func() { p.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: payload}) })
					p.ExpectClosed()
				}
			})
			a.LoggedFew("cannot connect", "ConnectResponse")
			a.RequireGrown(2 << 20)
			p := a.Next()
			p.Expect(rawpeer.OpConnect)
			answer := rawpeer.ConnectResponse{ID: make([]byte, 16), Accepted: true}.Encode()
			answer[0]++
			p.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: append(msgp.AppendString(answer, "New"), deep(20)...)})
			a.Session()
			a.Echoes(p)
		})
	})
}

// Compression is not taken, so a frame that says it is compressed ends the link.
func TestWebsocket_CompressedFrameEndsTheLink(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
		for _, reserved := range []byte{0x40, 0x20, 0x10} {
			p := a.Next()
			s := a.Session()
			a.During(func() {
				m := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest}.Encode()
				require.NoError(a, p.TryWrite(p.Frame(rawpeer.FrameFinal|rawpeer.FrameBinary|reserved, uint64(len(m)), m)))
				a.RequireEnded(s)
			})
			require.Contains(a, s.Err(), "RSV")
			synctest.Wait() // its loss is logged, which that of the next must not be before
			p.Close()
		}
		a.Logged("connection lost", "RSV1 set")
		p := a.Next()
		a.Echoes(p)
	})
}

// Lengths that lie inside of what has come.
func TestMsg_MergedCountThatLiesEndsTheLink(t *testing.T) {
	one := msgp.AppendBytes(nil, rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest}.Encode())
	for name, b := range map[string][]byte{
		"one too many":   append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 2}.Encode(), one...),
		"one too few":    append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 0}.Encode(), one...),
		"many too many":  append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: math.MaxUint32}.Encode(), bytes.Repeat(one, 1000)...),
		"a length of it": append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 1}.Encode(), binary.BigEndian.AppendUint32([]byte{0xc6}, math.MaxUint32)...),
		"an empty one":   append(rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 1}.Encode(), 0xc4, 0),
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				a.During(func() {
					claimed(a, 8<<20, func() { require.NoError(a, p.TrySendBytes(b)) })
				})
				a.Lost(s, grid.ErrProtocol.Error())
				a.Idle()
			})
		})
	}
}
