package hostile

import (
	"os"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// messageShare is how many runs it takes, more or less, to send all messages. With
// GRID_ALL_ODD_MESSAGES set, one does.
var messageShare = int64(10)

func init() {
	switch {
	case os.Getenv("GRID_ALL_ODD_MESSAGES") != "":
		messageShare = 1
	case bytepool.Strict:
		messageShare = 60
	}
}

// oddMessages are all that can be said of a mux, in every way. Seq is how far it is from the
// number that is due.
func oddMessages() (all []rawpeer.Msg) {
	plain := []string{"", "x", "\xc1\xff\xff"}
	pong := func(notFound byte) string { return "\x83\xa2nf" + string(notFound) + "\xa1e\xc0\xa1t\xc0" }
	hello := rawpeer.Connect{ID: make([]byte, 16), Host: "x", Time: time.Unix(1, 0)}
	payloads := map[uint8][]string{
		rawpeer.OpConnect:         {"", string(hello.Encode())},
		rawpeer.OpConnectResponse: {"", string(rawpeer.ConnectResponse{ID: hello.ID, Accepted: true}.Encode())},
		rawpeer.OpPong:            {"", pong(0xc2), pong(0xc3), "\xc1"},
		rawpeer.OpMuxConnectError: {"", string(rawpeer.ConnectError("no")), "\xc1"},
		rawpeer.OpUnblockSrvMux:   badCredits,
		rawpeer.OpUnblockClMux:    badCredits,
		rawpeer.OpAckMux:          append(badAcks, badCredits...),
		rawpeer.OpDisconnect:      {""},
		rawpeer.OpMerged:          {""},
	}
	flags := []uint8{
		0, rawpeer.FlagEOF, rawpeer.FlagPayloadIsErr, rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, rawpeer.FlagMore, rawpeer.FlagMore | rawpeer.FlagEOF,
		rawpeer.FlagPayloadIsZero, rawpeer.FlagStateless | 128, rawpeer.FlagSubroute,
	}
	ops := []uint8{0, 18, 64, 255}
	for op := range uint8(rawpeer.OpMerged) {
		ops = append(ops, op+1)
	}
	for _, op := range ops {
		texts, seqs := payloads[op], []uint32{0}
		if texts == nil {
			texts = plain
		}
		if numberedOps[op] {
			seqs = []uint32{0, 1, ^uint32(0), 1 << 31}
		}
		handlers := []grid.HandlerID{0}
		if op == rawpeer.OpRequest || op == rawpeer.OpConnectMux {
			handlers = []grid.HandlerID{0, rig.Echo, holdStream, rig.Unused}
		}
		for _, text := range texts {
			for _, f := range flags {
				for _, seq := range seqs {
					for _, h := range handlers {
						m := rawpeer.Msg{Op: op, Flags: f, Seq: seq, Handler: uint8(h), Payload: []byte(text)}
						if f == rawpeer.FlagSubroute {
							all = append(all, m) // without its bytes
							m.Subroute = rawpeer.SubrouteID(uint8(h), "none")
						}
						if len(all)%2 == 0 {
							m.Flags |= rawpeer.FlagCRC
						}
						all = append(all, m)
					}
				}
			}
		}
	}
	return all
}

// numberedOps are those whose number is checked.
var numberedOps = map[uint8]bool{
	rawpeer.OpPing: true, rawpeer.OpConnectMux: true, rawpeer.OpMuxClientMsg: true, rawpeer.OpUnblockSrvMux: true,
	rawpeer.OpAckMux: true, rawpeer.OpMuxServerMsg: true, rawpeer.OpUnblockClMux: true, rawpeer.OpMerged: true,
}

// badCredits are numbers of credits, of which the first five are none.
var badCredits = []string{
	"\xc1",                                 // no MessagePack
	"\xff",                                 // -1
	"\xce\x00\x01\x00\x01",                 // 65537
	"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", // 2^64-1
	"\x01\x01",                             // two of them
	"", "\x00", "\x01", "\xce\x00\x01\x00\x00",
}

// badAcks are what an ack may name in place of one number, of which the last three are two
// capacities.
var badAcks = []string{
	"\x01\x00",                 // OutCapacity is 1 at least
	"\x01\xce\x00\x01\x00\x01", // 65537
	"\xce\x00\x01\x00\x01\x01", // 65537
	"\x01\xff",                 // -1
	"\x01\xc1",                 // no MessagePack
	"\x01\x01\x01",             // three of them
	"\x00\x01", "\xce\x00\x01\x00\x00\xce\x00\x01\x00\x00", "\xcc\x01\xd1\x00\x01",
}
