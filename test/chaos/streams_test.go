package chaos

import (
	"context"
	"errors"
	"io"
	"iter"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
)

// opened is a stream of either kind.
type opened[T any] interface {
	Send(T) error
	SendContext(context.Context, T) error
	Recv() (T, error)
	Finish(context.Context) error
	CloseSend()
	Results(func(T) error) error
	All() iter.Seq2[T, error]
	Done() <-chan struct{}
	Err() error
}

// stream opens a stream and sees it through.
func (c *client) stream(call *call) error {
	m := c.cluster.model
	m.tally.streams.Add(1)
	id := responses + grid.HandlerID(c.rng.IntN(4))
	call.id = id
	call.what = [...]string{"stream of responses", "stream of requests", "two-way stream", "typed stream"}[id-responses]
	count := uint32(c.rng.IntN(40))
	if c.rng.IntN(10) == 0 {
		count = uint32(c.rng.IntN(400))
		call.size = uint32(c.rng.IntN(1 << 10))
	}
	// One that is larger than a host takes fails alone: the stream would go on without it.
	call.size = min(call.size, leastSize)
	call.count = count
	if id != responses {
		call.inputs = count
		if call.end != endsWell && count > 0 && c.rng.IntN(2) == 0 {
			call.count = uint32(c.rng.IntN(int(count)))
		}
	} else if call.end != endsWell {
		call.count /= 2
	}
	if count > 40 {
		call.pause = 0
	}
	consumer := consumer{
		form:        consumption(c.rng.IntN(3)),
		channel:     c.rng.IntN(2) == 0,
		hurried:     c.rng.IntN(4) == 0,
		stopAfter:   -1,
		finishAfter: -1,
	}
	if c.rng.IntN(8) == 0 {
		consumer.slow = time.Duration(1+c.rng.IntN(4)) * time.Millisecond
	}
	if !c.calm && c.rng.IntN(12) == 0 {
		call.stopsEarly = true
		consumer.stopAfter = c.rng.IntN(10)
	} else if !c.calm && consumer.form != byResults && c.rng.IntN(4) == 0 {
		consumer.finishAfter = 1 + c.rng.IntN(10)
		call.traits |= endsShort
	}

	payload := call.encode(c.rng.IntN(2 << 10))
	call.largest = max(len(payload), int(call.size))
	m.beginCall(call)
	var err error
	if id == typedTwoWay {
		p := grid.NewBytesWith(payload)
		var st *grid.TypedStream[*grid.Bytes, *grid.Bytes]
		st, err = intercepted(func() (*grid.TypedStream[*grid.Bytes, *grid.Bytes], error) {
			return typedStream.Call(call.ctx, call.requester(), p)
		})
		p.Recycle()
		if err == nil {
			return consume(m, call, id, st, st.Requests, typed, consumer)
		}
	} else {
		var st *grid.Stream
		st, err = intercepted(func() (*grid.Stream, error) { return call.requester().NewStream(call.ctx, id, payload) })
		grid.PutByteBuffer(payload)
		if err == nil {
			return consume(m, call, id, st, st.Requests, raw, consumer)
		}
	}
	m.judge(call, err)
	m.failed(call)
	return err
}

// consumer is how the messages of a stream are sent and taken.
type consumer struct {
	form      consumption
	channel   bool          // by Requests, in place of Send
	hurried   bool          // by SendContext, in place of Send
	slow      time.Duration // pause before each message
	stopAfter int           // messages; below 0 for never
	// finishAfter is after how many messages it is left by Finish; below 0 for never.
	finishAfter int
}

// consumption is by what a stream is consumed.
type consumption int

const (
	byResults consumption = iota
	byAll
	byRecv
)

// answers is how many messages the handler of a call sends.
func (c *call) answers(id grid.HandlerID) int {
	if id == requests {
		if c.count < c.inputs {
			return 0
		}
		return 1
	}
	return int(c.count)
}

// consume sends all inputs of a stream and takes its messages.
func consume[T any](m *model, c *call, id grid.HandlerID, st opened[T], reqs chan<- T, kind messages[T], how consumer) error {
	if takes := id != responses; takes != (reqs != nil) {
		m.violation("%v takes input: %t, but Requests is nil: %t", c, takes, reqs == nil)
		return st.Err()
	}
	sent := make(chan struct{})
	var queued atomic.Int64 // inputs that were sent
	go func() {
		defer close(sent)
		if reqs != nil {
			send(m, c, st, reqs, kind, how, &queued)
		}
	}()

	got := 0
	next := func(v T) error {
		if got == how.stopAfter {
			kind.free(v)
			return errStopped
		}
		time.Sleep(how.slow)
		if err := c.follows(kind.bytes(v), true, got); err != nil {
			m.violation("message %d of %v: %v", got, c, err)
		}
		kind.free(v)
		got++
		return nil
	}
	var err error
	var before int64 // inputs that were sent before Finish
	finish := func() error {
		before = queued.Load()
		c.finishes.Store(true)
		c.inputEnded.Store(true)
		return st.Finish(c.ctx)
	}
	switch how.form {
	case byAll:
		for v, e := range st.All() {
			if err = e; err == nil {
				err = next(v)
			}
			if err == nil && got == how.finishAfter {
				err = finish()
				break
			}
			if err != nil {
				break
			}
		}
	case byRecv:
		for err == nil && got != how.finishAfter {
			var v T
			if v, err = st.Recv(); err == nil {
				err = next(v)
			}
		}
		switch {
		case err == io.EOF:
			err = nil
		case err == nil:
			err = finish()
		default: // it has ended, or is to
			c.inputEnded.Store(true)
			_ = st.Finish(ended)
		}
	default:
		err = st.Results(next)
	}
	m.judge(c, err)
	if c.finishes.Load() {
		<-sent
		if err == nil {
			m.finishedWell(c, before, queued.Load(), how)
		}
	} else if want := c.answers(id); got != want && (err == nil || isFailure(c, err)) {
		m.violation("%v ended with %v after %d of %d messages", c, err, got, want)
	}

	select {
	case <-st.Done():
	case <-time.After(tooLong):
		m.violation("%v has ended, but is not done", c)
	}
	if end := st.Err(); err == nil && end != nil {
		m.violation("%v ended well, but Err says %v", c, end)
	}
	select {
	case <-sent:
	case <-time.After(tooLong):
		m.violation("a send on %v still blocks after the stream has ended", c)
		<-sent
	}
	return err
}

// ended is a context that has ended.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// finishedWell checks what a stream whose Finish has returned nil has come to: the handler has had
// all of before inputs, and no more than queued. What was sent by Send is one as the other.
func (m *model) finishedWell(c *call, before, queued int64, how consumer) {
	m.tally.finished.Add(1)
	state := m.mark(c.call, 0)
	if state&hasInputs == 0 {
		return // it has not read to the end of its input
	}
	if how.channel {
		queued = max(queued, before)
	} else {
		before = queued
	}
	if n := int64(state >> inputsShift); n < before || n > queued {
		m.violation("%v was finished well, but its handler has had %d of %d inputs", c, n, queued)
	}
}

// isFailure reports whether err is that of the call's handler, with which it ends after it has sent
// all.
func isFailure(c *call, err error) bool {
	var remote *grid.RemoteErr
	return errors.As(err, &remote) && strings.HasSuffix(remote.Error(), failure(c.call))
}

// send sends all inputs, and their end.
func send[T any](m *model, c *call, st opened[T], reqs chan<- T, kind messages[T], how consumer, queued *atomic.Int64) {
	if how.channel {
		defer runtime.KeepAlive(st) // or nobody looks after reqs
		defer close(reqs)
		for i := range int(c.inputs) {
			v := kind.wrap(c.message(false, i))
			select {
			case reqs <- v: // also where the stream has ended
				queued.Add(1)
			case <-c.over: // nobody looks after reqs then
				kind.free(v)
				<-st.Done() // or the handler would take the close for the end
				return
			}
		}
		return
	}
	for i := range int(c.inputs) {
		v := kind.wrap(c.message(false, i))
		err := sendOne(st, v, how.hurried)
		kind.free(v)
		if err != nil {
			m.judgeSend(c, err)
			return // the stream has ended, and its input with it
		}
		queued.Add(1)
	}
	st.CloseSend()
}

// sendOne sends a message: in a hurry by a context that may end before there is room, upon which
// nothing was sent, and it is sent again.
func sendOne[T any](st opened[T], v T, hurried bool) error {
	for hurried {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		err := st.SendContext(ctx, v)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		select {
		case <-st.Done():
			hurried = false // by Send, which says how
		default:
		}
	}
	return st.Send(v)
}
