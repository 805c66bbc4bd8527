package v1

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// The extension by which an ack names both capacities, towards a scripted peer.

func TestAck_NamesBothCapacities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		out, in int
		flags   uint8
		want    string
	}{
		{0, 0, 0, "0001"}, {1, 0, 0, "0001"}, {3, 2, 0, "0203"}, {3, 2, rawpeer.FlagEOF, "0003"}, {127, 128, 0, "cc807f"},
		{300, 200, 0, "ccc8cd012c"}, {rig.MaxCapacity, rig.MaxCapacity, 0, "ce00010000ce00010000"},
	} {
		inWire(t, capacitiesConfig, nil, func(r *wire) {
			started := r.serve(c.out, c.in, "")
			r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 50, Op: rawpeer.OpConnectMux, Flags: c.flags})
			r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: rawpeer.Unhex(r, c.want)})
			(<-started).result <- nil
			r.Peer.Expect(rawpeer.OpMuxServerMsg)
			r.Alive()
		})
	}
}

// The client takes the server's word, in any encoding, whatever is registered on its own side.
func TestAck_IsTakenInAnyEncoding(t *testing.T) {
	t.Parallel()
	inWire(t, capacitiesConfig, nil, func(r *wire) {
		r.locally(9, 9)
		for _, in := range rawpeer.EveryWidth(1) {
			for _, out := range rawpeer.EveryWidth(2) {
				c := r.openAcked(append(in[:len(in):len(in)], out...))
				require.NoError(r, c.s.Send([]byte("x")))
				c.expect1(rawpeer.OpMuxClientMsg, "x")
				for _, text := range []string{"a", "b"} {
					c.say(serverMsg(text))
				}
				r.Quiet()
				require.NoError(r, c.s.Err())
				c.say(serverMsg("c"))
				r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrFlowControl)
				require.ErrorContains(r, c.s.Err(), "window is 2")
				got, err := rig.Collect(c.s, 0)
				require.ErrorIs(r, err, grid.ErrFlowControl)
				require.Equal(r, []string{"a", "b"}, got)
			}
		}
		r.Alive()
	})
}

// expect1 requires that the node says this next, as its first message of the stream.
func (c *v1Stream) expect1(op uint8, payload string) {
	c.r.Helper()
	c.r.Expect(rawpeer.Msg{MuxID: c.id, Seq: 1, Op: op, Flags: rawpeer.FlagCRC, Payload: []byte(payload)})
}

// Each ends its stream, and says what was wrong with it.
func TestAck_ThatMakesNoSenseEndsTheStream(t *testing.T) {
	t.Parallel()
	inWire(t, capacitiesConfig, nil, func(r *wire) {
		for payload, why := range map[string]string{
			"":                     "AckMux without InCapacity",
			"01":                   "AckMux without OutCapacity",
			"ce00010000":           "AckMux without OutCapacity",
			"0100":                 "AckMux with OutCapacity 0, not 1 to 65536",
			"01ce00010001":         "AckMux with OutCapacity 65537, not 1 to 65536",
			"ce0001000101":         "AckMux with InCapacity 65537, not 0 to 65536",
			"01cf8000000000000000": "AckMux with OutCapacity 9223372036854775808, not 1 to 65536",
			"010101":               "AckMux with 1 bytes behind both capacities",
			"0101c0c0":             "AckMux with 2 bytes behind both capacities",
			"01ff":                 "AckMux with a bad OutCapacity: ff",
			"ff01":                 "AckMux with a bad InCapacity: ff01",
			"01c0":                 "AckMux with a bad OutCapacity: c0",
			"01cd01":               "AckMux with a bad OutCapacity: cd01",
			"01a131":               "AckMux with a bad OutCapacity: a131",
			"01ca3f800000":         "AckMux with a bad OutCapacity: ca3f800000",
			"920102":               "AckMux with a bad InCapacity: 920102",
		} {
			c, _, opened := r.opening(r.Context())
			c.say(rawpeer.Msg{Op: rawpeer.OpAckMux, Payload: rawpeer.Unhex(r, payload)})
			err := <-opened
			require.ErrorIs(r, err, grid.ErrProtocol, payload)
			require.ErrorContains(r, err, why)
			told := r.Peer.Expect(rawpeer.OpDisconnectServerMux)
			require.Equal(r, c.id, told.MuxID)
			require.Equal(r, fmt.Sprintf("%s (handler 50 of %s)", told.Payload, r.Conn.HostName()), err.Error())
			// What its server says before it knows.
			c.say(serverMsg("x"))
			r.Expect(rawpeer.Msg{MuxID: c.id, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
		}
		require.Zero(r, r.Conn.Stats().Streams)
		r.Alive()
	})
}

// The end costs no credit. A message beside it is one like any other.
func TestAck_MessageBesideTheEndNeedsACredit(t *testing.T) {
	t.Parallel()
	inWire(t, capacitiesConfig, nil, func(r *wire) {
		const capacity = 3
		for before := range capacity + 1 {
			for _, beside := range []string{"", "last"} {
				c := r.openAcked(rawpeer.AckPayload(r.Peer.Config.Caps, 0, capacity))
				want := before
				for range before {
					c.say(serverMsg("x"))
				}
				c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF, Payload: []byte(beside)})
				<-c.s.Done()
				got, err := rig.Collect(c.s, 0)
				switch {
				case beside == "":
					require.NoError(r, err)
				case before == capacity:
					require.ErrorIs(r, err, grid.ErrFlowControl)
					r.expectDropped(rawpeer.OpDisconnectServerMux, c.id, grid.ErrFlowControl)
				default:
					require.NoError(r, err)
					want++
				}
				require.Len(r, got, want)
				r.Quiet()
			}
		}
		// Neither does an error, also where there are none left.
		c := r.openAcked(rawpeer.AckPayload(r.Peer.Config.Caps, 0, 1))
		c.say(serverMsg("x"))
		c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("boom")})
		<-c.s.Done()
		require.Equal(r, grid.NewRemoteErrString("boom"), c.s.Err())
		require.Equal(r, grid.NewRemoteErrString("boom"), rig.Consume(c.s))
		r.Alive()
	})
}

// A client that knows what the server has returns no more than makes the most.
func TestAck_ServerHoldsNoMoreThanTheMostCredits(t *testing.T) {
	t.Parallel()
	for caps, extra := range map[uint64]int{
		capacitiesConfig.Caps: 0,
		// One that takes it for 1 may let its window grow from there.
		wideConfig.Caps: rig.MaxWindow,
	} {
		inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
			s := r.askedWide(r.serve(1, 0, ""), 1, rawpeer.Msg{}, 0)
			s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Payload: rawpeer.Credits(rig.MaxCapacity - 1)})
			s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Payload: rawpeer.Credits(extra)})
			r.Alive()
			s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux})
			s.dropped(grid.ErrFlowControl)
			r.Alive()
		})
	}
}

// The extension is in use if both sides have announced it, and wide credits. On any other link acks
// are as before, and calls and streams go on, in both directions.
func TestAck_OfPeersThatAnnounceOtherExtensions(t *testing.T) {
	t.Parallel()
	for caps := range 2 * uint64(rawpeer.CapBothCapacities) {
		t.Run(fmt.Sprintf("%05b", caps), func(t *testing.T) {
			t.Parallel()
			inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) { r.callsAndStreams(caps) })
		})
	}
}

func (r *wire) callsAndStreams(caps uint64) {
	r.Helper()
	wide := caps&rawpeer.CapWideCredits != 0
	told := wide && caps&rawpeer.CapBothCapacities != 0
	r.Alive()
	call := r.Call(r.Context(), rig.Echo, []byte("q"))
	r.Peer.Send(rawpeer.Msg{MuxID: r.Peer.Expect(rawpeer.OpRequest).MuxID, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("a")})
	require.Equal(r, rig.Outcome{Payload: []byte("a")}, <-call)

	// A stream that the node serves.
	const out, in = 2, 3
	started := r.serve(out, in, "")
	r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 50, Op: rawpeer.OpConnectMux})
	s := <-started
	s.id, s.seq = 1, 1
	r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: map[[2]bool][]byte{
		{true, false}: {in}, {true, true}: {in, out},
	}[[2]bool{wide, told}]})
	go func() {
		for range out + 1 {
			s.out <- []byte("x")
		}
	}()
	for i := range out {
		r.Expect(rawpeer.Msg{MuxID: 1, Seq: uint32(i + 1), Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC, Payload: []byte("x")})
	}
	r.Quiet()
	s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux})
	r.Expect(rawpeer.Msg{MuxID: 1, Seq: out + 1, Op: rawpeer.OpMuxServerMsg, Flags: rawpeer.FlagCRC, Payload: []byte("x")})
	for range in {
		s.say(clientMsg("y"))
	}
	for range in {
		require.Equal(r, "y", string(<-s.in))
	}
	r.Peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux})
	<-s.ctx.Done()
	synctest.Wait()
	r.Peer.Take()

	// One that it opens: its own handler under that ID tells it the capacities of version 1.
	c := r.openAcked(rawpeer.AckPayload(caps, in, out))
	require.NoError(r, c.s.Send([]byte("y")))
	c.expect1(rawpeer.OpMuxClientMsg, "y")
	for range out {
		c.say(serverMsg("x"))
	}
	r.Quiet()
	require.NoError(r, c.s.Err())
	require.Equal(r, map[bool]int{true: 1}[!wide || told], r.Conn.Stats().SlowConsumers)
	c.consume()
	for range out {
		require.Equal(r, "x", <-c.msgs)
	}
	synctest.Wait()
	have := 0
	for _, m := range r.Peer.Take() {
		require.Equal(r, uint8(rawpeer.OpUnblockSrvMux), m.Op)
		have += returned(r.T, m)
	}
	require.GreaterOrEqual(r, have, out)
	if wide && !told { // it may be ahead of what it has
		have = 1000
	}
	msgs := make([]rawpeer.Msg, have)
	for i := range msgs {
		msgs[i] = c.numbered(serverMsg("x"))
	}
	end := rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}
	if !wide { // where the end needs one as well
		c.seq--
		msgs = msgs[:have-1]
	}
	r.Peer.SendMerged(append(msgs, c.numbered(end))...)
	rest, err := c.rest()
	require.NoError(r, err)
	require.Len(r, rest, len(msgs))
	synctest.Wait()
	r.Peer.Take()
	r.Alive()
}
