package rig

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// What the tests of calls and streams share.

// Handler is the ID under which a test registers the handler that it is about.
const Handler grid.HandlerID = 100

// InBubble runs f in a bubble, which may not take for ever. A test that waits for what never comes
// would do so otherwise, because of the pings.
func InBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		stuck := time.AfterFunc(12*time.Hour, func() { panic("the test is stuck") })
		defer stuck.Stop()
		f(t)
	})
}

// InPair runs f in a bubble with a grid of two nodes and the connection from the first to the
// second. edit may change their options; it may be nil.
func InPair(t *testing.T, edit func(i int, o *grid.ManagerOptions), f func(t *testing.T, g *Grid, c *grid.Connection)) {
	t.Helper()
	InBubble(t, func(t *testing.T) {
		g := New(t, 2, edit)
		f(t, g, g.Conn(0, 1))
	})
}

// Single registers h at the second node, as Handler.
func (g *Grid) Single(h grid.SingleHandlerFn, subroute ...string) {
	g.T.Helper()
	require.NoError(g.T, g.Manager(1).RegisterSingleHandler(Handler, h, subroute...))
}

// Stream registers h at the second node, as Handler.
func (g *Grid) Stream(outCapacity, inCapacity int, h grid.StreamHandlerFn) {
	g.T.Helper()
	require.NoError(g.T, g.Manager(1).RegisterStreamingHandler(Handler, grid.StreamHandler{
		Handle: h, OutCapacity: outCapacity, InCapacity: inCapacity,
	}))
}

// OpenStream opens a stream to Handler.
func OpenStream(t testing.TB, ctx context.Context, c *grid.Connection, payload ...byte) *grid.Stream {
	t.Helper()
	s, err := c.NewStream(ctx, Handler, payload)
	require.NoError(t, err)
	return s
}

// Collect consumes a stream, and takes its time over each message.
func Collect(s *grid.Stream, each time.Duration) (got []string, err error) {
	err = s.Results(func(b []byte) error {
		if each > 0 {
			time.Sleep(each)
		}
		got = append(got, string(b))
		grid.PutByteBuffer(b)
		return nil
	})
	return got, err
}

// Elapsed is how long f takes, by the bubble's clock.
func Elapsed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// Pooled is a message that may be given away.
func Pooled(s string) []byte { return append(grid.GetByteBufferCap(len(s)), s...) }

// NoticeTime is within what a peer that has fallen silent must be noticed.
const NoticeTime = 3 * 10 * time.Second

// BlockHandler registers a stream handler that reports why its context ended.
func BlockHandler(t testing.TB, m *grid.Manager, id grid.HandlerID) (ended <-chan error) {
	t.Helper()
	c := make(chan error, 1)
	require.NoError(t, m.RegisterStreamingHandler(id, grid.StreamHandler{InCapacity: 1, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
		<-ctx.Done()
		c <- context.Cause(ctx)
		return nil
	}}))
	return c
}

// InBackground runs f, whose error is then to be received.
func InBackground(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// Consume takes what is left of a stream, and returns how that ends.
func Consume(st *grid.Stream) error {
	return st.Results(func(b []byte) error { grid.PutByteBuffer(b); return nil })
}

// Caller is a connection or a subroute.
type Caller interface {
	grid.Requester
	NewStream(context.Context, grid.HandlerID, []byte) (*grid.Stream, error)
}

// Gate is what handlers wait for, and what opens it: the end of the test does at the latest.
func Gate(t testing.TB) (release <-chan struct{}, let func()) {
	c := make(chan struct{})
	let = sync.OnceFunc(func() { close(c) })
	t.Cleanup(let)
	return c, let
}

// Long skips a test that takes seconds where the tests are to be over soon.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: make test-long runs it")
	}
}
