package grid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/gridrpc/grid/internal/clip"
)

// Errors that arise on this side. None of them ever stands for something that the remote host said;
// that is a [RemoteErr].
var (
	// ErrDisconnected is returned, often wrapped with a reason, when there is no connection to the
	// host, when it is lost while a call or stream is under way, and by every method of a nil
	// [Connection] or [Subroute]. Whether the remote has seen the request is then unknown, except
	// where there was no connection to begin with.
	ErrDisconnected = errors.New("grid: disconnected")

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
	// ManagerOptions.MaxMessageSize. Nothing has been sent then.
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
type RemoteErr string

// NewRemoteErr makes a RemoteErr with the text of err. It returns nil for nil, and err itself where
// err is a *RemoteErr.
func NewRemoteErr(err error) *RemoteErr {
	if err == nil {
		return nil
	}
	if r, ok := err.(*RemoteErr); ok {
		return r
	}
	return NewRemoteErrString(err.Error())
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
	if p, ok := err.(*RemoteErr); ok && p == nil {
		return false
	}
	var r RemoteErr
	return errors.As(err, &r)
}

// Error returns the text that the remote sent.
func (r RemoteErr) Error() string { return string(r) }

// Is reports whether target has the same text, for [errors.Is]; see [RemoteErr].
func (r RemoteErr) Is(target error) bool {
	switch target {
	case nil, ErrDisconnected, ErrUnknownHandler, ErrHandlerAlreadyExists, ErrIncorrectSequence,
		ErrFlowControl, ErrMessageTooLarge, ErrOverloaded, ErrProtocol, context.Canceled, context.DeadlineExceeded, io.EOF:
		return false
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

// disconnected wraps the reason for which a session ended.
func disconnected(reason error) error {
	if reason == nil || errors.Is(reason, ErrDisconnected) {
		return ErrDisconnected
	}
	return &disconnectError{clip.Error(reason)}
}

// disconnectError is ErrDisconnected with its reason in the text only: a lost connection must not
// be mistaken for whatever caused the loss.
type disconnectError struct{ reason error }

func (e *disconnectError) Error() string { return ErrDisconnected.Error() + ": " + e.reason.Error() }

// Is reports whether target is ErrDisconnected, and never whether the reason is.
func (e *disconnectError) Is(target error) bool { return target == ErrDisconnected }
