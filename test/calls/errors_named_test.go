package calls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Whatever a call or a stream ends with that the remote host has not said names host and handler,
// each once, and is what it was without them.
func TestErrors_NameHostAndHandlerOnce(t *testing.T) {
	const blocks, named grid.HandlerID = 60, 61
	edit := func(_ int, o *grid.ManagerOptions) {
		o.MaxMessageSize = 1000
		o.MaxHandlers = 50
		o.HandlerOptions = map[grid.HandlerKey]grid.HandlerOptions{{ID: named}: {Name: "lookup", MaxRunning: 1}}
	}
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		block := func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		}
		for _, route := range [][]string{nil, {"disk"}} {
			require.NoError(t, g.Manager(1).RegisterStreamingHandler(blocks, grid.StreamHandler{Serve: block, InCapacity: 1}, route...))
			require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(named, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
				<-ctx.Done()
				return nil, nil
			}, route...))
		}
		call := func(ctx context.Context, c grid.Requester, id grid.HandlerID, payload []byte) error {
			_, err := c.SingleRequest(ctx, id, payload)
			return err
		}
		open := func(t *testing.T, ctx context.Context) *grid.Stream {
			s, err := c.NewStream(ctx, blocks, nil)
			require.NoError(t, err)
			return s
		}
		short := func(t *testing.T) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		}
		gone, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("not wanted"))
		typed := grid.NewStream[grid.NoPayload, *grid.Bytes, *grid.Bytes](blocks, nil, grid.NewBytes, grid.NewBytes)
		host := c.HostName()
		for name, test := range map[string]struct {
			run  func(t *testing.T) error
			is   error
			text string
		}{
			"deadline": {func(t *testing.T) error { return call(short(t), c, named, nil) }, context.DeadlineExceeded,
				"context deadline exceeded (handler 61 (lookup) of " + host + ")"},
			"timeout": {func(t *testing.T) error { return call(t.Context(), c.WithTimeout(time.Second), named, nil) }, context.DeadlineExceeded,
				"context deadline exceeded (handler 61 (lookup) of " + host + ")"},
			"timeout below 0": {func(t *testing.T) error { return call(t.Context(), c.WithTimeout(-1), named, nil) }, context.DeadlineExceeded,
				"context deadline exceeded (handler 61 (lookup) of " + host + ")"},
			"subroute": {func(t *testing.T) error { return call(short(t), c.Subroute("disk"), named, nil) }, context.DeadlineExceeded,
				"context deadline exceeded (handler 61 (lookup), subroute \"disk\" of " + host + ")"},
			"cancelled": {func(t *testing.T) error { return call(gone, c, named, nil) }, context.Canceled,
				"context canceled: not wanted (handler 61 (lookup) of " + host + ")"},
			"too large": {func(t *testing.T) error { return call(t.Context(), c, named, make([]byte, 1001)) }, grid.ErrMessageTooLarge,
				"grid: message too large: payload of 1001 bytes, MaxMessageSize is 1000 bytes (handler 61 (lookup) of " + host + ")"},
			"metadata": {func(t *testing.T) error {
				return call(t.Context(), c.With(grid.CallOptions{Metadata: map[string]string{"k": strings.Repeat("x", 3000)}}), named, nil)
			}, grid.ErrMessageTooLarge, ""},
			"handler 0":      {func(t *testing.T) error { return call(t.Context(), c, 0, nil) }, grid.ErrUnknownHandler, ""},
			"empty subroute": {func(t *testing.T) error { return call(t.Context(), c.Subroute(""), named, nil) }, nil, ""},
			"refused": {func(t *testing.T) error {
				ctx, cancel := context.WithCancel(t.Context())
				defer synctest.Wait()
				defer cancel()
				go call(ctx, c, named, nil)
				synctest.Wait()
				return call(t.Context(), c, named, nil)
			}, grid.ErrOverloaded, ""},
			"typed request": {func(t *testing.T) error {
				h := grid.NewSingleHandler(named, func() *grid.JSON[func()] { return new(grid.JSON[func()]) }, grid.NewBytes)
				f := func() {}
				j := new(grid.JSON[func()])
				j.Set(&f)
				_, err := h.Call(t.Context(), c, j)
				return err
			}, nil, ""},
			"opening": {func(t *testing.T) error { _, err := c.NewStream(gone, blocks, nil); return err }, context.Canceled, ""},
			"results": {func(t *testing.T) error { return open(t, short(t)).Results(nil) }, context.DeadlineExceeded,
				"context deadline exceeded (handler 60 of " + host + ")"},
			"recv": {func(t *testing.T) error { _, err := open(t, short(t)).Recv(); return err }, context.DeadlineExceeded, ""},
			"err":  {func(t *testing.T) error { s := open(t, short(t)); <-s.Done(); return s.Err() }, context.DeadlineExceeded, ""},
			"typed": {func(t *testing.T) error {
				s, _ := typed.Call(short(t), c, grid.NoPayload{})
				_, err := s.Recv()
				return err
			}, context.DeadlineExceeded, ""},
			"send": {func(t *testing.T) error {
				s := open(t, short(t))
				for {
					if err := s.Send(nil); err != nil {
						return err
					}
				}
			}, context.DeadlineExceeded, ""},
			"send too large": {func(t *testing.T) error { return open(t, short(t)).Send(make([]byte, 1001)) }, grid.ErrMessageTooLarge, ""},
			"send for a time": {func(t *testing.T) error {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s, within := open(t, ctx), short(t)
				for {
					if err := s.SendContext(within, nil); err != nil {
						return err
					}
				}
			}, context.DeadlineExceeded, ""},
			"recv for a time": {func(t *testing.T) error {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := open(t, ctx).RecvContext(short(t))
				return err
			}, context.DeadlineExceeded, ""},
			"send after the end": {func(t *testing.T) error {
				s := open(t, short(t))
				s.CloseSend()
				return s.Send(nil)
			}, io.ErrClosedPipe, ""},
			"finish": {func(t *testing.T) error { return open(t, t.Context()).Finish(short(t)) }, context.DeadlineExceeded, ""},
		} {
			func() {
				err := test.run(t)
				require.Error(t, err)
				if test.is != nil {
					require.ErrorIs(t, err, test.is)
				}
				if test.text != "" {
					require.EqualError(t, err, test.text)
				}
				require.Equal(t, 1, strings.Count(err.Error(), host), "%s: %v", name, err)
				if name != "handler 0" {
					require.Equal(t, 1, strings.Count(err.Error(), "handler 6"), "%s: %v", name, err)
				}
				again := fmt.Errorf("wrapped: %w", err)
				require.Equal(t, 1, strings.Count(again.Error(), host), name)
			}()
		}
		synctest.Wait()

		// Without a link, and while one waits for it.
		g.Net.Partition(g.Addr(0), g.Addr(1))
		g.Cut(0, 1)
		synctest.Wait()
		for _, err := range []error{
			call(t.Context(), c, named, nil),
			call(short(t), c.With(grid.CallOptions{WaitForLink: true}), named, nil),
			func() error { _, err := c.NewStream(t.Context(), named, nil); return err }(),
		} {
			require.Equal(t, 1, strings.Count(err.Error(), host), err)
			require.Equal(t, 1, strings.Count(err.Error(), "handler 61 (lookup)"), err)
		}
		_, err := grid.NewSingleHandler(named, grid.NewBytes, grid.NewBytes).CallAll(t.Context(), []grid.Requester{c}, grid.NewBytes())
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Equal(t, 1, strings.Count(err.Error(), host), err)
		require.Equal(t, 1, strings.Count(err.Error(), "handler 61"), err)
	})
}

// What the handler has said, and the application's own reasons, are left as they are.
func TestErrors_OfOthersAreNotRenamed(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString("its own") })
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.Equal(t, error(grid.NewRemoteErrString("its own")), err)
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		require.NoError(t, s.Send([]byte("x")))
		mine := errors.New("mine")
		require.Equal(t, mine, s.Results(func([]byte) error { return mine }))
		require.Equal(t, mine, s.Err())

		// An error of one call is not that of another in its group, whatever it is.
		group, cancel := context.WithCancelCause(t.Context())
		short, stop := context.WithTimeout(t.Context(), time.Millisecond)
		defer stop()
		blocked, err := c.NewStream(short, rig.Block, nil)
		require.NoError(t, err)
		failed := blocked.Results(nil)
		require.ErrorIs(t, failed, context.DeadlineExceeded)
		cancel(failed)
		_, err = c.SingleRequest(group, rig.Echo, nil)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, failed)
	})
}

// An interceptor's own error is the caller's as it is, and that of a call which it makes names its
// host once.
func TestErrors_OfInterceptorsAreTheirOwn(t *testing.T) {
	mine := errors.New("mine")
	rig.InBubble(t, func(t *testing.T) {
		var g *rig.Grid
		login := interceptsBy(func(ctx context.Context, c *grid.CallInfo) error {
			switch c.Handler {
			case rig.Handler:
				return mine
			case rig.Unused:
				_, err := g.Conn(0, 1).SingleRequest(ctx, rig.Unused+1, nil)
				return fmt.Errorf("login: %w", err)
			}
			return nil
		})
		g = rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.CallInterceptors = []grid.CallInterceptor{login} })
		c := g.Conn(0, 1)
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.Equal(t, mine, err)
		_, err = c.NewStream(t.Context(), rig.Handler, nil)
		require.Equal(t, mine, err)
		g.Stop(1)
		_, err = c.SingleRequest(t.Context(), rig.Unused, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Equal(t, 1, strings.Count(err.Error(), g.Host(1)), "%v", err)
	})
}

type interceptsBy func(ctx context.Context, c *grid.CallInfo) error

func (f interceptsBy) InterceptCall(ctx context.Context, c *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, nil, f(ctx, c)
}
