package attack

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A server that ends calls and streams with the text of something that can happen here, such as the
// end of a file, is never taken for that. Nor can it make errors.Is fail, whatever that looks for.
func TestError_TextOfALocalConditionFromAServerIsNone(t *testing.T) {
	isErr := uint8(rawpeer.FlagPayloadIsErr)
	local := []error{
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded,
		context.Canceled, context.DeadlineExceeded, grid.ErrDisconnected, grid.ErrFlowControl,
		grid.ErrIncorrectSequence, grid.ErrMessageTooLarge, grid.ErrOverloaded, grid.ErrProtocol, grid.ErrUnknownHandler,
	}
	odd := []error{(*fs.PathError)(nil), &fs.PathError{}, &url.Error{}, (*grid.RemoteErr)(nil), unequal{}}
	check := func(r *rig.Wire, err error, text string) {
		r.Helper()
		require.True(r, grid.IsRemoteErr(err), "%q: %v", text, err)
		require.ErrorContains(r, err, text)
		for _, target := range append(local, odd...) {
			require.False(r, errors.Is(err, target), "%q is %T %[2]v", text, target)
		}
		require.ErrorIs(r, err, errors.New(text), "the text is what can be told")
	}
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *rig.Wire) {
		ctx := context.Background() // with a deadline the server's word for its end is taken as that
		for _, condition := range local {
			text := condition.Error()
			details := rawpeer.ErrorDetails{Text: text, Code: text, Wraps: []string{text, "x: " + text}}.Encode()
			for _, answer := range []rawpeer.Msg{
				{Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | isErr, Payload: []byte(text)},
				{Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF | isErr | rawpeer.FlagDetails, Payload: details},
				{Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError(text)},
			} {
				call := r.Call(ctx, rig.Unused, nil)
				answer.MuxID = r.Peer.Expect(rawpeer.OpRequest).MuxID
				r.Peer.Send(answer)
				check(r, (<-call).Err, text)
			}
			for _, end := range []rawpeer.Msg{
				{Op: rawpeer.OpMuxConnectError, Payload: rawpeer.ConnectError(text)},
				{Op: rawpeer.OpDisconnectClientMux, Flags: isErr, Payload: []byte(text)},
				{Op: rawpeer.OpMuxServerMsg, Seq: 1, Flags: rawpeer.FlagEOF | isErr, Payload: []byte(text)},
				{Op: rawpeer.OpMuxServerMsg, Seq: 1, Flags: rawpeer.FlagEOF | isErr | rawpeer.FlagDetails, Payload: details},
			} {
				opened := rig.InBackground(func() error {
					st, err := r.Conn.NewStream(ctx, rig.Unused, nil)
					if err == nil {
						err = rig.Consume(st)
					}
					return err
				})
				end.MuxID = r.Peer.Expect(rawpeer.OpConnectMux).MuxID
				if end.Op != rawpeer.OpMuxConnectError {
					ack := rawpeer.AckPayload(rig.AllCaps, 0, 1)
					r.Peer.Send(rawpeer.Msg{MuxID: end.MuxID, Op: rawpeer.OpAckMux, Payload: ack})
				}
				r.Peer.Send(end)
				check(r, <-opened, text)
			}
		}
		r.Alive()
	})
}

// unequal is an error of a type whose values can't be compared, and that can't say its text.
type unequal struct{ _ []func() }

func (u unequal) Error() string { panic("not complete") }

// What a client says of why it gives a stream up is never an error of this side, to a handler: not
// even that of a limit, as which a server's refusal is known.
func TestStream_ReasonOfAClientIsNoLocalCondition(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
		causes := make(chan [2]error, 1)
		require.NoError(a, a.Node.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{InCapacity: 1, Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			_, err := s.Recv()
			causes <- [2]error{err, context.Cause(ctx)}
			return nil
		}}))
		p := a.Next()
		local := []error{
			grid.ErrOverloaded, grid.ErrDisconnected, grid.ErrProtocol, grid.ErrNotAccepted, grid.ErrFlowControl,
			io.EOF, io.ErrUnexpectedEOF, context.Canceled, context.DeadlineExceeded,
		}
		id := uint64(9)
		for _, of := range local {
			for _, text := range []string{of.Error(), of.Error() + ": x", of.Error() + ": handler 1 refused"} {
				id++
				p.Send(rawpeer.Msg{MuxID: id, Handler: uint8(rig.Unused), Op: rawpeer.OpConnectMux})
				p.Send(rawpeer.Msg{MuxID: id, Seq: 1, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte(text)})
				for _, err := range <-causes {
					require.True(a, grid.IsRemoteErr(err), "%q: %v", text, err)
					require.EqualError(a, err, text)
					require.False(a, grid.CanRetry(err))
					for _, target := range local {
						require.NotErrorIs(a, err, target, text)
					}
				}
			}
		}
	})
}
