package v1

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Streams that the scripted peer opens, and the node serves.

// served is such a stream: what its handler got, and what the peer needs to speak.
type served struct {
	r   *wire
	id  uint64
	seq uint32 // of the peer's next message

	ctx     context.Context
	payload []byte
	in      <-chan []byte
	out     chan<- []byte
	result  chan *grid.RemoteErr // what the handler is to return; by itself it does when ctx ends
}

// serve registers handler 50, which hands over all that it gets.
func (r *wire) serve(out, in int, subroute string) <-chan *served {
	r.Helper()
	started := make(chan *served, 1)
	require.NoError(r, r.Node.RegisterStreamingHandler(50, grid.StreamHandler{
		OutCapacity: out, InCapacity: in, Subroute: subroute,
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			s := &served{r: r, ctx: ctx, payload: payload, in: in, out: out, result: make(chan *grid.RemoteErr)}
			started <- s
			select {
			case result := <-s.result:
				return result
			case <-ctx.Done():
				return grid.NewRemoteErr(context.Cause(ctx))
			}
		},
	}))
	return started
}

// asked opens a stream to handler 50, as the peer.
func (r *wire) asked(started <-chan *served, id uint64, m rawpeer.Msg) *served {
	r.Helper()
	m.MuxID, m.Handler, m.Op = id, 50, rawpeer.OpConnectMux
	r.Peer.Send(m)
	s := <-started
	s.id, s.seq = id, 1
	s.expect(0, rawpeer.OpAckMux, rawpeer.FlagCRC)
	return s
}

// numbered is m as the next message of the stream.
func (s *served) numbered(m rawpeer.Msg) rawpeer.Msg {
	m.MuxID, m.Seq = s.id, s.seq
	s.seq++
	return m
}

// say sends the next message of the stream.
func (s *served) say(m rawpeer.Msg) {
	s.r.Helper()
	s.r.Peer.Send(s.numbered(m))
}

func (s *served) expect(seq uint32, op, flags uint8) {
	s.r.Helper()
	s.r.Expect(rawpeer.Msg{MuxID: s.id, Seq: seq, Op: op, Flags: flags})
}

// ended requires that the handler's return is told as a version 1 server does.
func (s *served) ended(seq uint32, result *grid.RemoteErr) {
	s.r.Helper()
	s.result <- result
	want := rawpeer.Msg{MuxID: s.id, Seq: seq, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}
	if result != nil {
		want.Flags |= rawpeer.FlagPayloadIsErr
		want.Payload = []byte(result.Error())
	}
	s.r.Expect(want)
	s.expect(0, rawpeer.OpDisconnectClientMux, rawpeer.FlagCRC)
	s.r.Quiet()
}

func clientMsg(payload string) rawpeer.Msg {
	return rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagCRC, Payload: []byte(payload)}
}

// drain takes what the handler's input still has: an aborted one keeps what it was given.
func (s *served) drain() {
	s.r.Helper()
	synctest.Wait()
	for range len(s.in) {
		grid.PutByteBuffer(<-s.in)
	}
}

// requireClosed requires that the handler's input has ended.
func (s *served) requireClosed() {
	s.r.Helper()
	synctest.Wait()
	select {
	case b, ok := <-s.in:
		require.False(s.r, ok, "%q", b)
	default:
		require.Fail(s.r, "input is open")
	}
}

func TestV1ServedStream_AsItIsAskedForAndAnswered(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		withInput, without := r.serve(1, 1, "in"), r.serve(0, 0, "")
		for i, c := range []struct {
			m        rawpeer.Msg
			started  <-chan *served
			subroute string
			input    bool
		}{
			{rawpeer.Msg{Flags: rig.CRCEOF}, without, "", false},
			{rawpeer.Msg{Flags: rig.CRCEOF | rawpeer.FlagPayloadIsZero, Payload: []byte{}}, without, "", false},
			{rawpeer.Msg{Flags: 0, Payload: []byte("p"), DeadlineMS: 60000}, without, "", false},
			{rawpeer.Msg{Flags: rawpeer.FlagSubroute}, withInput, "in", true},
			{rawpeer.Msg{Flags: rig.CRCEOF | rawpeer.FlagSubroute}, withInput, "in", false},
		} {
			if c.subroute != "" {
				c.m.Subroute = rawpeer.SubrouteID(50, c.subroute)
			}
			s := r.asked(c.started, uint64(i+1), c.m)
			require.Equal(r, c.m.Payload, s.payload)
			require.Equal(r, c.subroute, grid.GetSubroute(s.ctx))
			require.Equal(r, r.Conn.HostName(), grid.GetCaller(s.ctx).Name)
			deadline, ok := s.ctx.Deadline()
			require.Equal(r, c.m.DeadlineMS > 0, ok)
			if ok {
				require.Equal(r, time.Now().Add(time.Minute), deadline)
			}
			if !c.input {
				s.requireClosed()
			}
			require.NoError(r, s.ctx.Err())
			s.ended(1, nil)
			require.Error(r, s.ctx.Err())
		}
		r.Alive()
	})
}

func TestV1ServedStream_WithoutAHandlerIsRefused(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		for _, c := range []struct {
			m    rawpeer.Msg
			says string
		}{
			{rawpeer.Msg{Handler: 50, Flags: rig.CRCEOF}, "no stream handler with ID 50"},
			{rawpeer.Msg{Handler: 50, DeadlineMS: 700, Flags: rawpeer.FlagCRC, Payload: []byte("p")}, "no stream handler with ID 50"},
			{rawpeer.Msg{Handler: uint8(rig.Echo)}, "only one of the other kind"},
			{rawpeer.Msg{Handler: uint8(rig.Stream), Flags: rig.CRCEOF | rawpeer.FlagSubroute, Subroute: rawpeer.SubrouteID(uint8(rig.Stream), "a")}, "under that subroute"},
		} {
			c.m.MuxID, c.m.Op = 5, rawpeer.OpConnectMux
			r.Peer.Send(c.m)
			m := r.Peer.Expect(rawpeer.OpMuxConnectError)
			require.Contains(r, rawpeer.ConnectErrorText(r.T, m.Payload), c.says)
			m.Payload = nil
			require.Equal(r, rawpeer.Msg{MuxID: 5, DeadlineMS: c.m.DeadlineMS, Handler: c.m.Handler, Op: rawpeer.OpMuxConnectError, Flags: rawpeer.FlagCRC | c.m.Flags&rawpeer.FlagEOF}, m)
			// As version 1 clients do.
			r.Peer.Send(rawpeer.Msg{MuxID: 5, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC})
			r.Alive()
		}
	})
}

// A message costs a credit, and so does the end of the stream.
func TestV1ServedStream_SendsNoMoreThanItHasCreditsFor(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		for _, result := range []*grid.RemoteErr{nil, grid.NewRemoteErrString("boom")} {
			inWire(t, rawpeer.Config{}, nil, func(r *wire) {
				s := r.asked(r.serve(capacity, 0, ""), 7, rawpeer.Msg{Flags: rig.CRCEOF})
				const n = 10
				sending := make(chan struct{})
				go func() {
					defer close(sending)
					for i := range n {
						s.out <- append(grid.GetByteBuffer(), fmt.Sprint(i)...)
					}
				}()
				seq := uint32(1)
				next := func() {
					r.Helper()
					m := serverMsg(fmt.Sprint(seq - 1))
					m.MuxID, m.Seq = s.id, seq
					r.Expect(m)
					seq++
				}
				for range capacity {
					next()
				}
				for range n - capacity {
					r.Quiet()
					s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux, Flags: rawpeer.FlagCRC})
					next()
				}
				<-sending
				ended := make(chan struct{})
				go func() { s.result <- result; close(ended) }()
				<-ended
				r.Quiet()
				s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux})
				want := rawpeer.Msg{MuxID: s.id, Seq: n + 1, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}
				if result != nil {
					want.Flags, want.Payload = want.Flags|rawpeer.FlagPayloadIsErr, []byte("boom")
				}
				r.Expect(want)
				s.expect(0, rawpeer.OpDisconnectClientMux, rawpeer.FlagCRC)
				// What is on its way when the end comes.
				s.say(rawpeer.Msg{Op: rawpeer.OpUnblockSrvMux})
				r.Alive()
			})
		}
	}
}

func TestV1ServedStream_NeverSendsNil(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		s := r.asked(r.serve(3, 0, ""), 7, rawpeer.Msg{Flags: rig.CRCEOF})
		s.out <- nil
		s.out <- []byte{}
		for seq := range uint32(2) {
			r.Expect(rawpeer.Msg{MuxID: 7, Seq: seq + 1, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCZero, Payload: []byte{}})
		}
		s.ended(3, nil)
		r.Alive()
	})
}

func TestV1ServedStream_ReturnsACreditForEachMessagePassedOn(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		inWire(t, rawpeer.Config{}, nil, func(r *wire) {
			s := r.asked(r.serve(1, capacity, ""), 7, rawpeer.Msg{Flags: rawpeer.FlagCRC})
			for range capacity {
				s.say(clientMsg("x"))
			}
			for i := range uint32(20) {
				r.Quiet()
				require.Equal(r, "x", string(<-s.in))
				s.expect(i+1, rawpeer.OpUnblockClMux, rawpeer.FlagCRC)
				s.say(clientMsg("x"))
			}
			s.say(rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCEOF})
			for range capacity {
				require.Equal(r, "x", string(<-s.in))
			}
			s.requireClosed()
			require.NoError(r, s.ctx.Err(), "the end of the input is no abort")
			synctest.Wait()
			seq := uint32(21)
			for range r.Peer.Pending() { // those that were passed on before the end was seen
				s.expect(seq, rawpeer.OpUnblockClMux, rawpeer.FlagCRC)
				seq++
			}
			s.ended(seq, nil)
			r.Alive()
		})
	}
}

func TestV1ServedStream_TakesEmptyMessages(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		s := r.asked(r.serve(1, 1, ""), 7, rawpeer.Msg{})
		for i, m := range []rawpeer.Msg{
			{Op: rawpeer.OpMuxClientMsg, Flags: rig.CRCZero, Payload: []byte{}},
			{Op: rawpeer.OpMuxClientMsg},
			clientMsg("data"),
		} {
			s.say(m)
			require.Equal(r, m.Payload, <-s.in)
			s.expect(uint32(i+1), rawpeer.OpUnblockClMux, rawpeer.FlagCRC)
		}
		s.ended(4, nil)
		r.Alive()
	})
}

func TestV1ServedStream_WhoseClientOverrunsItsWindowFails(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{1, 3} {
		for _, taken := range []int{0, 1} {
			inWire(t, rawpeer.Config{}, nil, func(r *wire) {
				s := r.asked(r.serve(1, capacity, ""), 7, rawpeer.Msg{})
				for range taken {
					s.say(clientMsg("x"))
					<-s.in
					s.expect(1, rawpeer.OpUnblockClMux, rawpeer.FlagCRC)
				}
				for range capacity {
					s.say(clientMsg("x"))
					r.Quiet()
				}
				s.say(clientMsg("x"))
				s.dropped(grid.ErrFlowControl)
				r.Alive()
			})
		}
	}
}

func TestV1ServedStream_IsCancelled(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		started := r.serve(1, 1, "")
		for i, c := range []struct {
			m     rawpeer.Msg
			cause error
		}{
			{rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC}, context.Canceled},
			{rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux, Seq: 99}, context.Canceled},
			{rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux, Flags: rig.CRCErr, Payload: []byte("enough")}, grid.NewRemoteErrString("enough")},
		} {
			s := r.asked(started, uint64(i+1), rawpeer.Msg{})
			s.say(clientMsg("x"))
			go func() { s.out <- []byte("y"); s.out <- []byte("no credit for it") }()
			m := serverMsg("y")
			m.MuxID, m.Seq = s.id, 1
			r.Expect(m)
			r.Quiet()
			c.m.MuxID = s.id
			r.Peer.Send(c.m)
			<-s.ctx.Done()
			require.Equal(r, c.cause, context.Cause(s.ctx))
			s.requireClosed()
			s.expect(0, rawpeer.OpDisconnectClientMux, rawpeer.FlagCRC)
			r.Alive()
		}
	})
}

func TestV1ServedStream_HandlerThatPanicsEndsItWithAnError(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		require.NoError(r, r.Node.RegisterStreamingHandler(50, grid.StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { panic(errors.New("bug")) },
		}))
		r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: 50, Op: rawpeer.OpConnectMux, Flags: rig.CRCEOF})
		r.Peer.Expect(rawpeer.OpAckMux)
		m := r.Peer.Recv()
		require.Contains(r, string(m.Payload), "panicked: bug")
		m.Payload = nil
		require.Equal(r, rawpeer.Msg{MuxID: 1, Seq: 1, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF}, m)
		r.Peer.Expect(rawpeer.OpDisconnectClientMux)
		r.Alive()
	})
}
