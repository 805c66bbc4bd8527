package calls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

type handlerOptions = map[grid.HandlerKey]grid.HandlerOptions

// A slow handler is refused what goes beyond its own limit, and leaves the slots to the others.
func TestHandlerOptions_ASlowHandlerLeavesSlotsToOthers(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, func(i int, o *grid.ManagerOptions) {
			o.MaxHandlers, o.MaxMessageSize = 10, 1<<20
			o.HandlerOptions = handlerOptions{
				{ID: rig.Unused}:                   {Name: "slow", MaxRunning: 3},
				{ID: rig.Unused, Subroute: "disk"}: {Name: "slow disk", MaxRunning: 1},
				{ID: rig.Unused + 1}:               {MaxRunning: 2},
			}
		})
		m := g.Manager(2)
		var gate atomic.Pointer[chan struct{}]
		block := func() { c := make(chan struct{}); gate.Store(&c) }
		let := func() { close(*gate.Load()) }
		block()
		for _, route := range [][]string{nil, {"disk/1"}, {"disk/2"}} {
			require.NoError(t, m.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-*gate.Load(); return b, nil }, route...))
		}
		require.NoError(t, m.RegisterStreamingHandler(rig.Unused+1, grid.StreamHandler{
			Serve: func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr { <-*gate.Load(); return nil },
		}))
		single := func(c grid.Requester, payload int) <-chan error {
			call := rig.InBackground(func() error {
				_, err := c.SingleRequest(t.Context(), rig.Unused, make([]byte, payload))
				return err
			})
			synctest.Wait()
			return call
		}
		stream := func(c grid.Streamer) <-chan error {
			call := rig.InBackground(func() error {
				st, err := c.NewStream(t.Context(), rig.Unused+1, nil)
				if err != nil {
					return err
				}
				return rig.Consume(st)
			})
			synctest.Wait()
			return call
		}
		refused := func(call <-chan error, text string) {
			t.Helper()
			err := <-call
			require.ErrorIs(t, err, grid.ErrOverloaded)
			require.True(t, grid.CanRetry(err))
			require.EqualError(t, err, "grid: overloaded: handler "+text+" ("+g.Host(2)+")")
		}
		for range 3 {
			a, b := g.Conn(0, 2), g.Conn(1, 2)
			// Large ones come in fragments.
			running := []<-chan error{single(a, 0), single(b, 1<<20), single(a, 1)}
			refused(single(a, 0), "8 (slow) refused: 3 calls of it are running, the limit of its MaxRunning")
			refused(single(b, 1<<20), "8 (slow) refused: 3 calls of it are running, the limit of its MaxRunning")
			for _, disk := range []string{"disk/1", "disk/2"} { // each counts by itself
				running = append(running, single(a.Subroute(disk), 0))
				refused(single(b.Subroute(disk), 0), "8 (slow disk) refused: 1 calls of it are running, the limit of its MaxRunning")
			}
			running = append(running, stream(a), stream(b))
			refused(stream(a), "9 refused: 2 calls of it are running, the limit of its MaxRunning")
			require.Equal(t, 5, m.Connection(g.Host(0)).Stats().Handlers)
			require.Equal(t, 2, m.Connection(g.Host(1)).Stats().Handlers)
			_, err := a.SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)

			let()
			for _, call := range running {
				require.NoError(t, <-call)
			}
			synctest.Wait()
			block()
		}
		require.EqualValues(t, 15, m.Connection(g.Host(0)).Stats().LimitsReached["MaxRunning"]+m.Connection(g.Host(1)).Stats().LimitsReached["MaxRunning"])
		var got []grid.HandlerStats
		for _, st := range m.HandlerStats() {
			if st.ID >= rig.Unused {
				got = append(got, st)
			}
		}
		require.Equal(t, []grid.HandlerStats{
			{ID: rig.Unused, Name: "slow", MaxRunning: 3, Calls: 15, Refused: 6},
			{ID: rig.Unused, Name: "slow disk", Subroute: "disk/1", MaxRunning: 1, Calls: 6, Refused: 3},
			{ID: rig.Unused, Name: "slow disk", Subroute: "disk/2", MaxRunning: 1, Calls: 6, Refused: 3},
			{ID: rig.Unused + 1, Name: "9", Stream: true, MaxRunning: 2, Calls: 9, Refused: 3},
		}, got)
	})
}

// A host has its share of a handler's limit, as of the totals: alone it can't take all, and those that
// come later find something. Hosts that come and go have it divided anew.
func TestHandlerOptions_HostsShareMaxRunning(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 4, func(i int, o *grid.ManagerOptions) {
			o.HandlerOptions = handlerOptions{{ID: rig.Unused}: {Name: "slow", MaxRunning: 12}}
		})
		m := g.Manager(3)
		release, let := rig.Gate(t)
		register := func() {
			require.NoError(t, m.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
		}
		register()
		var running []<-chan error
		// fill makes calls until one is refused, and returns how many were not.
		fill := func(i int, text string) (n int) {
			for ; ; n++ {
				call := rig.InBackground(func() error {
					_, err := g.Conn(i, 3).SingleRequest(t.Context(), rig.Unused, nil)
					return err
				})
				synctest.Wait()
				select {
				case err := <-call:
					require.ErrorIs(t, err, grid.ErrOverloaded)
					require.ErrorContains(t, err, text)
					return n
				default:
					running = append(running, call)
				}
			}
		}
		end := func() {
			let()
			for _, call := range running {
				require.NoError(t, <-call)
			}
			running = nil
			synctest.Wait()
			release, let = rig.Gate(t)
		}
		share := func(n int) string {
			return fmt.Sprintf("handler 8 (slow) refused: %d calls of it are running for this host, its share of MaxRunning, 12, is now %d", n, n)
		}
		// Half is divided among three, and who comes may borrow half of what is left of the other.
		require.Equal(t, 5, fill(0, share(5)))
		require.Equal(t, 4, fill(1, share(4)))
		require.Equal(t, 3, fill(2, "12 calls of it are running, the limit of its MaxRunning"))
		end()

		require.NoError(t, m.RemoveHost(g.Host(1)))
		require.NoError(t, m.RemoveHost(g.Host(2)))
		rig.WaitState(t, g.Conn(0, 3), grid.StateConnected)
		require.Equal(t, 12, fill(0, "12 calls of it are running, the limit of its MaxRunning"))
		// What is added now has no more than what is free.
		require.NoError(t, m.AddHost(g.Host(1)))
		rig.WaitState(t, g.Conn(1, 3), grid.StateConnected)
		require.Zero(t, fill(1, "12 calls of it are running, the limit of its MaxRunning"))
		end()
		require.Equal(t, 6, fill(0, share(6)))
		// A handler that takes the place of another counts by itself.
		require.True(t, m.Unregister(rig.Unused))
		register()
		require.Equal(t, 6, fill(0, share(6)))
		end()
		require.NoError(t, m.RemoveHost(g.Host(0)))
		require.NoError(t, m.AddHost(g.Host(0)))
		synctest.Wait()
		rig.WaitState(t, g.Conn(0, 3), grid.StateConnected)
		require.Equal(t, 6, fill(0, share(6)), "nothing was lost count of")
	})
}

// However calls end, none of them stays in the count of its handler.
func TestHandlerStats_CountAllAndKeepNone(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			o.MaxMessageSize, o.MaxHostBytes = 1<<20, 2<<20
		})
		m, c := g.Manager(1), g.Conn(0, 1)
		release, let := rig.Gate(t)
		require.NoError(t, m.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
			switch string(b[:min(len(b), 5)]) {
			case "panic":
				panic(rig.ErrCause)
			case "error":
				return nil, grid.NewRemoteErr(rig.ErrCause)
			case "block":
				<-release
			}
			return nil, nil
		}))
		stat := func(id grid.HandlerID) grid.HandlerStats {
			synctest.Wait()
			for _, st := range m.HandlerStats() {
				if st.ID == id {
					return st
				}
			}
			return grid.HandlerStats{}
		}
		call := func(ctx context.Context, text string, size int) error {
			_, err := c.SingleRequest(ctx, rig.Unused, append([]byte(text), make([]byte, size)...))
			return err
		}
		require.NoError(t, call(t.Context(), "well ", 0))
		require.Error(t, call(t.Context(), "panic", 0))
		require.Error(t, call(t.Context(), "error", 100<<10))
		require.Equal(t, grid.HandlerStats{ID: rig.Unused, Name: "8", Calls: 3, Failed: 2}, stat(rig.Unused))

		ctx, cancel := context.WithCancel(t.Context())
		blocked := rig.InBackground(func() error { return call(ctx, "block", 0) })
		require.Equal(t, 1, stat(rig.Unused).Running)
		cancel()
		require.Error(t, <-blocked)
		require.Equal(t, 1, stat(rig.Unused).Running, "the handler goes on")
		let()
		require.Equal(t, grid.HandlerStats{ID: rig.Unused, Name: "8", Calls: 4, Failed: 2}, stat(rig.Unused))

		// Given up amid its fragments, and with its link.
		g.Net.Rate(g.Addr(0), g.Addr(1), 100<<10)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, call(ctx, "well ", 1<<19))
		time.Sleep(10 * time.Second)
		lost := rig.InBackground(func() error { return call(t.Context(), "well ", 1<<19) })
		time.Sleep(3 * time.Second)
		g.Cut(0, 1)
		require.Error(t, <-lost)
		require.Equal(t, grid.HandlerStats{ID: rig.Unused, Name: "8", Calls: 4, Failed: 2}, stat(rig.Unused), "neither was one")
		g.Net.Rate(g.Addr(0), g.Addr(1), 0)
		require.NoError(t, c.WaitForConnect(t.Context()))

		// Streams, also of a client that goes.
		sctx, scancel := context.WithCancel(t.Context())
		s, err := c.NewStream(sctx, rig.Block, nil)
		require.NoError(t, err)
		require.Equal(t, 1, stat(rig.Block).Running)
		scancel()
		require.Error(t, rig.Consume(s))
		require.Zero(t, stat(rig.Block).Running)
		require.EqualValues(t, 1, stat(rig.Block).Calls)

		// A handler's successor begins anew.
		require.True(t, m.Unregister(rig.Unused))
		require.Zero(t, stat(rig.Unused))
		require.NoError(t, m.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		require.Zero(t, stat(rig.Unused).Calls)
	})
}

// Readers of several hosts and workers at once: never more run than may, and all may run in the end.
func TestHandlerOptions_MaxRunningHoldsUnderContention(t *testing.T) {
	const most = 3
	g := rig.NewTCP(t, 4, func(i int, o *grid.ManagerOptions) {
		o.HandlerOptions = handlerOptions{{ID: rig.Unused}: {MaxRunning: most}}
	})
	var running, worst, served atomic.Int32
	require.NoError(t, g.Manager(0).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
		n := running.Add(1)
		for w := worst.Load(); n > w && !worst.CompareAndSwap(w, n); w = worst.Load() {
		}
		served.Add(1)
		running.Add(-1)
		return b, nil
	}))
	var all sync.WaitGroup
	for i := 1; i < 4; i++ {
		for range 4 {
			all.Go(func() {
				for range 200 {
					_, err := g.Conn(i, 0).SingleRequest(t.Context(), rig.Unused, nil)
					if err != nil && !errors.Is(err, grid.ErrOverloaded) {
						t.Errorf("%v", err)
					}
				}
			})
		}
	}
	all.Wait()
	require.LessOrEqual(t, worst.Load(), int32(most))
	require.Eventually(t, func() bool {
		for _, st := range g.Manager(0).HandlerStats() {
			if st.ID == rig.Unused {
				return st.Running == 0 && st.Calls == 3*4*200 && st.Calls-st.Refused == int64(served.Load())
			}
		}
		return false
	}, 10*time.Second, time.Millisecond)
}

func TestHandlerOptions_TimeoutIsADeadlineOfTheHandlersOwn(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			o.HandlerOptions = handlerOptions{
				{ID: rig.Unused}:                  {Name: "limited", Timeout: 10 * time.Second},
				{ID: rig.Unused, Subroute: "own"}: {Timeout: 5 * time.Second},
			}
		})
		c := g.Conn(0, 1)
		for _, route := range [][]string{nil, {"own"}} {
			require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
				<-ctx.Done()
				if len(b) > 0 {
					return []byte("all the same"), nil
				}
				return nil, grid.NewRemoteErrf("the handler's: %v", context.Cause(ctx))
			}, route...))
		}
		for sub, want := range map[string]time.Duration{"": 10 * time.Second, "own": 5 * time.Second} {
			conn := grid.Requester(c)
			if sub != "" {
				conn = c.Subroute(sub)
			}
			took := rig.Elapsed(func() {
				_, err := conn.SingleRequest(t.Context(), rig.Unused, nil)
				require.EqualError(t, err, "the handler's: context deadline exceeded")
				require.NotErrorIs(t, err, context.DeadlineExceeded)
			})
			require.Equal(t, want, took)
			answer, err := conn.SingleRequest(t.Context(), rig.Unused, []byte("x"))
			require.NoError(t, err)
			require.Equal(t, "all the same", string(answer))
		}
		// The caller's counts where it is sooner.
		took := rig.Elapsed(func() {
			_, err := c.WithTimeout(time.Second).SingleRequest(t.Context(), rig.Unused, nil)
			rig.RequireKind(t, err, rig.IsDeadline, "caller's")
		})
		require.Less(t, took, 2*time.Second)
	})
}

func TestHandlerOptions_TimeoutEndsAStream(t *testing.T) {
	for _, kind := range []string{"waits", "sends", "returned"} {
		t.Run(kind, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
					o.HandlerOptions = handlerOptions{{ID: rig.Unused}: {Name: "limited", Timeout: 10 * time.Second}}
				})
				cause := make(chan error, 1)
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Unused, grid.StreamHandler{
					Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
						var err error
						if kind == "waits" {
							_, err = s.Recv()
						}
						for kind == "sends" && err == nil {
							err = s.Send(ctx, nil)
						}
						cause <- err
						if kind != "returned" {
							require.Equal(t, context.DeadlineExceeded, context.Cause(ctx))
						}
						return grid.NewRemoteErr(err)
					},
					InCapacity: 1,
				}))
				for _, limit := range []time.Duration{0, time.Hour} {
					ctx, cancel := context.WithCancel(t.Context())
					if limit > 0 {
						ctx, cancel = context.WithTimeout(t.Context(), limit)
					}
					st, err := g.Conn(0, 1).NewStream(ctx, rig.Unused, nil)
					require.NoError(t, err)
					if kind == "returned" {
						require.NoError(t, rig.Consume(st))
						require.NoError(t, <-cause)
						cancel()
						continue
					}
					took := rig.Elapsed(func() { <-st.Done() })
					require.Equal(t, 10*time.Second, took)
					err = rig.Consume(st)
					require.EqualError(t, err, "grid: handler 8 (limited): its Timeout of 10s is over: context deadline exceeded")
					require.True(t, grid.IsRemoteErr(err))
					require.NotErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorIs(t, <-cause, context.DeadlineExceeded)
					cancel()
				}
			})
		})
	}
}

// A name counts for what is below its subroute, and is found at both ends.
func TestHandlerOptions_NamesBySubroute(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		var mu sync.Mutex
		seen := map[string]bool{}
		record := func(side string) func(*grid.CallInfo) {
			return func(info *grid.CallInfo) {
				mu.Lock()
				defer mu.Unlock()
				seen[side+" "+info.Subroute+": "+info.Name] = true
			}
		}
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			o.HandlerNames = map[grid.HandlerID]string{rig.Unused: "plain"}
			o.HandlerOptions = handlerOptions{
				{ID: rig.Unused, Subroute: "pool"}:        {Name: "of a pool"},
				{ID: rig.Unused, Subroute: "pool/disk/7"}: {Name: "of disk 7"},
			}
			o.CallInterceptors = []grid.CallInterceptor{named(record("call"))}
			o.ServeInterceptors = []grid.ServeInterceptor{named(record("serve"))}
		})
		h := grid.NewSingleHandler(rig.Unused, grid.NewMSS, grid.NewMSS)
		want := map[string]bool{}
		for route, name := range map[string]string{
			"": "plain", "other": "plain", "pool": "of a pool", "pool/disk": "of a pool", "pool/disk/7": "of disk 7",
			"pool/disk/7/part": "of disk 7", "pool/disk/77": "of a pool", "poolside": "plain",
		} {
			var sub []string
			conn := grid.Requester(g.Conn(0, 1))
			if route != "" {
				sub = []string{route}
				conn = g.Conn(0, 1).Subroute(route).With(grid.CallOptions{})
			}
			require.NoError(t, h.Register(g.Manager(1), func(req *grid.MSS) (*grid.MSS, *grid.RemoteErr) { return req, nil }, sub...))
			_, err := h.Call(t.Context(), conn, ask(""))
			require.NoError(t, err)
			want["call "+route+": "+name], want["serve "+route+": "+name] = true, true
			_, err = conn.SingleRequest(t.Context(), rig.Unused, []byte{0xc1})
			require.ErrorContains(t, err, "handler 8 ("+name+"): request")
			require.ErrorContains(t, h.Register(g.Manager(1), func(req *grid.MSS) (*grid.MSS, *grid.RemoteErr) { return req, nil }, sub...), "8 ("+name+")")
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, want, seen)
	})
}

// named is an interceptor for both sides that looks at what it is told.
type named func(*grid.CallInfo)

func (n named) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	n(info)
	return ctx, nil, nil
}

func (n named) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	n(info)
	return ctx, nil, nil
}

func TestHandlerOptions_BadOnesAreNamed(t *testing.T) {
	for want, o := range map[string]handlerOptions{
		"handler 0":                   {{}: {}},
		"handler 3: MaxRunning is -1": {{ID: 3}: {MaxRunning: -1}},
		`subroute "a": Timeout is 1ns, must be 1ms to 720h0m0s`: {{ID: 3, Subroute: "a"}: {Timeout: 1}},
		"Timeout is -1s": {{ID: 3}: {Timeout: -time.Second}},
	} {
		opts := rig.Options("http://node1:9000", []string{"http://node1:9000"})
		opts.HandlerOptions = o
		_, err := grid.NewManager(t.Context(), opts)
		require.ErrorContains(t, err, want)
		require.True(t, strings.HasPrefix(err.Error(), "grid: "))
	}
	// They are copied.
	opts := rig.Options("http://node1:9000", []string{"http://node1:9000"})
	opts.HandlerOptions = handlerOptions{{ID: 1}: {Name: "one"}}
	m, err := grid.NewManager(t.Context(), opts)
	require.NoError(t, err)
	defer m.Close()
	clear(opts.HandlerOptions)
	require.NoError(t, m.RegisterSingleHandler(1, func(b []byte) ([]byte, *grid.RemoteErr) { return bytes.Clone(b), nil }))
	require.Equal(t, []grid.HandlerStats{{ID: 1, Name: "one"}}, m.HandlerStats())
}
