package grid

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// badEnds are the ways for a handler to end that are no return.
var badEnds = map[string]struct {
	end  func()
	want string // what the caller is told
}{
	"panic":         {func() { panic("boom") }, "handler 100 panicked: boom"},
	"panic error":   {func() { panic(errors.New("bad")) }, "handler 100 panicked: bad"},
	"panic nil":     {func() { panic(nil) }, "handler 100 panicked: "},
	"runtime error": {func() { var none []int; none[0]++ }, "handler 100 panicked: runtime error: index out of range [0]"},
	"Goexit":        {runtime.Goexit, "handler ended its goroutine"},
}

func TestSingleHandlerPanicIsAnErrorAndNothingElseIsLost(t *testing.T) {
	for name, bad := range badEnds {
		t.Run(name, func(t *testing.T) {
			log, book := newLogBook()
			inPair(t, func(_ int, o *ManagerOptions) { o.Logger = log }, func(t *testing.T, g *testGrid, c *Connection) {
				g.single(func([]byte) ([]byte, *RemoteErr) { bad.end(); return nil, nil })
				for range 3 {
					_, err := c.SingleRequest(t.Context(), testHandler, []byte("payload"))
					require.True(t, IsRemoteErr(err), err)
					require.ErrorContains(t, err, bad.want)
				}
				answer, err := c.SingleRequest(t.Context(), testEcho, []byte("alive"))
				require.NoError(t, err)
				require.Equal(t, "alive", string(answer))
				synctest.Wait()
				require.Zero(t, g.conn(1, 0).Stats().Handlers)
				require.Zero(t, c.Stats().Reconnects)
				if name != "Goexit" {
					require.Len(t, book.about("handler panicked", "handler=100", "singlehandler_test.go"), 1, "the first of them is logged with its stack")
				}
			})
		})
	}
}

func TestSingleHandlerErrorIgnoresTheBuffer(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		g.single(func(b []byte) ([]byte, *RemoteErr) { return b, NewRemoteErrString("failed") })
		answer, err := c.SingleRequest(t.Context(), testHandler, []byte("payload"))
		require.Equal(t, NewRemoteErrString("failed"), err)
		require.Nil(t, answer)

		// An error without a text is still an error.
		_, err = c.SingleRequest(t.Context(), testFail, nil)
		require.Equal(t, NewRemoteErrString(""), err)
	})
}

func TestSingleWithoutAHandlerFailsAtOnce(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		nop := func(b []byte) ([]byte, *RemoteErr) { return b, nil }
		require.Zero(t, elapsed(func() {
			_, err := c.SingleRequest(t.Context(), testUnused, nil)
			require.Equal(t, NewRemoteErrString("grid: no request handler with ID 8"), err)
			_, err = c.SingleRequest(t.Context(), testStream, nil)
			require.Equal(t, NewRemoteErrString("grid: no request handler with ID 3, only one of the other kind"), err)
			_, err = c.Subroute("nowhere").SingleRequest(t.Context(), testEcho, nil)
			require.Equal(t, NewRemoteErrString("grid: no request handler with ID 1 under that subroute"), err)
			_, err = c.NewStream(t.Context(), testUnused, nil)
			require.Equal(t, NewRemoteErrString("grid: no stream handler with ID 8"), err)
			_, err = c.NewStream(t.Context(), testEcho, nil)
			require.Equal(t, NewRemoteErrString("grid: no stream handler with ID 1, only one of the other kind"), err)
		}))

		// As soon as it is there it is found.
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testUnused, nop))
		_, err := c.SingleRequest(t.Context(), testUnused, nil)
		require.NoError(t, err)
	})
}

func TestHandlerIDZeroIsReserved(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		m, sub := g.nodes[1].Manager, c.Subroute("a")
		nop := func(b []byte) ([]byte, *RemoteErr) { return b, nil }
		serve := func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil }
		require.ErrorIs(t, m.RegisterSingleHandler(0, nop), ErrUnknownHandler)
		require.ErrorIs(t, m.RegisterSingleHandler(0, nop, "a"), ErrUnknownHandler)
		require.ErrorIs(t, m.RegisterStreamingHandler(0, StreamHandler{Handle: serve}), ErrUnknownHandler)
		for _, conn := range []Streamer{c, sub} {
			_, err := conn.NewStream(t.Context(), 0, nil)
			require.Equal(t, ErrUnknownHandler, err)
			_, err = conn.(Requester).SingleRequest(t.Context(), 0, nil)
			require.Equal(t, ErrUnknownHandler, err)
		}
	})
}

func TestSingleSubroutesAreApart(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		where := func(name string) SingleHandlerFn {
			return func(b []byte) ([]byte, *RemoteErr) { return fmt.Append(nil, name, ":", string(b)), nil }
		}
		g.single(where("none"))
		g.single(where("a"), "a")
		g.single(where("b"), "b")
		g.single(where("a/b"), "a", "b")
		g.single(where("a/b/c"), "a/b", "c")

		call := func(conn Requester) string {
			answer, err := conn.SingleRequest(t.Context(), testHandler, []byte("x"))
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
		require.Equal(t, "a/b/c", c.Subroute("a").Subroute("b").Subroute("c").String())

		for _, unknown := range []*Subroute{c.Subroute("c"), c.Subroute("b").Subroute("a"), c.Subroute("A"), c.Subroute("a/"), c.Subroute("/a")} {
			_, err := unknown.SingleRequest(t.Context(), testHandler, nil)
			require.True(t, IsRemoteErr(err), "%q: %v", unknown, err)
			_, err = unknown.NewStream(t.Context(), testHandler, nil)
			require.True(t, IsRemoteErr(err), "%q: %v", unknown, err)
		}
		for _, empty := range []*Subroute{c.Subroute(""), c.Subroute("a").Subroute(""), c.Subroute("").Subroute("a")} {
			_, err := empty.SingleRequest(t.Context(), testHandler, nil)
			require.Equal(t, errEmptySubroute, err)
			_, err = empty.NewStream(t.Context(), testHandler, nil)
			require.Equal(t, errEmptySubroute, err)
		}
		nop := func(b []byte) ([]byte, *RemoteErr) { return b, nil }
		m := g.nodes[1].Manager
		require.ErrorContains(t, m.RegisterSingleHandler(testHandler, nop, ""), "empty subroute")
		require.ErrorContains(t, m.RegisterSingleHandler(testHandler, nop, "a", ""), "empty subroute")
		require.ErrorContains(t, m.RegisterSingleHandler(testUnused, nil), "nil handler")
		require.ErrorIs(t, m.RegisterSingleHandler(testHandler, nop), ErrHandlerAlreadyExists)
		require.ErrorIs(t, m.RegisterSingleHandler(testHandler, nop, "a/b"), ErrHandlerAlreadyExists)
		require.NoError(t, m.RegisterSingleHandler(testHandler+1, nop, "a/b"))
	})
}

func TestNilConnectionIsDisconnected(t *testing.T) {
	var c *Connection
	for _, conn := range []Streamer{c, c.Subroute("a"), c.Subroute("a").Subroute("b")} {
		_, err := conn.(Requester).SingleRequest(t.Context(), testEcho, nil)
		require.Equal(t, ErrDisconnected, err)
		s, err := conn.NewStream(t.Context(), testStream, nil)
		require.Equal(t, ErrDisconnected, err)
		require.Nil(t, s)
	}
}

func TestTooManyHandlersAreRefusedAtOnce(t *testing.T) {
	edit := func(i int, o *ManagerOptions) { o.MaxHandlers = 3 }
	inPair(t, edit, func(t *testing.T, g *testGrid, c *Connection) {
		release := make(chan struct{})
		g.single(func(b []byte) ([]byte, *RemoteErr) { <-release; return b, nil })
		require.NoError(t, g.nodes[1].RegisterStreamingHandler(testHandler+1, StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { <-release; return nil },
		}))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		for range 2 {
			go func() { _, err := c.SingleRequest(ctx, testHandler, nil); ended <- err }()
		}
		stream, err := c.NewStream(ctx, testHandler+1, nil)
		require.NoError(t, err)
		synctest.Wait()
		refused := func(why string) {
			t.Helper()
			require.Zero(t, elapsed(func() {
				for _, id := range []HandlerID{testHandler, testEcho} {
					_, err := c.SingleRequest(t.Context(), id, nil)
					require.True(t, IsRemoteErr(err), why)
					require.ErrorContains(t, err, "3 handlers are running", why)
				}
				_, err := c.NewStream(t.Context(), testStream, nil)
				require.True(t, IsRemoteErr(err), why)
				require.ErrorContains(t, err, "3 handlers are running", why)
			}))
		}
		refused("all slots are taken")
		require.Equal(t, 3, g.conn(1, 0).Stats().Handlers)
		_, err = g.conn(1, 0).SingleRequest(t.Context(), testEcho, nil)
		require.NoError(t, err, "the other direction has slots of its own")

		// The callers leave, the handlers stay.
		cancel()
		require.Equal(t, context.Canceled, <-ended)
		require.Equal(t, context.Canceled, <-ended)
		<-stream.Done()
		synctest.Wait()
		refused("the handlers have not returned")

		close(release)
		synctest.Wait()
		require.Zero(t, g.conn(1, 0).Stats().Handlers)
		_, err = c.SingleRequest(t.Context(), testHandler, nil)
		require.NoError(t, err)
	})
}
