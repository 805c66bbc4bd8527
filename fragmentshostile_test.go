package grid

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// A peer whose response is too large loses the link. Its caller did send something,
// so it is not told ErrMessageTooLarge.
func TestFragmentsOfATooLargeResponseAreNoTooLargeRequest(t *testing.T) {
	inV1(t, fragmentConfig, func(o *ManagerOptions) { o.MaxMessageSize = 5 }, func(r *v1Rig) {
		done := r.call(r.Context(), 50, nil)
		r.peer.expect(rawOpRequest)
		r.peer.sendMerged(inPieces(rawMsg{MuxID: 1, Op: rawOpResponse, Payload: []byte("abcdef")}, 3)...)
		err := (<-done).err
		require.ErrorIs(r, err, ErrDisconnected)
		require.NotErrorIs(r, err, ErrMessageTooLarge)
	})
}

// Fragments of a byte each take little more memory than they hold.
func TestFragmentsThatAreTinyTakeLittleMemory(t *testing.T) {
	inV1(t, fragmentConfig, nil, func(r *v1Rig) {
		const n = 1 << 20
		before := heap()
		r.peer.send(fragment(rawOpRequest, 7, 0, testEcho))
		m := fragment(rawOpRequest, 7, 0, 0)
		m.Payload = m.Payload[:1]
		batch := make([]rawMsg, 1<<10)
		for i := range batch {
			batch[i] = m
		}
		b := encodeMerged(batch...)
		for range n / len(batch) {
			require.NoError(r, r.peer.trySendBytes(b))
		}
		synctest.Wait()
		require.Equal(r, 1, r.conn.Stats().Handlers)
		grown := heap() - before
		r.Logf("%d bytes of payload, %d on the wire, %d of heap", n, n/len(batch)*len(b), grown)
		require.Less(r, grown, int64(16*n))
	})
}

// A fragment does not keep a frame that is much larger: here with as much beside it
// as an honest sender puts into a batch, and with what a hostile one may.
func TestFragmentsDoNotKeepWhatTheyCameWith(t *testing.T) {
	for name, c := range map[string]struct{ piece, beside int }{"honest": {fragmentSize, pendingLimit - wholeSize}, "hostile": {retainSize, 10 << 20}} {
		t.Run(name, func(t *testing.T) {
			inV1(t, fragmentConfig, nil, func(r *v1Rig) {
				const n = 8
				before := heap()
				r.peer.send(fragment(rawOpRequest, 7, 0, testEcho))
				m := fragment(rawOpRequest, 7, 0, 0)
				m.Payload = make([]byte, c.piece)
				other := rawMsg{MuxID: 9, Op: rawOpResponse, Payload: make([]byte, c.beside)} // to nobody
				for range n {
					require.NoError(r, r.peer.trySendBytes(encodeMerged(m, other)))
				}
				synctest.Wait()
				require.Equal(r, 1, r.conn.Stats().Handlers)
				other.Payload = nil
				grown := heap() - before
				r.Logf("%d bytes of payload, %d of heap", n*c.piece, grown)
				require.Less(r, grown, int64(4*n*c.piece+(2<<20)))
			})
		})
	}
}
