package v1

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A client that gives its stream up at the deadline tells no reason. That its timer was the first
// does not make a cancellation of it.
func TestV1Stream_DisconnectAtTheDeadlineIsTheDeadline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		after time.Duration
		want  error
	}{
		{500 * time.Millisecond, context.Canceled},
		{989 * time.Millisecond, context.Canceled},
		{990 * time.Millisecond, context.DeadlineExceeded},
		{1000 * time.Millisecond, context.DeadlineExceeded},
		{1100 * time.Millisecond, context.DeadlineExceeded},
	} {
		t.Run(c.after.String(), func(t *testing.T) {
			inWire(t, rawpeer.Config{}, nil, func(r *wire) {
				ended := make(chan error, 1)
				require.NoError(r, r.Node.RegisterStreamingHandler(rig.Unused, grid.StreamHandler{
					Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
						<-ctx.Done()
						ended <- context.Cause(ctx)
						return nil
					},
				}))
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Unused), Op: rawpeer.OpConnectMux, DeadlineMS: 1000})
				time.Sleep(c.after)
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux})
				require.Equal(r, c.want, <-ended)
			})
		})
	}
}
