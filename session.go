package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/wsconn"
)

// session is the life of one websocket after its handshake. It owns the tables
// of calls and streams, the outgoing queue, and two goroutines: the reader, on
// which run is called, and the writer. A timer runs tick.
//
// When any of them finds a reason to end it, or the connection does, close ends
// all that it carries, each exactly once; nothing survives into a later
// session.
type session struct {
	// Set once.
	conn   *Connection
	ws     *wsconn.Conn
	opts   *ManagerOptions
	peerID [16]byte
	caps   caps // in use: both sides have named them
	began  time.Time

	out       outQueue
	workers   workers
	calls     callTable
	done      chan struct{} // closed by close
	stopped   chan struct{} // closed when the writer is gone
	closing   atomic.Bool   // closeAsync was called
	hungUp    atomic.Bool   // no more is written; see Manager.hangUp
	announced atomic.Bool   // that this side is shutting down
	leaving   atomic.Bool   // the peer is shutting down; see Connection.leave

	streams  muxTable[*muxClient]
	served   muxTable[*muxServer]
	openings muxTable[*opening] // what arrives in fragments, and is not complete

	ticker *time.Timer
	period time.Duration // of ticker

	// The reader's own.
	ackBuf  creditBuffer
	reading []byte // the present frame
	kept    *frame // the same, once somebody keeps it
	tasks   []task
	now     time.Time // when the present websocket message had been read
	pings   rate      // those that are answered
	// Streams that are not known, and whose peer was told so.
	lostStreams, lostServed answeredIDs
	// hasOpenings is false if there are certainly none.
	hasOpenings bool

	live liveness
	// Messages, and not websocket ones.
	messagesIn, messagesOut atomic.Int64
	clock                   atomic.Int64 // Unix nanoseconds at the last frame or tick

	ctx    context.Context // of the handlers of single requests; ends with the session
	cancel context.CancelCauseFunc

	closeOnce sync.Once
	err       error // why the session ended; published by done
}

func newSession(c *Connection, ws *wsconn.Conn, peerID [16]byte, peerCaps caps) *session {
	s := &session{
		conn:    c,
		ws:      ws,
		opts:    c.opts,
		peerID:  peerID,
		caps:    peerCaps & ourCaps,
		began:   time.Now(),
		done:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.out.init(c.crc, s.opts.MaxQueuedBytes)
	s.workers.init(&s.clock)
	s.streams.init()
	s.served.init()
	s.openings.init()
	s.live.init(s.began)
	s.clock.Store(s.began.UnixNano())
	s.pings.limit = s.opts.MaxPings
	s.period = tickPeriod(s.opts)
	s.calls.init(s.period)
	ws.OnPing(func() bool {
		if !s.pings.due(s.clock.Load()) {
			return false
		}
		s.out.poke()
		return true
	})
	return s
}

func (s *session) wide() bool { return s.caps&capWideCredits != 0 }

// run reads until the session ends, and returns why. It is the reader; all that
// the session has started is gone when it returns, but for handlers that are
// still running.
func (s *session) run() error {
	go s.write()
	// Under the lock of tick's rearming, so that a close meanwhile stops it.
	s.live.mu.Lock()
	s.ticker = time.AfterFunc(s.period, s.tick)
	select {
	case <-s.done: // before it began
		s.ticker.Stop()
	default:
	}
	s.live.mu.Unlock()

	s.close(s.read())
	<-s.stopped
	return s.err
}

func (s *session) read() error {
	for {
		b, err := s.ws.ReadMessage()
		if err != nil {
			switch {
			case errors.Is(err, wsconn.ErrTooLarge):
				return tooLargeFrameError(s.opts.MaxMessageSize)
			case errors.Is(err, io.ErrUnexpectedEOF):
				return errPeerClosed
			}
			return err
		}
		select {
		case <-s.done:
			// What the socket still held is for calls that were told of the end.
			bytepool.Put(b)
			return s.err
		default:
		}
		s.setNow(time.Now())
		s.live.messages.Add(1)
		s.reading = b
		err = s.dispatchFrame(b)
		if s.kept != nil {
			s.kept.release()
		} else {
			bytepool.Put(b)
		}
		s.reading, s.kept = nil, nil
		s.workers.submit(s.tasks...)
		clear(s.tasks)
		s.tasks = s.tasks[:0]
		if err != nil {
			return err
		}
	}
}

// setNow is called by the reader for every frame.
func (s *session) setNow(now time.Time) {
	s.now = now
	s.clock.Store(now.UnixNano())
}

// passed tells whether it is past a deadline. The clock is asked only where it may
// be, because that is slow.
func (s *session) passed(deadline time.Time) bool {
	if deadline.IsZero() || deadline.UnixNano()-s.clock.Load() > int64(2*s.period) {
		return false
	}
	return !time.Now().Before(deadline)
}

func (s *session) write() {
	defer close(s.stopped)
	for {
		full, err := s.out.wait()
		if err != nil {
			return
		}
		if !full {
			runtime.Gosched() // others that are about to send join the batch
		}
		urgent, normal := s.out.take()
		if !s.hungUp.Load() {
			err = s.ws.WritePong()
		}
		for _, b := range [...]batch{urgent, normal} {
			if err == nil && b.count > 0 && !s.hungUp.Load() {
				err = s.ws.WriteMessage(b.frame())
				s.live.sent.Add(1)
				s.messagesOut.Add(int64(b.count))
			}
			b.release()
		}
		// Closing the socket now would take back what the peer has not read yet.
		if err != nil && !s.hungUp.Load() {
			s.close(fmt.Errorf("write: %w", err))
			return
		}
	}
}

// close ends the session for a reason. All calls and streams on it have been
// told when it returns; it waits for nothing. Only the first call has an effect.
func (s *session) close(reason error) {
	s.closeOnce.Do(func() {
		s.err = disconnected(reason)
		close(s.done)
		s.cancel(s.err)
		s.conn.lost(s) // no new calls
		s.out.close(s.err)
		s.ws.Close()
		s.live.mu.Lock()
		if s.ticker != nil {
			s.ticker.Stop()
		}
		s.live.mu.Unlock()
		s.calls.close(s.err)
		for _, m := range s.streams.close() {
			m.finish(s.err, 0)
		}
		for _, m := range s.served.close() {
			m.abort(s.err, 0)
		}
		for _, o := range s.openings.close() {
			s.giveUp(o.id)
		}
		s.workers.close()
	})
}

// send implements frameSender.
func (s *session) send(done <-chan struct{}, m message, seq *sequence) error {
	if s.fragmented(&m) {
		_, err := s.sendFragments(done, &m, seq, time.Time{}, nil)
		return err
	}
	return s.out.send(done, &m, seq)
}

// fragmented tells whether m is sent in fragments.
func (s *session) fragmented(m *message) bool {
	return len(m.Payload) > wholeSize && s.caps&capFragments != 0
}

// post implements frameSender.
func (s *session) post(m message, seq *sequence) {
	if err := s.out.post(&m, seq); err != nil {
		s.closeAsync(err)
	}
}

// closeAsync is close for callers that hold locks which close takes.
func (s *session) closeAsync(reason error) {
	if !s.closing.Swap(true) {
		go s.close(reason)
	}
}

func (s *session) clientEnded(m *muxClient) { s.streams.remove(m.id) }
func (s *session) serverEnded(m *muxServer) { s.served.remove(m.id) }
func (s *session) start(t task)             { s.workers.submit(t) }
func (s *session) logger() *slog.Logger     { return s.conn.log }
func (s *session) overload(err error)       { s.conn.overload(err) }

// single makes a single request and waits for its answer.
func (s *session) single(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	deadline, hasDeadline := ctx.Deadline()
	ms, err := remainingMS(deadline, defaultDeadline)
	if err != nil {
		return nil, err
	}
	c, err := s.calls.open(s.conn.nextMuxID(), !hasDeadline)
	if err != nil {
		return nil, err
	}
	m := message{MuxID: c.id, DeadlineMS: ms, Handler: id, Op: opRequest, Flags: flagEOF}
	m.setPayload(payload)
	if s.caps&capMetadata != 0 {
		m.setMetadata(metadata)
	}
	if sub != nil {
		m.Sub = sub
		m.Flags |= flagSubroute
	}
	if err := s.sendRequest(ctx, c, &m); err != nil {
		return s.calls.abandon(c, err)
	}
	if ctx.Done() == nil {
		return s.calls.result(c, <-c.answered)
	}
	select {
	case a := <-c.answered:
		return s.calls.result(c, a)
	case <-ctx.Done():
		return s.calls.abandon(c, context.Cause(ctx))
	}
}

// sendRequest queues a request, waiting for room until its deadline, which may
// be the default one.
func (s *session) sendRequest(ctx context.Context, c *call, m *message) error {
	large := s.fragmented(m)
	if !large {
		if full, err := s.out.trySend(m, nil); !full {
			return err
		}
	}
	if c.expires != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultDeadline)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	var started bool
	var err error
	if large {
		// Not further than to an early answer, a refusal.
		started, err = s.sendFragments(ctx.Done(), m, nil, deadline, func() bool { return len(c.answered) == 0 })
	} else {
		err = s.sendInTime(ctx.Done(), m, nil, deadline)
	}
	if err == errSendCancelled {
		if started {
			s.post(message{MuxID: c.id, Op: opDisconnectServerMux}, nil)
		}
		err = cmp.Or(context.Cause(ctx), context.DeadlineExceeded)
	}
	return err
}

// openStream opens a stream and waits until the peer has taken it on.
func (s *session) openStream(ctx context.Context, id HandlerID, sub *subHandlerID, payload, metadata []byte, seen *observed, c capacities) (*muxClient, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	m := newMuxClient(ctx, s, s.conn.nextMuxID(), id, c, s.wide(), time.Now())
	m.maxMessage = s.opts.MaxMessageSize
	m.in.maxBytes = s.opts.MaxStreamBytes
	m.closing = s.conn.managerEnds
	m.seen = seen
	if s.caps&capMetadata == 0 {
		metadata = nil
	}
	if !s.streams.add(m.id, m) {
		return nil, s.endError()
	}
	if err := m.open(payload, metadata, sub, c.known && c.in == 0); err != nil {
		return nil, err
	}
	return m, nil
}

// endError is why the session ended; it has.
func (s *session) endError() error {
	<-s.done
	return s.err
}

// tooLargeFrameError is a websocket message above the limit.
func tooLargeFrameError(limit int) error {
	return fmt.Errorf("%w: the peer sent more than %d bytes, MaxMessageSize is %d bytes", ErrMessageTooLarge, limit+frameOverhead, limit)
}
