package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/fifo"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/offload"
)

// clientHost is the session as the opening end of a stream sees it.
type clientHost interface {
	frameSender
	callHost
	// sendOpening is send for a message that tells what is left until a deadline, if there is one.
	sendOpening(done <-chan struct{}, m message, seq *sequence, deadline time.Time) error
	// clientEnded takes the stream out of the session's table.
	clientEnded(m *muxClient)
}

// muxClient is the opening end of a stream.
//
// The session's reader calls its on* methods, which never block; the consumer calls results;
// senders call send. It ends once, by finish, with whatever came first: the handler's return, the
// caller's context, a broken rule, or the end of the session.
type muxClient struct {
	// Set once.
	host       clientHost
	id         uint64
	handler    HandlerID
	name       callName        // for errors
	wide       bool            // the peer has wide credits
	tellsBoth  bool            // its ack names both capacities
	takesData  bool            // the handler takes input; published by opened
	inCapacity int32           // of a handler of version 1, for what it is known
	ctx        context.Context // with which the stream goes on: the caller's, or an interceptor's
	caller     context.Context // the caller's
	deadline   time.Time       // of ctx, zero for none
	sendSize   sizeLimit
	// openingTime is how long it may take until the ack has come, apart from the deadline; 0 for any
	// time.
	openingTime time.Duration
	closing     <-chan struct{} // closed when the manager is
	done        chan struct{}   // closed by finish
	seen        *observed       // nil if nobody wants to know
	callbacks   *offload.Group  // runs functions of the application's

	in       inbox
	grantBuf creditBuffer   // the consumer's
	credits  credit.Credits // for what we send
	sendSeq  sequence
	asked    atomic.Bool // the open is queued, and so may be a ping
	opened   atomic.Bool // the ack has come
	sendUsed atomic.Bool // input comes through send, not through a channel
	// sending is taken while a message is sent: fragments of it stay together, and nothing follows
	// the end of the input.
	sending   fifo.Lock
	sendEnded atomic.Bool
	skipped   atomic.Bool // a message was thrown away, though the stream may end well
	finishing atomic.Bool // what still comes through a channel is thrown away

	// How many messages may be sent before the ack has come, where that is not waited for; and
	// where to keep what it tells.
	early   int
	told    *toldCapacities
	toldKey toldKey

	// The reader's own.
	recvSeq uint32
	acked   bool
	ending  bool // soon, by pastDeadline

	// When anything was heard of the stream, and when it was last pinged.
	heard, pinged monotime.Stamp
	unanswered    monotime.Time // when the first ping since it was heard of was sent; the tick's own

	mu      sync.Mutex // guards what follows
	ended   bool
	err     error
	stop    func() bool   // ends the watch on ctx
	opening *time.Timer   // runs for openingTime; nil for none
	over    chan struct{} // see forwarding; nil once it is closed
}

func newMuxClient(ctx context.Context, host clientHost, id uint64, handler HandlerID, c capacities, caps caps, now time.Time) *muxClient {
	m := &muxClient{
		host:      host,
		id:        id,
		handler:   handler,
		wide:      caps.wide(),
		tellsBoth: caps.bothCapacities(),
		ctx:       ctx,
		caller:    ctx,
		done:      make(chan struct{}),
	}
	deadline, _ := ctx.Deadline()
	m.deadline = pinned(now, deadline)
	// A peer of ours is right about its own handler's capacities, whatever is registered here. One
	// of version 1 is taken to have what we know, if anything.
	switch {
	case m.tellsBoth:
		m.in.init(0, true) // until the ack has come
	case m.wide:
		m.in.initUntold()
	case c.known:
		m.inCapacity = int32(c.in)
		m.in.initV1(c.out)
	default:
		m.inCapacity = 1 // if it takes any, one will do
		m.in.initUncounted()
	}
	m.heard.Store(monotime.Of(now))
	m.pinged.Store(monotime.Of(now))
	m.unanswered = monotime.Of(now)
	return m
}

// startEarly has connect not wait for the ack where told has the capacity of the handler. It is
// called before anybody knows of the stream.
func (m *muxClient) startEarly(told *toldCapacities, key toldKey) {
	m.told, m.toldKey = told, key
	if m.early = told.get(key); m.early > 0 {
		m.takesData = true
		m.credits.Reset(m.early, maxCapacity)
	}
}

// connect asks for the stream and waits until the peer has taken it on, unless it was started early.
func (m *muxClient) connect(payload, metadata []byte, sub *subHandlerID, noInput bool) (err error) {
	msg := message{MuxID: m.id, Handler: m.handler, Op: opConnectMux}
	msg.setPayload(payload)
	msg.setMetadata(metadata)
	msg.setSubroute(sub)
	if noInput {
		msg.Flags |= flagEOF
	}
	if msg.DeadlineMS, err = remainingMS(m.deadline); err != nil {
		err = cmp.Or(contextError(m.ctx), err)
		m.finish(err, 0)
		return err
	}
	// The stream is in the session's table, so it ends with the session; done tells of that as well
	// as of the context.
	m.watch()
	m.limitOpening()
	if err := m.host.sendOpening(m.done, msg, &m.sendSeq, m.deadline); err != nil {
		if err == errSendCancelled { // if it was not done that has ended the wait
			err = cmp.Or(contextError(m.ctx), context.DeadlineExceeded)
		}
		m.finish(err, dropWaiting)
		return unsent(m.endError())
	}
	now := monotime.Now()
	m.heard.Store(now)
	m.pinged.Store(now)
	m.asked.Store(true)
	// Nobody consumes yet, so the inbox's signal is ours. Who comes next looks before waiting for
	// it.
	for m.early == 0 && !m.opened.Load() {
		select {
		case <-m.done:
			if !m.opened.Load() { // it may have been, and ended already
				return m.endError()
			}
		case <-m.in.signal:
		}
	}
	return nil
}

// limitOpening ends the stream if the ack has not come when openingTime is over.
func (m *muxClient) limitOpening() {
	if m.openingTime == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ended {
		m.opening = time.AfterFunc(m.openingTime, m.openedLate)
	}
}

func (m *muxClient) openedLate() { m.cancel(context.DeadlineExceeded) }

// isOpenedInTime takes in that the ack has come, and reports whether openingTime was not over.
func (m *muxClient) isOpenedInTime() bool {
	if m.openingTime == 0 {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opening == nil || m.opening.Stop()
}

// watch ends the stream with the caller's context.
func (m *muxClient) watch() {
	if m.ctx.Done() == nil {
		return
	}
	stop := context.AfterFunc(m.ctx, m.cancelled)
	if !isPlain(m.ctx) {
		stop = m.stopApart(stop)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		stop()
		return
	}
	m.stop = stop
}

// stopApart is stop for a context of the application's, whose Value it calls: what ends the stream
// may be the reader.
func (m *muxClient) stopApart(stop func() bool) func() bool {
	return func() bool {
		m.callbacks.Go(func() { stop() })
		return true
	}
}

// isPlain reports whether a watch on ctx ends without a call of its methods: it is one that package
// context made to be cancelled. Others, also those with values, may lead to one of the
// application's.
func isPlain(ctx context.Context) bool {
	switch h := ctx.(type) {
	case *requestContext:
		return true
	case *handlerContext:
		ctx = h.Context
	}
	t := reflect.TypeOf(ctx)
	return t == cancelType || t == deadlineType
}

var cancelType, deadlineType = func() (c, d reflect.Type) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	withDeadline, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	return reflect.TypeOf(ctx), reflect.TypeOf(withDeadline)
}()

func (m *muxClient) cancelled() { m.cancel(doneError(m.ctx)) }

// cancel gives the stream up: what waits is dropped, the handler's context ends.
func (m *muxClient) cancel(cause error) { m.finish(cause, dropWaiting|tellPeer) }

// finish ends the stream, the first time it is called.
func (m *muxClient) finish(err error, how ending) {
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return
	}
	reason := err // as the peer hears of it
	if err != nil && how&asIs == 0 {
		err = m.name.error(err)
	}
	m.ended, m.err = true, err
	stop, over := m.stop, m.over
	m.over = nil
	if m.opening != nil {
		m.opening.Stop()
	}
	m.mu.Unlock()

	// Before the stream is unknown, for which the peer gets an answer without a reason.
	if how&(tellPeer|tellReason) != 0 {
		msg := message{MuxID: m.id, Op: opDisconnectServerMux}
		if how&tellReason != 0 {
			msg.setError(reason.Error())
		}
		m.host.post(msg, &m.sendSeq)
	}
	m.host.clientEnded(m)
	// Before the consumer sees the end, who may then send once more.
	if err != nil {
		m.credits.Close(err)
	} else {
		m.credits.Close(io.EOF)
	}
	m.sending.Close(errSendCancelled)
	if how&dropWaiting != 0 {
		m.in.drop(err)
	} else {
		m.in.end(err)
		m.in.discharge()
	}
	close(m.done)
	if over != nil {
		close(over)
	}
	m.seen.endApart(err)
	if stop != nil {
		stop()
	}
}

// fail ends the stream because the peer broke a rule.
func (m *muxClient) fail(err error) { m.finish(err, tellReason) }

// endError is how the stream ended, nil while it has not, or has ended well.
func (m *muxClient) endError() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// hasEnded reports whether finish was called.
func (m *muxClient) hasEnded() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}

// checkSeq reports whether a message that is numbered has the next number. It fails the stream
// where it has not.
func (m *muxClient) checkSeq(msg *message) bool {
	if msg.Seq != m.recvSeq {
		m.fail(fmt.Errorf("%w: %v has number %d, expected %d", ErrIncorrectSequence, msg.Op, msg.Seq, m.recvSeq))
		return false
	}
	m.recvSeq++
	if m.acked == (msg.Op == opAckMux) {
		m.fail(protocolErrorf("unexpected %v", msg.Op))
		return false
	}
	return true
}

func (m *muxClient) onAck(msg *message) {
	if !m.checkSeq(msg) {
		return
	}
	m.acked = true
	if !m.isOpenedInTime() {
		m.openedLate() // if it is not about to anyway
		return
	}
	in, limit := int(m.inCapacity), int(m.inCapacity)
	if m.wide {
		var err error
		if in, err = m.parseAck(msg.Payload); err != nil {
			m.fail(err)
			return
		}
		limit = maxCapacity
	}
	if m.told != nil && in != m.early {
		m.told.put(m.toldKey, in)
	}
	if m.early > 0 {
		m.credits.Adjust(in-m.early, limit)
		if in == 0 {
			m.credits.Close(errNoInput) // none will come
		}
		m.opened.Store(true)
		return
	}
	m.credits.Reset(in, limit)
	m.takesData = in > 0
	m.opened.Store(true)
	m.in.poke()
}

// parseAck reads what a peer with wide credits tells of its handler, and returns how many messages
// we may send at first.
func (m *muxClient) parseAck(payload []byte) (in int, err error) {
	if !m.tellsBoth {
		return parseCredits(payload)
	}
	in, out, err := parseCapacities(payload)
	if err == nil {
		m.in.begin(out)
	}
	return in, err
}

// onMessage returns an error that ends the session.
func (m *muxClient) onMessage(p parcel) error {
	msg := p.message
	if !m.checkSeq(msg) {
		return nil
	}
	switch err := msg.payloadErr(); {
	case errors.Is(err, ErrProtocol):
		m.fail(err)
		return nil
	case err != nil:
		m.finish(err, 0)
		return nil
	}
	eof := msg.Flags&flagEOF != 0
	if eof && len(msg.Payload) == 0 && m.in.isAmid() {
		m.fail(protocolErrorf("%v with EOF alone amid a message", msg.Op))
		return nil
	}
	if !eof || len(msg.Payload) > 0 {
		m.seen.received(len(msg.Payload), msg.Flags&flagMore == 0)
		if err := receive(&m.in, p, m.host, m.fail); err != nil {
			return err
		}
	}
	if eof {
		m.finish(nil, 0)
	}
	return nil
}

func (m *muxClient) onUnblock(msg *message) {
	if !m.checkSeq(msg) {
		return
	}
	if err := addCredits(&m.credits, msg, m.wide); err != nil {
		m.fail(err)
	}
}

func (m *muxClient) onConnectError(err error) {
	if m.told != nil {
		m.told.put(m.toldKey, 0) // so that the next one is waited for
	}
	m.finish(err, 0)
}

func (m *muxClient) onDisconnect(msg *message) {
	err := msg.reason()
	switch {
	// A server of version 1 gives no reason where the deadline has passed.
	case err == nil && !m.wide && !m.deadline.IsZero() && time.Until(m.deadline) <= deadlineSlack:
		m.pastDeadline()
	case err == nil:
		m.finish(m.host.disconnected(errors.New("the remote dropped the stream")), 0)
	case !m.deadline.IsZero() && err.Error() == context.DeadlineExceeded.Error():
		m.pastDeadline()
	default:
		m.finish(err, 0)
	}
}

// pastDeadline ends a stream of which the server says that its deadline has passed. If that is so
// here in a moment, our own context ends it, which knows the cause; it is not asked on the reader,
// as it may be the application's.
func (m *muxClient) pastDeadline() {
	left := time.Until(m.deadline)
	switch {
	case left > deadlineSlack:
		m.finish(context.DeadlineExceeded, dropWaiting)
	case !m.ending:
		m.ending = true
		time.AfterFunc(left+deadlineSlack, func() {
			m.finish(cmp.Or(contextError(m.ctx), context.DeadlineExceeded), dropWaiting)
		})
	}
}

func (m *muxClient) onPong(p *pongMsg) {
	switch {
	case p.NotFound:
		m.finish(m.host.disconnected(errors.New("the remote does not know the stream")), 0)
	case p.Err != nil:
		m.finish(NewRemoteErrString(clip.Text(*p.Err)), tellPeer)
	}
}

// tick pings the stream and looks after its life (section 7). progress is when a large message last
// moved, behind which nothing else gets through. Pings are sent up to slack early rather than late;
// pings is how many may be sent.
func (m *muxClient) tick(now, progress time.Time, interval, slack time.Duration, pings *limit.Pace) {
	if !m.asked.Load() || !m.deadline.IsZero() && m.deadline.Sub(now) <= interval {
		return
	}
	clock, heard := monotime.Of(now), m.heard.Load()
	// The server has two intervals to answer, from the ping on.
	waits := m.unanswered > heard
	if waits && clock.Sub(max(m.unanswered, monotime.Of(progress))) >= 2*interval {
		m.finish(m.host.disconnected(errors.New("nothing heard of the stream for two ping intervals")), tellPeer)
		return
	}
	if clock.Sub(m.pinged.Load()) >= interval-slack && pings.Allow(clock) {
		m.pinged.Store(clock)
		if !waits {
			m.unanswered = clock
		}
		m.host.post(message{MuxID: m.id, Op: opPing}, &m.sendSeq)
	}
}
