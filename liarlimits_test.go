package grid

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Streams that nobody reads, and what of them is kept.

// requireNothingKept requires, in a bubble, that two nodes have nothing under way.
func (g *testGrid) requireNothingKept() {
	g.t.Helper()
	synctest.Wait()
	for i := range 2 {
		st := g.conn(i, 1-i).Stats()
		require.Zero(g.t, st.KeptBytes, "node %d", i)
		require.Zero(g.t, st.Handlers+st.StreamsServed+st.Streams+st.Calls, "node %d: %+v", i, st)
	}
}

// pour sends messages of a size until its context ends.
func pour(size int) StreamHandlerFn {
	return func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
		for ctx.Err() == nil {
			out <- GetByteBufferCap(size)[:size]
		}
		return NewRemoteErr(context.Cause(ctx))
	}
}

func TestStreamsThatNobodyReadsAreRefusedBeyondMaxStreams(t *testing.T) {
	const more, capacity, size = 1000, 4, 100
	limit := scaled(2000)
	inPair(t, func(_ int, o *ManagerOptions) { o.MaxStreams, o.MaxHandlers = limit, limit+10 }, func(t *testing.T, g *testGrid, c *Connection) {
		g.stream(capacity, 0, pour(size))
		for range 2 { // the slots come back
			ctx, cancel := context.WithCancel(t.Context())
			var open []*Stream
			for i := range limit + more {
				s, err := c.NewStream(ctx, testHandler, nil)
				if i < limit {
					require.NoError(t, err)
					open = append(open, s)
					continue
				}
				require.ErrorIs(t, err, ErrOverloaded)
				require.True(t, IsRemoteErr(err))
				require.EqualError(t, err, fmt.Sprintf("grid: overloaded: handler %d refused: %d streams are running for this host, the limit of MaxStreams", testHandler, limit))
			}
			synctest.Wait()
			_, err := c.SingleRequest(ctx, testEcho, nil)
			require.NoError(t, err, "streams leave room for requests")
			require.Equal(t, limit, g.conn(1, 0).Stats().StreamsServed)
			require.LessOrEqual(t, c.Stats().KeptBytes, int64(limit*capacity*(size+messageCost)))
			for _, s := range open {
				s.mux.in.mu.Lock()
				require.Len(t, s.mux.in.queue, capacity)
				s.mux.in.mu.Unlock()
				require.NoError(t, s.Err())
			}
			cancel()
			g.requireNothingKept()
		}
	})
}

// A client that opens streams and returns no credit has them filled to their window,
// and no further.
func TestLiarThatOpensStreamsAndReadsNone(t *testing.T) {
	const limit, capacity = 500, 3
	inLiar(t, func(o *ManagerOptions) { o.MaxStreams = limit }, func(r *liarRig) {
		require.NoError(r, r.g.nodes[0].RegisterStreamingHandler(testHandler, StreamHandler{Handle: pour(10), OutCapacity: capacity}))
		for id := range uint64(3 * limit) {
			r.peer.send(rawMsg{MuxID: id + 1, Op: rawOpConnectMux, Handler: uint8(testHandler)})
		}
		ops := map[uint8]int{}
		for _, m := range r.clear() {
			ops[m.Op]++
			if m.Op == rawOpMuxConnectError {
				require.Contains(r, string(m.Payload), "MaxStreams")
			}
		}
		require.Equal(r, map[uint8]int{rawOpAckMux: limit, rawOpMuxServerMsg: limit * capacity, rawOpMuxConnectError: 2 * limit}, ops)
		st := r.conn.Stats()
		require.Equal(r, limit, st.StreamsServed)
		require.Zero(r, st.KeptBytes)
		require.Len(r, r.log.about("limit reached"), 1)
		r.works()
		for id := range uint64(3 * limit) {
			r.peer.send(rawMsg{MuxID: id + 1, Op: rawOpDisconnectServerMux})
		}
		r.idle()
	})
}

// A server may fill a stream that nobody reads as far as its window goes: that which
// is known of a version 1 server's handler, or the most that there is.
func TestLiarThatFillsAStreamThatNobodyReads(t *testing.T) {
	inLiar(t, nil, func(r *liarRig) {
		window := liarCapacity
		if r.extended() {
			window = maxCapacity
		}
		opened := make(chan *Stream, 1)
		failed := inBackground(func() error {
			s, err := r.conn.NewStream(r.Context(), liarHold, nil)
			opened <- s
			return err
		})
		id := r.peer.expect(rawOpConnectMux).MuxID
		r.peer.send(rawMsg{MuxID: id, Op: rawOpAckMux, Payload: []byte{0}})
		require.NoError(r, <-failed)
		s := <-opened
		if s.Requests != nil {
			close(s.Requests)
		}
		batch := []rawMsg{}
		for i := range window + 1 {
			batch = append(batch, rawMsg{MuxID: id, Seq: uint32(i + 1), Op: rawOpMuxServerMsg, Payload: []byte("x")})
			if len(batch) == 4096 || i == window {
				if i == window {
					r.clear()
					require.NoError(r, s.Err())
					require.EqualValues(r, (i-i%4096)*(1+messageCost), r.conn.Stats().KeptBytes)
				}
				r.peer.sendMerged(batch...)
				batch = batch[:0]
			}
		}
		<-s.Done()
		require.ErrorIs(r, s.Err(), ErrFlowControl)
		require.Contains(r, string(r.peer.expect(rawOpDisconnectServerMux).Payload), "flow control")
		synctest.Wait()
		require.Zero(r, r.conn.Stats().KeptBytes, "nobody may come for it")
		n := 0
		require.ErrorIs(r, s.Results(func(b []byte) error { n++; PutByteBuffer(b); return nil }), ErrFlowControl)
		require.Equal(r, window, n, "what had arrived is delivered first")
	})
}

// limited are small limits of what a stream and a host may keep.
func limited(stream, host int) func(int, *ManagerOptions) {
	return func(_ int, o *ManagerOptions) {
		o.MaxMessageSize, o.MaxStreamBytes, o.MaxHostBytes = 200<<10, stream, host
	}
}

// Both kinds of messages, whole and in fragments, in both directions: a stream in
// which more waits than may ends on both sides, and holds no more until then.
func TestStreamWithTooManyBytesWaitingEndsOnBothSides(t *testing.T) {
	for name, c := range map[string]struct {
		size, stream, host int
		option             string
	}{
		"MaxStreamBytes, whole":        {10 << 10, 256 << 10, 0, "MaxStreamBytes"},
		"MaxStreamBytes, in fragments": {100 << 10, 256 << 10, 0, "MaxStreamBytes"},
		"MaxHostBytes, whole":          {10 << 10, 0, 256 << 10, "MaxHostBytes"},
		"MaxHostBytes, in fragments":   {100 << 10, 0, 256 << 10, "MaxHostBytes"},
	} {
		// ends checks how the two sides were told: here is where the messages wait.
		ends := func(t *testing.T, g *testGrid, here, there error) {
			t.Helper()
			require.ErrorIs(t, here, ErrOverloaded)
			require.False(t, IsRemoteErr(here))
			require.ErrorContains(t, here, c.option)
			require.True(t, IsRemoteErr(there), there)
			require.ErrorIs(t, there, ErrOverloaded, "the other side")
			require.ErrorContains(t, there, c.option)
			g.requireNothingKept()
			g.requireWorks()
		}
		most := int64(max(c.stream, c.host))
		t.Run(name+", to the client", func(t *testing.T) {
			inPair(t, limited(c.stream, c.host), func(t *testing.T, g *testGrid, conn *Connection) {
				causes := make(chan error, 1)
				g.stream(1000, 0, func(ctx context.Context, b []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
					err := pour(c.size)(ctx, b, in, out)
					causes <- context.Cause(ctx)
					return err
				})
				for range 2 {
					s := openStream(t, t.Context(), conn)
					<-s.Done()
					ends(t, g, s.Err(), <-causes)
					n := int64(0)
					_ = s.Results(func(b []byte) error { n += int64(len(b)); PutByteBuffer(b); return nil })
					require.Greater(t, n, most/2)
					require.LessOrEqual(t, n, most)
				}
			})
		})
		t.Run(name+", to the handler", func(t *testing.T) {
			inPair(t, limited(c.stream, c.host), func(t *testing.T, g *testGrid, conn *Connection) {
				causes := make(chan error, 1)
				g.stream(1, 1000, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
					<-ctx.Done()
					causes <- context.Cause(ctx)
					return nil
				})
				for range 2 {
					s := openStream(t, t.Context(), conn)
					b := make([]byte, c.size)
					for s.Send(b) == nil {
						synctest.Wait()
						require.LessOrEqual(t, g.conn(1, 0).Stats().KeptBytes, most)
					}
					require.Error(t, s.Results(nil))
					s.CloseSend()
					ends(t, g, <-causes, s.Err())
				}
			})
		})
	}
}

// Where nothing else waits, a message of any size is taken.
func TestMessageThatWaitsAloneIsTaken(t *testing.T) {
	const size = 200 << 10
	inPair(t, limited(size, size), func(t *testing.T, g *testGrid, c *Connection) {
		g.stream(1, 1, func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
			for b := range in {
				time.Sleep(time.Second)
				out <- b
			}
			return nil
		})
		s := openStream(t, t.Context(), c)
		sent := inBackground(func() error {
			defer s.CloseSend()
			for i := range 5 {
				if err := s.Send(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					return err
				}
				time.Sleep(5 * time.Second)
			}
			return nil
		})
		got, err := collect(s, time.Second)
		require.NoError(t, <-sent)
		require.NoError(t, err)
		require.Len(t, got, 5)
		g.requireNothingKept()
	})
}

// A message in fragments counts as it comes.
func TestLiarWhoseFragmentsAddUpEndsItsStream(t *testing.T) {
	const limit = 10_000
	small := func(o *ManagerOptions) { o.MaxMessageSize, o.MaxStreamBytes = limit, limit }
	inLiar(t, small, func(r *liarRig) {
		if !r.extended() {
			return
		}
		causes := make(chan error, 1)
		require.NoError(r, r.g.nodes[0].RegisterStreamingHandler(testHandler, StreamHandler{
			InCapacity: 10,
			Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return nil
			},
		}))
		r.peer.send(rawMsg{MuxID: 1, Op: rawOpConnectMux, Handler: uint8(testHandler)})
		seq := uint32(0)
		say := func(flags uint8, size int) {
			seq++
			r.peer.send(rawMsg{MuxID: 1, Seq: seq, Op: rawOpMuxClientMsg, Flags: flags, Payload: make([]byte, size)})
			synctest.Wait()
			require.LessOrEqual(r, r.conn.Stats().KeptBytes, int64(limit+messageCost), "after %d messages", seq)
		}
		for range 6 { // fill the handler's channel, and the pump
			say(0, 0)
		}
		say(0, limit/2)
		for range 3 {
			say(rawFlagMore, limit/3)
		}
		synctest.Wait()
		require.ErrorIs(r, <-causes, ErrOverloaded)
		r.peer.expect(rawOpAckMux)
		told := r.peer.expect(rawOpDisconnectClientMux)
		require.Contains(r, string(told.Payload), "grid: overloaded: ")
		require.Contains(r, string(told.Payload), "MaxStreamBytes")
	})
}
