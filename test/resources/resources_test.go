package resources

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

// watchedContext counts those who watch it and have not stopped to.
type watchedContext struct {
	done     chan struct{}
	watchers atomic.Int64
}

func (*watchedContext) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *watchedContext) Done() <-chan struct{} { return c.done }

func (*watchedContext) Err() error { return nil }

func (*watchedContext) Value(any) any { return nil }

// AfterFunc is what package context uses to derive one context from another.
func (c *watchedContext) AfterFunc(func()) (stop func() bool) {
	c.watchers.Add(1)
	var once atomic.Bool
	return func() bool {
		if !once.Swap(true) {
			c.watchers.Add(-1)
		}
		return true
	}
}

// Lesson 29.
func TestResources_CallsUnderOneParentContextLeaveNothing(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	server := g.Node(1)
	require.NoError(t, server.RegisterSingleHandler(rig.Echo, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, "sub"))
	require.NoError(t, server.RegisterStreamingHandler(rig.TwoWay, grid.StreamHandler{
		Subroute: "sub", InCapacity: 1,
		Handle: func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			for b := range in {
				grid.PutByteBuffer(b)
			}
			grid.PutByteBuffer(payload)
			return nil
		},
	}))
	call := func(i int, conn rig.Caller, ctx context.Context) error {
		if i%2 == 0 { // with a context of its own, as most callers have
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Minute)
			defer cancel()
		}
		b, err := conn.SingleRequest(ctx, rig.Echo, []byte("payload"))
		grid.PutByteBuffer(b)
		if err != nil || i%5 != 0 {
			return err
		}
		st, err := conn.NewStream(ctx, rig.TwoWay, []byte("payload"))
		if err != nil {
			return err
		}
		close(st.Requests)
		return rig.Consume(st)
	}
	for name, conn := range map[string]rig.Caller{"connection": g.Conn(0, 1), "subroute": g.Conn(0, 1).Subroute("sub")} {
		parent := &watchedContext{done: make(chan struct{})}
		calls := func(total int) {
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					for i := range total / 8 {
						if err := call(i, conn, parent); err != nil {
							t.Error(err)
						}
					}
				})
			}
			callers.Wait()
		}
		calls(1000)
		before := rig.Heap()
		n := rig.Scaled(10_000)
		calls(n)
		grown := rig.Heap() - before
		t.Logf("%s: heap has grown by %d bytes", name, grown)
		perCall := 20
		if bytepool.Strict { // its pool keeps some more
			perCall = 100
		}
		require.Less(t, grown, int64(perCall*n), "%s: a context for each call would be more", name)
		require.Zero(t, parent.watchers.Load(), "%s: somebody still watches the parent", name)
		for i := range 2 {
			st := g.Conn(i, 1-i).Stats()
			require.Zero(t, st.Calls+st.Streams)
		}
	}
}

// Lesson 30.
func TestResources_HeapIsBackAfterAHugeMessage(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	g.RequireMeshWorks()
	if bytepool.Strict { // its pool keeps what it has had of the first
		sendHuge(t, g)
	}
	before := rig.Heap()
	sendHuge(t, g)
	grown := rig.Heap() - before
	t.Logf("heap has grown by %d bytes", grown)
	require.Less(t, grown, int64(2<<20))
}

func sendHuge(t *testing.T, g *rig.Grid) {
	size := rig.Scaled(31 << 20)
	b, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, make([]byte, size))
	require.NoError(t, err)
	require.Len(t, b, size)
	grid.PutByteBuffer(b)
	b = nil
	st, err := g.Conn(1, 0).NewStream(t.Context(), rig.TwoWay, nil)
	require.NoError(t, err)
	sent := rig.InBackground(func() error {
		defer st.CloseSend()
		return st.Send(make([]byte, size/4))
	})
	got := 0
	require.NoError(t, st.Results(func(b []byte) error { got += len(b); grid.PutByteBuffer(b); return nil }))
	require.NoError(t, <-sent)
	require.Equal(t, size/4, got)
}

func TestResources_IdleConnectionHasTwoGoroutinesAtEachEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 6
		const ends = nodes * (nodes - 1)
		before := rig.BubbleGoroutines()
		g := rig.New(t, nodes, nil)
		servers := nodes // the accept loop of each
		require.Equal(t, 2*ends+servers, rig.BubbleGoroutines()-before)

		// A burst of handlers is forgotten after some ticks.
		var calls []<-chan error
		release := make(chan struct{})
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
			<-release
			return b, nil
		}))
		for range 100 {
			calls = append(calls, rig.InBackground(func() error {
				b, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, []byte("x"))
				grid.PutByteBuffer(b)
				return err
			}))
		}
		require.Equal(t, 2*ends+servers+200, rig.BubbleGoroutines()-before, "100 callers, 100 handlers")
		close(release)
		for _, call := range calls {
			require.NoError(t, <-call)
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, 2*ends+servers, rig.BubbleGoroutines()-before)

		const streams = 50
		ctx, cancel := context.WithCancel(t.Context())
		for range streams {
			st, err := g.Conn(0, 1).NewStream(ctx, rig.Block, nil)
			require.NoError(t, err)
			close(st.Requests)
		}
		time.Sleep(5 * time.Second) // who has handed on the input is forgotten as well
		// The handler, and who sends what it sends.
		require.Equal(t, 2*ends+servers+2*streams, rig.BubbleGoroutines()-before)
		cancel()
		time.Sleep(5 * time.Second)
		require.Equal(t, 2*ends+servers, rig.BubbleGoroutines()-before)
	})
}

func TestResources_IdleConnectionIsSmall(t *testing.T) {
	before := rig.Heap()
	const nodes = 12
	const ends = nodes * (nodes - 1)
	g := rig.NewTCP(t, nodes, nil)
	idle := (rig.Heap() - before) / ends
	g.RequireMeshWorks()
	used := (rig.Heap() - before) / ends
	t.Logf("heap for each end of an idle connection: %d bytes, %d after a call", idle, used)
	limit := int64(32 << 10)
	require.Less(t, idle, limit)
	require.Less(t, used, limit)
	runtime.KeepAlive(g)
}

// Lesson 31.
func TestHandler_CallerAndSubrouteAreReadableFromOneContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		seen := make(chan string, 1)
		for _, subroute := range []string{"", "a", "a/b"} {
			require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Unused, grid.StreamHandler{Subroute: subroute, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				type key struct{}
				for _, ctx := range []context.Context{ctx, context.WithValue(ctx, key{}, 1), context.WithoutCancel(ctx)} {
					if grid.GetCaller(ctx) == nil {
						return grid.NewRemoteErrString("no caller")
					}
					if got := grid.GetSubroute(ctx); got != subroute {
						return grid.NewRemoteErrf("subroute is %q", got)
					}
				}
				seen <- fmt.Sprint(grid.GetCaller(ctx).Name, grid.GetSubroute(ctx))
				return nil
			}}))
			var st *grid.Stream
			var err error
			if subroute == "" {
				st, err = g.Conn(0, 1).NewStream(t.Context(), rig.Unused, nil)
			} else {
				st, err = g.Conn(0, 1).Subroute(subroute).NewStream(t.Context(), rig.Unused, nil)
			}
			require.NoError(t, err)
			require.NoError(t, rig.Consume(st))
			require.Equal(t, g.Host(0)+subroute, <-seen)
		}
		require.Nil(t, grid.GetCaller(t.Context()))
		require.Empty(t, grid.GetSubroute(t.Context()))
	})
}
