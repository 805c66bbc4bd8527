package grid

import "fmt"

// HandlerID names a handler. IDs are shared by all servers of a cluster; 0 is reserved.
type HandlerID uint8

// op says what a message is (protocol section 2).
type op uint8

const (
	opConnect op = iota + 1
	opConnectResponse
	opPing
	opPong
	opConnectMux
	opMuxConnectError
	opDisconnectClientMux
	opDisconnectServerMux
	opMuxClientMsg
	opMuxServerMsg
	opUnblockSrvMux
	opUnblockClMux
	opAckMux
	opRequest
	opResponse
	opDisconnect
	opMerged
)

var opNames = [...]string{
	"", "Connect", "ConnectResponse", "Ping", "Pong", "ConnectMux", "MuxConnectError",
	"DisconnectClientMux", "DisconnectServerMux", "MuxClientMsg", "MuxServerMsg",
	"UnblockSrvMux", "UnblockClMux", "AckMux", "Request", "Response", "Disconnect", "Merged",
}

func (o op) String() string {
	if o == 0 || int(o) >= len(opNames) {
		return fmt.Sprintf("op %d", uint8(o))
	}
	return opNames[o]
}

// flags qualify a message (section 2).
type flags uint8

const (
	flagCRC flags = 1 << iota
	flagEOF
	flagDetails // an error has details (section 8); version 1 calls it stateless, and it means nothing
	flagPayloadIsErr
	flagPayloadIsZero
	flagSubroute
	flagMore     // the payload goes on (section 8)
	flagMetadata // the message is followed by metadata (section 8)
)

// caps are the extensions that a peer announces (section 8).
type caps uint64

const (
	capWideCredits caps = 1 << iota
	capFragments
	capDrain
	capMetadata
	capBothCapacities
	capFrameChecksum
	capConfirmedPings
	capCancel
	capErrors
)

// ourCaps are the extensions that this implementation speaks.
const ourCaps = capWideCredits | capFragments | capDrain | capMetadata | capBothCapacities |
	capFrameChecksum | capConfirmedPings | capCancel | capErrors

// frameChecksum reports whether frames have a checksum, in place of the messages in them.
func (c caps) frameChecksum() bool { return c&capFrameChecksum != 0 }

// wide reports whether credits may be returned many at a time.
func (c caps) wide() bool { return c&capWideCredits != 0 }

// bothCapacities reports whether an ack names both capacities of a handler, which it does only
// where credits are wide.
func (c caps) bothCapacities() bool {
	const needed = capWideCredits | capBothCapacities
	return c&needed == needed
}
