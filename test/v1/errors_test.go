package v1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Errors that wrap, and have a code (protocol section 8).

var errNotLeader = errors.New("not the leader")

// errsConfigs are peers with the extension and without.
var errsConfigs = []rawpeer.Config{{}, {Caps: rig.AllCaps &^ rawpeer.CapErrors}, {Caps: rig.AllCaps}, {Caps: rawpeer.CapErrors}}

const isErr = rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr

// What handlers return goes with its details to a peer that takes them, and as its text to others.
func TestErrors_OnTheWire(t *testing.T) {
	t.Parallel()
	wrapped := fmt.Errorf("group 7: %w", errNotLeader)
	for name, c := range map[string]struct {
		err  *grid.RemoteErr
		want rawpeer.ErrorDetails // of text alone for one without details
	}{
		"alone":   {grid.NewRemoteErr(errNotLeader), rawpeer.ErrorDetails{Text: "not the leader"}},
		"wrapped": {grid.NewRemoteErr(wrapped), rawpeer.ErrorDetails{Text: "group 7: not the leader", Wraps: []string{"not the leader"}}},
		"code":    {grid.NewRemoteErrCode("moved", errNotLeader), rawpeer.ErrorDetails{Text: "not the leader", Code: "moved"}},
		"both": {grid.NewRemoteErrCode("moved", errors.Join(wrapped, io.EOF)), rawpeer.ErrorDetails{
			Text: "group 7: not the leader\nEOF", Code: "moved", Wraps: []string{"not the leader", "group 7: not the leader", "EOF"},
		}},
		"large": {grid.NewRemoteErrCode("moved", fmt.Errorf("%s%w", strings.Repeat("x", 1<<20), errNotLeader)), rawpeer.ErrorDetails{
			Code: "moved", Wraps: []string{"not the leader"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, conf := range errsConfigs {
				rig.InWire(t, conf, nil, func(r *rig.Wire) {
					require.NoError(r, r.Node.RegisterSingleHandler(rig.Unused, func([]byte) ([]byte, *grid.RemoteErr) { return nil, c.err }))
					require.NoError(r, r.Node.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
						Serve: func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr { return c.err },
					}))
					r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Unused), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
					answer := r.Peer.Expect(rawpeer.OpResponse)
					r.Peer.Send(rawpeer.Msg{MuxID: 2, Handler: uint8(rig.Handler), Op: rawpeer.OpConnectMux})
					r.Peer.Expect(rawpeer.OpAckMux)
					end := r.Peer.Expect(rawpeer.OpMuxServerMsg)
					for _, m := range []rawpeer.Msg{answer, end} {
						require.Equal(r, uint8(isErr), m.Flags&^(rawpeer.FlagCRC|rawpeer.FlagDetails))
						require.LessOrEqual(r, len(m.Payload), rig.MaxErrorText)
						got := rawpeer.ErrorDetails{Text: string(m.Payload)}
						hasDetails := conf.Caps&rawpeer.CapErrors != 0 && (c.want.Code != "" || c.want.Wraps != nil)
						require.Equal(r, hasDetails, m.Flags&rawpeer.FlagDetails != 0)
						want := rawpeer.ErrorDetails{Text: c.want.Text}
						if hasDetails {
							var err error
							got, err = rawpeer.DecodeErrorDetails(m.Payload)
							require.NoError(r, err)
							want = c.want
						}
						if name == "large" {
							require.Greater(r, len(got.Text), rig.MaxErrorText-1000)
							want.Text = got.Text
						}
						require.Equal(r, want, got)
					}
				})
			}
		})
	}
}

// failWith has the peer end a call and a stream of the node's with an error, and returns how they
// have ended.
func failWith(r *rig.Wire, flags uint8, payload []byte) (ends []error) {
	r.Helper()
	call := r.Call(r.Context(), rig.Unused, nil)
	r.Peer.Send(rawpeer.Msg{MuxID: r.Peer.Expect(rawpeer.OpRequest).MuxID, Op: rawpeer.OpResponse, Flags: flags, Payload: payload})
	ends = append(ends, (<-call).Err)
	consumed := rig.InBackground(func() error {
		st, err := r.Conn.NewStream(r.Context(), rig.Unused, nil)
		if err == nil {
			err = rig.Consume(st)
		}
		return err
	})
	id := r.Peer.Expect(rawpeer.OpConnectMux).MuxID
	r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(r.Peer.Config.Caps, 0, 1)})
	r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpMuxServerMsg, Seq: 1, Flags: flags, Payload: payload})
	return append(ends, <-consumed)
}

func TestErrors_FromThePeer(t *testing.T) {
	t.Parallel()
	details := rawpeer.ErrorDetails{Text: "group 7: not the leader", Code: "moved", Wraps: []string{"EOF", "not the leader"}}
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *rig.Wire) {
		for _, err := range failWith(r, isErr|rawpeer.FlagDetails, details.Encode()) {
			require.EqualError(r, err, details.Text)
			require.ErrorIs(r, err, errNotLeader)
			require.NotErrorIs(r, err, io.EOF)
			require.Equal(r, "moved", grid.ErrorCode(err))
			require.True(r, grid.IsRemoteErr(err))
		}
		// A text is one, also where it looks like details.
		for _, err := range failWith(r, isErr, details.Encode()) {
			require.EqualError(r, err, string(details.Encode()))
			require.NotErrorIs(r, err, errNotLeader)
			require.Empty(r, grid.ErrorCode(err))
		}
		// The flag alone says nothing.
		call := r.Call(r.Context(), rig.Unused, nil)
		r.Peer.Send(rawpeer.Msg{MuxID: r.Peer.Expect(rawpeer.OpRequest).MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | rawpeer.FlagDetails, Payload: []byte("x")})
		require.Equal(r, rig.Outcome{Payload: []byte("x")}, <-call)
		r.Alive()
	})
	// Of a peer that has not announced the extension the flag means nothing.
	for _, conf := range []rawpeer.Config{{}, {Caps: rig.AllCaps &^ rawpeer.CapErrors}} {
		rig.InWire(t, conf, nil, func(r *rig.Wire) {
			for _, err := range failWith(r, isErr|rawpeer.FlagDetails, []byte("no such disk")) {
				require.EqualError(r, err, "no such disk")
				require.True(r, grid.IsRemoteErr(err))
			}
			r.Alive()
		})
	}
}

// What is no error with details ends its call, and nothing else; of one that is too large as much is
// taken as may be.
func TestErrors_FromALyingPeer(t *testing.T) {
	t.Parallel()
	many := make([]string, 3000)
	for i := range many {
		many[i] = fmt.Sprint("wrapped ", i)
	}
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *rig.Wire) {
		const flags = isErr | rawpeer.FlagDetails
		for name, payload := range map[string][]byte{
			"nothing": nil, "a text": []byte("no such disk"), "claims": {0xdf, 0xff, 0xff, 0xff, 0xff}, "no text": {0x80},
			"cut off": rawpeer.ErrorDetails{Text: "x", Code: "y"}.Encode()[:8],
		} {
			ends := failWith(r, flags, payload)
			for _, err := range ends {
				require.ErrorIs(r, err, grid.ErrProtocol, name)
				require.False(r, grid.IsRemoteErr(err), name)
			}
			reason := r.Peer.Expect(rawpeer.OpDisconnectServerMux)
			require.Contains(r, string(reason.Payload), "error with details", name)
		}
		lies := rawpeer.ErrorDetails{Text: strings.Repeat("x", 60_000), Code: strings.Repeat("c", 1000), Wraps: many}
		for _, err := range failWith(r, flags, lies.Encode()) {
			require.ErrorIs(r, err, errors.New("wrapped 0"))
			require.NotErrorIs(r, err, errors.New("wrapped 2999"))
			require.LessOrEqual(r, len(grid.ErrorCode(err)), 64)
			require.LessOrEqual(r, len(err.Error()), rig.MaxErrorText)
		}
		r.Alive()
	})
}
