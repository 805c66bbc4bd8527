package chaos

import (
	"errors"
	"iter"
	"runtime"
	"strings"
	"time"

	"github.com/gridrpc/grid"
)

// opened is a stream of either kind.
type opened[T any] interface {
	Send(T) error
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
	payload := call.encode(c.rng.IntN(2 << 10))
	consumer := consumer{
		all:       c.rng.IntN(2) == 0,
		channel:   c.rng.IntN(2) == 0,
		stopAfter: -1,
	}
	if c.rng.IntN(8) == 0 {
		consumer.slow = time.Duration(1+c.rng.IntN(4)) * time.Millisecond
	}
	if !c.calm && c.rng.IntN(12) == 0 {
		call.stopsEarly = true
		consumer.stopAfter = c.rng.IntN(10)
	}

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
	all       bool          // by All, in place of Results
	channel   bool          // by Requests, in place of Send
	slow      time.Duration // pause before each message
	stopAfter int           // messages; below 0 for never
}

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
	go func() {
		defer close(sent)
		if reqs != nil {
			send(m, c, st, reqs, kind, how.channel)
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
	if how.all {
		for v, e := range st.All() {
			if err = e; err == nil {
				err = next(v)
			}
			if err != nil {
				break
			}
		}
	} else {
		err = st.Results(next)
	}
	m.judge(c, err)
	if want := c.answers(id); got != want && (err == nil || isFailure(c, err)) {
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

// isFailure reports whether err is that of the call's handler, with which it ends after it has sent
// all.
func isFailure(c *call, err error) bool {
	var remote *grid.RemoteErr
	return errors.As(err, &remote) && strings.HasSuffix(remote.Error(), failure(c.call))
}

// send sends all inputs, and their end.
func send[T any](m *model, c *call, st opened[T], reqs chan<- T, kind messages[T], channel bool) {
	if channel {
		defer runtime.KeepAlive(st) // or nobody looks after reqs
		defer close(reqs)
		for i := range int(c.inputs) {
			v := kind.wrap(c.message(false, i))
			select {
			case reqs <- v: // also where the stream has ended
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
		err := st.Send(v)
		kind.free(v)
		if err != nil {
			m.judgeSend(c, err)
			return // the stream has ended, and its input with it
		}
	}
	st.CloseSend()
}
