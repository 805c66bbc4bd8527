package calls

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

var errNotLeader = errors.New("not the leader")

// An error that goes through several hosts keeps what it wraps and its code.
func TestError_KeepsWhatItWrapsFromHostToHost(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		require.NoError(t, g.Manager(2).RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) {
			return nil, grid.NewRemoteErrCode("not_leader", fmt.Errorf("group 7: %w", errNotLeader))
		}))
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			Serve: func(ctx context.Context, b []byte, _ *grid.ServerStream) *grid.RemoteErr {
				_, err := g.Conn(1, 2).SingleRequest(ctx, rig.Handler, b)
				return grid.NewRemoteErrf("asking node 2: %w", err)
			},
		}))
		st, err := g.Conn(0, 1).NewStream(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		err = rig.Consume(st)
		require.EqualError(t, err, "asking node 2: group 7: not the leader")
		require.ErrorIs(t, err, errNotLeader)
		require.Equal(t, "not_leader", grid.ErrorCode(err))
		require.ErrorIs(t, st.Err(), errNotLeader)
	})
}
