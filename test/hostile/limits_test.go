package hostile

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A client that opens streams and returns no credit has them filled to their window, and no
// further.
func TestLimits_StreamsWhoseClientReadsNoneAreFilledToTheirWindow(t *testing.T) {
	const limit, capacity = 500, 3
	inHostile(t, func(o *grid.ManagerOptions) { o.MaxStreams = limit }, func(r *hostileRig) {
		require.NoError(r, r.Node.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Handle: rig.Pour(10), OutCapacity: capacity}))
		for id := range uint64(3 * limit) {
			r.peer.Send(rawpeer.Msg{MuxID: id + 1, Op: rawpeer.OpConnectMux, Handler: uint8(rig.Handler)})
		}
		ops := map[uint8]int{}
		for _, m := range r.clear() {
			ops[m.Op]++
			if m.Op == rawpeer.OpMuxConnectError {
				require.Contains(r, string(m.Payload), "MaxStreams")
			}
		}
		require.Equal(r, map[uint8]int{rawpeer.OpAckMux: limit, rawpeer.OpMuxServerMsg: limit * capacity, rawpeer.OpMuxConnectError: 2 * limit}, ops)
		st := r.Conn.Stats()
		require.Equal(r, limit, st.StreamsServed)
		require.Zero(r, st.KeptBytes)
		require.Len(r, r.Book.About("limit reached"), 1)
		r.works()
		for id := range uint64(3 * limit) {
			r.peer.Send(rawpeer.Msg{MuxID: id + 1, Op: rawpeer.OpDisconnectServerMux})
		}
		r.idle()
	})
}

// A server may fill a stream that nobody reads as far as its window goes: that which is known of a
// version 1 server's handler, or that which the server has named; the most that there is where it
// names none.
func TestLimits_StreamThatNobodyReadsIsFilledToItsWindow(t *testing.T) {
	inHostile(t, nil, func(r *hostileRig) {
		window := streamCapacity
		if r.extended() && !r.toldBoth() {
			window = rig.MaxCapacity
		}
		opened := make(chan *grid.Stream, 1)
		failed := rig.InBackground(func() error {
			s, err := r.Conn.NewStream(r.Context(), holdStream, nil)
			opened <- s
			return err
		})
		id := r.peer.Expect(rawpeer.OpConnectMux).MuxID
		r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(r.peer.Config.Caps, 0, streamCapacity)})
		require.NoError(r, <-failed)
		s := <-opened
		if s.Requests != nil {
			close(s.Requests)
		}
		batch := []rawpeer.Msg{}
		for i := range window + 1 {
			batch = append(batch, rawpeer.Msg{MuxID: id, Seq: uint32(i + 1), Op: rawpeer.OpMuxServerMsg, Payload: []byte("x")})
			if len(batch) == 4096 || i == window {
				if i == window {
					r.clear()
					require.NoError(r, s.Err())
					require.EqualValues(r, (i-i%4096)*(1+rig.MessageCost), r.Conn.Stats().KeptBytes)
				}
				r.peer.SendMerged(batch...)
				batch = batch[:0]
			}
		}
		<-s.Done()
		require.ErrorIs(r, s.Err(), grid.ErrFlowControl)
		require.Contains(r, string(r.peer.Expect(rawpeer.OpDisconnectServerMux).Payload), "flow control")
		synctest.Wait()
		require.Zero(r, r.Conn.Stats().KeptBytes, "nobody may come for it")
		n := 0
		require.ErrorIs(r, s.Results(func(b []byte) error { n++; grid.PutByteBuffer(b); return nil }), grid.ErrFlowControl)
		require.Equal(r, window, n, "what had arrived is delivered first")
	})
}

// limited are small limits of what a stream and a host may keep.
func limited(stream, host int) func(int, *grid.ManagerOptions) {
	return func(_ int, o *grid.ManagerOptions) {
		o.MaxMessageSize, o.MaxStreamBytes, o.MaxHostBytes = 200<<10, stream, host
	}
}

// Both kinds of messages, whole and in fragments, in both directions: a stream in which more waits
// than may ends on both sides, and holds no more until then.
func TestLimits_StreamWithTooManyBytesWaitingEndsOnBothSides(t *testing.T) {
	for name, c := range map[string]struct {
		size, stream, host int
		option             string
	}{
		"MaxStreamBytes, whole":        {10 << 10, 256 << 10, 0, "MaxStreamBytes"},
		"MaxStreamBytes, in fragments": {100 << 10, 256 << 10, 0, "MaxStreamBytes"},
		"MaxHostBytes, whole":          {10 << 10, 0, 256 << 10, "MaxHostBytes"},
		"MaxHostBytes, in fragments":   {100 << 10, 0, 256 << 10, "MaxHostBytes"},
	} {
		// ends checks how the two sides were told: here is where the messages wait. A handler hears of
		// the limit of its client as of all that a client says: no error of this side.
		ends := func(t *testing.T, g *rig.Grid, here, there error, isClient bool) {
			t.Helper()
			require.ErrorIs(t, here, grid.ErrOverloaded)
			require.False(t, grid.IsRemoteErr(here))
			require.ErrorContains(t, here, c.option)
			require.True(t, grid.IsRemoteErr(there), there)
			require.Equal(t, isClient, errors.Is(there, grid.ErrOverloaded), "the other side")
			require.ErrorContains(t, there, c.option)
			g.RequireNothingKept()
			g.RequireWorks()
		}
		most := int64(max(c.stream, c.host))
		t.Run(name+", to the client", func(t *testing.T) {
			rig.InPair(t, limited(c.stream, c.host), func(t *testing.T, g *rig.Grid, conn *grid.Connection) {
				causes := make(chan error, 1)
				g.Stream(1000, 0, func(ctx context.Context, b []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
					err := rig.Pour(c.size)(ctx, b, in, out)
					causes <- context.Cause(ctx)
					return err
				})
				for range 2 {
					s := rig.OpenStream(t, t.Context(), conn)
					<-s.Done()
					ends(t, g, s.Err(), <-causes, false)
					n := int64(0)
					_ = s.Results(func(b []byte) error { n += int64(len(b)); grid.PutByteBuffer(b); return nil })
					require.Greater(t, n, most/2)
					require.LessOrEqual(t, n, most)
				}
			})
		})
		t.Run(name+", to the handler", func(t *testing.T) {
			rig.InPair(t, limited(c.stream, c.host), func(t *testing.T, g *rig.Grid, conn *grid.Connection) {
				causes := make(chan error, 1)
				g.Stream(1, 1000, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
					<-ctx.Done()
					causes <- context.Cause(ctx)
					return nil
				})
				for range 2 {
					s := rig.OpenStream(t, t.Context(), conn)
					b := make([]byte, c.size)
					for s.Send(b) == nil {
						synctest.Wait()
						require.LessOrEqual(t, g.Conn(1, 0).Stats().KeptBytes, most)
					}
					require.Error(t, s.Results(nil))
					s.CloseSend()
					ends(t, g, <-causes, s.Err(), true)
				}
			})
		})
	}
}

// Where nothing else waits, a message of any size is taken.
func TestLimits_MessageThatWaitsAloneIsTaken(t *testing.T) {
	const size = 200 << 10
	rig.InPair(t, limited(size, size), func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(1, 1, func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				time.Sleep(time.Second)
				out <- b
			}
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		sent := rig.InBackground(func() error {
			defer s.CloseSend()
			for i := range 5 {
				if err := s.Send(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					return err
				}
				time.Sleep(5 * time.Second)
			}
			return nil
		})
		got, err := rig.Collect(s, time.Second)
		require.NoError(t, <-sent)
		require.NoError(t, err)
		require.Len(t, got, 5)
		g.RequireNothingKept()
	})
}

// A message in fragments counts as it comes.
func TestFragments_ThatAddUpEndTheirStream(t *testing.T) {
	const limit = 10_000
	small := func(o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxStreamBytes = limit, limit }
	inHostile(t, small, func(r *hostileRig) {
		if !r.extended() {
			return
		}
		causes := make(chan error, 1)
		require.NoError(r, r.Node.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 10,
			Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return nil
			},
		}))
		r.peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpConnectMux, Handler: uint8(rig.Handler)})
		seq := uint32(0)
		say := func(flags uint8, size int) {
			seq++
			r.peer.Send(rawpeer.Msg{MuxID: 1, Seq: seq, Op: rawpeer.OpMuxClientMsg, Flags: flags, Payload: make([]byte, size)})
			synctest.Wait()
			require.LessOrEqual(r, r.Conn.Stats().KeptBytes, int64(limit+rig.MessageCost), "after %d messages", seq)
		}
		for range 6 { // fill the handler's channel, and the pump
			say(0, 0)
		}
		say(0, limit/2)
		for range 3 {
			say(rawpeer.FlagMore, limit/3)
		}
		synctest.Wait()
		require.ErrorIs(r, <-causes, grid.ErrOverloaded)
		r.peer.Expect(rawpeer.OpAckMux)
		told := r.peer.Expect(rawpeer.OpDisconnectClientMux)
		require.Contains(r, string(told.Payload), "grid: overloaded: ")
		require.Contains(r, string(told.Payload), "MaxStreamBytes")
	})
}
