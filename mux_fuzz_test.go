package grid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
)

// fuzzStream is a stream with what its client and its handler have to do, and how far they have
// come. Its counters are read when all is quiet.
type fuzzStream struct {
	r                       *streamsRun
	i, client               int // client is the host that opens it
	outCapacity, inCapacity int
	through                 bool // Requests, rather than Send
	early                   bool // it is started before its handler is known to take it
	channels                bool // its handler has, rather than a ServerStream
	deadline                time.Duration
	ctx                     context.Context
	cancel                  context.CancelCauseFunc
	opened, closed          bool
	began                   time.Time

	sizes   [2][]int  // of what client and handler were told to send
	sends   chan int  // for the client
	permits chan bool // for its consumer
	taking  chan bool // for the handler's consumer
	steps   chan handlerStep
	stopped chan struct{} // closed when the consumer is to stop

	clientSent, clientGot   int
	handlerSent, handlerGot int
	runs                    int
	returned                atomic.Bool
	result                  *RemoteErr
	inClosed, inWell        bool // the handler's input; its context was alive then
	ended                   bool
	err, sendErr            error

	causes    []error     // what may end it besides its handler
	cancelled bool        // by the program
	aborted   atomic.Bool // the handler's context has ended
}

// errFuzzFailed is what a handler has failed with.
var errFuzzFailed = errors.New("failed")

type handlerStep struct {
	size    int
	returns bool
	how     int
}

func newFuzzStream(r *streamsRun, i int) *fuzzStream {
	p := r.p
	client, forms := p.n(2), p.n(8)
	s := &fuzzStream{
		r: r, i: i, client: client,
		outCapacity: pick(p, 1, 1, 2, 3, 8, 70), inCapacity: pick(p, 1, 0, 2, 3, 8, 40),
		deadline: pick(p, 0, 0, 0, 0, 200*time.Millisecond, 3*time.Second, 30*time.Second),
		sends:    make(chan int, 200), permits: make(chan bool, 200), taking: make(chan bool, 200),
		steps: make(chan handlerStep, 200), stopped: make(chan struct{}),
	}
	s.through, s.channels, s.early = forms&1 == 0, forms&2 == 0, forms&4 != 0
	s.ctx, s.cancel = context.WithCancelCause(r.t.Context())
	return s
}

func (s *fuzzStream) handler() HandlerID { return HandlerID(s.i + 1) }

// cause notes what may end the stream, now or later.
func (s *fuzzStream) cause(err error) { s.causes = append(s.causes, err) }

// text is message n of one of the two directions.
func (s *fuzzStream) text(direction, n int) []byte {
	b := make([]byte, s.sizes[direction][n])
	copy(b, fmt.Sprint(n, direction, s.i))
	if len(b) > 2 {
		b[len(b)-1] = byte(n)
	}
	return b
}

func (s *fuzzStream) open() {
	if s.opened {
		return
	}
	s.opened, s.began = true, time.Now()
	ctx := s.ctx
	if s.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.deadline)
		context.AfterFunc(ctx, cancel)
	}
	go func() {
		conn := s.r.hosts[s.client].conn
		open := conn.NewStream
		if s.early {
			open = conn.StartStream
			if sess := conn.session.Load(); sess != nil && s.inCapacity > 0 {
				sess.told.put(newToldKey(s.handler(), nil), s.inCapacity)
			}
		}
		st, err := open(ctx, s.handler(), fmt.Append(nil, s.i))
		if err != nil {
			s.r.quiet.pass()
			s.ended, s.err = true, err
			return
		}
		go s.send(st)
		err = st.Results(func(b []byte) error {
			select {
			case <-s.permits:
			case <-s.stopped:
				return errFuzzStop
			}
			s.r.quiet.pass()
			if s.clientGot >= len(s.sizes[1]) || !bytes.Equal(b, s.text(1, s.clientGot)) {
				s.r.t.Errorf("stream %d: message %d for the client is %.20q of %d bytes", s.i, s.clientGot, b, len(b))
			}
			s.clientGot++
			PutByteBuffer(b)
			return nil
		})
		s.r.quiet.pass()
		s.ended, s.err = true, err
	}()
}

// send sends what the client is told to. The input is always closed at last.
func (s *fuzzStream) send(st *Stream) {
	if s.through && st.Requests != nil {
		defer close(st.Requests)
	} else {
		defer st.CloseSend()
	}
	for n := range s.sends {
		switch b := s.text(0, n); {
		case s.inCapacity == 0:
			if st.Requests != nil || st.Send(b) == nil {
				s.r.t.Errorf("stream %d takes input", s.i)
			}
		case s.through:
			st.Requests <- b
			s.r.quiet.pass()
			s.clientSent++
		default:
			// Where it fails the stream has ended, and may have sent it.
			err := st.Send(b)
			s.r.quiet.pass()
			s.sendErr = err
			s.clientSent++
			PutByteBuffer(b)
		}
	}
}

func (s *fuzzStream) clientSends(p *program) {
	if s.closed || len(s.sends) == cap(s.sends) {
		return
	}
	s.sizes[0] = append(s.sizes[0], size(p))
	s.sends <- len(s.sizes[0]) - 1
}

func (s *fuzzStream) closeInput() {
	if !s.closed {
		s.closed = true
		close(s.sends)
	}
}

func (s *fuzzStream) stopEarly() {
	select {
	case <-s.stopped:
	default:
		s.cause(errFuzzStop)
		close(s.stopped)
	}
}

func (s *fuzzStream) handlerDoes(step handlerStep) {
	if len(s.steps) == cap(s.steps) {
		return
	}
	if !step.returns {
		s.sizes[1] = append(s.sizes[1], step.size)
	}
	s.steps <- step
}

// streamHandler is what serves the stream.
func (s *fuzzStream) streamHandler() StreamHandler {
	h := StreamHandler{OutCapacity: s.outCapacity, InCapacity: s.inCapacity}
	if s.channels {
		h.Handle = func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
			recv := func() ([]byte, error) {
				b, ok := <-in
				switch {
				case ok:
					return b, nil
				case ctx.Err() != nil:
					return nil, context.Cause(ctx)
				}
				return nil, io.EOF
			}
			return s.serve(ctx, payload, recv, func(b []byte) { out <- b })
		}
		return h
	}
	h.Serve = func(ctx context.Context, payload []byte, st *ServerStream) *RemoteErr {
		return s.serve(ctx, payload, st.Recv, func(b []byte) {
			err := st.Send(ctx, b)
			s.r.quiet.pass()
			if cause := context.Cause(ctx); err != nil && err != cause {
				s.r.t.Errorf("stream %d: handler's send: %v; its context has ended with %v", s.i, err, cause)
			}
		})
	}
	return h
}

// serve is the handler, of either form.
func (s *fuzzStream) serve(ctx context.Context, payload []byte, recv func() ([]byte, error), send func([]byte)) (result *RemoteErr) {
	s.r.quiet.pass()
	s.runs++
	if s.runs > 1 || string(payload) != fmt.Sprint(s.i) {
		s.r.t.Errorf("stream %d was opened %d times, with %q", s.i, s.runs, payload)
	}
	context.AfterFunc(ctx, func() { s.aborted.Store(true) })
	go s.takeInput(recv)
	for step := range s.steps {
		s.r.quiet.pass()
		if !step.returns {
			b := s.text(1, s.handlerSent)
			s.handlerSent++ // it may arrive before this goroutine runs again
			send(b)
			continue
		}
		s.returned.Store(true)
		switch step.how {
		case 0, 1:
			return nil
		case 2:
			s.result = NewRemoteErrCode("failed", fmt.Errorf("handler %d: %w", s.i, errFuzzFailed))
			return s.result
		default:
			s.result = NewRemoteErrString(fmt.Sprintf("grid: handler %d panicked: %d", s.handler(), s.i))
			panic(s.i)
		}
	}
	s.returned.Store(true)
	return nil
}

func (s *fuzzStream) takeInput(recv func() ([]byte, error)) {
	for {
		<-s.taking
		b, err := recv()
		s.r.quiet.pass()
		if err != nil {
			// This goroutine may be one that the handler has left behind.
			s.inWell = err == io.EOF
			s.inClosed = true
			return
		}
		if s.handlerGot >= len(s.sizes[0]) || !bytes.Equal(b, s.text(0, s.handlerGot)) {
			s.r.t.Errorf("stream %d: message %d for the handler is %.20q of %d bytes", s.i, s.handlerGot, b, len(b))
		}
		s.handlerGot++
		PutByteBuffer(b)
	}
}

// mayEnd reports whether the stream may end with err, but for what its handler returns.
func (s *fuzzStream) mayEnd(err error) bool {
	if s.deadline > 0 && time.Since(s.began) >= s.deadline-time.Millisecond && errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	for _, cause := range s.causes {
		if errors.Is(err, cause) {
			return true
		}
	}
	return s.result != nil && err.Error() == s.result.Error()
}

// disturbed reports whether anything but its handler may have ended the stream.
func (s *fuzzStream) disturbed() bool {
	return len(s.causes) > 0 || s.deadline > 0 && time.Since(s.began) >= s.deadline-time.Millisecond
}

func (s *fuzzStream) check() {
	if s.r.t.Failed() {
		s.r.t.FailNow()
	}
	require.True(s.r.t, s.sendErr == nil || s.sendErr == io.EOF && s.returned.Load() && s.result == nil || s.mayEnd(s.sendErr), "stream %d: send: %v", s.i, s.sendErr)
	require.LessOrEqual(s.r.t, s.clientGot, s.handlerSent)
	require.LessOrEqual(s.r.t, s.handlerGot, s.clientSent+1)
	if s.inClosed && s.inWell {
		require.True(s.r.t, s.closed || s.inCapacity == 0, "the handler's input ended before the client has closed it")
		require.Equal(s.r.t, s.clientSent, s.handlerGot, "the end of the handler's input is not the truth")
	}
}

// checkAllCame looks at a stream whose ends take everything, and whose client has closed its input,
// but whose handler may go on.
func (s *fuzzStream) checkAllCame() {
	if s.cancelled && s.runs > 0 {
		require.True(s.r.t, s.aborted.Load(), "the handler of stream %d does not know that it was cancelled", s.i)
	}
	if s.disturbed() || s.returned.Load() {
		return
	}
	require.False(s.r.t, s.ended, "stream %d ended by itself: %v", s.i, s.err)
	require.Equal(s.r.t, 1, s.runs, "stream %d was not served", s.i)
	require.Equal(s.r.t, len(s.sizes[1]), s.clientGot, "stream %d is stuck towards its client", s.i)
	require.True(s.r.t, s.inClosed && s.inWell, "stream %d: the handler's input does not end", s.i)
	if s.inCapacity > 0 {
		require.Equal(s.r.t, len(s.sizes[0]), s.handlerGot, "stream %d is stuck towards its handler", s.i)
	}
}

// checkEnd looks at how a stream has ended.
func (s *fuzzStream) checkEnd() {
	t := s.r.t
	require.True(t, s.ended, "stream %d does not end", s.i)
	require.Equal(t, s.runs > 0, s.returned.Load(), "the handler of stream %d is stuck", s.i)
	require.Equal(t, s.runs > 0, s.inClosed, "the input of stream %d does not end", s.i)
	switch {
	case s.err == nil:
		require.True(t, s.returned.Load() && s.result == nil, "stream %d ended well, its handler did not", s.i)
		require.Equal(t, s.handlerSent, s.clientGot, "stream %d ended well, but has lost messages", s.i)
	case s.result != nil && s.err.Error() == s.result.Error():
		require.True(t, IsRemoteErr(s.err))
		details := s.r.caps&capErrors != 0
		require.Equal(t, details && errors.Is(s.result, errFuzzFailed), errors.Is(s.err, errFuzzFailed), "stream %d", s.i)
		require.Equal(t, details && ErrorCode(s.result) != "", ErrorCode(s.err) != "", "stream %d", s.i)
		require.Equal(t, s.handlerSent, s.clientGot, "messages before the handler's error are lost")
	case !s.disturbed():
		require.Failf(t, "wrong end", "stream %d ended with %v, its handler with %v", s.i, s.err, s.result)
	default:
		require.True(t, s.mayEnd(s.err) || strings.Contains(s.err.Error(), context.DeadlineExceeded.Error()) && s.deadline > 0,
			"stream %d ended with %v; %v", s.i, s.err, s.causes)
	}
}
