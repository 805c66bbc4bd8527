package grid

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

// heap is what is in use once the garbage is collected.
func heap() int64 {
	var m runtime.MemStats
	for range 3 { // what pools hold goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// scaled is n, or less where the race detector makes everything slow.
func scaled(n int) int {
	if bytepool.Strict {
		return n / 5
	}
	return n
}

// watchedContext counts those who watch it and have not stopped to.
type watchedContext struct {
	done     chan struct{}
	watchers atomic.Int64
}

func (*watchedContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *watchedContext) Done() <-chan struct{}     { return c.done }
func (*watchedContext) Err() error                  { return nil }
func (*watchedContext) Value(any) any               { return nil }

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

// rawCaller is a connection or a subroute.
type rawCaller interface {
	Requester
	NewStream(context.Context, HandlerID, []byte) (*Stream, error)
}

// Lesson 29.
func TestCallsUnderOneParentContextLeaveNothing(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	server := g.nodes[1]
	require.NoError(t, server.RegisterSingleHandler(testEcho, func(b []byte) ([]byte, *RemoteErr) { return b, nil }, "sub"))
	require.NoError(t, server.RegisterStreamingHandler(testTwoWay, StreamHandler{
		Subroute: "sub", InCapacity: 1,
		Handle: func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
			for b := range in {
				PutByteBuffer(b)
			}
			PutByteBuffer(payload)
			return nil
		},
	}))
	call := func(i int, conn rawCaller, ctx context.Context) error {
		if i%2 == 0 { // with a context of its own, as most callers have
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Minute)
			defer cancel()
		}
		b, err := conn.SingleRequest(ctx, testEcho, []byte("payload"))
		PutByteBuffer(b)
		if err != nil || i%5 != 0 {
			return err
		}
		st, err := conn.NewStream(ctx, testTwoWay, []byte("payload"))
		if err != nil {
			return err
		}
		close(st.Requests)
		return consume(st)
	}
	for name, conn := range map[string]rawCaller{"connection": g.conn(0, 1), "subroute": g.conn(0, 1).Subroute("sub")} {
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
		before := heap()
		n := scaled(10_000)
		calls(n)
		grown := heap() - before
		t.Logf("%s: heap has grown by %d bytes", name, grown)
		perCall := 20
		if bytepool.Strict { // its pool keeps some more
			perCall = 100
		}
		require.Less(t, grown, int64(perCall*n), "%s: a context for each call would be more", name)
		require.Zero(t, parent.watchers.Load(), "%s: somebody still watches the parent", name)
		for i := range 2 {
			st := g.conn(i, 1-i).Stats()
			require.Zero(t, st.Calls+st.Streams)
		}
	}
}

// Lesson 30.
func TestHeapIsBackAfterAHugeMessage(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	g.requireMeshWorks()
	before := heap()
	size := scaled(31 << 20)
	b, err := g.conn(0, 1).SingleRequest(t.Context(), testEcho, make([]byte, size))
	require.NoError(t, err)
	require.Len(t, b, size)
	PutByteBuffer(b)
	b = nil
	st, err := g.conn(1, 0).NewStream(t.Context(), testTwoWay, nil)
	require.NoError(t, err)
	sent := inBackground(func() error {
		defer st.CloseSend()
		return st.Send(make([]byte, size/4))
	})
	got := 0
	require.NoError(t, st.Results(func(b []byte) error { got += len(b); PutByteBuffer(b); return nil }))
	require.NoError(t, <-sent)
	require.Equal(t, size/4, got)
	grown := heap() - before
	t.Logf("heap has grown by %d bytes", grown)
	require.Less(t, grown, int64(2<<20))
}

// A message that is queued at once is not allocated.
func TestSendingAllocatesNoMessage(t *testing.T) {
	if bytepool.Strict {
		t.Skip("the strict pool allocates")
	}
	s := &session{caps: ourCaps}
	s.out.init(flagCRC, pendingLimit)
	var seq sequence
	payload := make([]byte, 10)
	allocs := testing.AllocsPerRun(100, func() {
		if err := s.send(nil, message{Op: opMuxServerMsg, Payload: payload}, &seq); err != nil {
			t.Error(err)
		}
		s.out.batch.release()
	})
	require.Less(t, allocs, 1.0)
}

// bubbleGoroutines counts those of a bubble.
func bubbleGoroutines() int {
	synctest.Wait()
	buf := make([]byte, 8<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), ", synctest bubble ")
}

func TestIdleConnectionHasTwoGoroutinesAtEachEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 6
		const ends = nodes * (nodes - 1)
		before := bubbleGoroutines()
		g := newTestGrid(t, nodes, nil)
		servers := nodes // the accept loop of each
		require.Equal(t, 2*ends+servers, bubbleGoroutines()-before)

		// A burst of handlers is forgotten after some ticks.
		var calls []<-chan error
		release := make(chan struct{})
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) {
			<-release
			return b, nil
		}))
		for range 100 {
			calls = append(calls, inBackground(func() error {
				b, err := g.conn(0, 1).SingleRequest(t.Context(), testUnused, []byte("x"))
				PutByteBuffer(b)
				return err
			}))
		}
		require.Equal(t, 2*ends+servers+200, bubbleGoroutines()-before, "100 callers, 100 handlers")
		close(release)
		for _, call := range calls {
			require.NoError(t, <-call)
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, 2*ends+servers, bubbleGoroutines()-before)

		const streams = 50
		ctx, cancel := context.WithCancel(t.Context())
		for range streams {
			st, err := g.conn(0, 1).NewStream(ctx, testBlock, nil)
			require.NoError(t, err)
			close(st.Requests)
		}
		time.Sleep(5 * time.Second) // who has handed on the input is forgotten as well
		// The handler, and who sends what it sends.
		require.Equal(t, 2*ends+servers+2*streams, bubbleGoroutines()-before)
		cancel()
		time.Sleep(5 * time.Second)
		require.Equal(t, 2*ends+servers, bubbleGoroutines()-before)
	})
}

func TestIdleConnectionIsSmall(t *testing.T) {
	before := heap()
	const nodes = 12
	const ends = nodes * (nodes - 1)
	g := newTCPGrid(t, nodes, nil)
	idle := (heap() - before) / ends
	g.requireMeshWorks()
	used := (heap() - before) / ends
	t.Logf("heap for each end of an idle connection: %d bytes, %d after a call", idle, used)
	limit := int64(32 << 10)
	require.Less(t, idle, limit)
	require.Less(t, used, limit)
	runtime.KeepAlive(g)
}

// Lesson 31.
func TestCallerAndSubrouteAreReadableFromOneContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		seen := make(chan string, 1)
		for _, subroute := range []string{"", "a", "a/b"} {
			require.NoError(t, g.nodes[1].RegisterStreamingHandler(testUnused, StreamHandler{Subroute: subroute, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
				type key struct{}
				for _, ctx := range []context.Context{ctx, context.WithValue(ctx, key{}, 1), context.WithoutCancel(ctx)} {
					if GetCaller(ctx) == nil {
						return NewRemoteErrString("no caller")
					}
					if got := GetSubroute(ctx); got != subroute {
						return NewRemoteErrf("subroute is %q", got)
					}
				}
				seen <- fmt.Sprint(GetCaller(ctx).Name, GetSubroute(ctx))
				return nil
			}}))
			var st *Stream
			var err error
			if subroute == "" {
				st, err = g.conn(0, 1).NewStream(t.Context(), testUnused, nil)
			} else {
				st, err = g.conn(0, 1).Subroute(subroute).NewStream(t.Context(), testUnused, nil)
			}
			require.NoError(t, err)
			require.NoError(t, consume(st))
			require.Equal(t, g.hosts[0]+subroute, <-seen)
		}
		require.Nil(t, GetCaller(t.Context()))
		require.Empty(t, GetSubroute(t.Context()))
	})
}
