package calls

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Streams to and from peers that keep to version 1, or to nothing at all.

// withPeer runs f in a bubble with one node and a scripted peer that is connected to it.
func withPeer(t *testing.T, c rawpeer.Config, f func(t *testing.T, g *rig.Grid, conn *grid.Connection, peer *rawpeer.Peer)) {
	t.Helper()
	rig.InBubble(t, func(t *testing.T) {
		r := rig.NewWire(t, true, c, nil)
		f(t, r.Grid, r.Conn, r.Peer)
	})
}

// openToPeer opens a stream to Handler at the peer, which takes it on. The credits are for a wide
// peer; one of version 1 names none.
func openToPeer(t *testing.T, ctx context.Context, c *grid.Connection, peer *rawpeer.Peer, credits int) (s *grid.Stream, id uint64) {
	t.Helper()
	opened := make(chan error)
	go func() {
		var err error
		s, err = c.NewStream(ctx, rig.Handler, nil)
		opened <- err
	}()
	id = peer.Expect(rawpeer.OpConnectMux).MuxID
	ack := rawpeer.Msg{Op: rawpeer.OpAckMux, MuxID: id}
	if peer.Config.Caps != 0 {
		ack.Payload = msgp.AppendInt(nil, credits)
	}
	peer.Send(ack)
	require.NoError(t, <-opened)
	return s, id
}

// serverMsgs are messages of a stream, and its end, numbered from 1.
func serverMsgs(id uint64, texts ...string) (msgs []rawpeer.Msg) {
	for i, text := range texts {
		msgs = append(msgs, rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: uint32(i + 1), Payload: []byte(text)})
	}
	return append(msgs, rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: uint32(len(texts) + 1), Flags: rawpeer.FlagEOF})
}

// registerLocally makes the capacities of the peer's handler known to the node.
func registerLocally(g *rig.Grid, outCapacity, inCapacity int) {
	g.T.Helper()
	require.NoError(g.T, g.Manager(0).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
		Handle:      func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil },
		OutCapacity: outCapacity, InCapacity: inCapacity,
	}))
}

// A version 1 server follows its last message with the end, and that with a disconnect.
func TestStream_BurstOfCapacityThenEOFSlowConsumerOfAVersion1Server(t *testing.T) {
	t.Parallel()
	withPeer(t, rawpeer.Config{}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
		const capacity = 8
		registerLocally(g, capacity, 0)
		gone := func(id uint64) rawpeer.Msg { return rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, MuxID: id} }
		for range 20 {
			// The end needs a credit as well, so it comes with the last but one...
			s, id := openToPeer(t, t.Context(), c, peer, 0)
			peer.SendMerged(append(serverMsgs(id, numbered(capacity-1)...), gone(id))...)
			<-s.Done()
			got, err := rig.Collect(s, time.Second)
			require.NoError(t, err)
			require.Equal(t, numbered(capacity-1), got)

			// ... or when the first was consumed.
			s, id = openToPeer(t, t.Context(), c, peer, 0)
			msgs := append(serverMsgs(id, numbered(capacity)...), gone(id))
			peer.SendMerged(msgs[:capacity]...)
			synctest.Wait()
			results := make(chan []string)
			go func() {
				got, err := rig.Collect(s, time.Second)
				if err != nil {
					t.Error(err)
				}
				results <- got
			}()
			require.Equal(t, uint32(1), peer.Expect(rawpeer.OpUnblockSrvMux).Seq)
			peer.SendMerged(msgs[capacity:]...)
			require.Equal(t, numbered(capacity), <-results)
			require.Empty(t, peer.Pending(), "no credits after the end")
		}
	})
}

func TestStream_NilAndEmptyMessagesThenDataFromAVersion1Server(t *testing.T) {
	t.Parallel()
	withPeer(t, rawpeer.Config{}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
		registerLocally(g, 4, 0)
		s, id := openToPeer(t, t.Context(), c, peer, 0)
		msgs := serverMsgs(id, "", "", "data")
		msgs[1].Flags = rawpeer.FlagPayloadIsZero
		peer.SendMerged(msgs[:3]...)
		go func() {
			for i := range 3 { // a credit for each
				if m, err := peer.TryRecv(); err != nil || m.Op != rawpeer.OpUnblockSrvMux || m.Seq != uint32(i+1) {
					t.Error(m, err)
				}
			}
			if err := peer.TrySend(msgs[3]); err != nil {
				t.Error(err)
			}
		}()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"", "", "data"}, got)
	})
}

func TestStream_ServerThatOverrunsItsCreditsEndsIt(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		withPeer(t, rawpeer.Config{}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
			registerLocally(g, capacity, 0)
			s, id := openToPeer(t, t.Context(), c, peer, 0)
			peer.SendMerged(serverMsgs(id, numbered(capacity+1)...)...)
			<-s.Done()
			got, err := rig.Collect(s, 0)
			require.ErrorIs(t, err, grid.ErrFlowControl)
			require.ErrorContains(t, err, fmt.Sprint("window is ", capacity))
			require.Equal(t, numbered(capacity), got)
			told := peer.Expect(rawpeer.OpDisconnectServerMux)
			require.Equal(t, id, told.MuxID)
			require.Contains(t, string(told.Payload), "flow control")
			require.Zero(t, c.Stats().Reconnects)
			require.Equal(t, grid.StateConnected, c.State())
		})
	}
}

func TestStream_ServerThatReturnsCreditsTwiceEndsIt(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rawpeer.CapWideCredits} {
		withPeer(t, rawpeer.Config{Caps: caps}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
			registerLocally(g, 1, 2)
			s, id := openToPeer(t, t.Context(), c, peer, 2)
			more := rawpeer.Msg{Op: rawpeer.OpUnblockClMux, MuxID: id, Seq: 1}
			if caps != 0 {
				more.Payload = msgp.AppendInt(nil, rig.MaxCapacity-1)
			}
			peer.Send(more)
			require.ErrorIs(t, s.Results(nil), grid.ErrFlowControl)
			require.ErrorIs(t, s.Send(nil), grid.ErrFlowControl)
			require.Contains(t, string(peer.Expect(rawpeer.OpDisconnectServerMux).Payload), "flow control")
			close(s.Requests)
		})
	}
}

func TestStream_ServerMessageOutOfSequenceEndsIt(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(m *rawpeer.Msg){
		"gap":    func(m *rawpeer.Msg) { m.Seq++ },
		"repeat": func(m *rawpeer.Msg) { m.Seq-- },
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, rawpeer.Config{}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
				registerLocally(g, 10, 0)
				s, id := openToPeer(t, t.Context(), c, peer, 0)
				msgs := serverMsgs(id, numbered(3)...)
				change(&msgs[2])
				peer.SendMerged(msgs...)
				<-s.Done()
				got, err := rig.Collect(s, 0)
				require.ErrorIs(t, err, grid.ErrIncorrectSequence)
				require.Equal(t, numbered(2), got)
				require.Contains(t, string(peer.Expect(rawpeer.OpDisconnectServerMux).Payload), "out of sequence")
				require.Equal(t, grid.StateConnected, c.State())
			})
		})
	}
}

func TestStream_ClientThatBreaksTheRulesEndsIt(t *testing.T) {
	t.Parallel()
	const capacity = 2
	msg := func(seq int) rawpeer.Msg {
		return rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, MuxID: 1, Seq: uint32(seq), Payload: []byte("x")}
	}
	for name, test := range map[string]struct {
		send []rawpeer.Msg
		want error
	}{
		// The handler is blocked with one message in hand.
		"overrun":           {[]rawpeer.Msg{msg(1), msg(2), msg(3), msg(4), msg(5), msg(6)}, grid.ErrFlowControl},
		"gap":               {[]rawpeer.Msg{msg(2)}, grid.ErrIncorrectSequence},
		"repeat":            {[]rawpeer.Msg{msg(1), msg(1)}, grid.ErrIncorrectSequence},
		"too many credits":  {[]rawpeer.Msg{{Op: rawpeer.OpUnblockSrvMux, MuxID: 1, Seq: 1}}, grid.ErrFlowControl},
		"after its own end": {[]rawpeer.Msg{{Op: rawpeer.OpMuxClientMsg, MuxID: 1, Seq: 1, Flags: rawpeer.FlagEOF}, msg(2)}, grid.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, rawpeer.Config{}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
				causes := make(chan error, 1)
				require.NoError(t, g.Manager(0).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
					InCapacity: capacity,
					Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
						<-ctx.Done()
						causes <- context.Cause(ctx)
						return nil
					},
				}))
				peer.Send(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 1, Handler: uint8(rig.Handler)})
				peer.Expect(rawpeer.OpAckMux)
				peer.SendMerged(test.send...)
				require.ErrorIs(t, <-causes, test.want)
				told := peer.Expect(rawpeer.OpDisconnectClientMux)
				require.Equal(t, uint8(rawpeer.FlagPayloadIsErr|rawpeer.FlagCRC), told.Flags)
				require.Contains(t, string(told.Payload), test.want.Error())
				require.Equal(t, grid.StateConnected, c.State())
			})
		})
	}
}

func TestStream_FailsWhenItsConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rawpeer.CapWideCredits} {
		config := rawpeer.Config{ID: bytes.Repeat([]byte{7}, 16), Caps: caps} // the same process dials again
		withPeer(t, config, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
			causes := make(chan error, 1)
			require.NoError(t, g.Manager(0).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
				OutCapacity: 4, InCapacity: 1,
				Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
					for range in {
					}
					causes <- context.Cause(ctx)
					return nil
				},
			}))
			s, id := openToPeer(t, t.Context(), c, peer, 1)
			msgs := serverMsgs(id, numbered(3)...)
			peer.SendMerged(msgs[:2]...)
			peer.Send(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 1, Handler: uint8(rig.Handler)})
			peer.Expect(rawpeer.OpAckMux)
			calls := make(chan error)
			go func() { _, err := c.SingleRequest(t.Context(), rig.Handler, nil); calls <- err }()
			peer.Expect(rawpeer.OpRequest)

			second := g.DialLone(c.HostName(), config)
			require.ErrorIs(t, <-calls, grid.ErrDisconnected)
			require.ErrorIs(t, <-causes, grid.ErrDisconnected)
			<-s.Done()
			got, err := rig.Collect(s, 0)
			require.ErrorIs(t, err, grid.ErrDisconnected)
			require.ErrorContains(t, err, "replaced")
			require.Equal(t, numbered(2), got)
			close(s.Requests)
			peer.ExpectClosed()

			// The new one is in use, and knows nothing of the old stream.
			second.SendMerged(msgs[2:]...)
			require.Equal(t, id, second.Expect(rawpeer.OpDisconnectServerMux).MuxID)
			s, id = openToPeer(t, t.Context(), c, second, 1)
			second.SendMerged(serverMsgs(id, "new")...)
			got, err = rig.Collect(s, 0)
			require.NoError(t, err)
			require.Equal(t, []string{"new"}, got)
			close(s.Requests)
		})
	}
}
