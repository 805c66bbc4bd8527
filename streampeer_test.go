package grid

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/faultconn"
)

// Streams to and from peers that keep to version 1, or to nothing at all.

// withPeer runs f in a bubble with one node and a scripted peer that is
// connected to it.
func withPeer(t *testing.T, c rawConfig, f func(t *testing.T, g *testGrid, conn *Connection, peer *rawPeer)) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		peer := g.dialLone(raw, c)
		f(t, g, g.nodes[0].Connection(raw), peer)
	})
}

// openToPeer opens a stream to testHandler at the peer, which takes it on. The
// credits are for a wide peer; one of version 1 names none.
func openToPeer(t *testing.T, ctx context.Context, c *Connection, peer *rawPeer, credits int) (s *Stream, id uint64) {
	t.Helper()
	opened := make(chan error)
	go func() {
		var err error
		s, err = c.NewStream(ctx, testHandler, nil)
		opened <- err
	}()
	id = peer.expect(rawOpConnectMux).MuxID
	ack := rawMsg{Op: rawOpAckMux, MuxID: id}
	if peer.c.Caps != 0 {
		ack.Payload = msgp.AppendInt(nil, credits)
	}
	peer.send(ack)
	require.NoError(t, <-opened)
	return s, id
}

// serverMsgs are messages of a stream, and its end, numbered from 1.
func serverMsgs(id uint64, texts ...string) (msgs []rawMsg) {
	for i, text := range texts {
		msgs = append(msgs, rawMsg{Op: rawOpMuxServerMsg, MuxID: id, Seq: uint32(i + 1), Payload: []byte(text)})
	}
	return append(msgs, rawMsg{Op: rawOpMuxServerMsg, MuxID: id, Seq: uint32(len(texts) + 1), Flags: rawFlagEOF})
}

// registerLocally makes the capacities of the peer's handler known to the node.
func (g *testGrid) registerLocally(outCapacity, inCapacity int) {
	g.t.Helper()
	require.NoError(g.t, g.nodes[0].RegisterStreamingHandler(testHandler, StreamHandler{
		Handle:      func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil },
		OutCapacity: outCapacity, InCapacity: inCapacity,
	}))
}

// A version 1 server follows its last message with the end, and that with a
// disconnect.
func TestBurstOfCapacityThenEOFSlowConsumerOfAVersion1Server(t *testing.T) {
	withPeer(t, rawConfig{}, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
		const capacity = 8
		g.registerLocally(capacity, 0)
		gone := func(id uint64) rawMsg { return rawMsg{Op: rawOpDisconnectClientMux, MuxID: id} }
		for range 20 {
			// The end needs a credit as well, so it comes with the last but one...
			s, id := openToPeer(t, t.Context(), c, peer, 0)
			peer.sendMerged(append(serverMsgs(id, numbered(capacity-1)...), gone(id))...)
			<-s.Done()
			got, err := collect(s, time.Second)
			require.NoError(t, err)
			require.Equal(t, numbered(capacity-1), got)

			// ... or when the first was consumed.
			s, id = openToPeer(t, t.Context(), c, peer, 0)
			msgs := append(serverMsgs(id, numbered(capacity)...), gone(id))
			peer.sendMerged(msgs[:capacity]...)
			synctest.Wait()
			results := make(chan []string)
			go func() {
				got, err := collect(s, time.Second)
				if err != nil {
					t.Error(err)
				}
				results <- got
			}()
			require.Equal(t, uint32(1), peer.expect(rawOpUnblockSrvMux).Seq)
			peer.sendMerged(msgs[capacity:]...)
			require.Equal(t, numbered(capacity), <-results)
			require.Empty(t, peer.pending(), "no credits after the end")
		}
	})
}

func TestNilAndEmptyStreamMessagesThenDataFromAVersion1Server(t *testing.T) {
	withPeer(t, rawConfig{}, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
		g.registerLocally(4, 0)
		s, id := openToPeer(t, t.Context(), c, peer, 0)
		msgs := serverMsgs(id, "", "", "data")
		msgs[1].Flags = rawFlagPayloadIsZero
		peer.sendMerged(msgs[:3]...)
		go func() {
			for i := range 3 { // a credit for each
				if m, err := peer.tryRecv(); err != nil || m.Op != rawOpUnblockSrvMux || m.Seq != uint32(i+1) {
					t.Error(m, err)
				}
			}
			if err := peer.trySend(msgs[3]); err != nil {
				t.Error(err)
			}
		}()
		got, err := collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"", "", "data"}, got)
	})
}

func TestServerThatOverrunsItsCreditsEndsTheStream(t *testing.T) {
	withPeer(t, rawConfig{}, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
		for _, capacity := range []int{0, 3} { // without and with a handler known here
			known := max(capacity, 1)
			if capacity > 0 {
				g.registerLocally(capacity, 0)
			}
			s, id := openToPeer(t, t.Context(), c, peer, 0)
			peer.sendMerged(serverMsgs(id, numbered(known+1)...)...)
			<-s.Done()
			got, err := collect(s, 0)
			require.ErrorIs(t, err, ErrFlowControl)
			require.ErrorContains(t, err, fmt.Sprint("window is ", known))
			require.Equal(t, numbered(known), got)
			told := peer.expect(rawOpDisconnectServerMux)
			require.Equal(t, id, told.MuxID)
			require.Contains(t, string(told.Payload), "flow control")
			require.Zero(t, c.Stats().Reconnects)
			require.Equal(t, StateConnected, c.State())
		}
	})
}

func TestServerThatReturnsCreditsTwiceEndsTheStream(t *testing.T) {
	for _, caps := range []uint64{0, rawCapWideCredits} {
		withPeer(t, rawConfig{Caps: caps}, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
			g.registerLocally(1, 2)
			s, id := openToPeer(t, t.Context(), c, peer, 2)
			more := rawMsg{Op: rawOpUnblockClMux, MuxID: id, Seq: 1}
			if caps != 0 {
				more.Payload = msgp.AppendInt(nil, maxCapacity-1)
			}
			peer.send(more)
			require.ErrorIs(t, s.Results(nil), ErrFlowControl)
			require.ErrorIs(t, s.Send(nil), ErrFlowControl)
			require.Contains(t, string(peer.expect(rawOpDisconnectServerMux).Payload), "flow control")
			close(s.Requests)
		})
	}
}

func TestServerMessageOutOfSequenceEndsTheStream(t *testing.T) {
	for name, change := range map[string]func(m *rawMsg){
		"gap":    func(m *rawMsg) { m.Seq++ },
		"repeat": func(m *rawMsg) { m.Seq-- },
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, rawConfig{}, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
				g.registerLocally(10, 0)
				s, id := openToPeer(t, t.Context(), c, peer, 0)
				msgs := serverMsgs(id, numbered(3)...)
				change(&msgs[2])
				peer.sendMerged(msgs...)
				<-s.Done()
				got, err := collect(s, 0)
				require.ErrorIs(t, err, ErrIncorrectSequence)
				require.Equal(t, numbered(2), got)
				require.Contains(t, string(peer.expect(rawOpDisconnectServerMux).Payload), "out of sequence")
				require.Equal(t, StateConnected, c.State())
			})
		})
	}
}

func TestClientThatBreaksTheRulesEndsItsStream(t *testing.T) {
	const capacity = 2
	msg := func(seq int) rawMsg {
		return rawMsg{Op: rawOpMuxClientMsg, MuxID: 1, Seq: uint32(seq), Payload: []byte("x")}
	}
	for name, test := range map[string]struct {
		send []rawMsg
		want error
	}{
		// The handler is blocked with one message in hand.
		"overrun":           {[]rawMsg{msg(1), msg(2), msg(3), msg(4), msg(5), msg(6)}, ErrFlowControl},
		"gap":               {[]rawMsg{msg(2)}, ErrIncorrectSequence},
		"repeat":            {[]rawMsg{msg(1), msg(1)}, ErrIncorrectSequence},
		"too many credits":  {[]rawMsg{{Op: rawOpUnblockSrvMux, MuxID: 1, Seq: 1}}, ErrFlowControl},
		"after its own end": {[]rawMsg{{Op: rawOpMuxClientMsg, MuxID: 1, Seq: 1, Flags: rawFlagEOF}, msg(2)}, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, rawConfig{}, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
				causes := make(chan error, 1)
				require.NoError(t, g.nodes[0].RegisterStreamingHandler(testHandler, StreamHandler{
					InCapacity: capacity,
					Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
						<-ctx.Done()
						causes <- context.Cause(ctx)
						return nil
					},
				}))
				peer.send(rawMsg{Op: rawOpConnectMux, MuxID: 1, Handler: uint8(testHandler)})
				peer.expect(rawOpAckMux)
				peer.sendMerged(test.send...)
				require.ErrorIs(t, <-causes, test.want)
				told := peer.expect(rawOpDisconnectClientMux)
				require.Equal(t, uint8(rawFlagPayloadIsErr|rawFlagCRC), told.Flags)
				require.Contains(t, string(told.Payload), test.want.Error())
				require.Equal(t, StateConnected, c.State())
			})
		})
	}
}

func TestReplacedConnectionFailsItsStreams(t *testing.T) {
	for _, caps := range []uint64{0, rawCapWideCredits} {
		config := rawConfig{ID: bytes.Repeat([]byte{7}, 16), Caps: caps} // the same process dials again
		withPeer(t, config, func(t *testing.T, g *testGrid, c *Connection, peer *rawPeer) {
			causes := make(chan error, 1)
			require.NoError(t, g.nodes[0].RegisterStreamingHandler(testHandler, StreamHandler{
				OutCapacity: 4, InCapacity: 1,
				Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
					for range in {
					}
					causes <- context.Cause(ctx)
					return nil
				},
			}))
			s, id := openToPeer(t, t.Context(), c, peer, 1)
			msgs := serverMsgs(id, numbered(3)...)
			peer.sendMerged(msgs[:2]...)
			peer.send(rawMsg{Op: rawOpConnectMux, MuxID: 1, Handler: uint8(testHandler)})
			peer.expect(rawOpAckMux)
			calls := make(chan error)
			go func() { _, err := c.SingleRequest(t.Context(), testHandler, nil); calls <- err }()
			peer.expect(rawOpRequest)

			second := g.dialLone(c.remote, config)
			require.ErrorIs(t, <-calls, ErrDisconnected)
			require.ErrorIs(t, <-causes, ErrDisconnected)
			<-s.Done()
			got, err := collect(s, 0)
			require.ErrorIs(t, err, ErrDisconnected)
			require.ErrorContains(t, err, "replaced")
			require.Equal(t, numbered(2), got)
			close(s.Requests)
			peer.expectClosed()

			// The new one is in use, and knows nothing of the old stream.
			second.sendMerged(msgs[2:]...)
			require.Equal(t, id, second.expect(rawOpDisconnectServerMux).MuxID)
			s, id = openToPeer(t, t.Context(), c, second, 1)
			second.sendMerged(serverMsgs(id, "new")...)
			got, err = collect(s, 0)
			require.NoError(t, err)
			require.Equal(t, []string{"new"}, got)
			close(s.Requests)
		})
	}
}
