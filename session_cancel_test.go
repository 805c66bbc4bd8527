package grid_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Only requests whose handlers have a context are kept for a cancel, while they run, and only where
// the peer may send one.
func TestCancel_KeepsNothingOfOtherRequests(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		caps uint64
		want int
	}{{0, 0}, {rig.AllCaps &^ rawpeer.CapCancel, 0}, {rig.AllCaps, 3}} {
		for _, seen := range []bool{false, true} {
			rig.InWire(t, rawpeer.Config{Caps: c.caps}, func(o *grid.ManagerOptions) {
				if seen {
					o.ServeInterceptors = []grid.ServeInterceptor{bystander{}}
				}
			}, func(r *rig.Wire) {
				release := make(chan struct{})
				require.NoError(r, r.Node.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
				require.NoError(r, r.Node.RegisterSingleHandlerContext(rig.Handler, func(_ context.Context, b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
				for id := range uint64(6) {
					h := rig.Unused
					if id%2 == 0 {
						h = rig.Handler
					}
					r.Peer.Send(rawpeer.Msg{MuxID: id + 1, Handler: uint8(h), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
				}
				synctest.Wait()
				require.Equal(r, 6, r.Conn.Stats().Handlers)
				require.Equal(r, c.want, grid.SessionOf(r.Conn).Cancellable())
				close(release)
				for range 6 {
					r.Peer.Expect(rawpeer.OpResponse)
				}
				synctest.Wait()
				require.Zero(r, grid.SessionOf(r.Conn).Cancellable())
				r.Alive()
			})
		}
	}
}
