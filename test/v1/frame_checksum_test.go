package v1

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

var checksumConfig = rawpeer.Config{Caps: rig.AllCaps | rawpeer.CapFrameChecksum}

// Frames have a checksum in place of the messages in them, single ones and those of several.
func TestFrameChecksum_IsInPlaceOfThoseOfMessages(t *testing.T) {
	t.Parallel()
	inWire(t, checksumConfig, nil, func(r *wire) {
		require.True(r, r.Peer.HasChecksums())
		for _, size := range []int{0, 1, 512, 60_000, 200_000} {
			payload := rig.Mixed(size)
			// One that comes with a checksum of its own has that checked as well.
			for _, crc := range []uint8{0, rawpeer.FlagCRC} {
				ask := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF | crc, Payload: payload}
				if size == 0 {
					ask.Flags |= rawpeer.FlagPayloadIsZero
				}
				if size > 64<<10 {
					r.Peer.SendMerged(inPieces(ask, 70_000, 70_000)...)
					r.expectFragments(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: payload})
					continue
				}
				r.Peer.SendMerged(ask, ask)
				for range 2 {
					got := r.Peer.Recv()
					require.Equal(r, payload, got.Payload)
					require.Zero(r, got.Flags&rawpeer.FlagCRC)
				}
			}
		}
		r.Alive()
	})
}

// A frame that was changed on the way, or cut off, loses the link.
func TestFrameChecksum_ThatIsWrongLosesTheLink(t *testing.T) {
	t.Parallel()
	ping := rawpeer.Msg{MuxID: 7, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("x")}
	whole := rawpeer.WithChecksum(ping.Encode())
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)-6] ^= 1
	for name, c := range map[string]struct {
		frame []byte
		want  string
	}{
		"none":      {ping.Encode(), "has checksum"},
		"flipped":   {flipped, "has checksum"},
		"cut off":   {whole[:len(whole)-1], "has checksum"},
		"too short": {[]byte{1, 2, 3}, "frame of 3 bytes ends inside its checksum"},
		"empty":     {nil, "frame of 0 bytes ends inside its checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			inWire(t, checksumConfig, nil, func(r *wire) {
				require.NoError(r, r.Peer.TrySendFrame(c.frame))
				r.Lost(c.want)
			})
		})
	}
}

// Between hosts with secure names it is not announced: TLS has its own. Where only one side has, it
// is not in use.
func TestFrameChecksum_IsOnlyWhereBothHaveSaidSo(t *testing.T) {
	t.Parallel()
	rig.InEveryWire(t, checksumConfig, nil, func(r *rig.Wire) {
		require.Equal(r, !r.Secure, r.Peer.HasChecksums())
		r.Alive()
	})
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *wire) {
		require.False(r, r.Peer.HasChecksums())
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("x")})
		r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagCRC, Payload: []byte("x")})
	})
}
