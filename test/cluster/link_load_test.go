package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// More than a link can carry: what is sent is in time, the rest is given up, nothing piles up, and
// it is over when the load is.

// loadedLink is a link of rate bytes per second, and calls over it that arrive whether others have
// been answered or not.
type loadedLink struct {
	*rig.Grid
	client, server int
	rate           int
	users          sync.WaitGroup
	ok, late       atomic.Int64
}

// inLoadedLink runs f with a link whose slow direction is that of the answers, or of the requests.
func inLoadedLink(t *testing.T, rate int, answers bool, f func(t *testing.T, l *loadedLink)) {
	t.Helper()
	rig.InBubble(t, func(t *testing.T) {
		l := &loadedLink{rate: rate}
		l.Grid, l.client, l.server = rig.NewSlow(t, rate, func(o *grid.ManagerOptions) { o.MaxQueuedBytes = 16 << 10 })
		if answers {
			l.client, l.server = l.server, l.client
		}
		require.NoError(t, l.Manager(l.server).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			if answers {
				return append(b, make([]byte, int(b[0])<<10)...), nil
			}
			return nil, nil
		}))
		f(t, l)
		l.users.Wait()
	})
}

// call makes a call of so many KiB in one direction.
func (l *loadedLink) call(ctx context.Context, kib int, answers bool, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	payload := []byte{byte(min(kib, 255))}
	if !answers {
		payload = make([]byte, kib<<10)
	}
	b, err := l.Conn(l.client, l.server).SingleRequest(ctx, rig.Handler, payload)
	grid.PutByteBuffer(b)
	return err
}

// offer has calls arrive that take up so many times the link, until ctx ends.
func (l *loadedLink) offer(ctx context.Context, times float64, kib int, answers bool, timeout time.Duration) {
	pause := time.Duration(float64(time.Second) * float64(kib<<10) / (times * float64(l.rate)))
	l.users.Go(func() {
		for ctx.Err() == nil {
			l.users.Go(func() {
				switch err := l.call(ctx, kib, answers, timeout); {
				case err == nil:
					l.ok.Add(1)
				case ctx.Err() == nil:
					if !errors.Is(err, context.DeadlineExceeded) {
						l.T.Error(err)
					}
					l.late.Add(1)
				}
			})
			time.Sleep(pause)
		}
	})
}

func TestOverload_LinkCarriesWhatItCan(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	for _, answers := range []bool{false, true} {
		for _, kib := range []int{1, 32, 250} {
			t.Run(fmt.Sprintf("answers=%v/%dKiB", answers, kib), func(t *testing.T) {
				const timeout = 2 * time.Second
				rate := min(kib<<16, 1<<20)
				inLoadedLink(t, rate, answers, func(t *testing.T, l *loadedLink) {
					ctx, cancel := context.WithCancel(t.Context())
					l.offer(ctx, 2, kib, answers, timeout)
					time.Sleep(2 * timeout) // until it is as bad as it gets
					served := l.Conn(l.server, l.client)
					for range 2 {
						l.ok.Store(0)
						time.Sleep(10 * time.Second)
						require.Greater(t, l.ok.Load(), int64(10*rate/(kib<<10))*9/10)
						require.LessOrEqual(t, served.Stats().Handlers, int(timeout/time.Second)*2*rate/(kib<<10)+64, "nobody waits for answers that are late")
					}
					cancel()
					begin := time.Now()
					for l.call(t.Context(), kib, answers, timeout/4) != nil {
					}
					require.Less(t, time.Since(begin), 2*timeout)
				})
			})
		}
	}
}

// A stream gets its turn among calls of which there are too many.
func TestOverload_LinkDoesNotStarveStreams(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	inLoadedLink(t, 256<<10, true, func(t *testing.T, l *loadedLink) {
		require.NoError(t, l.Manager(l.server).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{OutCapacity: 1, Handle: flow}))
		s, err := l.Conn(l.client, l.server).NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, err)
		var ticks atomic.Int64
		l.users.Go(func() {
			_ = s.Results(func([]byte) error { ticks.Add(1); return nil })
		})
		ctx, cancel := context.WithCancel(t.Context())
		l.offer(ctx, 4, 16, true, time.Second)
		time.Sleep(10 * time.Second)
		// Of those whose time is short, not one answer is ever sent.
		for range 20 {
			require.Error(t, l.call(t.Context(), 16, true, 10*time.Millisecond))
		}
		for range 3 {
			ticks.Store(0)
			time.Sleep(10 * time.Second)
			require.Greater(t, ticks.Load(), int64(15))
		}
		cancel()
		l.Manager(l.server).Close() // which ends the stream
	})
}

// Large answers whose callers have gone do not go on.
func TestDeadline_LargeAnswerStopsAtIt(t *testing.T) {
	t.Parallel()
	inLoadedLink(t, 1<<20, true, func(t *testing.T, l *loadedLink) {
		require.NoError(t, l.Manager(l.server).RegisterSingleHandler(rig.Handler+1, func([]byte) ([]byte, *grid.RemoteErr) {
			return make([]byte, 16<<20), nil
		}))
		var callers sync.WaitGroup
		for range 16 {
			callers.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := l.Conn(l.client, l.server).SingleRequest(ctx, rig.Handler+1, nil)
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		callers.Wait()
		require.NoError(t, l.call(t.Context(), 100, true, time.Second))
		served := l.Conn(l.server, l.client).Stats()
		require.Zero(t, served.Handlers)
		require.Zero(t, served.KeptBytes)
		begin := time.Now()
		require.NoError(t, l.Manager(l.server).Shutdown(t.Context()))
		require.Less(t, time.Since(begin), 2*time.Second)
	})
}

// The deadline that goes with a call is what is left when it is sent, however large it is, and of
// an opening as well.
func TestDeadline_OfWhatHasWaited(t *testing.T) {
	t.Parallel()
	unread := rig.FragmentConfig
	unread.Unread = true
	rig.InWire(t, unread, func(o *grid.ManagerOptions) { o.WriteTimeout, o.PingInterval = time.Hour, time.Hour }, func(r *rig.Wire) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
		defer cancel()
		first, stop := context.WithCancel(r.Context())
		var users sync.WaitGroup
		for i := range 40 { // fill the socket and both rooms
			users.Go(func() { _, _ = r.Conn.SingleRequest(first, rig.Handler, make([]byte, (60+10*(i%2))<<10)) })
		}
		synctest.Wait()
		late := map[grid.HandlerID]func(id grid.HandlerID){
			rig.Handler + 1: func(id grid.HandlerID) { _, _ = r.Conn.SingleRequest(ctx, id, make([]byte, 10<<10)) },
			rig.Handler + 2: func(id grid.HandlerID) { _, _ = r.Conn.SingleRequest(ctx, id, make([]byte, 100<<10)) },
			rig.Handler + 3: func(id grid.HandlerID) { _, _ = r.Conn.NewStream(ctx, id, nil) },
			rig.Handler + 4: func(id grid.HandlerID) { _, _ = r.Conn.NewStream(ctx, id, make([]byte, 100<<10)) },
		}
		for id, call := range late {
			users.Go(func() { call(id) })
		}
		time.Sleep(50 * time.Second)
		r.Peer.StartReading()
		stop()
		synctest.Wait()
		for len(late) > 0 {
			m, ok, _ := r.Peer.Next()
			require.True(r, ok, "%d were not sent", len(late))
			id := grid.HandlerID(m.Handler)
			if late[id] != nil {
				require.EqualValues(r, 10_000, m.DeadlineMS, "handler %d", id)
				delete(late, id)
			}
		}
		r.Peer.Close()
		users.Wait()
	})
}
