package v1

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A peer whose response is too large loses the link. Its caller did send something, so it is not
// told ErrMessageTooLarge.
func TestFragments_OfATooLargeResponseAreNoTooLargeRequest(t *testing.T) {
	t.Parallel()
	inWire(t, rig.FragmentConfig, func(o *grid.ManagerOptions) { o.MaxMessageSize = 5 }, func(r *wire) {
		done := r.Call(r.Context(), 50, nil)
		r.Peer.Expect(rawpeer.OpRequest)
		r.Peer.SendMerged(inPieces(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Payload: []byte("abcdef")}, 3)...)
		err := (<-done).Err
		require.ErrorIs(r, err, grid.ErrDisconnected)
		require.NotErrorIs(r, err, grid.ErrMessageTooLarge)
	})
}

// Fragments of a byte each take little more memory than they hold.
func TestFragments_ThatAreTinyTakeLittleMemory(t *testing.T) {
	rig.Long(t)
	inWire(t, rig.FragmentConfig, nil, func(r *wire) {
		const n = 1 << 20
		before := rig.Heap()
		r.Peer.Send(rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo))
		m := rawpeer.Fragment(rawpeer.OpRequest, 7, 0, 0)
		m.Payload = m.Payload[:1]
		batch := make([]rawpeer.Msg, 1<<10)
		for i := range batch {
			batch[i] = m
		}
		b := rawpeer.EncodeMerged(batch...)
		for range n / len(batch) {
			require.NoError(r, r.Peer.TrySendBytes(b))
		}
		synctest.Wait()
		require.Equal(r, 1, r.Conn.Stats().Handlers)
		grown := rig.Heap() - before
		r.Logf("%d bytes of payload, %d on the wire, %d of heap", n, n/len(batch)*len(b), grown)
		require.Less(r, grown, int64(16*n))
	})
}

// A fragment does not keep a frame that is much larger: here with as much beside it as an honest
// sender puts into a batch, and with what a hostile one may.
func TestFragments_DoNotKeepWhatTheyCameWith(t *testing.T) {
	rig.Long(t)
	for name, c := range map[string]struct{ piece, beside int }{"honest": {rig.FragmentSize, rig.PendingLimit - rig.WholeSize}, "hostile": {rig.RetainSize, 10 << 20}} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rig.FragmentConfig, nil, func(r *wire) {
				const n = 8
				before := rig.Heap()
				r.Peer.Send(rawpeer.Fragment(rawpeer.OpRequest, 7, 0, rig.Echo))
				m := rawpeer.Fragment(rawpeer.OpRequest, 7, 0, 0)
				m.Payload = make([]byte, c.piece)
				other := rawpeer.Msg{MuxID: 9, Op: rawpeer.OpResponse, Payload: make([]byte, c.beside)} // to nobody
				for range n {
					require.NoError(r, r.Peer.TrySendBytes(rawpeer.EncodeMerged(m, other)))
				}
				synctest.Wait()
				require.Equal(r, 1, r.Conn.Stats().Handlers)
				other.Payload = nil
				grown := rig.Heap() - before
				r.Logf("%d bytes of payload, %d of heap", n*c.piece, grown)
				require.Less(r, grown, int64(4*n*c.piece+(2<<20)))
			})
		})
	}
}
