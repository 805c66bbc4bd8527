package grid

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/wsconn"
)

// A session that may not be the connection's any more is never published, not even for a moment: a
// call that got hold of it would wait for ever.
func TestTake_SessionThatComesTooLateIsNotPublished(t *testing.T) {
	for name, end := range map[string]func(h *fuzzHost) (restore func()){
		"closed": func(h *fuzzHost) func() {
			h.conn.end(errClosed)
			return func() {}
		},
		"shutting down": func(h *fuzzHost) func() {
			h.draining.Store(true)
			return func() { h.draining.Store(false) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newFuzzHost(t, 0, wireCaps, nil)
				h.run()
				h.sess.close(errors.New("gone"))
				synctest.Wait()
				require.Nil(t, h.conn.session.Load())
				defer end(h)()

				late := newWire()
				w, r := upgradeTo(late)
				ws, err := wsconn.Upgrade(w, r, nil, 1<<30, time.Time{}, wsconn.Counters{})
				require.NoError(t, err)
				s := newSession(h.conn, ws, peer{id: [16]byte{2}, caps: wireCaps})
				adopted := make(chan error, 1)
				h.conn.state.mu.Lock() // whoever asks the state waits
				go func() { adopted <- h.conn.adopt(s) }()
				for len(adopted) == 0 && h.conn.session.Load() == nil {
					runtime.Gosched()
				}
				published := h.conn.session.Load()
				h.conn.state.mu.Unlock()
				require.Error(t, <-adopted)
				require.Nil(t, published)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err = h.conn.SingleRequest(ctx, 1, nil)
				require.ErrorIs(t, err, ErrDisconnected)
				s.close(errClosed)
				require.NoError(t, h.Close())
			})
		})
	}
}
