package grid

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/workers"
	"github.com/gridrpc/grid/internal/wsconn"
)

// session is the life of one websocket after its handshake. It is made up of a part that reads, one
// that opens what the peer asks for, one that sends and one that watches, and of the tables of what
// is under way.
//
// When any of them finds a reason to end it, or the connection does, close ends all that it
// carries, each exactly once; nothing survives into a later session.
type session struct {
	// Set once.
	conn   *Connection
	ws     *wsconn.Conn
	opts   *ManagerOptions
	peerID [16]byte
	caps   caps // in use: both sides have named them
	terms  terms
	// muxBase is what is added to the numbers of calls and streams.
	muxBase uint64
	began   time.Time
	ctx     context.Context // of the handlers of single requests; ends with the session
	cancel  context.CancelCauseFunc

	reader  reader
	opener  opener
	sender  sender
	watch   watch
	workers workers.Pool // for handlers, and what goes with those of streams

	calls   callTable            // single requests that were made here
	streams muxTable[*muxClient] // streams that were opened here
	served  muxTable[*muxServer] // streams that are served here
	// requests that are served here, of which a client that gives up says so, and whose handlers
	// have a context.
	cancellable muxTable[*requestContext]
	told        toldCapacities // of handlers of the peer

	clock monotime.Stamp // when the last frame or tick was

	announced atomic.Bool // that this side is shutting down
	leaving   atomic.Bool // the peer is shutting down; see Connection.setAside

	// The number of the ping behind the announcement, 0 before, and what is closed once the peer has
	// answered it: nothing new comes from it then.
	drainPing atomic.Uint64
	drainPong sync.Once
	drained   chan struct{}

	drainOnce sync.Once
	draining  chan struct{} // closed by beginDraining; see [Draining]

	closing   atomic.Bool // closeAsync was called
	closeOnce sync.Once
	done      chan struct{} // closed by close
	err       error         // why the session ended; published by done
}

// peer is what the other side of a handshake has said of itself.
type peer struct {
	id   [16]byte
	caps caps
	told told
}

func newSession(c *Connection, ws *wsconn.Conn, p peer) *session {
	s := &session{
		conn:   c,
		ws:     ws,
		opts:   c.opts,
		peerID: p.id,
		caps:   p.caps & c.caps(),
		terms:  c.opts.termsWith(c.remote, p.told),
		began:  time.Now(),
		done:   make(chan struct{}),

		draining: make(chan struct{}),
		drained:  make(chan struct{}),
	}
	if s.caps == 0 {
		s.muxBase = mux1Base
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.clock.Store(monotime.Of(s.began))
	s.reader.init(s)
	s.opener.init(s)
	s.sender.init(s)
	s.watch.init(s)
	s.workers.Init(&s.clock)
	s.streams.init()
	s.served.init()
	s.cancellable.init()
	return s
}

// run reads until the session ends, and returns why. Its goroutine is the reader; all that the
// session has started is gone when it returns, but for handlers that are still running.
func (s *session) run() error {
	go s.sender.run()
	s.watch.start()
	s.close(s.reader.run())
	<-s.sender.stopped
	s.conn.traffic.Flush()
	return s.err
}

// close ends the session for a reason. All calls and streams on it have been told when it returns;
// it waits for nothing. Only the first call has an effect.
func (s *session) close(reason error) {
	s.closeOnce.Do(func() {
		s.err = s.disconnected(reason)
		close(s.done)
		s.conn.lost(s) // no new calls
		s.sender.out.close(s.err)
		s.ws.Close()
		// Once nothing can be sent: what a handler makes of the end is no answer to its caller.
		s.cancel(s.err)
		s.watch.stop()
		s.calls.close(s.err)
		for _, m := range s.streams.close() {
			m.finish(s.err, 0)
		}
		for _, m := range s.served.close() {
			m.abort(s.err, 0)
		}
		s.opener.close()
		s.workers.Close()
		s.beginDraining() // last: what has been cut off can tell that from an end to come
	})
}

// closeAsync is close for callers that hold locks which close takes.
func (s *session) closeAsync(reason error) {
	if !s.closing.Swap(true) {
		go s.close(reason)
	}
}

// endError is why the session ended; it has.
func (s *session) endError() error {
	<-s.done
	return s.err
}

// untilIdle returns nil if no call or stream of this side is under way, and the last answers are
// written, else what is closed when that may have changed.
func (s *session) untilIdle() <-chan struct{} {
	if busy := s.calls.untilIdle(); busy != nil {
		return busy
	}
	if busy := s.streams.untilIdle(); busy != nil {
		return busy
	}
	return s.sender.out.untilIdle()
}

// announceShutdown tells the peer, if it knows what that means, and then what is under way here: so
// a peer whose stream ends because of it knows already that it must look for another link.
func (s *session) announceShutdown() {
	if s.caps&capDrain != 0 && !s.announced.Swap(true) {
		id := s.nextMuxID()
		s.drainPing.Store(id)
		s.sender.post(message{Op: opDisconnect}, nil)
		s.sender.post(message{MuxID: id, Op: opPing}, nil)
	}
	s.beginDraining()
}

// refuseCalls has no call or stream begin here any more. Those that have are under way for untilIdle.
func (s *session) refuseCalls() {
	s.sender.out.refuseOpenings(s.disconnected(errShuttingDown))
}

// awaitDrained waits until the peer has nothing on its way that it began before it knew of the
// shutdown, the session ends, or ctx. The peer answers the ping, of a stream that it does not know,
// behind all that it had to say before, and begins nothing after.
func (s *session) awaitDrained(ctx context.Context) {
	if !s.announced.Load() {
		return
	}
	select {
	case <-s.drained:
	case <-s.done:
	case <-ctx.Done():
	}
}

// pongOfDrain takes in a pong of a stream. It reports whether it is that of the announcement.
func (s *session) pongOfDrain(id uint64) bool {
	if id != s.drainPing.Load() {
		return false
	}
	s.drainPong.Do(func() { close(s.drained) })
	return true
}

// beginDraining tells what is under way that the session will end, or has.
func (s *session) beginDraining() { s.drainOnce.Do(func() { close(s.draining) }) }

func (s *session) drains() <-chan struct{} { return s.draining }

// pastDeadline reports whether it is past a deadline. The clock is asked only where it may be,
// because that is slow.
func (s *session) pastDeadline(deadline time.Time) bool {
	if deadline.IsZero() || monotime.Of(deadline).Sub(s.clock.Load()) > 2*s.watch.period {
		return false
	}
	return !time.Now().Before(deadline)
}

// The session as the ends of its streams see it: clientHost and serverHost.

func (s *session) post(m message, seq *sequence) { s.sender.post(m, seq) }

func (s *session) send(done <-chan struct{}, m message, seq *sequence) error {
	return s.sender.send(done, m, seq)
}

func (s *session) trySend(m message, seq *sequence) (full bool, err error) {
	return s.sender.trySend(&m, seq)
}

func (s *session) sendOpening(done <-chan struct{}, m message, seq *sequence, deadline time.Time) error {
	return s.sender.sendInTime(done, &m, seq, deadline)
}

func (s *session) disconnected(reason error) error { return s.conn.disconnected(reason) }

func (s *session) clientEnded(m *muxClient) { s.streams.remove(m.id) }
func (s *session) serverEnded(m *muxServer) { s.served.remove(m.id) }
func (s *session) submit(t workers.Task)    { s.workers.Resume(t) }
func (s *session) logger() *slog.Logger     { return s.conn.log }
func (s *session) overload(err error)       { s.conn.overload(err) }

func (s *session) beginServe(ctx context.Context, o *observed, info CallInfo, metadata []byte) (context.Context, error) {
	return s.conn.beginServe(ctx, o, info, metadata)
}
