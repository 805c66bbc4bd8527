package calls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// foreign are causes with which a call must not be confused: what happened to another one.
var foreign = map[string]error{
	"remote":          grid.NewRemoteErrString("from elsewhere"),
	"remote, wrapped": fmt.Errorf("node 7: %w", *grid.NewRemoteErrString("from elsewhere")),
	"disconnected":    fmt.Errorf("node 7: %w", grid.ErrDisconnected),
	"joined":          errors.Join(rig.ErrCause, grid.ErrOverloaded),
	"deadline":        context.DeadlineExceeded,
	"EOF":             io.EOF,
	"nil remote":      (*grid.RemoteErr)(nil),
	"nil, wrapped":    fmt.Errorf("node 7: %w", (*grid.RemoteErr)(nil)),
}

func init() {
	for name, cause := range foreign {
		callFailures["foreign cause before: "+name] = callFailure{rig.IsCanceled, func(e *failing) { e.cancel(cause) }, nil}
		callFailures["foreign cause during: "+name] = callFailure{rig.IsCanceled, nil, func(e *failing, _ rawpeer.Msg) { e.cancel(cause) }}
		callFailures["foreign cause of a deadline: "+name] = callFailure{rig.IsDeadline, func(e *failing) { e.limit(time.Second, cause) }, func(*failing, rawpeer.Msg) {}}
		streamFailures["foreign cause: "+name] = streamFailure{rig.IsCanceled, func(e *failing, _ rawpeer.Msg) { e.cancel(cause) }}
	}
}

// statuses is a CallInterceptor that hears how calls to a host have ended.
type statuses chan string

func (s statuses) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, func(r grid.CallResult) { s <- fmt.Sprintf("%s: %s: %v", info.Host, r.Status(), r.Err) }, nil
}

// A group of calls is cancelled with the first error, as errgroup does it.
func TestError_OfOneHostIsNotThatOfAnotherInItsGroup(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		ended := make(statuses, 10)
		g := rig.New(t, 3, func(i int, o *grid.ManagerOptions) {
			if i == 0 {
				o.CallInterceptors = []grid.CallInterceptor{ended}
			}
		})
		release := make(chan struct{})
		defer close(release)
		for i, fails := range map[int]bool{1: true, 2: false} {
			require.NoError(t, g.Manager(i).RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) {
				if !fails {
					<-release
				}
				return nil, grid.NewRemoteErrString("disk is full")
			}))
		}
		slow := rig.BlockHandler(t, g.Manager(2), rig.Handler+1)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		st, err := g.Conn(0, 2).NewStream(ctx, rig.Handler+1, nil)
		require.NoError(t, err)
		single := rig.InBackground(func() error {
			_, err := g.Conn(0, 2).SingleRequest(ctx, rig.Handler, nil)
			return err
		})
		synctest.Wait()
		_, err = g.Conn(0, 1).SingleRequest(ctx, rig.Handler, nil)
		require.True(t, grid.IsRemoteErr(err))
		require.Equal(t, g.Host(1)+": remote_error: disk is full", <-ended)
		cancel(err)
		for _, err := range []error{<-single, st.Results(nil), st.Err(), st.Send(nil)} {
			rig.RequireKind(t, err, rig.IsCanceled, "of the other host")
			require.NotErrorIs(t, err, errors.New("disk is full"))
			require.ErrorContains(t, err, "context canceled: disk is full")
		}
		for range 2 {
			require.Contains(t, <-ended, g.Host(2)+": canceled: context canceled: disk is full (handler ")
		}
		require.ErrorIs(t, <-slow, context.Canceled)
	})
}

// A handler calls a third host with its own context, which ends with the link to its caller.
func TestError_OfTheCallersLinkIsNotThatOfACallFurtherOn(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		release := make(chan struct{})
		defer close(release)
		require.NoError(t, g.Manager(2).RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) {
			<-release
			return nil, nil
		}))
		further := make(chan error, 1)
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			_, err := g.Conn(1, 2).SingleRequest(ctx, rig.Handler, nil)
			further <- err
			return nil, grid.NewRemoteErr(err)
		}))
		call := rig.InBackground(func() error {
			_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Handler, nil)
			return err
		})
		synctest.Wait()
		g.Cut(0, 1)
		rig.RequireKind(t, <-call, rig.IsDisconnected, "the caller's")
		err := <-further
		rig.RequireKind(t, err, rig.IsCanceled, "the handler's")
		require.ErrorContains(t, err, "context canceled: grid: disconnected")
	})
}

// What waits without a call, and a context of an interceptor's.
func TestError_OfAContextWithACause(t *testing.T) {
	t.Parallel()
	for name, cause := range foreign {
		t.Run(name, func(t *testing.T) {
			inFailing(t, func(t *testing.T, e *failing) {
				e.cutLink()
				synctest.Wait()
				e.cancel(cause)
				err := e.conn.WaitForConnect(e.ctx)
				rig.RequireKind(t, err, rig.IsCanceled, "WaitForConnect")
				require.NotErrorIs(t, err, cause)
			})
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				release := make(chan struct{})
				defer close(release)
				g.Single(func([]byte) ([]byte, *grid.RemoteErr) { <-release; return nil, nil })
				call := rig.InBackground(func() error {
					_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
					return err
				})
				synctest.Wait()
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(cause)
				err := g.Manager(1).Shutdown(ctx)
				rig.RequireKind(t, err, rig.IsCanceled, "Shutdown")
				require.NotErrorIs(t, err, cause)
				rig.RequireKind(t, <-call, rig.IsDisconnected, "call")
			})
			rig.InPair(t, func(_ int, o *grid.ManagerOptions) {
				o.CallInterceptors = []grid.CallInterceptor{cancelling{cause}}
			}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
				rig.RequireKind(t, err, rig.IsCanceled, "request")
				_, err = c.NewStream(t.Context(), rig.Stream, nil)
				rig.RequireKind(t, err, rig.IsCanceled, "stream")
			})
		})
	}
}

// cancelling is a CallInterceptor whose contexts have ended.
type cancelling struct{ cause error }

func (c cancelling) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	ctx, cancel := context.WithCancelCause(ctx)
	cancel(c.cause)
	return ctx, nil, nil
}

// oddContext is a context of an application's own, whose Err is the cause.
type oddContext struct{ context.Context }

func (c oddContext) Err() error { return context.Cause(c.Context) }

func TestError_OfAnOddContextIsNotThatOfAnotherHost(t *testing.T) {
	t.Parallel()
	for name, cause := range foreign {
		inFailing(t, func(t *testing.T, e *failing) {
			e.ctx = oddContext{e.ctx}
			s, _ := openToPeer(t, e.ctx, e.conn, e.peer, 2)
			e.cancel(cause)
			_, err := e.conn.SingleRequest(e.ctx, rig.Handler, nil)
			for _, err := range []error{err, s.Results(nil)} {
				require.False(t, grid.IsRemoteErr(err), name)
				require.NotErrorIs(t, err, grid.ErrDisconnected, name)
				require.NotErrorIs(t, err, grid.ErrOverloaded, name)
				require.Contains(t, []string{"canceled", "deadline_exceeded", "error"}, grid.CallResult{Err: err}.Status(), name)
			}
		})
	}
}

// A context of an application's own that keeps no promise: its Err is nil when it has ended, or an
// error that can't be asked for its text. A call fails all the same, and nothing panics.
func TestError_OfABrokenContextIsOneAllTheSame(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]error{
		"nil": nil, "without a text": (*ownError)(nil),
	} {
		inFailing(t, func(t *testing.T, e *failing) {
			ctx := brokenContext{e.ctx, broken}
			s, _ := openToPeer(t, ctx, e.conn, e.peer, 2)
			single := rig.InBackground(func() error {
				_, err := e.conn.SingleRequest(ctx, rig.Handler, nil)
				return err
			})
			open := rig.InBackground(func() error {
				_, err := e.conn.NewStream(ctx, rig.Stream, nil)
				return err
			})
			results := rig.InBackground(func() error { return s.Results(nil) })
			synctest.Wait()
			e.cancel(broken)
			for what, end := range map[string]<-chan error{"single": single, "open": open, "results": results} {
				require.Error(t, <-end, "%s: %s", name, what)
			}
		})
		inFailing(t, func(t *testing.T, e *failing) {
			e.cutLink()
			synctest.Wait()
			wait := rig.InBackground(func() error { return e.conn.WaitForConnect(brokenContext{e.ctx, broken}) })
			synctest.Wait()
			e.cancel(broken)
			require.Error(t, <-wait, name)
		})
	}
}

type brokenContext struct {
	context.Context
	err error
}

func (c brokenContext) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	return c.err
}

// ownError is an error of the application's that is found by its type.
type ownError struct{ code int }

func (e *ownError) Error() string { return fmt.Sprintf("code %d", e.code) }

func TestError_OfAContextIsItsOwnCause(t *testing.T) {
	t.Parallel()
	inFailing(t, func(t *testing.T, e *failing) {
		e.cancel(fmt.Errorf("enough: %w", &ownError{7}))
		_, err := e.conn.SingleRequest(e.ctx, rig.Handler, nil)
		var own *ownError
		require.ErrorAs(t, err, &own)
		require.Equal(t, 7, own.code)
		require.ErrorContains(t, err, "context canceled: enough: code 7 (handler ")

		ctx, cancel := context.WithTimeoutCause(t.Context(), 0, own)
		defer cancel()
		_, err = e.conn.SingleRequest(ctx, rig.Handler, nil)
		require.ErrorIs(t, err, own)
		var timeout interface{ Timeout() bool }
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.Equal(t, "deadline_exceeded", grid.CallResult{Err: err}.Status())
	})
}
