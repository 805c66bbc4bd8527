package grid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/workers"
)

// serveStream runs a handler over channels of any type: the raw and the typed ones are this, with
// different ways to decode and encode. decode and encode own the buffer that they are given, and
// give away the one that they return. noInput is a closed channel.
func serveStream[In, Out any](m *muxServer, noInput chan In, decode func([]byte) (In, error), encode func(Out) ([]byte, error),
	handle func(ctx context.Context, payload []byte, in <-chan In, out chan<- Out) *RemoteErr,
) {
	in, out := noInput, make(chan Out, min(m.handler.outCapacity, maxOutBuffer))
	p := &streamPump[In, Out]{m: m, out: out, decode: decode, encode: encode}
	if m.hasInput {
		in = make(chan In, m.inBuffer())
		p.in, p.given = in, in
		m.in.setHolder(p, m.handler.inputDecodes)
	}
	m.host.submit(p)

	defer func() { m.handled(recover()) }()
	if ctx, payload, ok := m.beginHandling(); ok {
		m.result = handle(ctx, payload, in, out)
	}
}

// closedChan is a channel for handlers without input.
func closedChan[In any]() chan In {
	c := make(chan In)
	close(c)
	return c
}

// inBuffer is how many messages the handler's input channel holds, so that handler and pump need
// not meet for each. Half of what the client may send is kept for what is not in the channel, since
// credits are returned when the pump next looks. A version 1 peer gets a credit back for each
// message that is passed on.
func (m *muxServer) inBuffer() int {
	if !m.wide {
		return 0
	}
	return min(m.inCredits()/2, maxInBuffer)
}

// maxInBuffer bounds the buffer of a handler's input channel, in messages.
const maxInBuffer = 16

// maxOutBuffer bounds the buffer of a handler's output channel, in messages.
const maxOutBuffer = 64

// errHandlerExited is the result of a handler that called runtime.Goexit.
var errHandlerExited = NewRemoteErrString("handler ended its goroutine")

// handlerResult makes a panic of a handler its result.
func handlerResult(recovered any, result *RemoteErr, label string, log *slog.Logger, panics *errlog.Log) *RemoteErr {
	if recovered == nil {
		return result
	}
	panics.Panicked(log.With("handler", label), "grid: handler panicked", recovered)
	return NewRemoteErrf("grid: handler %s panicked: %s", label, clip.Text(fmt.Sprint(recovered)))
}

// streamPump stands between a handler's channels and its stream: it hands on what the client has
// sent, and returns a credit for each message that the handler has taken; it sends what the handler
// sends, and at last its result. It runs until the handler has returned.
type streamPump[In, Out any] struct {
	workers.Queued
	m      *muxServer
	decode func([]byte) (In, error)
	encode func(Out) ([]byte, error)

	in      chan In     // nil once it is closed
	given   chan In     // the same, set once
	inHand  atomic.Bool // there is a next
	waiting int         // messages in given when it was last looked at
	next    In          // for the handler, if hasNext

	out  <-chan Out
	last Out // from the handler, if hasLast: it waits for a credit

	hasNext, hasLast bool
	// sending is closed when a large message of the handler, which is sent beside the pump, is on
	// its way; nil if there is none.
	sending chan struct{}
}

// Run implements workers.Task.
func (p *streamPump[In, Out]) Run() {
	m := p.m
	out, finished := p.out, false
	// Each by itself: an interceptor may end the goroutine.
	defer m.freeSlot()
	defer func() { m.seen.endServed(m.outcome()) }()
	defer m.in.discharge()
	defer func() {
		if !finished {
			// Code of the application's, a constructor or an encoder, has ended the goroutine.
			m.abort(errPumpExited, tellReason)
			p.closeInput()
			for handling := true; handling; {
				select {
				case <-out:
				case <-m.returned:
					handling = false
				}
			}
		}
	}()
	for p.step() {
	}
	// The context before the input, for a goroutine that the handler has left behind: the other way
	// round would be the end of the input.
	m.handlerReturned()
	p.closeInput()
	m.dropInput()
	if p.hasLast {
		p.send(p.last)
	}
	// What was sent before the return, and no more: a goroutine that the handler has left behind
	// must not keep the stream going.
	for range len(p.out) {
		p.send(<-p.out)
	}
	p.settle()
	m.sendResult()
	finished = true
}

var errPumpExited = errors.New("grid: the goroutine of the stream was ended by a constructor or an encoder")

// step moves what can be moved, in either direction, or waits until something can. It reports
// whether the handler still runs.
func (p *streamPump[In, Out]) step() bool {
	m := p.m
	p.feed()
	moved, credit := p.drain()
	if moved {
		select {
		case <-m.returned: // however much a goroutine that was left behind sends
			return false
		default:
			return true
		}
	}
	var (
		arrival, dead <-chan struct{}
		in            chan In
		out           = p.out
	)
	switch {
	case p.hasNext:
		in, dead = p.in, m.dead
	case p.in != nil:
		arrival = m.in.signal
	}
	if p.hasLast || p.sending != nil {
		out = nil
	}
	select {
	case v, ok := <-out:
		p.accept(v, ok)
	case <-p.sending:
		p.sending = nil
	case in <- p.next:
		p.handedOn()
	case <-arrival:
	case <-credit:
	case <-dead:
		p.closeInput()
	case <-m.returned:
		return false
	}
	return true
}

// feed hands on what it can without waiting.
func (p *streamPump[In, Out]) feed() {
	for p.in != nil && (p.hasNext || p.fill()) {
		select {
		case p.in <- p.next:
			p.handedOn()
			continue
		default:
		}
		break
	}
	p.account()
}

// fill gets the next message of the input. It reports whether there is one; where none will be any
// more, in is closed. Where the stream was aborted, the handler's context has ended before.
func (p *streamPump[In, Out]) fill() bool {
	p.inHand.Store(true) // before it is held, so that it counts all the while
	msg, ok, ended, err := p.m.in.hold()
	switch {
	case ended:
		p.closeInput()
	case err != nil:
		p.m.refuse(err)
		p.closeInput()
	}
	if !ok {
		p.inHand.Store(false)
		return false
	}
	n := msg.size()
	v, err := p.decode(msg.join())
	if err != nil {
		p.m.fail(err)
		p.closeInput()
		return false
	}
	if p.m.handler.inputDecodes > 0 {
		if err := p.m.in.holdMore(heldBytes(v, n)); err != nil {
			p.m.refuse(err)
			p.closeInput()
			return false
		}
	}
	p.setNext(v, true)
	return true
}

func (p *streamPump[In, Out]) handedOn() {
	var zero In
	p.setNext(zero, false)
	p.waiting++
}

func (p *streamPump[In, Out]) setNext(v In, has bool) {
	p.next, p.hasNext = v, has
	p.inHand.Store(has)
}

// holds implements holder.
func (p *streamPump[In, Out]) holds() int {
	n := len(p.given)
	if p.inHand.Load() {
		n++
	}
	return n
}

// account returns the credits of what the handler has taken, and what it counted, also once the
// input is closed.
func (p *streamPump[In, Out]) account() {
	m, held := p.m, len(p.given)
	if p.waiting <= held {
		return
	}
	grant := m.in.handedOn(p.waiting-held, held == 0 || held < cap(p.given))
	p.waiting = held
	m.grant(grant)
}

// closeInput closes in. What is in it stays there, also where the stream was aborted: what can be
// taken out of it goes from its head, and the handler, which may be reading, would see a hole. It
// counts until the handler has returned.
func (p *streamPump[In, Out]) closeInput() {
	if p.in == nil {
		return
	}
	close(p.in)
	var zero In
	p.in = nil
	p.setNext(zero, false)
}

// drain sends what it can without waiting for the handler or a credit. It reports whether it has
// sent anything, and returns what gets a token when there may be a credit, if it lacks one.
func (p *streamPump[In, Out]) drain() (moved bool, credit <-chan struct{}) {
	for range maxOutBuffer {
		if p.sending != nil {
			return moved, nil
		}
		if !p.hasLast {
			select {
			case v, ok := <-p.out:
				p.accept(v, ok)
			default:
			}
			if !p.hasLast {
				return moved, nil
			}
		}
		if credit = p.m.credits.Ready(); credit != nil {
			return moved, credit
		}
		v := p.last
		var zero Out
		p.last, p.hasLast = zero, false
		p.send(v)
		moved = true
	}
	return moved, nil
}

// accept takes what the handler has sent, or, with ok false, that it has closed out.
func (p *streamPump[In, Out]) accept(v Out, ok bool) {
	if !ok {
		p.out = nil // closed, which it must not be
		return
	}
	p.last, p.hasLast = v, true
}

// send sends one message of the handler. Of an aborted stream it is thrown away.
func (p *streamPump[In, Out]) send(v Out) {
	p.settle()
	m := p.m
	b, err := p.encode(v)
	if err != nil {
		m.fail(fmt.Errorf("grid: handler %s: encoding a message: %w", m.handler.label, err))
		return
	}
	if err := m.sendSize.check(len(b)); err != nil {
		m.fail(err)
	} else if m.credits.Reserve(context.Background()) == nil { // else aborted
		m.seen.sent(len(b))
		msg := message{Op: opMuxServerMsg}
		msg.setPayload(notNil(b))
		if len(b) > wholeSize {
			p.sendBeside(msg)
			return
		}
		m.send(msg)
	}
	bytepool.Put(b)
}

// settle waits for a large message that is being sent.
func (p *streamPump[In, Out]) settle() {
	if p.sending != nil {
		<-p.sending
		p.sending = nil
	}
}

// sendBeside sends a large message, which takes its time: the input must not wait for that. The
// next message does.
func (p *streamPump[In, Out]) sendBeside(msg message) {
	sent := make(chan struct{})
	p.sending = sent
	p.m.host.submit(workers.Func(func() {
		defer close(sent)
		p.m.send(msg)
		bytepool.Put(msg.Payload)
	}))
}
