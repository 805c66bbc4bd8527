package calls

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// A host that does not have the handler.

func TestErrNoHandler_IsARefusalThatHasRunNothing(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		require.NoError(t, m.RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		require.NoError(t, m.RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{Serve: func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr { return nil }}))
		request := func(r grid.Requester, id grid.HandlerID, payload []byte) error {
			_, err := r.SingleRequest(t.Context(), id, payload)
			return err
		}
		stream := func(r grid.Streamer, id grid.HandlerID, payload []byte) error {
			s, err := r.NewStream(t.Context(), id, payload)
			if err != nil {
				return err
			}
			return rig.Consume(s)
		}
		require.NoError(t, request(c, rig.Handler, nil))
		require.NoError(t, stream(c, rig.Handler+1, nil))
		started, err := c.StartStream(t.Context(), rig.Unused, nil)
		if err == nil {
			err = rig.Consume(started)
		}
		large := make([]byte, 1<<20)
		errs := map[string]error{
			"request":               request(c, rig.Unused, nil),
			"request, in fragments": request(c, rig.Unused, large),
			"request to a stream":   request(c, rig.Handler+1, nil),
			"request, subroute":     request(c.Subroute("a"), rig.Handler, nil),
			"request, options":      request(c.With(grid.CallOptions{WaitForLink: true}), rig.Unused, nil),
			"stream":                stream(c, rig.Unused, nil),
			"stream, in fragments":  stream(c, rig.Unused, large),
			"stream to a request":   stream(c, rig.Handler, nil),
			"stream, subroute":      stream(c.Subroute("a"), rig.Handler+1, nil),
			"stream, started":       err,
		}
		require.True(t, m.Unregister(rig.Handler))
		require.True(t, m.Unregister(rig.Handler+1))
		errs["request, unregistered"] = request(c, rig.Handler, nil)
		errs["stream, unregistered"] = stream(c, rig.Handler+1, nil)
		for name, err := range errs {
			require.ErrorIs(t, err, grid.ErrNoHandler, name)
			require.True(t, grid.IsRemoteErr(err), name)
			require.True(t, grid.CanRetry(err), name)
			require.NotErrorIs(t, err, grid.ErrOverloaded, name)
			require.NotErrorIs(t, err, grid.ErrDisconnected, name)
			require.Regexp(t, `^grid: no (request|stream) handler with ID \d+.* \(http://node1:9000\)$`, err.Error(), name)
		}
	})
}

// What a handler says is never taken for it, even where it passes on what another host has said.
func TestErrNoHandler_IsNotWhatAHandlerSays(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		back := g.Conn(1, 0)
		says := map[grid.HandlerID]func() error{
			rig.Handler: func() error {
				return errors.New("grid: no request handler with ID 100")
			},
			rig.Handler + 1: func() error { return grid.ErrNoHandler },
			rig.Handler + 2: func() error {
				_, err := back.SingleRequest(t.Context(), rig.Unused, nil)
				require.ErrorIs(t, err, grid.ErrNoHandler)
				return err
			},
		}
		for id, f := range says {
			require.NoError(t, g.Manager(1).RegisterSingleHandler(id, func([]byte) ([]byte, *grid.RemoteErr) {
				return nil, grid.NewRemoteErr(f())
			}))
			require.NoError(t, g.Manager(1).RegisterStreamingHandler(id, grid.StreamHandler{Subroute: "s", Serve: func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr {
				return grid.NewRemoteErr(f())
			}}))
			_, err := c.SingleRequest(t.Context(), id, nil)
			s, serr := c.Subroute("s").NewStream(t.Context(), id, nil)
			require.NoError(t, serr)
			for _, err := range []error{err, rig.Consume(s)} {
				require.True(t, grid.IsRemoteErr(err))
				require.NotErrorIs(t, err, grid.ErrNoHandler)
				require.False(t, grid.CanRetry(err))
			}
		}
	})
}

// During an upgrade some hosts have a handler that others do not have yet.
func TestRetrier_GoesToAHostThatHasTheHandler(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		require.NoError(t, g.Manager(2).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		r := newRetrier(t, grid.RetryOptions{}, g.Conn(0, 1), g.Conn(0, 2))
		for range 100 {
			_, err := r.SingleRequest(t.Context(), rig.Handler, nil)
			require.NoError(t, err)
		}
		require.Equal(t, grid.RetryStats{Calls: 100, Retries: 100}, r.Stats(), "the budget is not used")

		_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
		a, b := &scripted{err: err}, &scripted{err: err}
		r = newRetrier(t, grid.RetryOptions{Attempts: 10}, a, b)
		took := rig.Elapsed(func() {
			_, got := r.SingleRequest(t.Context(), 1, nil)
			require.Equal(t, err, got)
		})
		require.EqualValues(t, 1, a.calls.Load(), "not the same host again")
		require.EqualValues(t, 1, b.calls.Load())
		require.Zero(t, took)

		// Those that may still answer are asked again.
		unsent, _ := refusals(t)
		b.err = unsent
		_, got := r.SingleRequest(t.Context(), 1, nil)
		require.Equal(t, unsent, got)
		require.EqualValues(t, 2, a.calls.Load())
		require.EqualValues(t, 1+9, b.calls.Load())
	})
}
