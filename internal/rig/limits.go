package rig

import (
	"time"

	"github.com/gridrpc/grid/internal/rawpeer"
)

// What the documents say of grid's limits that are no options. The tests of the root package see to
// it that these are the same as there.
const (
	MinBackoff      = 50 * time.Millisecond // between two attempts to connect
	MaxBackoff      = 5 * time.Second
	StableLife      = time.Minute // of a session that was no failure
	ProbeTime       = time.Second // within which who is asked must show that it lives
	HangUpTime      = time.Second // to tell of the end of a link
	DrainLook       = 5 * time.Second
	DefaultDeadline = time.Minute // of a call whose context has none

	HandshakeTimeout = 10 * time.Second // where the options name none

	MaxMessageSize = 32 << 20  // where the options name none
	FrameOverhead  = 1 << 20   // of a websocket message beyond MaxMessageSize
	PendingLimit   = 256 << 10 // of what waits to be sent
	WholeSize      = 64 << 10  // of a payload that is not sent in fragments
	FragmentSize   = WholeSize - 256
	RetainSize     = FragmentSize / 2
	MaxErrorText   = 64 << 10
	MaxMetadata    = 2 << 10

	MaxCapacity    = 1 << 16 // of a stream's direction
	MaxWindow      = 2048    // messages, of a stream with wide credits
	MaxWindowBytes = 1 << 20
	MessageCost    = 168 // in bytes, of a message that is kept
	MaxInBuffer    = 16  // messages in the channel of a handler
	MaxOutBuffer   = 64

	Mux1Base uint64 = 1 << 62 // what a node adds to the numbers of its calls towards version 1

	// AllCaps is a peer's that speaks all extensions but the checksums of frames, which nothing else
	// depends on.
	AllCaps = rawpeer.CapWideCredits | rawpeer.CapFragments | rawpeer.CapDrain | rawpeer.CapMetadata |
		rawpeer.CapBothCapacities | rawpeer.CapConfirmedPings | rawpeer.CapCancel | rawpeer.CapErrors
)

// Keys of clusters that know nothing of each other.
var (
	Key      = []byte("0123456789abcdef")
	OtherKey = []byte("fedcba9876543210 and more")
)
