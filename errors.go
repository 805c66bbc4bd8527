package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/gridrpc/grid/internal/clip"
)

// Errors that arise on this side. None of them ever stands for something that the remote host said;
// that is a [RemoteErr].
//
// A call and a stream return them wrapped, with the host and the handler in the text: so test for
// them with [errors.Is]. A RemoteErr has the text that the remote sent, and no more.
var (
	// ErrDisconnected is returned, wrapped with the host and the reason, when there is no
	// connection to the host, when it is lost while a call or stream is under way, and by every
	// method of a nil [Connection] or [Subroute]. Whether the remote has seen the request is then
	// unknown, except where there was no connection to begin with: [CanRetry] tells.
	ErrDisconnected = errors.New("grid: disconnected")

	// ErrNotAccepted says that the remote host has refused to have a connection with this one: it
	// does not know it, and its AcceptHost has not taken it in, or its token or certificate is not
	// valid there. It is wrapped, with what the remote has said, by StateChange.Err, and by the errors
	// of calls and of [Connection.WaitForConnect] for as long as it is the last that was heard of the
	// host; those of calls are [ErrDisconnected] as well. Attempts go on, since the remote may think
	// better of it.
	ErrNotAccepted = errors.New("grid: not accepted by the remote host")

	// ErrHostRemoved says that the host of a [Connection] was removed, by [Manager.RemoveHost] or
	// [Manager.SetHosts], so that all calls over it fail from then on, and those that were under way
	// have. It is wrapped by errors that are [ErrDisconnected] as well. Where the host was added
	// again, [Manager.Connection] has another Connection to it.
	ErrHostRemoved = errors.New("grid: host removed")

	// ErrShutdown says that it is this host that has ended a call, or begins none any more: its
	// Manager was closed, or is shutting down and no handler is running that may still make calls. It
	// is wrapped by errors that are [ErrDisconnected] as well. No other host can be asked through the
	// Manager either, so [CanRetry] is false.
	ErrShutdown = errors.New("grid: this host is shutting down")

	// ErrNoHandler is a call or stream that the remote host has refused because it has no such handler:
	// none for the ID and subroute, or one of the other kind. It is a [RemoteErr] as well, which
	// [errors.As] finds. Nothing has run, so [CanRetry] is true; but the same host has the handler only
	// when its program has registered it, or has been replaced by a newer one.
	ErrNoHandler = errors.New("grid: no handler")

	// ErrUnknownHandler is returned for the reserved handler ID 0.
	ErrUnknownHandler = errors.New("grid: unknown handler")

	// ErrHandlerAlreadyExists is returned, wrapped with the ID, by the registration of a second
	// handler under one ID and subroute.
	ErrHandlerAlreadyExists = errors.New("grid: handler already exists")

	// ErrIncorrectSequence ends a stream whose messages did not arrive one after the other
	// (protocol section 5).
	ErrIncorrectSequence = errors.New("grid: stream message out of sequence")

	// ErrFlowControl ends a stream whose remote end sent a message without a credit for it, or
	// returned credits that it did not have (section 5).
	ErrFlowControl = errors.New("grid: flow control violated")

	// ErrMessageTooLarge is returned, wrapped with both sizes, for a payload above
	// ManagerOptions.MaxMessageSize, of this host or the one that it is for. Nothing has been sent
	// then.
	ErrMessageTooLarge = errors.New("grid: message too large")

	// ErrOverloaded is a call or stream that was refused because a limit of [ManagerOptions] was
	// reached, wrapped with which one it was. Most often the remote has refused it; then it is a
	// [RemoteErr] as well, which [errors.As] finds. The handler of a refused call has not run,
	// unless the text says that its answer was dropped; [CanRetry] tells.
	//
	// It also ends a stream that is under way if more waits in it than may: on the side whose limit
	// that is, and for the client where it is the remote's. The handler of a stream gets the text of
	// its client's limit in a RemoteErr, and not this error.
	ErrOverloaded = errors.New("grid: overloaded")

	// ErrProtocol ends a call, a stream or a connection whose remote end sent what the protocol
	// does not allow there. It is wrapped with what it was.
	ErrProtocol = errors.New("grid: protocol violated")
)

// packageErrors are all of them.
var packageErrors = []error{
	ErrDisconnected, ErrNotAccepted, ErrHostRemoved, ErrShutdown, ErrNoHandler, ErrUnknownHandler,
	ErrHandlerAlreadyExists, ErrIncorrectSequence, ErrFlowControl, ErrMessageTooLarge, ErrOverloaded, ErrProtocol,
}

// textOf is the text of an error, if it has one: a nil pointer or an error that is not complete may
// panic when it is asked.
func textOf(err error) (text string, ok bool) {
	defer func() { _ = recover() }()
	return err.Error(), true
}

// withFixedText is err with the text that it has now, for where functions of the application's may
// run: whoever asks for the text afterwards, perhaps under a lock, calls none of them.
func withFixedText(err error) error {
	if err == nil {
		return nil
	}
	text, ok := textOf(err)
	if !ok {
		return errNoText // not nil: where somebody was asked that is no yes
	}
	return &fixedText{text, err}
}

// onlyText is withFixedText without the error itself.
func onlyText(err error) error {
	err = withFixedText(err)
	if e, ok := err.(*fixedText); ok {
		return errors.New(e.text)
	}
	return err
}

var errNoText = errors.New("an error that has no text")

// fixedText is for the eyes of the application, which may look for what it wraps.
type fixedText struct {
	text string
	err  error
}

func (e *fixedText) Error() string { return e.text }
func (e *fixedText) Unwrap() error { return e.err }

// protocolErrorf may be given what a decoder says, which may repeat what it was given.
func protocolErrorf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, clip.Text(fmt.Sprintf(format, a...)))
}

func tooLargeError(size, limit int) error {
	return fmt.Errorf("%w: payload of %d bytes, MaxMessageSize is %d bytes", ErrMessageTooLarge, size, limit)
}

// overloadedf is an error of a limit, an option of ManagerOptions.
func overloadedf(option, format string, a ...any) error {
	return &limitError{option: option, text: fmt.Sprintf(format, a...)}
}

// limitError is ErrOverloaded on the side whose limit it was.
type limitError struct {
	option, text string
	unsent       bool // it has refused a call of this side before that was sent
}

func (e *limitError) Error() string { return ErrOverloaded.Error() + ": " + e.text }

// Is reports whether target is ErrOverloaded.
func (e *limitError) Is(target error) bool { return target == ErrOverloaded }

// refusal is what the remote has said for itself, rather than one of its handlers. If it was an
// overloadedf there, it is [ErrOverloaded] here; a handler's text never is.
func refusal(text string) error {
	r := NewRemoteErrString(text)
	if strings.HasPrefix(text, ErrOverloaded.Error()+": ") {
		return &refusedRemote{remote: r, kind: ErrOverloaded}
	}
	return r
}

// refusedRemote is a RemoteErr that is what the remote has said for itself.
type refusedRemote struct {
	remote *RemoteErr
	kind   error // the error of this package that it is as well; nil for none
	notRun bool  // the handler has not
}

func (e *refusedRemote) Error() string { return e.remote.Error() }

func (e *refusedRemote) Unwrap() []error {
	if e.kind == nil {
		return []error{e.remote}
	}
	return []error{e.remote, e.kind}
}

// disconnected is why there is no connection to a host, or no more; host may be empty.
func disconnected(host string, reason error) error {
	if e, ok := reason.(*disconnectError); ok {
		reason = e.reason
	}
	e := &disconnectError{host: host, reason: clip.Error(reason)}
	switch {
	case reason == errRemoved:
		e.kind = ErrHostRemoved
	case reason == errShuttingDown, reason == errClosed:
		e.kind = ErrShutdown
	case errors.Is(reason, ErrNotAccepted):
		e.kind = ErrNotAccepted
	}
	return e
}

// withoutHost is err for where the host is named anyway.
func withoutHost(err error) error {
	switch e := err.(type) {
	case *disconnectError:
		if e.host != "" {
			return &disconnectError{reason: e.reason, kind: e.kind}
		}
	case *waitError:
		return &waitError{err: e.err, reason: e.reason}
	case *callError:
		return &callError{name: e.name, err: withoutHost(e.err), placed: true}
	}
	return err
}

// disconnectError is ErrDisconnected with its reason in the text only: a lost connection must not
// be mistaken for whatever caused the loss.
type disconnectError struct {
	host   string // empty where it is the manager that takes nothing more
	reason error
	unsent bool  // the call has not been sent, or not in whole
	kind   error // ErrNotAccepted, ErrHostRemoved or ErrShutdown where that is the reason, else nil
}

func (e *disconnectError) Error() string {
	text := ErrDisconnected.Error() + ": "
	if e.host != "" {
		text += e.host + ": "
	}
	return text + e.reason.Error()
}

// Is reports whether target is ErrDisconnected, or the kind, and never whether the reason is
// anything else.
func (e *disconnectError) Is(target error) bool {
	return target == ErrDisconnected || e.kind != nil && target == e.kind
}

// contextError is why a call ends whose context has ended; nil while it has not. It is ctx.Err(),
// with the text of the cause.
//
// It is the cause as well where that is the application's own. It is not where a call has returned
// it: a group of calls may be cancelled with the error of one host, which is none of the others'.
func contextError(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	switch err {
	case context.Canceled, context.DeadlineExceeded:
		if cause == err {
			return err
		}
	default: // a context of the application's own, which may do as it likes
		if _, ok := textOf(err); !ok || isOfCall(err) {
			err = context.Canceled
		}
	}
	e := &endedContext{err: err, text: err.Error()}
	if text, ok := textOf(cause); ok && text != e.text {
		e.text += ": " + clip.Text(text)
	}
	if !isOfCall(cause) {
		e.cause = cause
	}
	return e
}

// doneError is contextError for a context of which Done says that it has ended. It is never nil: a
// context of the application's own may say otherwise by Err, and a call has not succeeded then.
func doneError(ctx context.Context) error { return cmp.Or(contextError(ctx), context.Canceled) }

// notEOF is err without io.EOF: that is the good end of a stream, and must not come of anything
// else.
func notEOF(err error) error {
	switch {
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF):
		return errors.New(clip.Text(err.Error()))
	}
	return err
}

// isOfCall reports whether err is, or wraps, what calls return: a RemoteErr, or an error of this
// package. It reports true as well for one that can't be asked.
func isOfCall(err error) (is bool) {
	is = true
	defer func() { _ = recover() }()
	var call *callError
	return IsRemoteErr(err) || errors.As(err, &call) || slices.ContainsFunc(packageErrors, func(e error) bool { return errors.Is(err, e) })
}

// endedContext is the error of a context, with the text of its cause.
type endedContext struct {
	text  string
	err   error // of the context
	cause error // nil where it is not the application's own
}

func (e *endedContext) Error() string { return e.text }

// Is reports whether target is the error of the context, or is the cause. A cause may be the end of
// something else: the deadline of another context is not that of this one, nor is [io.EOF] the good
// end of a stream.
func (e *endedContext) Is(target error) bool {
	switch target {
	case context.Canceled, context.DeadlineExceeded, io.EOF:
		return errors.Is(e.err, target)
	}
	return e.cause != nil && errors.Is(e.cause, target)
}

// As finds the error of the context, and the cause.
func (e *endedContext) As(target any) bool {
	return errors.As(e.err, target) || e.cause != nil && errors.As(e.cause, target)
}
