package grid

import (
	"context"
	"errors"
	"iter"
	"time"
	"weak"
)

// Stream is the opening end of a two-way stream; see [Connection.NewStream].
//
// One goroutine consumes it, with Results, All, Recv, RecvContext or Reader; that may happen while
// others send. A stream that is not consumed to its end must be ended by Finish or its context, or
// it holds resources here and on the remote host. It ends when the handler has returned, when the
// context ends, when the consumer stops early, or with the connection.
type Stream struct {
	// Requests takes the messages for the handler; nil if it takes none. Closing it tells the
	// handler that the input has ended, and must be done once there is no more, also where none was
	// sent. A buffer sent to it is grid's from then on.
	//
	// Until it is closed, a stream that has ended still holds a goroutine, or for some seconds
	// after nobody holds the Stream any more.
	//
	// Sending blocks while the handler has not kept up. It never blocks for ever: once the stream
	// has ended, what is sent is thrown away. Only a send after the Manager was closed, or through
	// a copy of this channel whose Stream nobody holds any more, is not looked after.
	Requests chan<- []byte

	mux *muxClient
}

// newStream wraps a stream that the peer has taken on.
func newStream(m *muxClient) *Stream {
	s := &Stream{mux: m}
	if m.takesData {
		reqs := make(chan []byte)
		s.Requests = reqs
		go forwardRequests(s, m, reqs, m.forwarding(), func(b []byte) ([]byte, error) { return b, nil })
	}
	return s
}

// Send sends one message to the handler, waiting while it has not kept up. b stays the caller's,
// and nil arrives as empty.
//
// It returns nil once the message is queued, which is before it has arrived. What is queued goes
// out in order, and ahead of the end of the input: CloseSend and Finish wait for it, and take
// nothing of it back. The end of the stream's context does, and so does breaking off its consumer:
// what the handler has not taken by then is thrown away. That the handler has taken all is known
// once the stream has ended well, by Finish or Results.
//
// If the stream has ended it returns the error with which it did, or [io.EOF] if it ended well;
// Results tells the rest. Once the input was ended it returns an error that is [io.ErrClosedPipe].
// A message above the size limit is refused with [ErrMessageTooLarge], and the stream lives on.
//
// Send may be called concurrently, with CloseSend and Finish as well. A stream is sent to either
// with Send, SendContext, Writer and CloseSend or through Requests.
func (s *Stream) Send(b []byte) error { return s.mux.sendInput(context.Background(), b) }

// SendContext is Send that waits no longer than ctx. If that ends first it returns the error of it,
// nothing was sent, and the stream lives on; a message above 64 KiB that has got its credit goes on
// until the stream ends.
func (s *Stream) SendContext(ctx context.Context, b []byte) error { return s.mux.sendInput(ctx, b) }

// CloseSend ends the input of the handler, for streams that are sent to with Send; it stands for
// closing Requests, which must not be used any more: a message that is sent through it all the same
// ends the stream with an error. All that Send has returned nil for goes before the end; a Send
// that still waits for the handler returns an error. Only the first call has an effect.
//
// The stream goes on: see Finish for its end.
func (s *Stream) CloseSend() { _ = s.mux.closeInput() }

// Finish ends the input of the handler, as CloseSend does, throws away what the handler has sent
// and still sends, and returns how the stream ended, as Results says it: nil where the handler has
// returned nil. So it knows of everything that was sent whether the handler wanted it. If ctx ends
// first, the stream and the context of the handler end with it.
//
// It may follow Recv, or come within a loop over All, where the rest of the answers is of no
// interest. A consumer that has missed messages because of it gets an error, rather than an end
// that looks good. Of a stream that is sent to through Requests, all that was received there before
// goes before the end, and what comes later is thrown away, so that a sender may still be at it;
// closing Requests, before or later, is not needed, but allowed.
func (s *Stream) Finish(ctx context.Context) error { return s.mux.drain(ctx) }

// Recv returns the next message from the handler, which is the caller's from then on. After the
// last one it returns [io.EOF], only if the handler returned nil; otherwise the error that Results
// would. Whoever does not go on to the end ends the stream by Finish or its context.
func (s *Stream) Recv() ([]byte, error) { return s.mux.recv(context.Background()) }

// RecvContext is Recv that waits no longer than ctx. If that ends first, or has ended before, it
// returns the error of it; nothing was received, and the stream lives on: the next Recv goes on
// with the next message.
func (s *Stream) RecvContext(ctx context.Context) ([]byte, error) { return s.mux.recv(ctx) }

// Results calls next with every message from the handler, in order, until the stream ends. The
// buffer is next's from then on.
//
// It returns nil only if the handler returned nil and all its messages were passed on. Otherwise:
// the handler's error, or the remote's reason for giving up, as *[RemoteErr]; the error of the
// caller's context, as [Connection.SingleRequest] has it; an error that wraps [ErrDisconnected] if
// the connection was lost; [ErrOverloaded] if more waited in the stream, at either end, than may;
// [ErrIncorrectSequence], [ErrFlowControl] or [ErrProtocol] if the remote broke the protocol, or a
// message took longer than MessageTimeout; or the error of next, which also ends the stream and the
// context of the handler.
//
// While next runs, the handler can be no further ahead than its window: so slow consumers slow down
// their handler.
func (s *Stream) Results(next func([]byte) error) error { return s.mux.results(next) }

// All is Results as an iterator. A stream that does not end well yields its error last, with a nil
// message. Breaking off ends the stream and the context of the handler.
func (s *Stream) All() iter.Seq2[[]byte, error] { return allOf(s.Results) }

// Done is closed when the stream has ended. Messages may still wait to be consumed then.
func (s *Stream) Done() <-chan struct{} { return s.mux.done }

// Err returns nil until Done is closed. Then it is how the stream ended, as Results says it; a
// consumer that stops early after that hears of its own reason from Results only.
func (s *Stream) Err() error { return s.mux.endError() }

// Draining is closed when the stream should be brought to an end: see the function [Draining]. It
// says nothing of the stream itself, which goes on for as long as the link and the handler do.
func (s *Stream) Draining() <-chan struct{} { return s.mux.host.drains() }

// errBreak ends a stream whose consumer broke off its loop.
var errBreak = errors.New("grid: the consumer of the stream broke off")

// allOf makes an iterator of a Results method.
func allOf[T any](results func(func(T) error) error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		broke := false
		err := results(func(v T) error {
			if yield(v, nil) {
				return nil
			}
			broke = true
			return errBreak
		})
		if err != nil && !broke {
			var zero T
			yield(zero, err)
		}
	}
}

// forwardRequests sends what comes through reqs, until that is closed or the stream has ended.
// owner is the handle that the user holds; over is what m.forwarding has returned; encode gives
// away the buffer that it returns.
func forwardRequests[Owner, Req any](owner *Owner, m *muxClient, reqs <-chan Req, over <-chan struct{}, encode func(Req) ([]byte, error)) {
	encoding := false
	defer func() {
		if encoding { // which has ended the goroutine
			m.cancel(errEncoderExited)
			go drainRequests(weak.Make(owner), reqs, m.closing)
		}
	}()
	for {
		select {
		case v, ok := <-reqs:
			if !ok {
				_ = m.closeSend()
				return
			}
			if m.finishing.Load() && m.sendEnded.Load() {
				continue // thrown away
			}
			// There is nobody to return an error to but the consumer. The end of the stream is
			// none: that has a reason of its own. Nor is that of the input by Finish, which may
			// come while this waits for a credit.
			encoding = true
			b, err := encode(v)
			encoding = false
			if err == nil {
				err = m.send(context.Background(), b)
				closed := errors.Is(err, errSendClosed) && !m.finishing.Load()
				if !closed && !errors.Is(err, ErrMessageTooLarge) {
					err = nil
				}
				PutByteBuffer(b)
			}
			if err != nil {
				m.cancel(err)
			}
		case <-over:
			if !m.hasEnded() {
				_ = m.closeSend()
				over = m.done
				continue
			}
			if m.sendUsed.Load() {
				return // nobody sends to reqs
			}
			// Not as a call: this goroutine's stack holds on to owner.
			go drainRequests(weak.Make(owner), reqs, m.closing)
			return
		}
	}
}

var errEncoderExited = errors.New("grid: the goroutine of the stream's requests was ended by an encoder")

// drainLook is how often a stream that has ended is looked at for whether anybody still holds it.
const drainLook = 5 * time.Second

// drainRequests throws away what is sent to a stream that has ended, so that a sender that has not
// noticed does not block for ever. That nobody holds owner any more is looked for rather than told
// by a cleanup function, because those can't wake a goroutine in a testing/synctest bubble.
func drainRequests[Owner, Req any](owner weak.Pointer[Owner], reqs <-chan Req, closing <-chan struct{}) {
	look := time.NewTicker(drainLook)
	defer look.Stop()
	used := false // since the last look
	for {
		select {
		case _, ok := <-reqs:
			if !ok {
				return
			}
			used = true
		case <-look.C:
			if !used && owner.Value() == nil {
				return
			}
			used = false
		case <-closing:
			// Whoever is already waiting is let go.
			for {
				select {
				case _, ok := <-reqs:
					if ok {
						continue
					}
				default:
				}
				return
			}
		}
	}
}

// RemoteClient is the host that called a handler, as far as its link has proved that: see
// [GetCaller].
type RemoteClient struct {
	// Name is the base URL that the host goes by.
	Name string
}

// handlerContext is the context of a handler.
type handlerContext struct {
	context.Context
	caller   *RemoteClient
	subroute string
	draining <-chan struct{}
	metadata []byte // as it came; nil for none
}

// handlerContextKey finds the handlerContext under contexts derived from it.
type handlerContextKey struct{}

func (c *handlerContext) Value(key any) any {
	if key == (handlerContextKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// GetCaller returns the host that called the handler whose context ctx is, or is derived from; nil
// for any other context.
//
// It is the host whose link it is, and known as well as that link has proved: with
// ManagerOptions.SharedSecret or AuthToken any holder of the key, or of a token, can claim any name
// of Hosts. With [VerifyTLSHost] the name of a host that has dialled this one is that of its
// certificate, and with https so is the name of a host that was dialled.
func GetCaller(ctx context.Context) *RemoteClient {
	if c, ok := ctx.Value(handlerContextKey{}).(*handlerContext); ok {
		return c.caller
	}
	return nil
}

// GetSubroute returns the subroute under which the handler whose context ctx is, or is derived
// from, is registered; empty if it has none, or for any other context.
func GetSubroute(ctx context.Context) string {
	if c, ok := ctx.Value(handlerContextKey{}).(*handlerContext); ok {
		return c.subroute
	}
	return ""
}

// Draining is for handlers that run for long. It returns a channel that is closed when the link
// over which the handler was called is to end: once this Manager or that of the caller shuts down,
// see [Manager.Shutdown], or when the link is lost, where ctx has ended before. Nothing new begins
// on it then, and the shutdown waits for what is under way, for as long as its context lets it. So
// a handler that would go on returns now, best with an error that tells its caller to come again:
// the caller finds the host disconnected by then, and WaitForConnect waits for its successor.
//
// ctx is that of a handler, or derived from it. For any other it returns nil, which blocks for
// ever. It allocates nothing. A caller of version 1 does not say that it shuts down.
func Draining(ctx context.Context) <-chan struct{} {
	if c, ok := ctx.Value(handlerContextKey{}).(*handlerContext); ok {
		return c.draining
	}
	return nil
}
