package calls

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// nilRemote is what a function of the application's returns as error that means none, and forgets
// that NewRemoteErr returns a pointer.
func nilRemote() error { return grid.NewRemoteErr(nil) }

// forgetful is an interceptor of both sides that returns nilRemote, and keeps how calls ended.
type forgetful struct{ ends chan error }

func (f forgetful) begin(ctx context.Context) (context.Context, func(grid.CallResult), error) {
	return ctx, func(r grid.CallResult) { f.ends <- r.Err }, nilRemote()
}

func (f forgetful) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return f.begin(ctx)
}

func (f forgetful) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return f.begin(ctx)
}

// A nil *RemoteErr in a variable of type error is not nil. No call returns one, nor tells an
// interceptor of one, whatever the application's own functions return.
func TestError_NilRemoteErrIsReturnedNowhere(t *testing.T) {
	t.Parallel()
	ends := make(chan error, 100)
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		o.LocalCalls = true
		o.CallInterceptors = []grid.CallInterceptor{forgetful{ends}}
		o.ServeInterceptors = []grid.ServeInterceptor{forgetful{ends}}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		server := g.Manager(1)
		var none *grid.RemoteErr
		require.NoError(t, server.RegisterSingleHandler(100, func(b []byte) ([]byte, *grid.RemoteErr) { return b, none }))
		require.NoError(t, server.RegisterSingleHandlerContext(101, func(_ context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			return b, grid.NewRemoteErr(nilRemote())
		}))
		single := grid.NewSingleHandler(102, grid.NewMSS, grid.NewMSS)
		require.NoError(t, single.Register(server, func(m *grid.MSS) (*grid.MSS, *grid.RemoteErr) { return m, none }))
		stream := grid.NewStream(103, grid.NewBytes, grid.NewBytes, grid.NewBytes)
		require.NoError(t, stream.Register(server, func(_ context.Context, _ *grid.Bytes, _ <-chan *grid.Bytes, out chan<- *grid.Bytes) *grid.RemoteErr {
			out <- grid.NewBytesWith([]byte("one"))
			out <- grid.NewBytesWith([]byte("two"))
			return none
		}))
		require.NoError(t, server.RegisterStreamingHandler(104, grid.StreamHandler{Handle: func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- []byte("one")
			out <- []byte("two")
			return none
		}}))
		for _, c := range []*grid.Connection{c, server.Connection(g.Host(1))} {
			for id := grid.HandlerID(100); id < 102; id++ {
				_, err := c.SingleRequest(t.Context(), id, []byte("x"))
				require.True(t, err == nil, "%d: %T", id, err)
			}
			_, err := single.Call(t.Context(), c, grid.NewMSS())
			require.True(t, err == nil, "%T", err)

			typed, err := stream.Call(t.Context(), c, grid.NewBytes())
			require.True(t, err == nil, "%T", err)
			n := 0
			err = typed.Results(func(*grid.Bytes) error { n++; return nilRemote() })
			require.True(t, err == nil, "%T", err)
			require.True(t, typed.Err() == nil)
			raw, err := c.NewStream(t.Context(), 104, nil)
			require.True(t, err == nil, "%T", err)
			err = raw.Results(func([]byte) error { n++; return nilRemote() })
			require.True(t, err == nil, "%T", err)
			require.True(t, raw.Err() == nil)
			require.Equal(t, 4, n, "next was told of all messages")
			synctest.Wait()
			require.Len(t, ends, 10)
			for range 10 {
				err := <-ends
				require.True(t, err == nil, "%T", err)
			}
		}
	})
	require.False(t, grid.IsRemoteErr(nilRemote()))
	require.True(t, grid.NewRemoteErr(nilRemote()) == nil)
}
