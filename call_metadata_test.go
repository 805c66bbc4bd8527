package grid_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// serveMetadata registers handlers of all kinds that have a context, which keep what Metadata returns.
func serveMetadata(t *testing.T, m *grid.Manager, got chan map[string]string) {
	t.Helper()
	single := func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
		got <- grid.Metadata(context.WithValue(ctx, got, 1))
		return b, nil
	}
	require.NoError(t, m.RegisterSingleHandlerContext(101, single))
	require.NoError(t, m.RegisterSingleHandlerContext(101, single, "sub"))
	require.NoError(t, m.RegisterStreamingHandler(102, grid.StreamHandler{Serve: func(ctx context.Context, _ []byte, _ *grid.ServerStream) *grid.RemoteErr {
		got <- grid.Metadata(ctx)
		return nil
	}}))
	require.NoError(t, m.RegisterStreamingHandler(103, grid.StreamHandler{Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
		got <- grid.Metadata(ctx)
		return nil
	}}))
}

// eachCall makes a call of each kind with metadata.
func eachCall(t *testing.T, c *grid.Connection, metadata map[string]string, f func(name string, err error)) {
	t.Helper()
	large := make([]byte, 200_000)
	for _, payload := range [][]byte{[]byte("x"), large} {
		for _, sub := range []string{"", "sub"} {
			with := c.With(grid.CallOptions{Metadata: metadata})
			if sub != "" {
				with = c.Subroute(sub).With(grid.CallOptions{Metadata: metadata})
			}
			_, err := with.SingleRequest(t.Context(), 101, payload)
			f(fmt.Sprintf("request of %d bytes under %q", len(payload), sub), err)
		}
		for id := grid.HandlerID(102); id <= 103; id++ {
			st, err := c.With(grid.CallOptions{Metadata: metadata}).NewStream(t.Context(), id, payload)
			if err == nil {
				err = rig.Consume(st)
			}
			f(fmt.Sprintf("stream to %d with %d bytes", id, len(payload)), err)
		}
	}
}

// What a caller gives a call, its handler finds; with interceptors as without.
func TestMetadata_OfTheCallerReachesTheHandler(t *testing.T) {
	t.Parallel()
	for _, adds := range []map[string]string{nil, {}, {"trace": "1", "user": "of the interceptor"}} {
		rig.InPair(t, func(i int, o *grid.ManagerOptions) {
			if adds != nil {
				o.CallInterceptors = []grid.CallInterceptor{adder(adds)}
				o.ServeInterceptors = []grid.ServeInterceptor{bystander{}}
			}
		}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			got := make(chan map[string]string, 10)
			serveMetadata(t, g.Manager(1), got)
			given := map[string]string{"user": "me", "empty": "", "": "no key"}
			want := map[string]string{"user": "me", "empty": "", "": "no key"}
			for k, v := range adds {
				want[k] = v
			}
			eachCall(t, c, given, func(name string, err error) {
				require.NoError(t, err, name)
				require.Equal(t, want, <-got, name)
			})
			require.Equal(t, map[string]string{"user": "me", "empty": "", "": "no key"}, given, "it is the caller's")

			var none map[string]string
			if len(adds) > 0 {
				none = adds
			}
			eachCall(t, c, nil, func(name string, err error) {
				require.NoError(t, err, name)
				require.Equal(t, none, <-got, name)
			})
		})
	}
	require.Nil(t, grid.Metadata(t.Context()))
}

// adder adds metadata to all calls.
type adder map[string]string

func (m adder) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	for k, v := range m {
		info.AddMetadata(k, v)
	}
	return ctx, nil, nil
}

// bystander only changes the metadata that it is shown, which is its own.
type bystander struct{}

func (bystander) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	clear(info.Metadata)
	info.AddMetadata("more", "x")
	return ctx, nil, nil
}

// The map is the caller's of Metadata, not that of the next one who asks.
func TestMetadata_IsMadeAnewByEachCall(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(101, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
			grid.Metadata(ctx)["k"] = "changed"
			return []byte(grid.Metadata(ctx)["k"]), nil
		}))
		b, err := c.With(grid.CallOptions{Metadata: map[string]string{"k": "v"}}).SingleRequest(t.Context(), 101, nil)
		require.NoError(t, err)
		require.Equal(t, "v", string(b))
	})
}

// What is too much is refused here, whether the host can be reached or not.
func TestMetadata_ThatIsTooLargeIsRefusedHere(t *testing.T) {
	t.Parallel()
	rig.InWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *rig.Wire) {
		for _, metadata := range []map[string]string{
			{"k": strings.Repeat("x", rig.MaxMetadata)}, {strings.Repeat("x", rig.MaxMetadata): ""}, manyPairs(300),
		} {
			check := func(name string, err error) {
				require.ErrorIs(r, err, grid.ErrMessageTooLarge, name)
				require.ErrorContains(r, err, "metadata of", name)
			}
			eachCall(r.T, r.Conn, metadata, check)
			r.Quiet()
		}
		r.Alive()
	})
}

func manyPairs(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint(i)] = ""
	}
	return m
}
