package grid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"

	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/wellformed"
)

// RemoteErr is an error that came from the remote side: what a handler returned, or the remote's
// reason for not running one. It is made by [NewRemoteErr] and its kin. What travels is its text, its
// [RemoteErr.Code], and the texts of the errors that it wraps (protocol section 8, extension 256; to
// a peer that does not know the extension, the text alone).
//
// The text of a handler belongs to the caller, who gets up to 64 KiB of it and of what goes with it.
// So clip it before it is logged or kept. Of what the remote says for itself, and of all else that a
// peer says, no more than 1 KiB is kept, logged or made part of an error.
//
// A call returns it as *RemoteErr, wrapped if it is [ErrOverloaded] or [ErrNoHandler] as well.
// [errors.As] finds it with a *RemoteErr or a RemoteErr as the target. [errors.Is] compares texts:
// it finds an error of the application's that has the text of the RemoteErr, or of one that this
// wraps. So the caller can tell by its own sentinel what the handler has returned, alone or
// wrapped. Up to 16 texts of wrapped errors travel, of at most 1 KiB each and 8 KiB together;
// longer ones are left out, and so are the outermost where there are too many.
//
// Local conditions are excepted. Whatever a peer sends, a RemoteErr never is an error of this
// package, nor one that wraps such an error; never [context.Canceled] or
// [context.DeadlineExceeded]; and never one by which the end of a link or of its data is told:
// [io.EOF], [io.ErrUnexpectedEOF], [io.ErrClosedPipe], [net.ErrClosed] and [os.ErrDeadlineExceeded].
// Other sentinels of the standard library, such as [io/fs.ErrNotExist], are found like those of the
// application. All of them are the remote's word: it may send any text.
//
// A nil *RemoteErr is no error, but in a variable of type error it is not nil: a function that
// returns error must return nil in its place. No function of this package returns one as error.
type RemoteErr struct {
	text string
	more *errorDetails // nil for none; not changed once it is part of an error
}

// errorDetails is what goes with the text of a RemoteErr.
type errorDetails struct {
	code    string
	wrapped []string // texts, the innermost first
	bytes   int      // of wrapped
}

const (
	// maxErrorCode is how long a code may be, in bytes.
	maxErrorCode = 64
	// maxWrapped is how many texts of wrapped errors travel, maxWrappedText how long one may be, and
	// maxWrappedBytes all of them.
	maxWrapped      = 16
	maxWrappedText  = 1 << 10
	maxWrappedBytes = 8 << 10
	// maxErrorTree bounds how many errors are looked at for what one wraps.
	maxErrorTree = 1000
)

// NewRemoteErr makes a RemoteErr with the text of err, the texts of the errors that err wraps, and
// the code of the outermost RemoteErr among them that has one. It returns nil for nil, and err itself
// where err is a *RemoteErr. It is for handlers: what it returns is not to be returned as error
// without a look at whether it is nil; see [RemoteErr].
func NewRemoteErr(err error) *RemoteErr {
	if err = notNilRemote(err); err == nil {
		return nil
	}
	switch r := err.(type) {
	case *RemoteErr:
		return r
	case RemoteErr:
		return &r
	}
	r := NewRemoteErrString(err.Error())
	var d errorDetails
	var tree errorTree
	tree.visit(err)
	tree.addTo(&d, err, r.text)
	if d.code != "" || len(d.wrapped) > 0 {
		r.more = &d
	}
	return r
}

// NewRemoteErrCode is [NewRemoteErr] with a code, for callers that would rather tell errors by that
// than by a sentinel: see [RemoteErr.Code]. It takes the place of a code that err has. A code may
// have 64 bytes; what is beyond is cut off, between two characters and without a mark.
func NewRemoteErrCode(code string, err error) *RemoteErr {
	old := NewRemoteErr(err)
	if old == nil {
		return nil
	}
	var d errorDetails
	if old.more != nil {
		d = *old.more
	}
	d.code = clip.Prefix(code, maxErrorCode)
	return &RemoteErr{old.text, &d}
}

// NewRemoteErrf is [NewRemoteErr] of what [fmt.Errorf] returns: so an error that is formatted by %w
// is one that it wraps.
func NewRemoteErrf(format string, a ...any) *RemoteErr {
	return NewRemoteErr(fmt.Errorf(format, a...))
}

// NewRemoteErrString makes a RemoteErr with the text msg.
func NewRemoteErrString(msg string) *RemoteErr { return &RemoteErr{text: msg} }

// notNilRemote is err, or nil for a nil *RemoteErr, which a function of the application's may have
// returned as error.
func notNilRemote(err error) error {
	if r, ok := err.(*RemoteErr); ok && r == nil {
		return nil
	}
	return err
}

// IsRemoteErr reports whether err, or an error that it wraps, is a [RemoteErr].
func IsRemoteErr(err error) bool {
	var r RemoteErr
	return errors.As(notNilRemote(err), &r)
}

// ErrorCode returns the [RemoteErr.Code] of the first [RemoteErr] that err is or wraps; empty if
// there is none, and for nil. It is what the remote host has sent, and may have control characters and
// bytes that are no UTF-8: compare it with your own, and quote it where you show it.
func ErrorCode(err error) string {
	var r RemoteErr
	if !errors.As(notNilRemote(err), &r) {
		return ""
	}
	return r.Code()
}

// Error returns the text that the remote sent.
func (r RemoteErr) Error() string { return r.text }

// Code returns the code that the handler has given the error by [NewRemoteErrCode]; empty if none,
// or if one of the two hosts does not know the extension. It is the application's: nothing in this
// package sets or reads one. It has 64 bytes at most, and is the remote's word like the text, with
// whatever bytes it has sent: see [ErrorCode].
func (r RemoteErr) Code() string {
	if r.more == nil {
		return ""
	}
	return r.more.code
}

// Is reports whether target has the same text, or that of an error that the remote's wraps, for
// [errors.Is]; see [RemoteErr].
func (r RemoteErr) Is(target error) bool {
	switch t := target.(type) {
	case nil:
		return false
	case *RemoteErr:
		return t != nil && r.says(t.text)
	case RemoteErr:
		return r.says(t.text)
	}
	if isLocal(target) {
		return false
	}
	text, ok := textOf(target)
	return ok && r.says(text)
}

// says reports whether text is that of the error, or of one that it wraps.
func (r RemoteErr) says(text string) bool {
	return r.text == text || r.more != nil && slices.Contains(r.more.wrapped, text)
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

// localConditions are errors besides those of this package that tell of something here. Whoever finds
// one acts on its own link, file or deadline, so no text of a peer's stands for them.
var localConditions = []error{
	context.Canceled, context.DeadlineExceeded,
	io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded,
}

// isLocal reports whether err stands for something that has happened here. It reports true as well
// for one that can't be asked.
func isLocal(err error) (is bool) {
	is = true
	defer func() { _ = recover() }()
	switch err.(type) {
	case *endedContext, *callError:
		return true
	}
	if slices.Contains(localConditions, err) {
		return true
	}
	return slices.ContainsFunc(packageErrors, func(e error) bool { return errors.Is(err, e) })
}

// errorTree is an error and what it wraps, on a walk through it. An error of the application's may
// have a cycle, or wrap more than there is time for.
type errorTree struct {
	seen   map[error]struct{}
	looked int // at how many
}

// visit reports whether err is to be looked at: once, if that can be told, and not beyond the bound.
func (t *errorTree) visit(err error) bool {
	if t.looked++; t.looked > maxErrorTree {
		return false
	}
	if !reflect.ValueOf(err).Comparable() {
		return true
	}
	if _, again := t.seen[err]; again {
		return false
	}
	if t.seen == nil {
		t.seen = make(map[error]struct{})
	}
	t.seen[err] = struct{}{}
	return true
}

// addTo adds what err wraps: the texts but for text, which is its own, and the code, if there is
// none yet. The innermost come first, since a sentinel is innermost as a rule.
func (t *errorTree) addTo(d *errorDetails, err error, text string) {
	var inside []error
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		inside = []error{unwrap(e.Unwrap)}
	case interface{ Unwrap() []error }:
		inside = unwrap(e.Unwrap)
	}
	for _, e := range inside {
		if e = notNilRemote(e); e == nil {
			continue
		}
		if !t.visit(e) {
			continue
		}
		if r, ok := remoteOf(e); ok {
			d.addRemote(r, text)
			continue
		}
		its, ok := textOf(e)
		t.addTo(d, e, its)
		if ok && its != text {
			d.add(its)
		}
	}
}

// unwrap is an Unwrap method of the application's, which may panic like Error.
func unwrap[T any](f func() T) (inside T) {
	defer func() { _ = recover() }()
	return f()
}

// remoteOf returns err if it is a RemoteErr itself.
func remoteOf(err error) (RemoteErr, bool) {
	switch r := err.(type) {
	case *RemoteErr:
		return *r, true
	case RemoteErr:
		return r, true
	}
	return RemoteErr{}, false
}

// addRemote adds an error that is wrapped in one with a text: where a handler passes on what another
// host has answered, nothing of that is lost.
func (d *errorDetails) addRemote(r RemoteErr, text string) {
	if r.more != nil {
		if d.code == "" {
			d.code = r.more.code
		}
		for _, its := range r.more.wrapped {
			d.add(its)
		}
	}
	if r.text != text {
		d.add(r.text)
	}
}

// add adds the text of a wrapped error, if there is room for it. A part of one would match nothing.
func (d *errorDetails) add(text string) {
	if len(text) > maxWrappedText || len(d.wrapped) == maxWrapped || d.bytes+len(text) > maxWrappedBytes ||
		slices.Contains(d.wrapped, text) {
		return
	}
	d.wrapped = append(d.wrapped, text)
	d.bytes += len(text)
}

// The keys of an error with details, as it travels.
const (
	keyError = "Error"
	keyCode  = "Code"
	keyWraps = "Wraps"
)

// encode returns the error as it travels with its details: no more than maxErrorText in all, so that
// it is not sent in fragments.
func (r *RemoteErr) encode() []byte {
	d := r.more
	size := 1 + len(keyError) + len(keyCode) + len(keyWraps) + msgp.ArrayHeaderSize +
		(5+len(d.wrapped))*msgp.StringPrefixSize + len(d.code) + d.bytes
	text := clip.To(r.text, maxErrorText-size)
	b := make([]byte, 0, size+len(text))
	fields := uint32(1)
	if d.code != "" {
		fields++
	}
	if len(d.wrapped) > 0 {
		fields++
	}
	b = msgp.AppendMapHeader(b, fields)
	b = msgp.AppendString(msgp.AppendString(b, keyError), text)
	if d.code != "" {
		b = msgp.AppendString(msgp.AppendString(b, keyCode), d.code)
	}
	if len(d.wrapped) > 0 {
		b = msgp.AppendArrayHeader(msgp.AppendString(b, keyWraps), uint32(len(d.wrapped)))
		for _, its := range d.wrapped {
			b = msgp.AppendString(b, its)
		}
	}
	return b
}

// decodeRemoteErr reads what encode has written, or a peer sends in its place: of that it takes no
// more than may be. It returns a *RemoteErr, or ErrProtocol. b is the caller's.
func decodeRemoteErr(b []byte) error {
	bad := func(err error) error { return protocolErrorf("error with details: %v", err) }
	if err := wellformed.Check(b, maxOwnNesting); err != nil {
		return bad(err)
	}
	n, b, err := msgp.ReadMapHeaderBytes(b)
	if err != nil {
		return bad(err)
	}
	var r RemoteErr
	var d errorDetails
	hasText := false
	for range n {
		var key, value []byte
		if key, b, err = msgp.ReadStringZC(b); err != nil {
			return bad(err)
		}
		switch string(key) {
		case keyError:
			value, b, err = msgp.ReadStringZC(b)
			r.text, hasText = clipText(string(value[:min(len(value), maxErrorText+1)])), true
		case keyCode:
			value, b, err = msgp.ReadStringZC(b)
			d.code = clip.Prefix(string(value[:min(len(value), maxErrorCode+1)]), maxErrorCode)
		case keyWraps:
			b, err = d.read(b)
		default:
			b, err = msgp.Skip(b)
		}
		if err != nil {
			return bad(err)
		}
	}
	switch {
	case len(b) > 0:
		return bad(fmt.Errorf("%d stray bytes", len(b)))
	case !hasText:
		return bad(errors.New("no text"))
	case d.code != "" || len(d.wrapped) > 0:
		r.more = &d
	}
	return &r
}

// read reads the texts of wrapped errors, and returns what follows them.
func (d *errorDetails) read(b []byte) (rest []byte, err error) {
	n, b, err := msgp.ReadArrayHeaderBytes(b)
	if err != nil {
		return b, err
	}
	d.wrapped, d.bytes = nil, 0
	for range n {
		var value []byte
		if value, b, err = msgp.ReadStringZC(b); err != nil {
			return b, err
		}
		if len(value) <= maxWrappedText && len(d.wrapped) < maxWrapped {
			d.add(string(value))
		}
	}
	return b, nil
}
