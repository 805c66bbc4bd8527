package v1

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// What peers of version 1 do in truth, beyond what the protocol says of them: seen of the real one,
// and done here by the scripted one, in both roles, over http and https.

// minio is such a peer.
var minio = rawpeer.Config{Path: "/minio/grid/v1", ClockHeader: "X-Minio-Time"}

// clock is the UpgradeHeader that it asks for.
func clock(string) http.Header {
	return http.Header{minio.ClockHeader: {strconv.FormatInt(time.Now().UnixNano(), 10)}}
}

// withMinio runs f with such a peer, as each of the two that can be dialled, with and without TLS.
// edit may be nil.
func withMinio(t *testing.T, edit func(o *grid.ManagerOptions), f func(r *wire)) {
	t.Helper()
	rig.InEveryWire(t, minio, func(o *grid.ManagerOptions) {
		o.RoutePath, o.UpgradeHeader = minio.Path, clock
		if edit != nil {
			edit(o)
		}
	}, func(r *rig.Wire) { f(&wire{r}) })
}

func TestV1Peer_ConnectsAndCallsInBothDirections(t *testing.T) {
	t.Parallel()
	withMinio(t, nil, func(r *wire) {
		if !rawpeer.DialOrder(r.Raw, r.Node.HostName()) {
			require.Equal(r, minio.Path, r.Peer.Request.URL.Path)
			require.Regexp(r, `^\d{18,19}$`, r.Peer.Request.Header.Get(minio.ClockHeader))
		}
		done := r.Call(r.Context(), 50, []byte("q"))
		m := r.Peer.Expect(rawpeer.OpRequest)
		require.Equal(r, r.Mux(1), m.MuxID)
		r.Peer.Send(rawpeer.Msg{MuxID: m.MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("a")})
		require.Equal(r, rig.Outcome{Payload: []byte("a")}, <-done)
		r.Alive()
	})
}

// Without the header, and with one that is off by more than it takes, such a peer refuses, and its
// reason is told.
func TestV1Peer_RefusesAnUpgradeWithoutItsHeader(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]func(string) http.Header{
		"none": nil,
		"late": func(string) http.Header {
			return http.Header{minio.ClockHeader: {strconv.FormatInt(time.Now().Add(-time.Hour).UnixNano(), 10)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				rig.ListenLone(t, n, minio)
				g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) { o.UpgradeHeader = header })
				rig.WaitState(t, g.Manager(0).Connection(raw), grid.StateConnectionError)
				require.Contains(t, g.Manager(0).Connection(raw).Stats().LastError, "upgrade refused: 403 Forbidden")
			})
		})
	}
}

// What such a peer says of its own streams, which it has cancelled, it says by an op that speaks of
// ours: those live all the same, whatever their numbers.
func TestV1Peer_LateAnswersAboutItsOwnStreamsEndNoneOfOurs(t *testing.T) {
	t.Parallel()
	withMinio(t, nil, func(r *wire) {
		const streams, requests = 50, 100
		r.locally(1, 0)
		var ours []*v1Stream
		for range streams {
			ours = append(ours, r.open(r.Context()))
		}
		calls := make(map[uint64]<-chan rig.Outcome)
		for range requests {
			done := r.Call(r.Context(), 50, nil)
			calls[r.Peer.Expect(rawpeer.OpRequest).MuxID] = done
		}

		// An ack, a message, and a pong of each come too late.
		for id := range uint64(2 * (streams + requests)) {
			id++
			r.Peer.Abandon(id)
			r.Peer.Send(rawpeer.Msg{MuxID: id, Handler: uint8(rig.Stream), Op: rawpeer.OpConnectMux, Payload: []byte("abc")})
			r.Peer.Send(rawpeer.Msg{MuxID: id, Seq: 1, Op: rawpeer.OpPing})
			r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectServerMux})
			r.Peer.Send(rawpeer.Msg{MuxID: id, Seq: 1, Op: rawpeer.OpPing})
		}
		r.Quiet()

		for _, c := range ours {
			require.NoError(r, c.s.Err())
			c.say(serverMsg("x"))
			c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			got, err := rig.Collect(c.s, 0)
			require.NoError(r, err)
			require.Equal(r, []string{"x"}, got)
		}
		for id, done := range calls {
			require.Empty(r, done)
			r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF, Payload: []byte("a")})
			require.Equal(r, rig.Outcome{Payload: []byte("a")}, <-done)
		}
		synctest.Wait()
		r.Peer.Take() // the credits of what was consumed
		r.Alive()
	})
}

// Numbers of ours are never used twice over the links to one host, and those that a peer of version
// 1 sees are far from its own.
func TestV1Peer_SeesNumbersThatAreFarFromItsOwn(t *testing.T) {
	t.Parallel()
	withMinio(t, nil, func(r *wire) {
		seen := make(map[uint64]bool)
		for range 3 {
			for range 3 {
				r.Call(r.Context(), 50, nil)
				id := r.Peer.Expect(rawpeer.OpRequest).MuxID
				require.Greater(r, id, rig.Mux1Base)
				require.False(r, seen[id], "%d twice", id)
				seen[id] = true
			}
			r.Peer.Close()
			synctest.Wait()
			r.Peer = r.Next()
			require.NoError(r, r.Conn.WaitForConnect(r.Context()))
		}
	})
}

var errOfDeadline = errors.New("the budget is spent")

// Its deadlines pass up to a millisecond before ours, and then it drops the call without a reason.
func TestV1Peer_DropAtTheDeadlineIsTheDeadline(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	withMinio(t, nil, func(r *wire) {
		r.locally(1, 0)
		drop := func(id uint64) { r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux}) }
		for _, before := range []time.Duration{0, time.Microsecond, time.Millisecond, 10 * time.Millisecond} {
			ctx, cancel := context.WithTimeoutCause(r.Context(), timeout, errOfDeadline)
			start := time.Now()
			c := r.open(ctx)
			call := r.Call(ctx, 50, nil)
			id := r.Peer.Expect(rawpeer.OpRequest).MuxID
			opening, _, opened := r.opening(ctx)
			time.Sleep(timeout - before)
			for _, id := range []uint64{c.id, id, opening.id} {
				drop(id)
			}
			for _, err := range []error{c.s.Results(nil), (<-call).Err, <-opened} {
				require.ErrorIs(r, err, context.DeadlineExceeded)
				require.NotErrorIs(r, err, grid.ErrDisconnected)
				require.ErrorIs(r, err, errOfDeadline, "%v before", before)
			}
			require.Equal(r, timeout, time.Since(start))
			cancel()
			synctest.Wait()
			r.Peer.Take() // at the deadline itself ours may be first
		}

		// Long before it, it is what it was.
		for _, before := range []time.Duration{11 * time.Millisecond, timeout / 2} {
			ctx, cancel := context.WithTimeoutCause(r.Context(), timeout, errOfDeadline)
			c := r.open(ctx)
			call := r.Call(ctx, 50, nil)
			id := r.Peer.Expect(rawpeer.OpRequest).MuxID
			time.Sleep(timeout - before)
			drop(c.id)
			drop(id)
			for _, err := range []error{c.s.Results(nil), (<-call).Err} {
				require.ErrorIs(r, err, grid.ErrDisconnected)
				require.NotErrorIs(r, err, context.DeadlineExceeded)
			}
			cancel()
		}
		r.Alive()
	})
}

// A request without a deadline has one all the same, which travels.
func TestV1Peer_DropAtTheDefaultDeadlineIsTheDeadline(t *testing.T) {
	t.Parallel()
	withMinio(t, nil, func(r *wire) {
		r.Peer.Timeout = 2 * time.Minute
		for _, ctx := range []context.Context{context.Background(), r.Context()} { // one can't end
			for before, want := range map[time.Duration]error{time.Millisecond: context.DeadlineExceeded, 30 * time.Second: grid.ErrDisconnected} {
				call := r.Call(ctx, 50, nil)
				id := r.Peer.Expect(rawpeer.OpRequest).MuxID
				time.Sleep(rig.DefaultDeadline - before)
				r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux})
				require.ErrorIs(r, (<-call).Err, want)
			}
		}
		r.Alive()
	})
}

// A peer of ours says when it was the deadline, so that of any other drop is none.
func TestDeadline_DropAtItByAPeerOfOursIsADrop(t *testing.T) {
	t.Parallel()
	inWire(t, rig.DrainConfig, nil, func(r *wire) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		call := r.Call(ctx, 50, nil)
		id := r.Peer.Expect(rawpeer.OpRequest).MuxID
		time.Sleep(999 * time.Millisecond)
		r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux})
		require.ErrorIs(r, (<-call).Err, grid.ErrDisconnected)
	})
}

// Its handlers have capacities that nobody here knows: what waits in such a stream is bounded by
// its bytes.
func TestV1Peer_ServerSendsAsMuchAsItHasRegistered(t *testing.T) {
	t.Parallel()
	withMinio(t, nil, func(r *wire) { r.takesAll(r.open(r.Context()), 1000) })
}

// And some have more than can be registered here, on either side.
func TestV1Peer_CapacityMayBeAboveTheLargestHere(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	const capacity = 100_000
	rig.InWireOnce(t, true, rawpeer.Config{}, nil, func(w *rig.Wire) {
		r := &wire{w}
		r.locally(rig.MaxCapacity, 0)
		r.takesAll(r.open(r.Context()), capacity)
	})
	rig.InWireOnce(t, true, rawpeer.Config{}, nil, func(w *rig.Wire) {
		r := &wire{w}
		s := r.asked(r.serve(1, rig.MaxCapacity, ""), 7, rawpeer.Msg{})
		r.flood(capacity, func(i int) rawpeer.Msg { return s.numbered(clientMsg(strconv.Itoa(i))) })
		require.NoError(r, s.ctx.Err())
		s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCEOF})
		n := 0
		for b := range s.in {
			if string(b) != strconv.Itoa(n) {
				require.Fail(r, "out of order", "%d is %s", n, b)
			}
			grid.PutByteBuffer(b)
			n++
		}
		require.Equal(r, capacity, n)
		require.NoError(r, s.ctx.Err())
		synctest.Wait()
		credits := len(r.Peer.Take()) // none for what was taken after the end of the input
		s.ended(uint32(credits+1), nil)
		r.Alive()
	})
}

// takesAll sends n messages ahead of the consumer of a stream, which then gets them all.
func (r *wire) takesAll(c *v1Stream, n int) {
	r.Helper()
	r.flood(n, func(i int) rawpeer.Msg { return c.numbered(serverMsg(strconv.Itoa(i))) })
	require.NoError(r, c.s.Err())
	c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
	got, err := rig.Collect(c.s, 0)
	require.NoError(r, err)
	require.Len(r, got, n)
	for i, text := range got {
		if text != strconv.Itoa(i) {
			require.Fail(r, "out of order", "%d is %s", i, text)
		}
	}
	synctest.Wait()
	r.Peer.Take() // credits
	r.Alive()
}

// flood sends n messages, many at a time.
func (r *wire) flood(n int, msg func(i int) rawpeer.Msg) {
	r.Helper()
	for i := 0; i < n; {
		var batch []rawpeer.Msg
		for ; i < n && len(batch) < 5000; i++ {
			batch = append(batch, msg(i))
		}
		r.Peer.SendMerged(batch...)
		synctest.Wait()
	}
}

// What such windows hold is bounded by bytes, of which each message has some that are around it, be
// it empty.
func TestV1Peer_WindowWithoutACapacityIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	const most = 16 << 10
	for name, size := range map[string]int{"empty messages": 0, "small": 100, "large": 5000} {
		t.Run(name, func(t *testing.T) {
			withMinio(t, func(o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxStreamBytes = most, most }, func(r *wire) {
				fit := most / (size + rig.MessageCost)
				payload := strings.Repeat("x", size)
				// The last one counts for its bytes alone before it is taken.
				beyond := func(sent int) {
					require.InDelta(r, fit, sent, 2)
				}

				c := r.open(r.Context())
				sent := 0
				for c.s.Err() == nil {
					c.say(serverMsg(payload))
					sent++
					synctest.Wait()
				}
				require.ErrorIs(r, c.s.Err(), grid.ErrOverloaded)
				require.ErrorContains(r, c.s.Err(), fmt.Sprintf("MaxStreamBytes is %d", most))
				r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrOverloaded)
				beyond(sent)
				got, err := rig.Collect(c.s, 0)
				require.ErrorIs(r, err, grid.ErrOverloaded)
				require.Len(r, got, sent-1, "what had arrived")

				s := r.asked(r.serve(1, rig.MaxCapacity, ""), 7, rawpeer.Msg{})
				sent = 0
				for s.ctx.Err() == nil {
					s.say(clientMsg(payload))
					sent++
					synctest.Wait()
				}
				beyond(sent)
				s.dropped(grid.ErrOverloaded)
				require.Zero(r, r.Conn.Stats().KeptBytes)
				r.Alive()
			})
		})
	}
}

// Such a peer takes a call that ends without a reason for one on a lost link, and any text for an
// answer: so it is told none of ours while we shut down.
func TestV1Peer_HearsOfAShutdownAsOfALostLink(t *testing.T) {
	t.Parallel()
	for name, patient := range map[string]bool{"Shutdown": true, "Shutdown that is out of time": false, "Close": false} {
		t.Run(name, func(t *testing.T) {
			withMinio(t, nil, func(r *wire) {
				release, let := rig.Gate(r)
				require.NoError(r, r.Node.RegisterSingleHandlerContext(51, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
					select {
					case <-release:
						return []byte("done"), nil
					case <-ctx.Done():
						return nil, grid.NewRemoteErr(context.Cause(ctx))
					}
				}))
				s := r.asked(r.serve(1, 1, ""), 1, rawpeer.Msg{})
				r.Peer.Send(rawpeer.Msg{MuxID: 2, Handler: 51, Op: rawpeer.OpRequest, Flags: rig.CRCEOF})
				r.Quiet()
				if name == "Close" {
					require.NoError(r, r.Node.Close())
					r.Peer.ExpectClosed()
					return
				}
				ctx, cancel := context.WithTimeout(r.Context(), rawpeer.Timeout/2)
				defer cancel()
				ended := rig.InBackground(func() error { return r.Node.Shutdown(ctx) })
				r.Quiet()
				for i, op := range []uint8{rawpeer.OpRequest, rawpeer.OpConnectMux} {
					id := uint64(3 + i)
					r.Peer.Send(rawpeer.Msg{MuxID: id, Handler: 50 + uint8(1-i), Op: op, Flags: rig.CRCEOF})
					r.Expect(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
				}
				if patient {
					// What was under way has its answers.
					s.ended(1, nil)
					let()
					r.Expect(rawpeer.Msg{MuxID: 2, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("done")})
					r.Peer.ExpectClosed()
					r.Peer.Close()
					require.NoError(r, <-ended)
					return
				}
				r.Peer.ExpectClosed()
				require.ErrorIs(r, <-ended, context.DeadlineExceeded)
			})
		})
	}
}
