package rig

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// The kinds of error that a caller can tell apart.
const (
	IsDisconnected = "disconnected"
	IsCanceled     = "canceled"
	IsDeadline     = "deadline"
	IsCause        = "cause"
	IsTooLarge     = "too large"
	IsFlowControl  = "flow control"
	IsSequence     = "sequence"
	IsProtocol     = "protocol"
	IsUnknown      = "unknown handler"
	IsRemote       = "remote"
	IsNothingElse  = "nothing else" // an error of its own

	// The end of a context that has a cause.
	IsCanceledCause = IsCanceled + ", " + IsCause
	IsDeadlineCause = IsCause + ", " + IsDeadline
)

// KindOf returns the kinds that err is, as [errors.Is] and [errors.As] say.
func KindOf(err error) (kinds []string) {
	for kind, target := range map[string]error{
		IsDisconnected: grid.ErrDisconnected, IsCanceled: context.Canceled, IsDeadline: context.DeadlineExceeded,
		IsCause: ErrCause, IsTooLarge: grid.ErrMessageTooLarge, IsFlowControl: grid.ErrFlowControl,
		IsSequence: grid.ErrIncorrectSequence, IsProtocol: grid.ErrProtocol, IsUnknown: grid.ErrUnknownHandler,
	} {
		if errors.Is(err, target) {
			kinds = append(kinds, kind)
		}
	}
	var p *grid.RemoteErr
	var v grid.RemoteErr
	if errors.As(err, &p) != errors.As(err, &v) || errors.As(err, &p) != grid.IsRemoteErr(err) {
		return []string{"remote by one measure only"}
	}
	if grid.IsRemoteErr(err) {
		kinds = append(kinds, IsRemote)
	}
	if len(kinds) == 0 && err != nil {
		kinds = append(kinds, IsNothingElse)
	}
	slices.Sort(kinds)
	return kinds
}

// RequireKind requires that an error is of this kind, or these in alphabetical order, and no other.
func RequireKind(t *testing.T, err error, want string, what string) {
	t.Helper()
	require.Error(t, err, what)
	require.Equal(t, want, strings.Join(KindOf(err), ", "), "%s: %v", what, err)
}

// BadEnds are the ways for a handler to end that are no return.
var BadEnds = map[string]struct {
	End  func()
	Want string // what the caller is told
}{
	"panic":         {func() { panic("boom") }, "handler 100 panicked: boom"},
	"panic error":   {func() { panic(errors.New("bad")) }, "handler 100 panicked: bad"},
	"panic nil":     {func() { panic(nil) }, "handler 100 panicked: "},
	"runtime error": {func() { var none []int; none[0]++ }, "handler 100 panicked: runtime error: index out of range [0]"},
	"Goexit":        {runtime.Goexit, "handler ended its goroutine"},
}

// ErrCause is what tests give as the cause of a context.
var ErrCause = errors.New("the test has had enough")
