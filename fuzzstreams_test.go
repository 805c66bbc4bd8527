package grid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzStreams runs a program on two sessions, with streams between them, whose
// messages the program hands on as well. See streamsRun.check for what must hold.
func FuzzStreams(f *testing.F) {
	const ( // see step; stream 0 only
		open, up, down   = "\x00\x00", "\x08\x00", "\x08\x01"
		send, input      = "\x01\x00\x04", "\x04\x00\x09"
		large, close     = "\x01\x00\x07", "\x03\x00"
		serve, consume   = "\x05\x00\x04", "\x02\x00\x09"
		serveLarge       = "\x05\x00\x07"
		well, fail, boom = "\x07\x00\x00", "\x07\x00\x02", "\x07\x00\x03"
		cancel, enough   = "\x0a\x00", "\x0b\x00"
		wait, stall, cut = "\x0c\x04", "\x0d\x01", "\x0e\x00"
		settle           = "\x0f"
		opened           = open + up + down
	)
	for _, steps := range []string{
		"", open, opened, opened + well, opened + serve + serve + serve + well + settle + consume, opened + serve + serve + fail + down, opened + serve + boom + settle,
		opened + send + send + send + input + settle + close + settle + well, opened + send + send + close + settle + well + settle + consume, opened + input + large + send + up + up + close,
		opened + serveLarge + serve + well + settle + consume, opened + serveLarge + serveLarge + send + down + cancel + settle, opened + consume + serve + well + down + send + settle,
		opened + send + cancel + up + settle + serve, opened + serve + serve + enough + settle + serve, opened + send + serve + wait + settle, opened + serve + serve + cut + settle, open + cut + up,
		stall + opened + serve + stall + settle, open + cancel + up + down, opened + serve + consume + down + up + serve + down + well + "\x09\x01\x00\x01\x09\x01\x00\x01" + consume,
	} {
		for kind := range byte(8) {
			// The stream's client, whether it sends through Requests, its capacities, its deadline.
			f.Add([]byte(string([]byte{kind, 0, 0, kind & 1, 1 + kind>>1, 3 - kind>>1&2, 0}) + steps))
		}
		f.Add([]byte("\x02\x01\x00\x01\x04\x04\x05\x01\x00\x00\x00\x00" + steps + "\x00\x01\x05\x01\x04\x0f"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 600 {
			return // the interest is in what, not in how much
		}
		synctest.Test(t, func(t *testing.T) {
			r := newStreamsRun(t, &program{data})
			defer r.stop()
			for !r.p.done() {
				r.step()
				synctest.Wait()
				r.check()
			}
			r.finish()
		})
	})
}

// streamsRun is two hosts with streams between them, in either direction.
type streamsRun struct {
	t       *testing.T
	p       *program
	wide    bool
	hosts   [2]*fuzzHost
	pending [2][]rawMsg // what a host has sent, and the other one has not been given
	rules   *wireRules
	streams []*fuzzStream
	began   time.Time
}

const fuzzMaxMessage = 200 << 10

func newStreamsRun(t *testing.T, p *program) *streamsRun {
	kind := p.byte()
	caps := []caps{0, capWideCredits, ourCaps, capFragments}[kind&3]
	r := &streamsRun{t: t, p: p, wide: caps&capWideCredits != 0, began: time.Now()}
	for i := range r.hosts {
		r.hosts[i] = newFuzzHost(t, i, caps, func(o *ManagerOptions) { o.MaxMessageSize = fuzzMaxMessage })
		if kind&4 != 0 {
			r.hosts[i].conn.crc, r.hosts[i].sess.out.crc = 0, 0
		}
	}
	r.rules = newWireRules(t, r)
	for i := range 1 + p.n(3) {
		s := newFuzzStream(r, i)
		r.streams = append(r.streams, s)
		for _, h := range r.hosts { // a version 1 client has to know the capacities
			require.NoError(t, h.RegisterStreamingHandler(s.handler(), StreamHandler{Handle: s.serve, OutCapacity: s.outCapacity, InCapacity: s.inCapacity}))
		}
	}
	for _, h := range r.hosts {
		h.run()
	}
	synctest.Wait()
	return r
}

// step is one instruction.
func (r *streamsRun) step() {
	op := r.p.n(16)
	switch op {
	case 8:
		r.move(r.p.n(2), 1<<10, true)
		return
	case 9: // a few, or one
		r.move(r.p.n(2), 1+r.p.n(3), r.p.n(2) == 0)
		return
	case 12:
		r.sleep(pick(r.p, time.Millisecond, 100*time.Millisecond, time.Second, 4*time.Second, 16*time.Second, 40*time.Second))
		return
	case 13:
		h := r.hosts[r.p.n(2)]
		h.wire.stall(!h.wire.stalled)
		return
	case 14:
		r.cut(r.p.n(2))
		return
	case 15:
		r.settle()
		return
	}
	s := pick(r.p, r.streams...)
	switch op {
	case 0:
		s.open()
	case 1:
		s.clientSends(r.p)
	case 2:
		offer(s.permits, 1+r.p.n(20), true)
	case 3:
		s.closeInput()
	case 4:
		offer(s.taking, 1+r.p.n(20), true)
	case 5, 6:
		s.handlerDoes(handlerStep{size: size(r.p)})
	case 7:
		s.handlerDoes(handlerStep{returns: true, how: r.p.n(4)})
	case 10:
		s.cause(errFuzzCancel, nil)
		s.cancel(errFuzzCancel)
	case 11:
		s.stopEarly()
	}
}

// size is that of a message; some are sent in fragments.
func size(p *program) int {
	return pick(p, 0, 1, 2, 10, 100, 1000, wholeSize+1, 2*fragmentSize, fuzzMaxMessage, 3)
}

// offer gives n of v to whoever reads c, who is not waited for.
func offer[T any](c chan T, n int, v T) {
	for range n {
		select {
		case c <- v:
		default:
			return
		}
	}
}

// collect takes what the hosts have written, and holds it against the rules.
func (r *streamsRun) collect() {
	synctest.Wait()
	for i, h := range r.hosts {
		for _, m := range h.take() {
			r.rules.sent(i, m)
			r.pending[i] = append(r.pending[i], m)
		}
	}
}

// move hands on the next n messages of host from, merged or one by one.
func (r *streamsRun) move(from, n int, merged bool) (moved bool) {
	r.collect()
	n = min(n, len(r.pending[from]))
	msgs := r.pending[from][:n]
	r.pending[from] = r.pending[from][n:]
	to := r.hosts[1-from]
	for _, m := range msgs {
		r.rules.delivered(from, m)
		if !merged {
			to.put(m.encode())
			synctest.Wait()
		}
	}
	if merged && n > 0 {
		to.put(encodeMerged(msgs...))
	}
	synctest.Wait()
	return n > 0
}

// settle hands on everything, until nothing comes any more.
func (r *streamsRun) settle() {
	for _, h := range r.hosts {
		h.wire.stall(false)
	}
	for r.move(0, 1<<20, true) || r.move(1, 1<<20, true) {
		r.check()
	}
}

// sleep lets time pass on a link that works.
func (r *streamsRun) sleep(d time.Duration) {
	r.settle()
	for d > 0 {
		step := min(d, time.Second)
		time.Sleep(step)
		d -= step
		r.settle()
	}
}

// cut ends what host i reads.
func (r *streamsRun) cut(i int) {
	for _, s := range r.streams {
		s.cause(ErrDisconnected, ErrDisconnected)
	}
	r.hosts[i].wire.end()
}

// check is what holds at any time when all is quiet.
func (r *streamsRun) check() {
	r.rules.check()
	for _, s := range r.streams {
		s.check()
	}
}

// finish lets the program's streams come to their end, and looks at it.
func (r *streamsRun) finish() {
	lost := false
	for i, h := range r.hosts {
		if lost = h.ended() || h.wire.ended; lost { // the other end notices as well
			r.cut(1 - i)
			r.cut(i)
			break
		}
	}
	for _, s := range r.streams {
		close(s.permits)
		close(s.taking)
		s.closeInput()
	}
	r.settle()
	for _, s := range r.streams {
		if s.opened && !lost {
			s.checkAllCame()
		}
		close(s.steps)
	}
	r.settle()
	r.check()
	for _, s := range r.streams {
		if s.opened {
			s.checkEnd()
		}
	}
	for i, h := range r.hosts {
		c := h.sess
		require.Zero(r.t, c.streams.size(), "streams are left")
		require.Zero(r.t, c.served.size(), "served streams are left")
		require.Zero(r.t, c.openings.size(), "openings are left")
		require.Zero(r.t, h.conn.Stats().Handlers, "slots of handlers are left")
		require.Zero(r.t, h.conn.kept.used.Load(), "bytes are counted that nobody keeps")
		require.Equal(r.t, lost, h.ended(), "host %d: %v", i, c.err)
	}
}

// stop ends everything, also after a failure.
func (r *streamsRun) stop() {
	for _, s := range r.streams {
		s.cancel(nil)
		for _, f := range []func(){func() { close(s.permits) }, func() { close(s.taking) }, func() { close(s.steps) }, s.closeInput} {
			func() {
				defer func() { _ = recover() }() // closed already
				f()
			}()
		}
	}
	for _, h := range r.hosts {
		h.wire.stall(false)
		h.Close()
	}
}

var (
	errFuzzCancel = errors.New("cancelled by the program")
	errFuzzStop   = errors.New("consumed enough")
)

// fuzzStream is a stream with what its client and its handler have to do, and how
// far they have come. Its counters are read when all is quiet.
type fuzzStream struct {
	r                       *streamsRun
	i, client               int // client is the host that opens it
	outCapacity, inCapacity int
	through                 bool // Requests, rather than Send
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

	local, remote []error // what may end it, as the client and the handler see it
}

type handlerStep struct {
	size    int
	returns bool
	how     int
}

func newFuzzStream(r *streamsRun, i int) *fuzzStream {
	p := r.p
	s := &fuzzStream{
		r: r, i: i, client: p.n(2), through: p.n(2) == 0,
		outCapacity: pick(p, 1, 1, 2, 3, 8, 70), inCapacity: pick(p, 1, 0, 2, 3, 8, 40),
		deadline: pick(p, 0, 0, 0, 0, 200*time.Millisecond, 3*time.Second, 30*time.Second),
		sends:    make(chan int, 200), permits: make(chan bool, 200), taking: make(chan bool, 200),
		steps: make(chan handlerStep, 200), stopped: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(r.t.Context())
	return s
}

func (s *fuzzStream) handler() HandlerID { return HandlerID(s.i + 1) }

// cause notes what may end the stream, now or later. at is what the handler's
// context may say, nil for anything.
func (s *fuzzStream) cause(err, at error) {
	s.local = append(s.local, err)
	s.remote = append(s.remote, at)
}

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
		st, err := s.r.hosts[s.client].conn.NewStream(ctx, s.handler(), fmt.Append(nil, s.i))
		if err != nil {
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
			if s.clientGot >= len(s.sizes[1]) || !bytes.Equal(b, s.text(1, s.clientGot)) {
				s.r.t.Errorf("stream %d: message %d for the client is %.20q of %d bytes", s.i, s.clientGot, b, len(b))
			}
			s.clientGot++
			PutByteBuffer(b)
			return nil
		})
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
			s.clientSent++
		default:
			// Where it fails the stream has ended, and may have sent it.
			s.sendErr = st.Send(b)
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
		s.cause(errFuzzStop, nil)
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

// serve is the handler.
func (s *fuzzStream) serve(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) (result *RemoteErr) {
	s.runs++
	if s.runs > 1 || string(payload) != fmt.Sprint(s.i) {
		s.r.t.Errorf("stream %d was opened %d times, with %q", s.i, s.runs, payload)
	}
	go s.takeInput(ctx, in)
	for step := range s.steps {
		if !step.returns {
			b := s.text(1, s.handlerSent)
			s.handlerSent++ // it may arrive before this goroutine runs again
			out <- b
			continue
		}
		s.returned.Store(true)
		switch step.how {
		case 0, 1:
			return nil
		case 2:
			s.result = NewRemoteErrf("handler %d failed", s.i)
			return s.result
		default:
			s.result = NewRemoteErrString(fmt.Sprintf("grid: handler %d panicked: %d", s.handler(), s.i))
			panic(s.i)
		}
	}
	s.returned.Store(true)
	return nil
}

func (s *fuzzStream) takeInput(ctx context.Context, in <-chan []byte) {
	for {
		<-s.taking
		b, ok := <-in
		if !ok {
			// This goroutine may be one that the handler has left behind.
			s.inWell = ctx.Err() == nil && !s.returned.Load()
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

// mayEnd tells whether the stream may end with err, but for what its handler
// returns.
func (s *fuzzStream) mayEnd(err error) bool {
	if s.deadline > 0 && time.Since(s.began) >= s.deadline-time.Millisecond && errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	for _, cause := range s.local {
		if errors.Is(err, cause) {
			return true
		}
	}
	return s.result != nil && err.Error() == s.result.Error()
}

// disturbed tells whether anything but its handler may have ended the stream.
func (s *fuzzStream) disturbed() bool {
	return len(s.local) > 0 || s.deadline > 0 && time.Since(s.began) >= s.deadline-time.Millisecond
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

// checkAllCame looks at a stream whose ends take everything, and whose client has
// closed its input, but whose handler may go on.
func (s *fuzzStream) checkAllCame() {
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
		require.Equal(t, s.handlerSent, s.clientGot, "messages before the handler's error are lost")
	case !s.disturbed():
		require.Failf(t, "wrong end", "stream %d ended with %v, its handler with %v", s.i, s.err, s.result)
	default:
		require.True(t, s.mayEnd(s.err) || strings.Contains(s.err.Error(), context.DeadlineExceeded.Error()) && s.deadline > 0,
			"stream %d ended with %v; %v", s.i, s.err, s.local)
	}
}
