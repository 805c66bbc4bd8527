package grid

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Streams that the scripted peer opens, and the node serves.

// served is such a stream: what its handler got, and what the peer needs to
// speak.
type served struct {
	r   *v1Rig
	id  uint64
	seq uint32 // of the peer's next message

	ctx     context.Context
	payload []byte
	in      <-chan []byte
	out     chan<- []byte
	result  chan *RemoteErr // what the handler is to return; by itself it does when ctx ends
}

// serve registers handler 50, which hands over all that it gets.
func (r *v1Rig) serve(out, in int, subroute string) <-chan *served {
	r.Helper()
	started := make(chan *served, 1)
	require.NoError(r, r.node.RegisterStreamingHandler(50, StreamHandler{
		OutCapacity: out, InCapacity: in, Subroute: subroute,
		Handle: func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
			s := &served{r: r, ctx: ctx, payload: payload, in: in, out: out, result: make(chan *RemoteErr)}
			started <- s
			select {
			case result := <-s.result:
				return result
			case <-ctx.Done():
				return NewRemoteErr(context.Cause(ctx))
			}
		},
	}))
	return started
}

// asked opens a stream to handler 50, as the peer.
func (r *v1Rig) asked(started <-chan *served, id uint64, m rawMsg) *served {
	r.Helper()
	m.MuxID, m.Handler, m.Op = id, 50, rawOpConnectMux
	r.peer.send(m)
	s := <-started
	s.id, s.seq = id, 1
	s.expect(0, rawOpAckMux, rawFlagCRC)
	return s
}

// numbered is m as the next message of the stream.
func (s *served) numbered(m rawMsg) rawMsg {
	m.MuxID, m.Seq = s.id, s.seq
	s.seq++
	return m
}

// say sends the next message of the stream.
func (s *served) say(m rawMsg) {
	s.r.Helper()
	s.r.peer.send(s.numbered(m))
}

func (s *served) expect(seq uint32, op, flags uint8) {
	s.r.Helper()
	s.r.expect(rawMsg{MuxID: s.id, Seq: seq, Op: op, Flags: flags})
}

// ended requires that the handler's return is told as a version 1 server does.
func (s *served) ended(seq uint32, result *RemoteErr) {
	s.r.Helper()
	s.result <- result
	want := rawMsg{MuxID: s.id, Seq: seq, Op: rawOpMuxServerMsg, Flags: crcEOF}
	if result != nil {
		want.Flags |= rawFlagPayloadIsErr
		want.Payload = []byte(result.Error())
	}
	s.r.expect(want)
	s.expect(0, rawOpDisconnectClientMux, rawFlagCRC)
	s.r.quiet()
}

func clientMsg(payload string) rawMsg {
	return rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagCRC, Payload: []byte(payload)}
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

func TestV1StreamIsServed(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		withInput, without := r.serve(1, 1, "in"), r.serve(0, 0, "")
		for i, c := range []struct {
			m        rawMsg
			started  <-chan *served
			subroute string
			input    bool
		}{
			{rawMsg{Flags: crcEOF}, without, "", false},
			{rawMsg{Flags: crcEOF | rawFlagPayloadIsZero, Payload: []byte{}}, without, "", false},
			{rawMsg{Flags: 0, Payload: []byte("p"), DeadlineMS: 60000}, without, "", false},
			{rawMsg{Flags: rawFlagSubroute}, withInput, "in", true},
			{rawMsg{Flags: crcEOF | rawFlagSubroute}, withInput, "in", false},
		} {
			if c.subroute != "" {
				c.m.Subroute = rawSubrouteID(50, c.subroute)
			}
			s := r.asked(c.started, uint64(i+1), c.m)
			require.Equal(r, c.m.Payload, s.payload)
			require.Equal(r, c.subroute, GetSubroute(s.ctx))
			require.Equal(r, r.conn.HostName(), GetCaller(s.ctx).Name)
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
		r.alive()
	})
}

func TestV1StreamWithoutAHandlerIsRefused(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		for _, c := range []struct {
			m    rawMsg
			says string
		}{
			{rawMsg{Handler: 50, Flags: crcEOF}, "no stream handler with ID 50"},
			{rawMsg{Handler: 50, DeadlineMS: 700, Flags: rawFlagCRC, Payload: []byte("p")}, "no stream handler with ID 50"},
			{rawMsg{Handler: uint8(testEcho)}, "only one of the other kind"},
			{rawMsg{Handler: uint8(testStream), Flags: crcEOF | rawFlagSubroute, Subroute: rawSubrouteID(uint8(testStream), "a")}, "under that subroute"},
		} {
			c.m.MuxID, c.m.Op = 5, rawOpConnectMux
			r.peer.send(c.m)
			m := r.peer.expect(rawOpMuxConnectError)
			require.Contains(r, remoteText(r.T, m.Payload), c.says)
			m.Payload = nil
			require.Equal(r, rawMsg{MuxID: 5, DeadlineMS: c.m.DeadlineMS, Handler: c.m.Handler, Op: rawOpMuxConnectError, Flags: rawFlagCRC | c.m.Flags&rawFlagEOF}, m)
			// As version 1 clients do.
			r.peer.send(rawMsg{MuxID: 5, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC})
			r.alive()
		}
	})
}

// A message costs a credit, and so does the end of the stream.
func TestV1ServedStreamSendsNoMoreThanItHasCreditsFor(t *testing.T) {
	for _, capacity := range []int{1, 3} {
		for _, result := range []*RemoteErr{nil, NewRemoteErrString("boom")} {
			inV1(t, rawConfig{}, nil, func(r *v1Rig) {
				s := r.asked(r.serve(capacity, 0, ""), 7, rawMsg{Flags: crcEOF})
				const n = 10
				sending := make(chan struct{})
				go func() {
					defer close(sending)
					for i := range n {
						s.out <- append(GetByteBuffer(), fmt.Sprint(i)...)
					}
				}()
				seq := uint32(1)
				next := func() {
					r.Helper()
					m := serverMsg(fmt.Sprint(seq - 1))
					m.MuxID, m.Seq = s.id, seq
					r.expect(m)
					seq++
				}
				for range capacity {
					next()
				}
				for range n - capacity {
					r.quiet()
					s.say(rawMsg{Op: rawOpUnblockSrvMux, Flags: rawFlagCRC})
					next()
				}
				<-sending
				ended := make(chan struct{})
				go func() { s.result <- result; close(ended) }()
				<-ended
				r.quiet()
				s.say(rawMsg{Op: rawOpUnblockSrvMux})
				want := rawMsg{MuxID: s.id, Seq: n + 1, Op: rawOpMuxServerMsg, Flags: crcEOF}
				if result != nil {
					want.Flags, want.Payload = want.Flags|rawFlagPayloadIsErr, []byte("boom")
				}
				r.expect(want)
				s.expect(0, rawOpDisconnectClientMux, rawFlagCRC)
				// What is on its way when the end comes.
				s.say(rawMsg{Op: rawOpUnblockSrvMux})
				r.alive()
			})
		}
	}
}

func TestV1ServedStreamNeverSendsNil(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		s := r.asked(r.serve(3, 0, ""), 7, rawMsg{Flags: crcEOF})
		s.out <- nil
		s.out <- []byte{}
		for seq := range uint32(2) {
			r.expect(rawMsg{MuxID: 7, Seq: seq + 1, Op: rawOpMuxServerMsg, Flags: crcZero, Payload: []byte{}})
		}
		s.ended(3, nil)
		r.alive()
	})
}

func TestV1ServedStreamReturnsACreditForEachMessagePassedOn(t *testing.T) {
	for _, capacity := range []int{1, 3} {
		inV1(t, rawConfig{}, nil, func(r *v1Rig) {
			s := r.asked(r.serve(1, capacity, ""), 7, rawMsg{Flags: rawFlagCRC})
			for range capacity {
				s.say(clientMsg("x"))
			}
			for i := range uint32(20) {
				r.quiet()
				require.Equal(r, "x", string(<-s.in))
				s.expect(i+1, rawOpUnblockClMux, rawFlagCRC)
				s.say(clientMsg("x"))
			}
			s.say(rawMsg{Op: rawOpMuxClientMsg, Flags: crcEOF})
			for range capacity {
				require.Equal(r, "x", string(<-s.in))
			}
			s.requireClosed()
			require.NoError(r, s.ctx.Err(), "the end of the input is no abort")
			synctest.Wait()
			seq := uint32(21)
			for range r.peer.pending() { // those that were passed on before the end was seen
				s.expect(seq, rawOpUnblockClMux, rawFlagCRC)
				seq++
			}
			s.ended(seq, nil)
			r.alive()
		})
	}
}

func TestV1ServedStreamTakesEmptyMessages(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		s := r.asked(r.serve(1, 1, ""), 7, rawMsg{})
		for i, m := range []rawMsg{
			{Op: rawOpMuxClientMsg, Flags: crcZero, Payload: []byte{}},
			{Op: rawOpMuxClientMsg},
			clientMsg("data"),
		} {
			s.say(m)
			require.Equal(r, m.Payload, <-s.in)
			s.expect(uint32(i+1), rawOpUnblockClMux, rawFlagCRC)
		}
		s.ended(4, nil)
		r.alive()
	})
}

func TestV1ServedStreamWhoseClientOverrunsItsWindowFails(t *testing.T) {
	for _, capacity := range []int{1, 3} {
		for _, taken := range []int{0, 1} {
			inV1(t, rawConfig{}, nil, func(r *v1Rig) {
				s := r.asked(r.serve(1, capacity, ""), 7, rawMsg{})
				for range taken {
					s.say(clientMsg("x"))
					<-s.in
					s.expect(1, rawOpUnblockClMux, rawFlagCRC)
				}
				for range capacity {
					s.say(clientMsg("x"))
					r.quiet()
				}
				s.say(clientMsg("x"))
				s.dropped(ErrFlowControl)
				r.alive()
			})
		}
	}
}

func TestV1ServedStreamIsCancelled(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		started := r.serve(1, 1, "")
		for i, c := range []struct {
			m     rawMsg
			cause error
		}{
			{rawMsg{Op: rawOpDisconnectServerMux, Flags: rawFlagCRC}, context.Canceled},
			{rawMsg{Op: rawOpDisconnectServerMux, Seq: 99}, context.Canceled},
			{rawMsg{Op: rawOpDisconnectServerMux, Flags: crcErr, Payload: []byte("enough")}, NewRemoteErrString("enough")},
		} {
			s := r.asked(started, uint64(i+1), rawMsg{})
			s.say(clientMsg("x"))
			go func() { s.out <- []byte("y"); s.out <- []byte("no credit for it") }()
			m := serverMsg("y")
			m.MuxID, m.Seq = s.id, 1
			r.expect(m)
			r.quiet()
			c.m.MuxID = s.id
			r.peer.send(c.m)
			<-s.ctx.Done()
			require.Equal(r, c.cause, context.Cause(s.ctx))
			s.requireClosed()
			s.expect(0, rawOpDisconnectClientMux, rawFlagCRC)
			r.alive()
		}
	})
}

func TestV1HandlerThatPanicsEndsItsStreamWithAnError(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		require.NoError(r, r.node.RegisterStreamingHandler(50, StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { panic(errors.New("bug")) },
		}))
		r.peer.send(rawMsg{MuxID: 1, Handler: 50, Op: rawOpConnectMux, Flags: crcEOF})
		r.peer.expect(rawOpAckMux)
		m := r.peer.recv()
		require.Contains(r, string(m.Payload), "panicked: bug")
		m.Payload = nil
		require.Equal(r, rawMsg{MuxID: 1, Seq: 1, Op: rawOpMuxServerMsg, Flags: crcErr | rawFlagEOF}, m)
		r.peer.expect(rawOpDisconnectClientMux)
		r.alive()
	})
}
