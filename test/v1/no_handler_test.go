package v1

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A peer says by a MuxConnectError that it has no handler, in words that are known here or not. In
// any other op the same words are a handler's, or the reason of an end.
func TestErrNoHandler_IsKnownByItsOpAndText(t *testing.T) {
	for name, caps := range map[string]uint64{"version 1": 0, "all": uint64(rig.AllCaps)} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
				for _, c := range []struct {
					answer rawpeer.Msg
					text   string
					is     bool
				}{
					{rawpeer.Msg{Op: rawpeer.OpMuxConnectError}, "grid: no request handler with ID 100", true},
					{rawpeer.Msg{Op: rawpeer.OpMuxConnectError}, "grid: no request handler with ID 100 (name) under that subroute", true},
					{rawpeer.Msg{Op: rawpeer.OpMuxConnectError}, "grid: no stream handler with ID 100, only one of the other kind", true},
					{rawpeer.Msg{Op: rawpeer.OpMuxConnectError}, "no such handler", false},
					{rawpeer.Msg{Op: rawpeer.OpMuxConnectError}, "grid: no handler", false},
					{rawpeer.Msg{Op: rawpeer.OpMuxConnectError}, " grid: no request handler with ID 100", false},
					{rawpeer.Msg{Op: rawpeer.OpResponse, Flags: rawpeer.FlagPayloadIsErr}, "grid: no request handler with ID 100", false},
				} {
					answer := r.Call(r.Context(), rig.Handler, nil)
					c.answer.MuxID = r.Peer.Expect(rawpeer.OpRequest).MuxID
					c.answer.Flags |= rig.CRCEOF
					c.answer.Payload = []byte(c.text)
					if c.answer.Op == rawpeer.OpMuxConnectError {
						c.answer.Payload = rawpeer.ConnectError(c.text)
					}
					r.Peer.Send(c.answer)
					err := (<-answer).Err
					require.True(r, grid.IsRemoteErr(err), c.text)
					require.ErrorContains(r, err, c.text)
					if c.is {
						require.ErrorIs(r, err, grid.ErrNoHandler, c.text)
					} else {
						require.NotErrorIs(r, err, grid.ErrNoHandler, c.text)
					}
					require.Equal(r, c.is, grid.CanRetry(err), c.text)
				}
			})
		})
	}
}

// The words are sent to whoever asks, as version 1 has no other way to say so.
func TestErrNoHandler_IsSaidToEverybody(t *testing.T) {
	for name, caps := range map[string]uint64{"version 1": 0, "all": uint64(rig.AllCaps)} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
				for op, text := range map[uint8]string{
					rawpeer.OpRequest:    "grid: no request handler with ID 8",
					rawpeer.OpConnectMux: "grid: no stream handler with ID 8",
				} {
					r.Peer.Send(rawpeer.Msg{MuxID: 1 + uint64(op), Handler: uint8(rig.Unused), Op: op, Flags: rig.CRCEOF})
					require.Equal(r, text, rawpeer.ConnectErrorText(r.T, r.Peer.Expect(rawpeer.OpMuxConnectError).Payload))
				}
			})
		})
	}
}
