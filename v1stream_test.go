package grid

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Streams that the node opens, and the scripted peer serves.

// v1Stream is such a stream: the handle of the node's user, and what the peer
// needs to speak.
type v1Stream struct {
	r   *v1Rig
	s   *Stream
	id  uint64
	seq uint32 // of the peer's next message

	msgs chan string // what the consumer gets, each held until it is received
	end  chan error  // of Results
}

// locally registers a handler, from which the node knows the peer's capacities.
func (r *v1Rig) locally(out, in int) {
	r.Helper()
	require.NoError(r, r.node.RegisterStreamingHandler(50, StreamHandler{
		OutCapacity: out, InCapacity: in,
		Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil },
	}))
}

// opening asks for a stream to handler 50, and returns what the peer sees of it.
func (r *v1Rig) opening(ctx context.Context) (c *v1Stream, m rawMsg, opened <-chan error) {
	r.Helper()
	c = &v1Stream{r: r, msgs: make(chan string), end: make(chan error, 1)}
	done := make(chan error, 1)
	go func() {
		s, err := r.conn.NewStream(ctx, 50, nil)
		c.s = s
		done <- err
	}()
	m = r.peer.expect(rawOpConnectMux)
	c.id = m.MuxID
	return c, m, done
}

// open opens a stream to handler 50.
func (r *v1Rig) open(ctx context.Context) *v1Stream {
	r.Helper()
	c, _, opened := r.opening(ctx)
	c.say(rawMsg{Op: rawOpAckMux, Flags: rawFlagCRC})
	require.NoError(r, <-opened)
	return c
}

// numbered is m as the next message of the stream.
func (c *v1Stream) numbered(m rawMsg) rawMsg {
	m.MuxID, m.Seq = c.id, c.seq
	c.seq++
	return m
}

// say sends the next message of the stream.
func (c *v1Stream) say(m rawMsg) {
	c.r.Helper()
	c.r.peer.send(c.numbered(m))
}

// unnumbered sends a message of the stream that has no number.
func (c *v1Stream) unnumbered(m rawMsg) {
	c.r.Helper()
	m.MuxID = c.id
	c.r.peer.send(m)
}

func serverMsg(payload string) rawMsg {
	return rawMsg{Op: rawOpMuxServerMsg, Flags: rawFlagCRC, Payload: []byte(payload)}
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
	c.r.expect(rawMsg{MuxID: c.id, Seq: seq, Op: op, Flags: flags})
}

// expectDropped requires that the node gives a stream up and says why.
func (r *v1Rig) expectDropped(op uint8, id uint64, why error) {
	r.Helper()
	m := r.peer.expect(op)
	require.Contains(r, string(m.Payload), why.Error())
	m.Payload = nil
	require.Equal(r, rawMsg{MuxID: id, Op: op, Flags: crcErr}, m)
}

func TestV1StreamIsAskedFor(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		require.NoError(r, r.node.RegisterStreamingHandler(50, StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil },
		}))
		require.NoError(r, r.node.RegisterStreamingHandler(50, StreamHandler{
			Handle:   func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil },
			Subroute: "a", InCapacity: 1,
		}))
		deadline, cancel := context.WithTimeout(r.Context(), 1500*time.Millisecond)
		defer cancel()
		for i, c := range []struct {
			ctx     context.Context
			conn    Streamer
			payload []byte
			want    rawMsg
			input   bool
		}{
			{r.Context(), r.conn, nil, rawMsg{Flags: crcEOF}, false},
			{r.Context(), r.conn, []byte{}, rawMsg{Flags: crcEOF | rawFlagPayloadIsZero, Payload: []byte{}}, false},
			{deadline, r.conn, []byte("p"), rawMsg{DeadlineMS: 1500, Flags: crcEOF, Payload: []byte("p")}, false},
			{r.Context(), r.conn.Subroute("a"), nil, rawMsg{Flags: rawFlagCRC | rawFlagSubroute, Subroute: rawSubrouteID(50, "a")}, true},
			// A handler that is not known here may take input.
			{r.Context(), r.conn.Subroute("b"), nil, rawMsg{Flags: rawFlagCRC | rawFlagSubroute, Subroute: rawSubrouteID(50, "b")}, true},
		} {
			c.want.MuxID, c.want.Handler, c.want.Op = uint64(i+1), 50, rawOpConnectMux
			opened := make(chan *Stream, 1)
			go func() {
				s, err := c.conn.(interface {
					NewStream(context.Context, HandlerID, []byte) (*Stream, error)
				}).NewStream(c.ctx, 50, c.payload)
				require.NoError(r, err)
				opened <- s
			}()
			r.expect(c.want)
			r.quiet()
			require.Empty(r, opened, "before the ack")
			r.peer.send(rawMsg{MuxID: c.want.MuxID, Op: rawOpAckMux, Flags: rawFlagCRC})
			s := <-opened
			require.Equal(r, c.input, s.Requests != nil)
			r.peer.send(rawMsg{MuxID: c.want.MuxID, Seq: 1, Op: rawOpMuxServerMsg, Flags: crcEOF})
			require.NoError(r, s.Results(nil))
		}
		r.alive()
	})
}

func TestV1StreamIsRefused(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for _, m := range []rawMsg{
			{Op: rawOpMuxConnectError, Flags: crcEOF, Payload: connectError("no such handler")},
			{Op: rawOpDisconnectClientMux, Flags: crcErr, Payload: []byte("no such handler")},
		} {
			c, _, opened := r.opening(r.Context())
			c.unnumbered(m)
			require.Equal(r, NewRemoteErrString("no such handler"), <-opened)
			c.unnumbered(m)
		}
		c, _, opened := r.opening(r.Context())
		c.unnumbered(rawMsg{Op: rawOpDisconnectClientMux})
		require.ErrorIs(r, <-opened, ErrDisconnected)
		require.Nil(r, c.s)
		r.quiet()

		// The caller does not wait for ever, and an ack that comes too late is
		// for nobody.
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		c, _, opened = r.opening(ctx)
		require.Equal(r, context.DeadlineExceeded, <-opened)
		c.expect(0, rawOpDisconnectServerMux, rawFlagCRC)
		c.unnumbered(rawMsg{Op: rawOpAckMux})
		c.expect(0, rawOpDisconnectServerMux, rawFlagCRC)
		r.alive()
	})
}

// The window never moves: a credit goes back for each message taken, and none
// for those that wait.
func TestV1StreamReturnsACreditForEachMessageTaken(t *testing.T) {
	for _, capacity := range []int{1, 3} {
		inV1(t, rawConfig{}, nil, func(r *v1Rig) {
			r.locally(capacity, 0)
			c := r.open(r.Context())
			for range capacity {
				c.say(serverMsg("x"))
			}
			r.quiet()
			c.consume()
			for i := range uint32(50) {
				c.expect(i+1, rawOpUnblockSrvMux, rawFlagCRC)
				c.say(serverMsg("x")) // the credit is spent at once
				r.quiet()
				require.Equal(r, "x", <-c.msgs)
			}
			c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF})
			c.unnumbered(rawMsg{Op: rawOpDisconnectClientMux, Flags: rawFlagCRC})
			synctest.Wait()
			got, err := c.rest()
			require.NoError(r, err)
			require.Len(r, got, capacity, "all that was sent before the end")
			// One credit may have been due before the end was seen.
			for _, m := range r.peer.pending() {
				require.Equal(r, uint8(rawOpUnblockSrvMux), r.peer.recv().Op, "%v", m)
			}
			r.alive()
		})
	}
}

func TestV1StreamWhoseServerOverrunsItsWindowFails(t *testing.T) {
	for _, capacity := range []int{1, 3} {
		inV1(t, rawConfig{}, nil, func(r *v1Rig) {
			r.locally(capacity, 0)
			stalled := r.open(r.Context())
			for range capacity + 1 {
				stalled.say(serverMsg("x"))
			}
			r.expectDropped(rawOpDisconnectServerMux, stalled.id, ErrFlowControl)
			stalled.consume()
			got, err := stalled.rest()
			require.ErrorIs(r, err, ErrFlowControl)
			require.Len(r, got, capacity, "what it was allowed to send")

			// One credit was returned, and is all that can be spent.
			c := r.open(r.Context())
			c.consume()
			for range capacity {
				c.say(serverMsg("x"))
			}
			c.expect(1, rawOpUnblockSrvMux, rawFlagCRC)
			c.say(serverMsg("x"))
			r.quiet()
			c.say(serverMsg("x"))
			r.expectDropped(rawOpDisconnectServerMux, c.id, ErrFlowControl)
			_, err = c.rest()
			require.ErrorIs(r, err, ErrFlowControl)
			r.alive()
		})
	}
}

func TestV1StreamToAHandlerThatIsNotKnownHereHasCapacitiesOfOne(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		c := r.open(r.Context())
		go func() { _ = errors.Join(c.s.Send([]byte("a")), c.s.Send([]byte("b"))) }()
		for seq, payload := range []string{"a", "b"} {
			r.expect(rawMsg{MuxID: c.id, Seq: uint32(seq + 1), Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: []byte(payload)})
			r.quiet()
			c.say(rawMsg{Op: rawOpUnblockClMux})
		}
		c.say(serverMsg("x"))
		c.say(serverMsg("x"))
		r.expectDropped(rawOpDisconnectServerMux, c.id, ErrFlowControl)
		r.alive()
	})
}

func TestV1StreamMessagesThatAreEmpty(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.locally(1, 1)
		c := r.open(r.Context())
		c.consume()
		for i, m := range []rawMsg{
			{Op: rawOpMuxServerMsg, Flags: crcZero, Payload: []byte{}},
			{Op: rawOpMuxServerMsg, Flags: rawFlagCRC},
			serverMsg("data"),
		} {
			c.say(m)
			require.Equal(r, string(m.Payload), <-c.msgs)
			c.expect(uint32(i+1), rawOpUnblockSrvMux, rawFlagCRC)
		}
		for i, b := range [][]byte{nil, {}} {
			require.NoError(r, c.s.Send(b))
			r.expect(rawMsg{MuxID: c.id, Seq: uint32(4 + i), Op: rawOpMuxClientMsg, Flags: crcZero, Payload: []byte{}})
			c.say(rawMsg{Op: rawOpUnblockClMux})
		}
		r.alive()
	})
}

func TestV1StreamSendsNoMoreThanItHasCreditsFor(t *testing.T) {
	for _, capacity := range []int{1, 3} {
		for _, way := range []string{"Send", "Requests"} {
			inV1(t, rawConfig{}, nil, func(r *v1Rig) {
				r.locally(1, capacity)
				c := r.open(r.Context())
				const n = 10
				go func() {
					for i := range n {
						if way == "Send" {
							_ = c.s.Send([]byte{byte(i)})
						} else {
							c.s.Requests <- append(GetByteBuffer(), byte(i))
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
					r.expect(rawMsg{MuxID: c.id, Seq: seq, Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: []byte{byte(seq - 1)}})
					seq++
				}
				for range capacity {
					next()
				}
				for range n - capacity {
					r.quiet()
					c.say(rawMsg{Op: rawOpUnblockClMux, Flags: rawFlagCRC})
					next()
				}
				// The end of the input needs no credit, and carries nothing.
				c.expect(n+1, rawOpMuxClientMsg, crcEOF)
				r.quiet()
				require.ErrorContains(r, c.s.Send(nil), "closed")
				for range capacity {
					c.say(rawMsg{Op: rawOpUnblockClMux, Flags: rawFlagCRC})
				}
				c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF})
				require.NoError(r, c.s.Results(nil))
				r.alive()
			})
		}
	}
}
