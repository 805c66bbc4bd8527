package grid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What the tests of calls and streams share.

// testHandler is the ID under which a test registers the handler that it is
// about.
const testHandler HandlerID = 100

// inBubble runs f in a bubble, which may not take for ever. A test that waits for
// what never comes would do so otherwise, because of the pings.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		stuck := time.AfterFunc(12*time.Hour, func() { panic("the test is stuck") })
		defer stuck.Stop()
		f(t)
	})
}

// inPair runs f in a bubble with a grid of two nodes and the connection from
// the first to the second. edit may change their options; it may be nil.
func inPair(t *testing.T, edit func(i int, o *ManagerOptions), f func(t *testing.T, g *testGrid, c *Connection)) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		g := newTestGrid(t, 2, edit)
		f(t, g, g.conn(0, 1))
	})
}

// single registers h at the second node, as testHandler.
func (g *testGrid) single(h SingleHandlerFn, subroute ...string) {
	g.t.Helper()
	require.NoError(g.t, g.nodes[1].RegisterSingleHandler(testHandler, h, subroute...))
}

// stream registers h at the second node, as testHandler.
func (g *testGrid) stream(outCapacity, inCapacity int, h StreamHandlerFn) {
	g.t.Helper()
	require.NoError(g.t, g.nodes[1].RegisterStreamingHandler(testHandler, StreamHandler{
		Handle: h, OutCapacity: outCapacity, InCapacity: inCapacity,
	}))
}

// openStream opens a stream to testHandler.
func openStream(t testing.TB, ctx context.Context, c *Connection, payload ...byte) *Stream {
	t.Helper()
	s, err := c.NewStream(ctx, testHandler, payload)
	require.NoError(t, err)
	return s
}

// collect consumes a stream, and takes its time over each message.
func collect(s *Stream, each time.Duration) (got []string, err error) {
	err = s.Results(func(b []byte) error {
		if each > 0 {
			time.Sleep(each)
		}
		got = append(got, string(b))
		PutByteBuffer(b)
		return nil
	})
	return got, err
}

// elapsed is how long f takes, by the bubble's clock.
func elapsed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// pooled is a message that may be given away.
func pooled(s string) []byte { return append(GetByteBufferCap(len(s)), s...) }
