package calls

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

func TestRequest_HandlerPanicIsAnErrorAndNothingElseIsLost(t *testing.T) {
	t.Parallel()
	for name, bad := range rig.BadEnds {
		t.Run(name, func(t *testing.T) {
			log, book := rig.NewLogBook()
			rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.Logger = log }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				g.Single(func([]byte) ([]byte, *grid.RemoteErr) { bad.End(); return nil, nil })
				for range 3 {
					_, err := c.SingleRequest(t.Context(), rig.Handler, []byte("payload"))
					require.True(t, grid.IsRemoteErr(err), err)
					require.ErrorContains(t, err, bad.Want)
				}
				answer, err := c.SingleRequest(t.Context(), rig.Echo, []byte("alive"))
				require.NoError(t, err)
				require.Equal(t, "alive", string(answer))
				synctest.Wait()
				require.Zero(t, g.Conn(1, 0).Stats().Handlers)
				require.Zero(t, c.Stats().Reconnects)
				if name != "Goexit" {
					require.Len(t, book.About("handler panicked", "handler=100", "single_handler_test.go"), 1, "the first of them is logged with its stack")
				}
			})
		})
	}
}

func TestRequest_HandlerErrorIgnoresTheBuffer(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { return b, grid.NewRemoteErrString("failed") })
		answer, err := c.SingleRequest(t.Context(), rig.Handler, []byte("payload"))
		require.Equal(t, grid.NewRemoteErrString("failed"), err)
		require.Nil(t, answer)

		// An error without a text is still an error.
		_, err = c.SingleRequest(t.Context(), rig.Fail, nil)
		require.Equal(t, grid.NewRemoteErrString(""), err)
	})
}

func TestRequest_WithoutAHandlerFailsAtOnce(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		nop := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		require.Zero(t, rig.Elapsed(func() {
			_, err := c.SingleRequest(t.Context(), rig.Unused, nil)
			require.EqualError(t, err, "grid: no request handler with ID 8 ("+g.Host(1)+")")
			_, err = c.SingleRequest(t.Context(), rig.Stream, nil)
			require.EqualError(t, err, "grid: no request handler with ID 3, only one of the other kind ("+g.Host(1)+")")
			_, err = c.Subroute("nowhere").SingleRequest(t.Context(), rig.Echo, nil)
			require.EqualError(t, err, "grid: no request handler with ID 1 under that subroute ("+g.Host(1)+")")
			_, err = c.NewStream(t.Context(), rig.Unused, nil)
			require.EqualError(t, err, "grid: no stream handler with ID 8 ("+g.Host(1)+")")
			_, err = c.NewStream(t.Context(), rig.Echo, nil)
			require.EqualError(t, err, "grid: no stream handler with ID 1, only one of the other kind ("+g.Host(1)+")")
		}))

		// As soon as it is there it is found.
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, nop))
		_, err := c.SingleRequest(t.Context(), rig.Unused, nil)
		require.NoError(t, err)
	})
}

func TestHandler_IDZeroIsReserved(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m, sub := g.Manager(1), c.Subroute("a")
		nop := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		serve := func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil }
		require.ErrorIs(t, m.RegisterSingleHandler(0, nop), grid.ErrUnknownHandler)
		require.ErrorIs(t, m.RegisterSingleHandler(0, nop, "a"), grid.ErrUnknownHandler)
		require.ErrorIs(t, m.RegisterStreamingHandler(0, grid.StreamHandler{Handle: serve}), grid.ErrUnknownHandler)
		for _, conn := range []grid.Streamer{c, sub} {
			_, err := conn.NewStream(t.Context(), 0, nil)
			require.ErrorIs(t, err, grid.ErrUnknownHandler)
			_, err = conn.(grid.Requester).SingleRequest(t.Context(), 0, nil)
			require.ErrorIs(t, err, grid.ErrUnknownHandler)
		}
	})
}

func TestRequest_SubroutesAreApart(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		where := func(name string) grid.SingleHandlerFn {
			return func(b []byte) ([]byte, *grid.RemoteErr) { return fmt.Append(nil, name, ":", string(b)), nil }
		}
		g.Single(where("none"))
		g.Single(where("a"), "a")
		g.Single(where("b"), "b")
		g.Single(where("a/b"), "a", "b")
		g.Single(where("a/b/c"), "a/b", "c")

		call := func(conn grid.Requester) string {
			answer, err := conn.SingleRequest(t.Context(), rig.Handler, []byte("x"))
			require.NoError(t, err)
			return string(answer)
		}
		require.Equal(t, "none:x", call(c))
		require.Equal(t, "a:x", call(c.Subroute("a")))
		require.Equal(t, "b:x", call(c.Subroute("b")))
		require.Equal(t, "a/b:x", call(c.Subroute("a/b")))
		require.Equal(t, "a/b:x", call(c.Subroute("a").Subroute("b")))
		require.Equal(t, "a/b/c:x", call(c.Subroute("a").Subroute("b").Subroute("c")))
		require.Equal(t, "a/b/c:x", call(c.Subroute("a").Subroute("b/c")))
		require.Equal(t, "a/b/c", c.Subroute("a").Subroute("b").Subroute("c").Name())

		for _, unknown := range []*grid.Subroute{c.Subroute("c"), c.Subroute("b").Subroute("a"), c.Subroute("A"), c.Subroute("a/"), c.Subroute("/a")} {
			_, err := unknown.SingleRequest(t.Context(), rig.Handler, nil)
			require.True(t, grid.IsRemoteErr(err), "%q: %v", unknown, err)
			_, err = unknown.NewStream(t.Context(), rig.Handler, nil)
			require.True(t, grid.IsRemoteErr(err), "%q: %v", unknown, err)
		}
		for _, empty := range []*grid.Subroute{c.Subroute(""), c.Subroute("a").Subroute(""), c.Subroute("").Subroute("a")} {
			_, err := empty.SingleRequest(t.Context(), rig.Handler, nil)
			require.ErrorContains(t, err, "grid: empty subroute (handler ")
			_, err = empty.NewStream(t.Context(), rig.Handler, nil)
			require.ErrorContains(t, err, "grid: empty subroute (handler ")
		}
		nop := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		m := g.Manager(1)
		require.ErrorContains(t, m.RegisterSingleHandler(rig.Handler, nop, ""), "empty subroute")
		require.ErrorContains(t, m.RegisterSingleHandler(rig.Handler, nop, "a", ""), "empty subroute")
		require.ErrorContains(t, m.RegisterSingleHandler(rig.Unused, nil), "nil handler")
		require.ErrorIs(t, m.RegisterSingleHandler(rig.Handler, nop), grid.ErrHandlerAlreadyExists)
		require.ErrorIs(t, m.RegisterSingleHandler(rig.Handler, nop, "a/b"), grid.ErrHandlerAlreadyExists)
		require.NoError(t, m.RegisterSingleHandler(rig.Handler+1, nop, "a/b"))
	})
}

func TestError_NilConnectionIsDisconnected(t *testing.T) {
	t.Parallel()
	var c *grid.Connection
	for _, conn := range []grid.Streamer{c, c.Subroute("a"), c.Subroute("a").Subroute("b")} {
		_, err := conn.(grid.Requester).SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		s, err := conn.NewStream(t.Context(), rig.Stream, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Nil(t, s)
	}
}

func TestSubroute_OfNoConnectionIsSafeToUse(t *testing.T) {
	t.Parallel()
	for _, s := range []*grid.Subroute{nil, (*grid.Connection)(nil).Subroute("disk"), (*grid.Subroute)(nil).Subroute("1")} {
		_, err := s.SingleRequest(t.Context(), 1, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		_, err = s.NewStream(t.Context(), 1, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorIs(t, s.WaitForConnect(t.Context()), grid.ErrDisconnected)
		require.Equal(t, grid.StateUnconnected, s.State())
		require.Zero(t, s.Stats())
		require.Equal(t, "<nil>", s.String())
	}
}

func TestLimits_TooManyHandlersAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	edit := func(i int, o *grid.ManagerOptions) { o.MaxHandlers = 3 }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil })
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { <-release; return nil },
		}))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		for range 2 {
			go func() { _, err := c.SingleRequest(ctx, rig.Handler, nil); ended <- err }()
		}
		stream, err := c.NewStream(ctx, rig.Handler+1, nil)
		require.NoError(t, err)
		synctest.Wait()
		refused := func(why string) {
			t.Helper()
			require.Zero(t, rig.Elapsed(func() {
				for _, id := range []grid.HandlerID{rig.Handler, rig.Echo} {
					_, err := c.SingleRequest(t.Context(), id, nil)
					require.True(t, grid.IsRemoteErr(err), why)
					require.ErrorContains(t, err, "3 handlers are running", why)
				}
				_, err := c.NewStream(t.Context(), rig.Stream, nil)
				require.True(t, grid.IsRemoteErr(err), why)
				require.ErrorContains(t, err, "3 handlers are running", why)
			}))
		}
		refused("all slots are taken")
		require.Equal(t, 3, g.Conn(1, 0).Stats().Handlers)
		_, err = g.Conn(1, 0).SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err, "the other direction has slots of its own")

		// The callers leave, the handlers stay.
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.ErrorIs(t, <-ended, context.Canceled)
		<-stream.Done()
		synctest.Wait()
		refused("the handlers have not returned")

		close(release)
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
		_, err = c.SingleRequest(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
	})
}
