package v1

import (
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

// Streams that the node opens, and the scripted peer serves.

// v1Stream is such a stream: the handle of the node's user, and what the peer needs to speak.
type v1Stream struct {
	r   *wire
	s   *grid.Stream
	id  uint64
	seq uint32 // of the peer's next message

	msgs chan string // what the consumer gets, each held until it is received
	end  chan error  // of Results
}

// locally registers a handler, from which the node knows the peer's capacities.
func (r *wire) locally(out, in int) {
	r.Helper()
	require.NoError(r, r.Node.RegisterStreamingHandler(50, grid.StreamHandler{
		OutCapacity: out, InCapacity: in,
		Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil },
	}))
}

// opening asks for a stream to handler 50, and returns what the peer sees of it.
func (r *wire) opening(ctx context.Context) (c *v1Stream, m rawpeer.Msg, opened <-chan error) {
	r.Helper()
	c = &v1Stream{r: r, msgs: make(chan string), end: make(chan error, 1)}
	done := make(chan error, 1)
	go func() {
		s, err := r.Conn.NewStream(ctx, 50, nil)
		c.s = s
		done <- err
	}()
	m = r.Peer.Expect(rawpeer.OpConnectMux)
	c.id = m.MuxID
	return c, m, done
}

// open opens a stream to handler 50.
func (r *wire) open(ctx context.Context) *v1Stream {
	r.Helper()
	c, _, opened := r.opening(ctx)
	c.say(rawpeer.Msg{Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC})
	require.NoError(r, <-opened)
	return c
}

// numbered is m as the next message of the stream.
func (c *v1Stream) numbered(m rawpeer.Msg) rawpeer.Msg {
	m.MuxID, m.Seq = c.id, c.seq
	c.seq++
	return m
}

// say sends the next message of the stream.
func (c *v1Stream) say(m rawpeer.Msg) {
	c.r.Helper()
	c.r.Peer.Send(c.numbered(m))
}

// unnumbered sends a message of the stream that has no number.
func (c *v1Stream) unnumbered(m rawpeer.Msg) {
	c.r.Helper()
	m.MuxID = c.id
	c.r.Peer.Send(m)
}

func serverMsg(payload string) rawpeer.Msg {
	return rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC, Payload: []byte(payload)}
}

func (c *v1Stream) consume() {
	go func() {
		c.end <- c.s.Results(func(b []byte) error {
			select {
			case c.msgs <- string(b):
			case <-c.r.Context().Done():
			}
			return nil
		})
	}()
}

// rest is what the consumer gets from now on, and how that ends.
func (c *v1Stream) rest() (got []string, err error) {
	for {
		select {
		case msg := <-c.msgs:
			got = append(got, msg)
		case err := <-c.end:
			return got, err
		}
	}
}

// expect requires that the node says this next, in the stream.
func (c *v1Stream) expect(seq uint32, op, flags uint8) {
	c.r.Helper()
	c.r.Expect(rawpeer.Msg{MuxID: c.id, Seq: seq, Op: op, Flags: flags})
}

// expectDropped requires that the node gives a stream up and says why.
func (r *wire) expectDropped(op uint8, id uint64, why error) {
	r.Helper()
	m := r.Peer.Expect(op)
	require.Contains(r, string(m.Payload), why.Error())
	m.Payload = nil
	require.Equal(r, r.Sent(rawpeer.Msg{MuxID: id, Op: op, Flags: rig.CRCErr}), m)
}

func TestV1Stream_IsAskedFor(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		require.NoError(r, r.Node.RegisterStreamingHandler(50, grid.StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil },
		}))
		require.NoError(r, r.Node.RegisterStreamingHandler(50, grid.StreamHandler{
			Handle:   func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil },
			Subroute: "a", InCapacity: 1,
		}))
		deadline, cancel := context.WithTimeout(r.Context(), 1500*time.Millisecond)
		defer cancel()
		for i, c := range []struct {
			ctx     context.Context
			conn    grid.Streamer
			payload []byte
			want    rawpeer.Msg
			input   bool
		}{
			{r.Context(), r.Conn, nil, rawpeer.Msg{Flags: rig.CRCEOF}, false},
			{r.Context(), r.Conn, []byte{}, rawpeer.Msg{Flags: rig.CRCEOF | rawpeer.FlagPayloadIsZero, Payload: []byte{}}, false},
			{deadline, r.Conn, []byte("p"), rawpeer.Msg{DeadlineMS: 1500, Flags: rig.CRCEOF, Payload: []byte("p")}, false},
			{r.Context(), r.Conn.Subroute("a"), nil, rawpeer.Msg{Flags: rawpeer.FlagCRC | rawpeer.FlagSubroute, Subroute: rawpeer.SubrouteID(50, "a")}, true},
			// A handler that is not known here may take input.
			{r.Context(), r.Conn.Subroute("b"), nil, rawpeer.Msg{Flags: rawpeer.FlagCRC | rawpeer.FlagSubroute, Subroute: rawpeer.SubrouteID(50, "b")}, true},
		} {
			c.want.MuxID, c.want.Handler, c.want.Op = r.Mux(i+1), 50, rawpeer.OpConnectMux
			opened := make(chan *grid.Stream, 1)
			go func() {
				s, err := c.conn.(interface {
					NewStream(context.Context, grid.HandlerID, []byte) (*grid.Stream, error)
				}).NewStream(c.ctx, 50, c.payload)
				require.NoError(r, err)
				opened <- s
			}()
			r.Expect(c.want)
			r.Quiet()
			require.Empty(r, opened, "before the ack")
			r.Peer.Send(rawpeer.Msg{MuxID: c.want.MuxID, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC})
			s := <-opened
			require.Equal(r, c.input, s.Requests != nil)
			r.Peer.Send(rawpeer.Msg{MuxID: c.want.MuxID, Seq: 1, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			require.NoError(r, s.Results(nil))
		}
		r.Alive()
	})
}

func TestV1Stream_IsRefused(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for _, m := range []rawpeer.Msg{
			{Op: rawpeer.OpMuxConnectError, Flags: rig.CRCEOF, Payload: rawpeer.ConnectError("no such handler")},
			{Op: rawpeer.OpDisconnectClientMux, Flags: rig.CRCErr, Payload: []byte("no such handler")},
		} {
			c, _, opened := r.opening(r.Context())
			c.unnumbered(m)
			require.Equal(r, grid.NewRemoteErrString("no such handler"), <-opened)
			c.unnumbered(m)
		}
		c, _, opened := r.opening(r.Context())
		c.unnumbered(rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux})
		require.ErrorIs(r, <-opened, grid.ErrDisconnected)
		require.Nil(r, c.s)
		r.Quiet()

		// The caller does not wait for ever, and an ack that comes too late is for nobody.
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		c, _, opened = r.opening(ctx)
		require.ErrorIs(r, <-opened, context.DeadlineExceeded)
		c.expect(0, rawpeer.OpDisconnectServerMux, rawpeer.FlagCRC)
		c.unnumbered(rawpeer.Msg{Op: rawpeer.OpAckMux})
		c.expect(0, rawpeer.OpDisconnectServerMux, rawpeer.FlagCRC)
		r.Alive()
	})
}

// The window never moves: a credit goes back for each message taken, and none for those that wait.
func TestV1Stream_ReturnsACreditForEachMessageTaken(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		inWire(t, rawpeer.Config{}, nil, func(r *wire) {
			r.locally(capacity, 0)
			c := r.open(r.Context())
			for range capacity {
				c.say(serverMsg("x"))
			}
			r.Quiet()
			c.consume()
			for i := range uint32(50) {
				c.expect(i+1, rawpeer.OpUnblockSrvMux, rawpeer.FlagCRC)
				c.say(serverMsg("x")) // the credit is spent at once
				r.Quiet()
				require.Equal(r, "x", <-c.msgs)
			}
			c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			c.unnumbered(rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
			synctest.Wait()
			got, err := c.rest()
			require.NoError(r, err)
			require.Len(r, got, capacity, "all that was sent before the end")
			// One credit may have been due before the end was seen.
			for _, m := range r.Peer.Pending() {
				require.Equal(r, uint8(rawpeer.OpUnblockSrvMux), r.Peer.Recv().Op, "%v", m)
			}
			r.Alive()
		})
	}
}

func TestV1Stream_WhoseServerOverrunsItsWindowFails(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		inWire(t, rawpeer.Config{}, nil, func(r *wire) {
			r.locally(capacity, 0)
			stalled := r.open(r.Context())
			for range capacity + 1 {
				stalled.say(serverMsg("x"))
			}
			r.expectDropped(rawpeer.OpDisconnectServerMux, stalled.id, grid.ErrFlowControl)
			stalled.consume()
			got, err := stalled.rest()
			require.ErrorIs(r, err, grid.ErrFlowControl)
			require.Len(r, got, capacity, "what it was allowed to send")

			// One credit was returned, and is all that can be spent.
			c := r.open(r.Context())
			c.consume()
			for range capacity {
				c.say(serverMsg("x"))
			}
			c.expect(1, rawpeer.OpUnblockSrvMux, rawpeer.FlagCRC)
			c.say(serverMsg("x"))
			r.Quiet()
			c.say(serverMsg("x"))
			r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrFlowControl)
			_, err = c.rest()
			require.ErrorIs(r, err, grid.ErrFlowControl)
			r.Alive()
		})
	}
}

// Its server may send as much as it has registered, which nobody here knows; towards it one credit
// is assumed.
func TestV1Stream_ToAHandlerThatIsNotKnownHere(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		c := r.open(r.Context())
		go func() { _ = errors.Join(c.s.Send([]byte("a")), c.s.Send([]byte("b"))) }()
		for seq, payload := range []string{"a", "b"} {
			r.Expect(rawpeer.Msg{MuxID: c.id, Seq: uint32(seq + 1), Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: []byte(payload)})
			r.Quiet()
			c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux})
		}
		for range 100 {
			c.say(serverMsg("x"))
		}
		r.Quiet()
		c.consume()
		for i := range uint32(100) {
			require.Equal(r, "x", <-c.msgs)
			c.expect(i+3, rawpeer.OpUnblockSrvMux, rawpeer.FlagCRC)
		}
		c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux})
		r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrFlowControl)
		r.Alive()
	})
}

func TestV1Stream_MessagesThatAreEmpty(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.locally(1, 1)
		c := r.open(r.Context())
		c.consume()
		for i, m := range []rawpeer.Msg{
			{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCZero, Payload: []byte{}},
			{Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC},
			serverMsg("data"),
		} {
			c.say(m)
			require.Equal(r, string(m.Payload), <-c.msgs)
			c.expect(uint32(i+1), rawpeer.OpUnblockSrvMux, rawpeer.FlagCRC)
		}
		for i, b := range [][]byte{nil, {}} {
			require.NoError(r, c.s.Send(b))
			r.Expect(rawpeer.Msg{MuxID: c.id, Seq: uint32(4 + i), Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCZero, Payload: []byte{}})
			c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux})
		}
		r.Alive()
	})
}

func TestV1Stream_SendsNoMoreThanItHasCreditsFor(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		for _, way := range []string{"Send", "Requests"} {
			inWire(t, rawpeer.Config{}, nil, func(r *wire) {
				r.locally(1, capacity)
				c := r.open(r.Context())
				const n = 10
				go func() {
					for i := range n {
						if way == "Send" {
							_ = c.s.Send([]byte{byte(i)})
						} else {
							c.s.Requests <- append(grid.GetByteBuffer(), byte(i))
						}
					}
					if way == "Send" {
						c.s.CloseSend()
					} else {
						close(c.s.Requests)
					}
				}()
				seq := uint32(1)
				next := func() {
					r.Helper()
					r.Expect(rawpeer.Msg{MuxID: c.id, Seq: seq, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: []byte{byte(seq - 1)}})
					seq++
				}
				for range capacity {
					next()
				}
				for range n - capacity {
					r.Quiet()
					c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Flags: rawpeer.FlagCRC})
					next()
				}
				// The end of the input needs no credit, and carries nothing.
				c.expect(n+1, rawpeer.OpMuxClientMsg, rig.CRCEOF)
				r.Quiet()
				require.ErrorContains(r, c.s.Send(nil), "closed")
				for range capacity {
					c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux, Flags: rawpeer.FlagCRC})
				}
				c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
				require.NoError(r, c.s.Results(nil))
				r.Alive()
			})
		}
	}
}
