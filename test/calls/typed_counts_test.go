package calls

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// What a typed handler is given counts four times while it has it, as decoded it takes more than it
// did on the wire.

func TestTyped_RequestCountsFourTimesWhileItsHandlerRuns(t *testing.T) {
	text := strings.Repeat("x", 1000)
	value := grid.NewMSSWith(map[string]string{"key": text})
	t.Run("MSS", func(t *testing.T) { requestCounts(t, grid.NewMSS, value, 4*value.Msgsize()) })
	t.Run("Bytes", func(t *testing.T) {
		requestCounts(t, grid.NewBytes, grid.NewBytesWithCopyOf([]byte(text)), 1003)
	})
	t.Run("JSON", func(t *testing.T) {
		pool := grid.NewJSONPool[string]()
		requestCounts(t, pool.NewJSON, pool.NewJSONWith(&text), 4*1005)
	})
	t.Run("NoPayload", func(t *testing.T) { requestCounts(t, grid.NewNoPayload, grid.NoPayload{}, 0) })
}

// requestCounts checks what a request counts, in one message and in fragments, and the first
// payload of a stream.
func requestCounts[T grid.RoundTripper](t *testing.T, newT func() T, value T, want int) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		kept := func() int { synctest.Wait(); return int(g.Conn(1, 0).Stats().KeptBytes) }
		h := grid.NewSingleHandler(rig.Handler, newT, grid.NewNoPayload)
		release, let := rig.Gate(t)
		require.NoError(t, h.Register(g.Node(1).Manager, func(T) (grid.NoPayload, *grid.RemoteErr) {
			<-release
			return grid.NoPayload{}, nil
		}))
		done := rig.InBackground(func() error { _, err := h.Call(t.Context(), c, value); return err })
		require.InDelta(t, want, kept(), 40) // Msgsize is a bound
		let()
		require.NoError(t, <-done)
		require.Zero(t, kept())

		s := grid.NewStream[T, grid.NoPayload, grid.NoPayload](rig.Unused, newT, nil, grid.NewNoPayload)
		s.WithPayload = true
		require.NoError(t, s.RegisterNoInput(g.Node(1).Manager, func(ctx context.Context, _ T, _ chan<- grid.NoPayload) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		}))
		ctx, cancel := context.WithCancel(t.Context())
		st, err := s.Call(ctx, c, value)
		require.NoError(t, err)
		require.InDelta(t, want, kept(), 40)
		cancel()
		<-st.Done()
		require.Zero(t, kept())
	})
}

func TestTyped_MessageOfAStreamCountsFourTimesInTheChannelOfItsHandler(t *testing.T) {
	const size, capacity = 1000, 8
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		pool := grid.NewJSONPool[string]()
		s := grid.NewStream[grid.NoPayload, *grid.JSON[string], grid.NoPayload](rig.Handler, nil, pool.NewJSON, grid.NewNoPayload)
		s.WithInCapacity(capacity)
		take := make(chan struct{})
		require.NoError(t, s.RegisterNoPayload(g.Node(1).Manager, func(ctx context.Context, in <-chan *grid.JSON[string], _ chan<- grid.NoPayload) *grid.RemoteErr {
			for range take {
				<-in
			}
			<-ctx.Done()
			return nil
		}))
		ctx, cancel := context.WithCancel(t.Context())
		st, err := s.Call(ctx, c, grid.NoPayload{})
		require.NoError(t, err)
		text := strings.Repeat("x", size-6) // with quotes, a line's end, and a head of 3 bytes
		for range capacity {
			require.NoError(t, st.Send(pool.NewJSONWith(&text)))
		}
		kept := func() int { synctest.Wait(); return int(g.Conn(1, 0).Stats().KeptBytes) }
		// Half of them in the channel, and one in hand; the rest wait as they came.
		const around = 168
		decoded := capacity/2 + 1
		require.Equal(t, capacity*(size+around)+decoded*3*size, kept())
		// What has been taken counts until somebody looks, at the latest where more would be too much.
		for range capacity {
			take <- struct{}{}
		}
		require.LessOrEqual(t, kept(), decoded*(4*size+around))
		close(take)
		cancel()
		require.Zero(t, kept())
	})
}

// One that would be too much when it is decoded is refused, but never one alone.
func TestTyped_DecodedRequestIsRefusedBesideOthers(t *testing.T) {
	const size = 1000
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = size, 3*size }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewSingleHandler(rig.Handler, grid.NewJSONPool[string]().NewJSON, grid.NewNoPayload)
		release, let := rig.Gate(t)
		require.NoError(t, h.Register(g.Node(1).Manager, func(*grid.JSON[string]) (grid.NoPayload, *grid.RemoteErr) {
			<-release
			return grid.NoPayload{}, nil
		}))
		pool := grid.NewJSONPool[string]()
		call := func(size int) error {
			text := strings.Repeat("x", size-6)
			_, err := h.Call(t.Context(), c, pool.NewJSONWith(&text))
			return err
		}
		done := rig.InBackground(func() error { return call(size) })
		synctest.Wait()
		err := call(10)
		require.ErrorIs(t, err, grid.ErrOverloaded)
		require.ErrorContains(t, err, "MaxHostBytes is 3000")
		let()
		require.NoError(t, <-done)
		require.NoError(t, call(size))
	})
}

func TestTyped_DecodedMessageEndsItsStreamBesideOthers(t *testing.T) {
	const size = 1000
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = size, 5*size }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		pool := grid.NewJSONPool[string]()
		s := grid.NewStream[grid.NoPayload, *grid.JSON[string], grid.NoPayload](rig.Handler, nil, pool.NewJSON, grid.NewNoPayload)
		s.WithInCapacity(4)
		ended := make(chan error, 1)
		require.NoError(t, s.RegisterNoPayload(g.Node(1).Manager, func(ctx context.Context, _ <-chan *grid.JSON[string], _ chan<- grid.NoPayload) *grid.RemoteErr {
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil
		}))
		st, err := s.Call(t.Context(), c, grid.NoPayload{})
		require.NoError(t, err)
		text := strings.Repeat("x", size-6)
		for range 2 {
			require.NoError(t, st.Send(pool.NewJSONWith(&text)))
		}
		require.ErrorIs(t, <-ended, grid.ErrOverloaded)
		require.ErrorIs(t, st.Results(func(grid.NoPayload) error { return nil }), grid.ErrOverloaded)
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
		require.EqualValues(t, 1, g.Conn(1, 0).Stats().LimitsReached["MaxHostBytes"])
	})
}
