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
var (
	// ErrDisconnected is returned, wrapped with the host and the reason, when there is no
	// connection to the host, when it is lost while a call or stream is under way, and by every
	// method of a nil [Connection] or [Subroute]. Whether the remote has seen the request is then
	// unknown, except where there was no connection to begin with.
	ErrDisconnected = errors.New("grid: disconnected")

	// ErrNotAccepted says that the remote host has refused to have a connection with this one: it
	// does not know it, and its AcceptHost has not taken it in, or its token or certificate is not
	// valid there. It is wrapped, with what the remote has said, by StateChange.Err, and by the errors
	// of calls and of [Connection.WaitForConnect] for as long as it is the last that was heard of the
	// host; those of calls are [ErrDisconnected] as well. Attempts go on, since the remote may think
	// better of it.
	ErrNotAccepted = errors.New("grid: not accepted by the remote host")

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
	// unless the text says that its answer was dropped.
	//
	// It also ends a stream that is under way, on both sides, if more waits in it than may.
	ErrOverloaded = errors.New("grid: overloaded")

	// ErrProtocol ends a call, a stream or a connection whose remote end sent what the protocol
	// does not allow there. It is wrapped with what it was.
	ErrProtocol = errors.New("grid: protocol violated")
)

// packageErrors are all of them.
var packageErrors = []error{
	ErrDisconnected, ErrNotAccepted, ErrUnknownHandler, ErrHandlerAlreadyExists, ErrIncorrectSequence, ErrFlowControl,
	ErrMessageTooLarge, ErrOverloaded, ErrProtocol,
}

// RemoteErr is an error that came from the remote side: what a handler returned, or the remote's
// reason for not running one. It travels as its text.
//
// The text of a handler belongs to the caller, who gets up to 64 KiB of it. So clip it before it is
// logged or kept. Of what the remote says for itself, and of all else that a peer says, no more than
// 1 KiB is kept, logged or made part of an error.
//
// A call returns it as *RemoteErr, wrapped if it is [ErrOverloaded] as well. [errors.As] finds it
// with a *RemoteErr or a RemoteErr as the target. [errors.Is] compares the text, so a remote's
// answer can be told by the sentinel that its handler returned; local conditions are excepted: a
// RemoteErr never is one of the errors of this package, [context.Canceled],
// [context.DeadlineExceeded] or [io.EOF], whatever its text.
//
// A nil *RemoteErr is no error, but in a variable of type error it is not nil: a function that
// returns error must return nil in its place. No function of this package returns one as error.
type RemoteErr string

// NewRemoteErr makes a RemoteErr with the text of err. It returns nil for nil, and err itself where
// err is a *RemoteErr. It is for handlers: what it returns is not to be returned as error without a
// look at whether it is nil; see [RemoteErr].
func NewRemoteErr(err error) *RemoteErr {
	if err = notNilRemote(err); err == nil {
		return nil
	}
	if r, ok := err.(*RemoteErr); ok {
		return r
	}
	return NewRemoteErrString(err.Error())
}

// notNilRemote is err, or nil for a nil *RemoteErr, which a function of the application's may have
// returned as error.
func notNilRemote(err error) error {
	if r, ok := err.(*RemoteErr); ok && r == nil {
		return nil
	}
	return err
}

// NewRemoteErrf makes a RemoteErr with a text formatted by [fmt.Sprintf].
func NewRemoteErrf(format string, a ...any) *RemoteErr {
	return NewRemoteErrString(fmt.Sprintf(format, a...))
}

// NewRemoteErrString makes a RemoteErr with the text msg.
func NewRemoteErrString(msg string) *RemoteErr {
	r := RemoteErr(msg)
	return &r
}

// IsRemoteErr reports whether err, or an error that it wraps, is a [RemoteErr].
func IsRemoteErr(err error) bool {
	var r RemoteErr
	return errors.As(notNilRemote(err), &r)
}

// Error returns the text that the remote sent.
func (r RemoteErr) Error() string { return string(r) }

// Is reports whether target has the same text, for [errors.Is]; see [RemoteErr].
func (r RemoteErr) Is(target error) bool {
	switch target {
	case nil, context.Canceled, context.DeadlineExceeded, io.EOF:
		return false
	}
	for _, e := range packageErrors {
		if e == target {
			return false
		}
	}
	if p, ok := target.(*RemoteErr); ok {
		return p != nil && *p == r
	}
	text, ok := textOf(target)
	return ok && string(r) == text
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

// As sets a *RemoteErr or **RemoteErr target, for [errors.As], and reports whether target was one.
func (r RemoteErr) As(target any) bool {
	switch t := target.(type) {
	case *RemoteErr:
		*t = r
	case **RemoteErr:
		*t = &r
	default:
		return false
	}
	return true
}

// protocolErrorf may be given what a decoder says, which may repeat what it was given.
func protocolErrorf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, clip.Text(fmt.Sprintf(format, a...)))
}

func tooLargeError(size, limit int) error {
	return fmt.Errorf("%w: payload of %d bytes, MaxMessageSize is %d bytes", ErrMessageTooLarge, size, limit)
}

// overloadedf is an error of a limit, an option of ManagerOptions.
func overloadedf(option, format string, a ...any) error {
	return &limitError{option, fmt.Sprintf(format, a...)}
}

// limitError is ErrOverloaded on the side whose limit it was.
type limitError struct{ option, text string }

func (e *limitError) Error() string { return ErrOverloaded.Error() + ": " + e.text }

// Is reports whether target is ErrOverloaded.
func (e *limitError) Is(target error) bool { return target == ErrOverloaded }

// refusal is what the remote has said for itself, rather than one of its handlers. If it was an
// overloadedf there, it is [ErrOverloaded] here; a handler's text never is.
func refusal(text string) error {
	r := NewRemoteErrString(text)
	if strings.HasPrefix(text, ErrOverloaded.Error()+": ") {
		return &overloadedRemote{r}
	}
	return r
}

type overloadedRemote struct{ remote *RemoteErr }

func (e *overloadedRemote) Error() string   { return e.remote.Error() }
func (e *overloadedRemote) Unwrap() []error { return []error{e.remote, ErrOverloaded} }

// disconnected is why there is no connection to a host, or no more; host may be empty.
func disconnected(host string, reason error) error {
	if e, ok := reason.(*disconnectError); ok {
		reason = e.reason
	}
	return &disconnectError{host, clip.Error(reason), errors.Is(reason, ErrNotAccepted)}
}

// withoutHost is err for where the host is named anyway.
func withoutHost(err error) error {
	if e, ok := err.(*disconnectError); ok && e.host != "" {
		return &disconnectError{"", e.reason, e.refused}
	}
	return err
}

// disconnectError is ErrDisconnected with its reason in the text only: a lost connection must not
// be mistaken for whatever caused the loss.
type disconnectError struct {
	host    string // empty where it is the manager that takes nothing more
	reason  error
	refused bool // the reason is that the remote did not accept this host
}

func (e *disconnectError) Error() string {
	text := ErrDisconnected.Error() + ": "
	if e.host != "" {
		text += e.host + ": "
	}
	return text + e.reason.Error()
}

// Is reports whether target is ErrDisconnected, or ErrNotAccepted if that is so, and never whether
// the reason is anything else.
func (e *disconnectError) Is(target error) bool {
	return target == ErrDisconnected || e.refused && target == ErrNotAccepted
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

// isOfCall reports whether err is, or wraps, what calls return: a RemoteErr, or an error of this
// package. It reports true as well for one that can't be asked.
func isOfCall(err error) (is bool) {
	is = true
	defer func() { _ = recover() }()
	return IsRemoteErr(err) || slices.ContainsFunc(packageErrors, func(e error) bool { return errors.Is(err, e) })
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
