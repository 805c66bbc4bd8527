package grid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
)

// fuzzStream is a stream with what its client and its handler have to do, and how far they have
// come. Its counters are read when all is quiet.
type fuzzStream struct {
	r                       *streamsRun
	i, client               int         // client is the host that opens it
	home                    *fuzzStream // whose handler serves it; often itself
	outCapacity, inCapacity int
	through                 bool // Requests, rather than Send
	early                   bool // it is started before its handler is known to take it
	channels                bool // its handler has, rather than a ServerStream
	deadline                time.Duration
	ctx                     context.Context
	cancel                  context.CancelCauseFunc
	opened, closed          bool
	began                   time.Time

	// What only runs of the second kind have.
	consumer        fuzzConsumer
	writes, reads   bool // the client by a writer, the handler by a reader
	handlerWrites   bool
	metadata        map[string]string
	opening         time.Duration // CallOptions.Timeout
	options         HandlerOptions
	gate            fuzzGate // for what is sent with a context
	writing, finish fuzzGate // the contexts of the writer, and of Finish
	running         [2]atomic.Int32

	up, down fuzzFlow      // towards the handler, and the client
	sends    chan fuzzSend // for the client
	permits  chan bool     // for its consumer
	taking   chan bool     // for the handler's consumer
	steps    chan fuzzStep // for the handler
	stopped  chan struct{} // closed when the consumer is to stop
	isOpen   bool

	runs             int
	returned         atomic.Bool
	result           *RemoteErr
	inClosed, inWell bool // the handler's input; its context was alive then
	ended            bool
	err, sendErr     error
	left             atomic.Bool // by its consumer, by Finish or Close
	sentBefore       int         // what was sent when Finish was called
	dropped          int         // by the consumer itself
	loopErr          error       // with which its loop, or Recv, has ended afterwards

	causes    []error     // what may end it besides its handler
	cancelled bool        // by the program
	aborted   atomic.Bool // the handler's context has ended
}

// fuzzConsumer is how a client consumes.
type fuzzConsumer int

const (
	byResults fuzzConsumer = iota // and stops with an error
	byRecv                        // and stops with Finish
	byAll                         // the same, within the loop
	byReader                      // and stops by closing it
	byWriteTo
)

// errFuzzFailed is what a handler has failed with.
var errFuzzFailed = errors.New("failed")

// fuzzSend is a message for the client to send, with the context of SendContext.
type fuzzSend struct {
	n   int
	ctx context.Context // nil for Send
}

type fuzzStep struct {
	size    int
	ctx     context.Context // of the send; nil for the handler's
	returns bool
	how     int
}

// fuzzGate is a context that a program ends.
type fuzzGate struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func newFuzzGate(r *streamsRun) (g fuzzGate) {
	g.ctx, g.cancel = context.WithCancelCause(r.t.Context())
	return g
}

func newFuzzStream(r *streamsRun, i int) *fuzzStream {
	p := r.p
	client, forms := p.n(2), p.n(8)
	s := &fuzzStream{
		r: r, i: i, client: client,
		outCapacity: pick(p, 1, 1, 2, 3, 8, 70), inCapacity: pick(p, 1, 0, 2, 3, 8, 40),
		deadline: pick(p, 0, 0, 0, 0, 200*time.Millisecond, 3*time.Second, 30*time.Second),
		sends:    make(chan fuzzSend, 200), permits: make(chan bool, 200), taking: make(chan bool, 200),
		steps: make(chan fuzzStep, 200), stopped: make(chan struct{}),
		gate: newFuzzGate(r), writing: newFuzzGate(r), finish: newFuzzGate(r),
	}
	s.home = s
	s.up.s, s.down.s, s.down.direction = s, s, 1
	s.through, s.channels, s.early = forms&1 == 0, forms&2 == 0, forms&4 != 0
	s.ctx, s.cancel = context.WithCancelCause(r.t.Context())
	if r.second {
		s.drawMore(p)
	}
	s.up.asBytes = s.writes || s.reads
	s.down.asBytes = s.handlerWrites || s.consumer == byReader || s.consumer == byWriteTo
	return s
}

// drawMore draws what runs of the second kind have.
func (s *fuzzStream) drawMore(p *program) {
	s.consumer = pick(p, byRecv, byAll, byReader, byWriteTo, byResults)
	ends := p.n(16)
	s.writes, s.reads, s.handlerWrites = ends&1 != 0, ends&2 != 0 && !s.channels, ends&4 != 0
	if ends&8 != 0 {
		s.opening = time.Second
	}
	s.metadata = drawMetadata(p, s.i)
	s.options = HandlerOptions{Timeout: pick(p, 0, 0, 0, 300*time.Millisecond, 5*time.Second)}
	if p.n(2) == 1 && s.i > 0 {
		home := s.r.streams[0]
		home.options.MaxRunning = 1
		s.home, s.outCapacity, s.inCapacity, s.channels = home, home.outCapacity, home.inCapacity, home.channels
		s.reads, s.handlerWrites = home.reads, home.handlerWrites
	}
}

// drawMetadata returns nil for none; some is too large.
func drawMetadata(p *program, i int) map[string]string {
	switch p.n(4) {
	case 1:
		return map[string]string{"number": fmt.Sprint(i), "": "empty"}
	case 2:
		return map[string]string{"large": string(make([]byte, maxMetadata))}
	}
	return nil
}

// isTooLarge reports whether calls with the metadata are refused where they are made.
func isTooLarge(metadata map[string]string) bool { return metadata["large"] != "" }

// checkMetadata looks at what a handler has got.
func (r *streamsRun) checkMetadata(ctx context.Context, want map[string]string) {
	if r.caps&capMetadata == 0 {
		want = nil
	}
	if got := Metadata(ctx); !maps.Equal(got, want) {
		r.t.Errorf("metadata %q in place of %q", got, want)
	}
}

func (s *fuzzStream) handler() HandlerID { return HandlerID(s.home.i + 1) }

// cause notes what may end the stream, now or later.
func (s *fuzzStream) cause(err error) { s.causes = append(s.causes, err) }

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
		caller := conn.With(CallOptions{Timeout: s.opening, Metadata: s.metadata})
		open := caller.NewStream
		if s.early {
			open = caller.StartStream
			if sess := conn.session.Load(); sess != nil && s.inCapacity > 0 {
				sess.told.put(newToldKey(s.handler(), nil), s.inCapacity)
			}
		}
		st, err := open(ctx, s.handler(), fmt.Append(nil, s.i))
		s.r.quiet.pass()
		if err != nil {
			s.ended, s.err = true, err
			return
		}
		s.isOpen = true
		go s.send(st)
		err = s.consume(st)
		s.r.quiet.pass()
		s.ended, s.err = true, err
	}()
}

// mayTake waits until the consumer may take a message, and reports false where it is to stop.
func (s *fuzzStream) mayTake() bool {
	select {
	case <-s.permits:
		return true
	case <-s.stopped:
		return false
	}
}

// consume returns how the stream has ended, nil if well.
func (s *fuzzStream) consume(st *Stream) error {
	switch s.consumer {
	case byRecv:
		for s.mayTake() {
			b, err := st.Recv()
			s.r.quiet.pass()
			switch err {
			case nil:
			case io.EOF:
				return nil
			default:
				return err
			}
			s.down.arrive(b)
			PutByteBuffer(b)
		}
		err := s.finishes(st)
		_, s.loopErr = st.Recv()
		return err
	case byAll:
		for b, err := range st.All() {
			s.r.quiet.pass()
			switch {
			case err != nil && s.left.Load():
				s.loopErr = err
				return s.err
			case err != nil:
				return err
			case s.left.Load():
				s.r.t.Errorf("stream %d: a message behind Finish", s.i)
			case !s.mayTake():
				PutByteBuffer(b)
				s.dropped = 1
				s.err = s.finishes(st)
				s.loopErr = io.EOF // unless the loop ends with another
			default:
				s.r.quiet.pass()
				s.down.arrive(b)
				PutByteBuffer(b)
			}
		}
		return s.err
	case byReader, byWriteTo:
		return s.read(st)
	}
	return st.Results(func(b []byte) error {
		if !s.mayTake() {
			return errFuzzStop
		}
		s.r.quiet.pass()
		s.down.arrive(b)
		PutByteBuffer(b)
		return nil
	})
}

// finishes has the stream end by Finish.
func (s *fuzzStream) finishes(st *Stream) error {
	s.r.quiet.pass()
	s.sentBefore = int(s.up.sent.Load())
	s.left.Store(true)
	return st.Finish(s.finish.ctx)
}

// read consumes by a reader.
func (s *fuzzStream) read(st *Stream) (err error) {
	r := st.Reader()
	take := func(b []byte) {
		s.r.quiet.pass()
		s.down.arrive(b)
	}
	if s.consumer == byWriteTo {
		_, err = r.WriteTo(writerFunc(func(b []byte) (int, error) {
			if !s.mayTake() {
				return 0, errFuzzStop
			}
			take(b)
			return len(b), nil
		}))
	} else {
		buf := make([]byte, 10_000)
		for err == nil {
			if !s.mayTake() {
				err = errFuzzStop
				break
			}
			var n int
			n, err = r.Read(buf)
			take(buf[:n])
		}
		if err == io.EOF {
			err = nil
		}
	}
	switch {
	case err == errFuzzStop:
		s.left.Store(true)
		_ = r.Close()
		<-st.Done()
		if _, again := r.Read(make([]byte, 1)); !errors.Is(again, io.ErrClosedPipe) {
			s.r.t.Errorf("stream %d: a reader that was closed returns %v", s.i, again)
		}
		return st.Err()
	case err != nil && (!errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		s.r.t.Errorf("stream %d: its reader has ended with %v", s.i, err)
	}
	return err
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// send sends what the client is told to. The input is always closed at last.
func (s *fuzzStream) send(st *Stream) {
	var w io.Writer
	switch throughRequests := s.through && st.Requests != nil; {
	case throughRequests:
		defer close(st.Requests)
		w = WriterToChannel(s.writing.ctx, st.Requests)
	case s.writes && s.inCapacity > 0:
		writer := st.Writer(s.writing.ctx)
		w = writer
		defer func() {
			if err := writer.Close(); err != nil {
				s.r.quiet.pass()
				s.sendErr = err
			}
		}()
	default:
		defer st.CloseSend()
	}
	for told := range s.sends {
		if s.sendErr != nil && s.writes {
			continue // it has broken off
		}
		b := s.up.text(told.n)
		var err error
		switch {
		case s.inCapacity == 0:
			if st.Requests != nil || st.Send(b) == nil || st.SendContext(s.ctx, b) == nil {
				s.r.t.Errorf("stream %d takes input", s.i)
			}
			continue
		case s.writes:
			_, err = w.Write(b)
		case s.through:
			st.Requests <- b
		case told.ctx != nil:
			err = st.SendContext(told.ctx, b)
		default:
			err = st.Send(b)
		}
		s.r.quiet.pass()
		switch {
		case err == nil:
		case !s.writes && (told.ctx != nil && errors.Is(err, errFuzzGate) || s.left.Load() && errors.Is(err, io.ErrClosedPipe)):
			if told.ctx != nil && told.ctx.Err() == nil && !s.left.Load() {
				s.r.t.Errorf("stream %d: send: %v", s.i, err)
			}
			s.up.unsent[told.n].Store(true) // and the stream lives on
		default:
			// The stream has ended, and may have sent it.
			s.sendErr = err
			if s.through {
				s.cancel(errFuzzGate) // or the close would look like the end of the whole
				<-st.Done()
			}
		}
		s.up.sent.Store(int32(told.n) + 1)
		if !s.through {
			PutByteBuffer(b)
		}
	}
}

func (s *fuzzStream) clientSends(p *program, ctx context.Context) {
	if s.closed || len(s.sends) == cap(s.sends) {
		return
	}
	s.up.sizes = append(s.up.sizes, size(p))
	s.sends <- fuzzSend{len(s.up.sizes) - 1, ctx}
}

// closeGate ends the contexts with which is sent.
func (s *fuzzStream) closeGate() {
	s.gate.cancel(errFuzzGate)
	s.gate = newFuzzGate(s.r)
	if s.writes {
		s.cause(errFuzzGate)
		s.writing.cancel(errFuzzGate)
	}
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
		return
	default:
	}
	switch s.consumer {
	case byResults:
		s.cause(errFuzzStop)
	case byReader, byWriteTo:
		s.cause(errReaderClosed)
	default:
		if s.through || s.writes {
			s.cause(io.ErrClosedPipe) // what is sent afterwards
		}
	}
	close(s.stopped)
}

func (s *fuzzStream) handlerDoes(step fuzzStep) {
	if len(s.steps) == cap(s.steps) {
		return
	}
	if !step.returns {
		s.down.sizes = append(s.down.sizes, step.size)
	}
	s.steps <- step
}

// fuzzEnd is the serving end of a stream, of any form.
type fuzzEnd struct {
	recv func() ([]byte, error)
	send func(ctx context.Context, b []byte) error
	w    io.Writer
}

// streamHandler is what serves the stream, and those that it is the home of.
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
			send := func(_ context.Context, b []byte) error {
				out <- b
				return nil
			}
			return s.r.stream(payload).serve(ctx, fuzzEnd{recv, send, WriterToChannel(ctx, out)})
		}
		return h
	}
	h.Serve = func(ctx context.Context, payload []byte, st *ServerStream) *RemoteErr {
		recv := st.Recv
		if s.reads {
			r, buf := st.Reader(), make([]byte, 10_000)
			recv = func() ([]byte, error) {
				n, err := r.Read(buf)
				if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errHandlerReturned) {
					s.r.t.Errorf("a handler's reader has ended with %v", err)
				}
				return append(GetByteBufferCap(n), buf[:n]...), err
			}
		}
		return s.r.stream(payload).serve(ctx, fuzzEnd{recv, st.Send, st.Writer(ctx)})
	}
	return h
}

// serve is the handler, of either form.
func (s *fuzzStream) serve(ctx context.Context, end fuzzEnd) (result *RemoteErr) {
	s.r.quiet.pass()
	s.runs++
	if s.runs > 1 {
		s.r.t.Errorf("stream %d was opened %d times", s.i, s.runs)
	}
	running := &s.home.running[1-s.client]
	if n, most := running.Add(1), s.home.options.MaxRunning; most > 0 && int(n) > most {
		s.r.t.Errorf("%d calls of handler %d run", n, s.handler())
	}
	defer running.Add(-1)
	s.r.checkMetadata(ctx, s.metadata)
	context.AfterFunc(ctx, func() { s.aborted.Store(true) })
	go s.takeInput(end.recv)
	sent := 0
	var broken error // with which a writer has failed
	for step := range s.steps {
		s.r.quiet.pass()
		if !step.returns {
			b := s.down.text(sent)
			s.down.sent.Store(int32(sent) + 1) // it may arrive before this goroutine runs again
			var err error
			switch {
			case !s.handlerWrites && step.ctx != nil:
				if err = end.send(step.ctx, b); errors.Is(err, errFuzzGate) {
					s.down.unsent[sent].Store(true)
					err = nil
				}
			case !s.handlerWrites:
				err = end.send(ctx, b)
			case broken == nil:
				_, err = end.w.Write(b)
				broken = err
			}
			s.r.quiet.pass()
			if cause := context.Cause(ctx); err != nil && !errors.Is(err, cause) {
				s.r.t.Errorf("stream %d: handler's send: %v; its context has ended with %v", s.i, err, cause)
			}
			sent++
			continue
		}
		s.returned.Store(true)
		switch step.how {
		case 0, 1, 4:
			w, isWriter := end.w.(*StreamWriter)
			if step.how == 4 && isWriter && broken == nil {
				broken = errFuzzFailed
				_ = w.CloseWithError(broken)
			}
			if broken != nil && isWriter {
				s.result = NewRemoteErr(fmt.Errorf("grid: handler %d has written a part only: %w", s.handler(), broken))
			}
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
	if _, isWriter := end.w.(*StreamWriter); isWriter && broken != nil {
		s.result = NewRemoteErr(fmt.Errorf("grid: handler %d has written a part only: %w", s.handler(), broken))
	}
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
		s.up.arrive(b)
		PutByteBuffer(b)
	}
}

// isLate reports whether the stream has had the time, less what clocks may differ by.
func (s *fuzzStream) isLate(after time.Duration) bool {
	return after > 0 && time.Since(s.began) >= after-time.Millisecond
}

// mayEnd reports whether the stream may end with err, but for what its handler returns.
func (s *fuzzStream) mayEnd(err error) bool {
	switch {
	case s.isLate(s.deadline) && errors.Is(err, context.DeadlineExceeded),
		s.isLate(s.opening) && !s.isOpen && errors.Is(err, context.DeadlineExceeded),
		s.isLate(s.home.options.Timeout) && IsRemoteErr(err) && strings.Contains(err.Error(), ": its Timeout of "),
		isTooLarge(s.metadata) && errors.Is(err, ErrMessageTooLarge),
		s.mayBeRefused() && errors.Is(err, ErrOverloaded) && CanRetry(err):
		return true
	}
	for _, cause := range s.causes {
		if errors.Is(err, cause) {
			return true
		}
	}
	return s.result != nil && err.Error() == s.result.Error()
}

// mayBeRefused reports whether another stream may have taken the place of this one.
func (s *fuzzStream) mayBeRefused() bool {
	if s.runs > 0 || s.home.options.MaxRunning == 0 {
		return false
	}
	for _, other := range s.r.streams {
		if other != s && other.home == s.home && other.client == s.client && other.runs > 0 {
			return true
		}
	}
	return false
}

// disturbed reports whether anything but its handler may have ended the stream.
func (s *fuzzStream) disturbed() bool {
	return len(s.causes) > 0 || s.isLate(s.deadline) || s.isLate(s.home.options.Timeout) ||
		s.isLate(s.opening) && !s.isOpen || isTooLarge(s.metadata) || s.mayBeRefused()
}

// endedWell reports whether the handler has returned nil.
func (s *fuzzStream) endedWell() bool { return s.returned.Load() && s.result == nil }

// inputCame reports whether the end of the handler's input is the truth.
func (s *fuzzStream) inputCame() bool {
	switch {
	case !s.left.Load():
		return s.up.isComplete()
	case s.writes:
		return true // Finish has come between what it has written
	case s.through:
		return s.up.came(s.sentBefore)
	}
	return s.up.isComplete()
}

func (s *fuzzStream) check() {
	t := s.r.t
	if t.Failed() {
		t.FailNow()
	}
	wasClosed := (s.left.Load() || s.writes && s.endedWell()) && errors.Is(s.sendErr, io.ErrClosedPipe)
	require.True(t, s.sendErr == nil || s.sendErr == io.EOF && s.endedWell() || wasClosed || s.mayEnd(s.sendErr), "stream %d: send: %v", s.i, s.sendErr)
	require.LessOrEqual(t, s.down.next, int(s.down.sent.Load()))
	require.LessOrEqual(t, s.up.next, int(s.up.sent.Load())+1)
	if s.inClosed && s.inWell {
		require.True(t, s.closed || s.inCapacity == 0 || s.left.Load(), "the handler's input ended before the client has closed it")
		require.True(t, s.inputCame(), "stream %d: the end of the handler's input is not the truth", s.i)
	}
}

// checkAllCame looks at a stream whose ends take everything, and whose client has closed its input,
// but whose handler may go on.
func (s *fuzzStream) checkAllCame() {
	t := s.r.t
	if s.cancelled && s.runs > 0 {
		require.True(t, s.aborted.Load(), "the handler of stream %d does not know that it was cancelled", s.i)
	}
	if s.disturbed() || s.returned.Load() {
		return
	}
	require.False(t, s.ended, "stream %d ended by itself: %v", s.i, s.err)
	require.Equal(t, 1, s.runs, "stream %d was not served", s.i)
	require.Len(t, s.down.sizes, int(s.down.sent.Load()), "stream %d: its handler is stuck", s.i)
	require.True(t, s.left.Load() || s.down.isComplete(), "stream %d is stuck towards its client", s.i)
	require.True(t, s.inClosed && s.inWell, "stream %d: the handler's input does not end", s.i)
	if s.inCapacity > 0 {
		require.True(t, s.inputCame() && int(s.up.sent.Load()) == len(s.up.sizes), "stream %d is stuck towards its handler", s.i)
	}
}

// checkEnd looks at how a stream has ended.
func (s *fuzzStream) checkEnd() {
	t := s.r.t
	require.True(t, s.ended, "stream %d does not end", s.i)
	require.Equal(t, s.runs > 0, s.returned.Load(), "the handler of stream %d is stuck", s.i)
	require.Equal(t, s.runs > 0, s.inClosed, "the input of stream %d does not end", s.i)
	require.False(t, s.runs > 0 && CanRetry(s.err), "stream %d has run, and ended with %v", s.i, s.err)
	if s.loopErr == io.EOF && !s.down.asBytes {
		require.Equal(t, s.down.countSent(), s.down.taken+s.dropped, "stream %d: it looks as if all had come, behind Finish", s.i)
	} else if s.loopErr != nil && s.err == nil {
		require.True(t, s.down.asBytes || errors.Is(s.loopErr, errSkipped), "stream %d: %v behind Finish", s.i, s.loopErr)
	}
	switch {
	case s.err == nil:
		require.True(t, s.endedWell(), "stream %d ended well, its handler did not", s.i)
		require.True(t, s.left.Load() || s.down.isComplete(), "stream %d ended well, but has lost messages", s.i)
	case s.result != nil && s.err.Error() == s.result.Error():
		require.True(t, IsRemoteErr(s.err))
		details := s.r.caps&capErrors != 0
		require.Equal(t, details && errors.Is(s.result, errFuzzFailed), errors.Is(s.err, errFuzzFailed), "stream %d", s.i)
		require.Equal(t, details && ErrorCode(s.result) == "failed", ErrorCode(s.err) == "failed", "stream %d", s.i)
		require.True(t, s.left.Load() || s.down.isComplete(), "messages before the handler's error are lost")
	case !s.disturbed():
		require.Failf(t, "wrong end", "stream %d ended with %v, its handler with %v", s.i, s.err, s.result)
	default:
		require.True(t, s.mayEnd(s.err) || strings.Contains(s.err.Error(), context.DeadlineExceeded.Error()) && s.deadline > 0,
			"stream %d ended with %v; %v", s.i, s.err, s.causes)
	}
}
