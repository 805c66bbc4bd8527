package grid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestError_RemoteErrIsNoneOfThisPackage(t *testing.T) {
	for _, local := range []error{ErrDisconnected, ErrUnknownHandler, ErrHandlerAlreadyExists, ErrIncorrectSequence, ErrFlowControl, ErrMessageTooLarge, ErrProtocol} {
		require.NotErrorIs(t, NewRemoteErr(local), local)
	}
	var none *RemoteErr
	require.False(t, IsRemoteErr(none))
	require.False(t, IsRemoteErr(errors.Join(errClosed)))
}

func TestError_NewRemoteErr(t *testing.T) {
	require.Nil(t, NewRemoteErr(nil))
	var none *RemoteErr
	require.Nil(t, NewRemoteErr(none), "a nil pointer in an error is no error either")
	require.EqualError(t, NewRemoteErr(io.EOF), "EOF")
	r := NewRemoteErrString("as it is")
	require.Same(t, r, NewRemoteErr(r))
	require.EqualError(t, NewRemoteErr(fmt.Errorf("more: %w", r)), "more: as it is")
	require.EqualError(t, NewRemoteErr(*NewRemoteErrString("value")), "value")
	require.EqualError(t, NewRemoteErrf("%d of %q", 1, "a"), `1 of "a"`)
	require.EqualError(t, NewRemoteErrString("100%"), "100%")
	require.EqualError(t, NewRemoteErrString(""), "")
	require.NotNil(t, NewRemoteErrString(""), "an error without a text is still one")
}

func TestError_RemoteErrIsFoundThroughWrapping(t *testing.T) {
	r := NewRemoteErrString("broken")
	for name, err := range map[string]error{
		"pointer":        r,
		"value":          *NewRemoteErrString("broken"),
		"wrapped":        fmt.Errorf("call: %w", r),
		"wrapped value":  fmt.Errorf("call: %w", *NewRemoteErrString("broken")),
		"twice":          fmt.Errorf("a: %w", fmt.Errorf("b: %w", r)),
		"joined":         errors.Join(io.EOF, r),
		"joined, nested": errors.Join(io.EOF, fmt.Errorf("b: %w", r)),
	} {
		require.True(t, IsRemoteErr(err), name)
		var p *RemoteErr
		require.ErrorAs(t, err, &p, name)
		require.Equal(t, "broken", p.Error(), name)
		var v RemoteErr
		require.ErrorAs(t, err, &v, name)
		require.Equal(t, "broken", v.Error(), name)
		require.ErrorIs(t, err, r, name)
		require.ErrorIs(t, err, NewRemoteErrString("broken"), name)
		require.ErrorIs(t, err, *NewRemoteErrString("broken"), name)
		require.NotErrorIs(t, err, NewRemoteErrString("other"), name)
		require.NotErrorIs(t, err, *NewRemoteErrString("other"), name)
	}
	for _, err := range []error{nil, io.EOF, ErrDisconnected, context.Canceled, fmt.Errorf("call: %w", io.EOF)} {
		require.False(t, IsRemoteErr(err), err)
	}
	var closed interface{ Timeout() bool }
	require.False(t, errors.As(r, &closed))
}

// A value that was found must not change with the error, nor the reverse.
func TestError_RemoteErrAsGivesACopyToValues(t *testing.T) {
	r := NewRemoteErrString("first")
	var v RemoteErr
	require.ErrorAs(t, r, &v)
	*r = *NewRemoteErrString("second")
	require.Equal(t, "first", v.Error())
}

func TestError_RemoteErrIsComparesTheText(t *testing.T) {
	notFound := errors.New("file not found")
	require.ErrorIs(t, NewRemoteErr(notFound), notFound, "the sentinel of the handler")
	require.ErrorIs(t, fmt.Errorf("call: %w", NewRemoteErr(notFound)), notFound)
	require.NotErrorIs(t, NewRemoteErr(fmt.Errorf("a: %v", notFound)), notFound, "only whole texts count")
	require.NotErrorIs(t, NewRemoteErr(notFound), io.EOF)
	require.NotErrorIs(t, notFound, NewRemoteErr(notFound), "a local error is no remote one")

	r := NewRemoteErrString("x")
	require.False(t, r.Is(nil))
	var none *RemoteErr
	require.False(t, r.Is(none))
	require.False(t, errors.Is(r, nil))
}

// Targets that can't say their text are no targets, and no panic.
func TestError_OddTargetsOfIsAreNone(t *testing.T) {
	r := NewRemoteErrString("x")
	for _, target := range []error{
		(*fs.PathError)(nil), &fs.PathError{}, (*url.Error)(nil), &url.Error{}, (*net.OpError)(nil), &net.OpError{},
		(*limitError)(nil), &disconnectError{}, (*refusedRemote)(nil), &refusedRemote{}, &refusedRemote{remote: NewRemoteErrString("")}, (*RemoteErr)(nil),
	} {
		require.False(t, errors.Is(r, target), "%T", target)
		require.False(t, errors.Is(fmt.Errorf("call: %w", r), target), "%T", target)
	}
	require.False(t, (&limitError{}).Is((*fs.PathError)(nil)))
}

// Whatever a remote says, it can't look like something that happened here.
func TestError_RemoteErrIsNeverALocalCondition(t *testing.T) {
	for _, local := range []error{ErrDisconnected, context.Canceled, context.DeadlineExceeded, io.EOF} {
		for _, err := range []error{NewRemoteErr(local), *NewRemoteErrString(local.Error()), fmt.Errorf("call: %w", NewRemoteErr(local))} {
			require.NotErrorIs(t, err, local)
			require.True(t, IsRemoteErr(err))
		}
	}
}

func TestError_DisconnectedKeepsItsReasonInTheTextOnly(t *testing.T) {
	for _, reason := range []error{io.EOF, context.Canceled, context.DeadlineExceeded, NewRemoteErrString("x"), ErrProtocol} {
		for host, prefix := range map[string]string{"": "", "http://b": "http://b: "} {
			err := disconnected(host, reason)
			require.ErrorIs(t, err, ErrDisconnected)
			require.NotErrorIs(t, err, reason)
			require.False(t, IsRemoteErr(err))
			require.EqualError(t, err, "grid: disconnected: "+prefix+reason.Error())
			require.EqualError(t, withoutHost(err), "grid: disconnected: "+reason.Error())
			require.EqualError(t, disconnected("http://c", err), "grid: disconnected: http://c: "+reason.Error(), "a reason is wrapped once")
		}
	}
}
