package calls

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
	"github.com/gridrpc/grid/internal/rig"
)

// apart is a pair of hosts that can't reach each other.
func apart(t *testing.T) (*rig.Grid, *grid.Connection) {
	g := rig.New(t, 2, nil)
	g.Net.Partition(g.Addr(0), g.Addr(1))
	c := g.Conn(0, 1)
	rig.WaitState(t, c, grid.StateConnectionError, grid.StateConnecting)
	_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	require.True(t, grid.CanRetry(err))
	return g, c
}

// waiters are calls of all kinds, under a subroute or not, by one connection.
func waiters(c *grid.Connection, o grid.CallOptions) map[string]func(context.Context) error {
	all := map[string]func(context.Context) error{}
	for name, w := range map[string]*grid.Caller{"": c.With(o), "subroute ": c.Subroute("a").With(o)} {
		all[name+"request"] = func(ctx context.Context) error {
			_, err := w.SingleRequest(ctx, rig.Unused, nil)
			return err
		}
		all[name+"stream"] = func(ctx context.Context) error {
			st, err := w.NewStream(ctx, rig.Unused+1, nil)
			if err != nil {
				return err
			}
			return rig.Consume(st)
		}
		all[name+"started stream"] = func(ctx context.Context) error {
			st, err := w.StartStream(ctx, rig.Unused+1, nil)
			if err != nil {
				return err
			}
			return rig.Consume(st)
		}
	}
	return all
}

// serveWaiters registers what the waiters call.
func serveWaiters(t *testing.T, m *grid.Manager) {
	for _, route := range [][]string{nil, {"a"}} {
		require.NoError(t, m.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, route...))
		h := grid.StreamHandler{Serve: func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr { return nil }}
		if route != nil {
			h.Subroute = route[0]
		}
		require.NoError(t, m.RegisterStreamingHandler(rig.Unused+1, h))
	}
}

func TestWaitForLink_CallsGoOutWithTheNextLink(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, c := apart(t)
		serveWaiters(t, g.Manager(1))
		var calls []<-chan error
		for _, timeout := range []time.Duration{0, time.Hour} {
			for _, call := range waiters(c, grid.CallOptions{WaitForLink: true, Timeout: timeout}) {
				calls = append(calls, rig.InBackground(func() error { return call(t.Context()) }))
			}
		}
		time.Sleep(30 * time.Second)
		for _, call := range calls {
			require.Empty(t, call)
		}
		g.Net.Heal(g.Addr(0), g.Addr(1))
		for _, call := range calls {
			require.NoError(t, <-call)
		}
	})
}

func TestWaitForLink_EndsInTime(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		_, c := apart(t)
		for _, o := range []grid.CallOptions{{WaitForLink: true}, {WaitForLink: true, Timeout: 20 * time.Second}, {WaitForLink: true, Timeout: time.Hour}} {
			for name, call := range waiters(c, o) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				want := 30 * time.Second
				if o.Timeout > 0 {
					want = min(want, o.Timeout)
				}
				var err error
				took := rig.Elapsed(func() { err = call(ctx) })
				cancel()
				rig.RequireKind(t, err, rig.IsDeadline, name)
				require.ErrorContains(t, err, "no connection for", "why there is none")
				require.Equal(t, want, took, name)
				require.False(t, grid.CanRetry(err))

				mine := errors.New("changed my mind")
				cancelled, giveUp := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { giveUp(mine) })
				took = rig.Elapsed(func() { err = call(cancelled) })
				rig.RequireKind(t, err, rig.IsCanceled, name)
				require.ErrorIs(t, err, mine)
				require.Equal(t, time.Second, took)
			}
		}
		took := rig.Elapsed(func() {
			_, err := c.With(grid.CallOptions{WaitForLink: true}).SingleRequest(t.Context(), rig.Unused, nil)
			rig.RequireKind(t, err, rig.IsDeadline, "RequestTimeout")
		})
		require.Equal(t, time.Minute, took)
	})
}

// Half of the timeout goes by before there is a link; the handler has the other half.
func TestWaitForLink_IsPartOfTheTimeout(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, c := apart(t)
		left := make(chan time.Duration, 1)
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			deadline, _ := ctx.Deadline()
			left <- time.Until(deadline)
			<-ctx.Done()
			return nil, nil
		}))
		time.AfterFunc(30*time.Second, func() { g.Net.Heal(g.Addr(0), g.Addr(1)) })
		took := rig.Elapsed(func() {
			_, err := c.With(grid.CallOptions{WaitForLink: true, Timeout: time.Minute}).SingleRequest(t.Context(), rig.Unused, nil)
			rig.RequireKind(t, err, rig.IsDeadline, "request")
		})
		require.Less(t, <-left, 30*time.Second+time.Millisecond)
		require.GreaterOrEqual(t, took, time.Minute)
		require.LessOrEqual(t, took, time.Minute+2*time.Second)
	})
}

func TestWaitForLink_FailsWhereNoneWillCome(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, g *rig.Grid){
		"removed": func(t *testing.T, g *rig.Grid) { require.NoError(t, g.Manager(0).RemoveHost(g.Host(1))) },
		"closed":  func(t *testing.T, g *rig.Grid) { require.NoError(t, g.Manager(0).Close()) },
		"shut down": func(t *testing.T, g *rig.Grid) { // which waits for a handler
			go func() { _ = g.Manager(0).Shutdown(t.Context()) }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := rig.New(t, 3, nil)
				release, let := rig.Gate(t)
				require.NoError(t, g.Manager(0).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
				busy := rig.InBackground(func() error {
					_, err := g.Conn(2, 0).SingleRequest(t.Context(), rig.Unused, nil)
					return err
				})
				g.Net.Partition(g.Addr(0), g.Addr(1))
				c := g.Conn(0, 1)
				rig.WaitState(t, c, grid.StateConnectionError, grid.StateConnecting)
				var calls []<-chan error
				begin := func() {
					for _, call := range waiters(c, grid.CallOptions{WaitForLink: true}) {
						calls = append(calls, rig.InBackground(func() error { return call(t.Context()) }))
					}
				}
				begin()
				synctest.Wait()
				took := rig.Elapsed(func() {
					end(t, g)
					synctest.Wait()
					begin()
					for _, call := range calls {
						rig.RequireKind(t, <-call, rig.IsDisconnected, "waits")
					}
				})
				require.LessOrEqual(t, took, time.Second)
				let()
				<-busy
			})
		})
	}
	_, err := (*grid.Connection)(nil).With(grid.CallOptions{WaitForLink: true}).SingleRequest(t.Context(), 1, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	_, err = (*grid.Subroute)(nil).With(grid.CallOptions{WaitForLink: true}).NewStream(t.Context(), 1, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	_, err = (*grid.Caller)(nil).SingleRequest(t.Context(), 1, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
}

// The opening of a stream is bounded by itself: what comes after it is not.
func TestTimeout_OfAStreamBoundsItsOpening(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		ended := rig.BlockHandler(t, g.Manager(1), rig.Unused)
		c := g.Conn(0, 1).WithTimeout(2 * time.Second)
		st, err := c.NewStream(t.Context(), rig.Unused, nil)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.NoError(t, st.Err())
		require.Empty(t, ended)

		// What is registered here under the same name tells capacities, and nothing else.
		rig.BlockHandler(t, g.Manager(0), rig.Unused)
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		for name, open := range map[string]func() error{
			"raw": func() error { _, err := c.NewStream(t.Context(), rig.Unused, nil); return err },
			"started": func() error {
				_, err := g.Conn(0, 1).Subroute("a").WithTimeout(2*time.Second).StartStream(t.Context(), rig.Unused, nil)
				return err
			},
			"typed": func() error {
				h := grid.NewStream[*grid.MSS, grid.NoPayload, *grid.MSS](rig.Unused, grid.NewMSS, nil, grid.NewMSS)
				_, err := h.Call(t.Context(), c, grid.NewMSS())
				return err
			},
		} {
			var err error
			took := rig.Elapsed(func() { err = open() })
			rig.RequireKind(t, err, rig.IsDeadline, name)
			require.Equal(t, 2*time.Second, took)
		}
		require.Equal(t, 1, g.Conn(0, 1).Stats().Streams)
	})
}

// So it is where the opening is not waited for: it goes on until the remote has taken the stream on.
func TestTimeout_OfAStreamThatWasStartedBoundsItsOpening(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		var running atomic.Int32
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Unused, grid.StreamHandler{InCapacity: 1, Serve: func(ctx context.Context, _ []byte, _ *grid.ServerStream) *grid.RemoteErr {
			running.Add(1)
			defer running.Add(-1)
			<-ctx.Done()
			return nil
		}}))
		c := g.Conn(0, 1).WithTimeout(2 * time.Second)
		start := func() *grid.Stream {
			s, err := c.StartStream(t.Context(), rig.Unused, nil)
			require.NoError(t, err)
			return s
		}
		known := start() // waits, and learns of the handler
		early := start()
		synctest.Wait()

		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		for name, end := range map[string]func(s *grid.Stream) error{
			"Finish":  func(s *grid.Stream) error { return s.Finish(t.Context()) },
			"Results": func(s *grid.Stream) error { return s.Results(nil) },
			"Recv":    func(s *grid.Stream) error { _, err := s.Recv(); return err },
		} {
			var err error
			took := rig.Elapsed(func() { err = end(start()) })
			rig.RequireKind(t, err, rig.IsDeadline, name)
			require.Equal(t, 2*time.Second, took, name)
		}
		// One that ends before leaves nothing behind.
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.StartStream(ctx, rig.Unused, nil)
		require.NoError(t, err)
		cancel()
		<-s.Done()
		require.ErrorIs(t, s.Err(), context.Canceled)

		// An ack that is in time is the end of it, as long as the stream may live.
		g.Net.Stall(g.Addr(0), g.Addr(1), false)
		synctest.Wait()
		require.EqualValues(t, 2, running.Load(), "those that came too late have ended")
		g.Net.Stall(g.Addr(1), g.Addr(0), true)
		slow := start()
		time.Sleep(time.Second)
		g.Net.Stall(g.Addr(1), g.Addr(0), false)
		time.Sleep(time.Hour)
		for _, s := range []*grid.Stream{known, early, slow} {
			require.NoError(t, s.Err())
		}
	})
}

func TestCaller_SaysWhomItCalls(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		c := g.Conn(0, 1)
		require.Equal(t, g.Host(1), c.String())
		require.Equal(t, g.Host(1), c.With(grid.CallOptions{}).String())
		require.Equal(t, g.Host(1)+" a/b", c.Subroute("a").Subroute("b").WithTimeout(1).String())
		require.Equal(t, "<nil>", (*grid.Connection)(nil).String())
		require.Equal(t, "<nil>", (*grid.Caller)(nil).String())
		require.Equal(t, "<nil>", (*grid.Subroute)(nil).With(grid.CallOptions{}).String())
		_, err := c.Subroute("").With(grid.CallOptions{}).SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorContains(t, err, "empty subroute")
	})
}

func TestWaitForLink_OverTCP(t *testing.T) {
	g := gridtest.New(t, 3, gridtest.TCP(), gridtest.Stopped(1), gridtest.WithHandlers(func(_ int, m *grid.Manager) error {
		return errors.Join(
			m.RegisterSingleHandler(rig.Echo, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }),
			m.RegisterStreamingHandler(rig.Stream, grid.StreamHandler{
				Serve: func(ctx context.Context, b []byte, s *grid.ServerStream) *grid.RemoteErr {
					return grid.NewRemoteErr(s.Send(ctx, b))
				},
			}))
	}))
	c := g.Conn(0, 1).With(grid.CallOptions{WaitForLink: true, Timeout: time.Minute})
	single := rig.InBackground(func() error {
		answer, err := c.SingleRequest(t.Context(), rig.Echo, []byte("hello"))
		require.Equal(t, "hello", string(answer))
		return err
	})
	stream := rig.InBackground(func() error {
		st, err := c.NewStream(t.Context(), rig.Stream, []byte("hello"))
		if err != nil {
			return err
		}
		got, err := rig.Collect(st, 0)
		require.Equal(t, []string{"hello"}, got)
		return err
	})
	g.Start(1)
	require.NoError(t, <-single)
	require.NoError(t, <-stream)

	// And one that does not wait goes to a host that is there.
	g.Stop(1)
	r := newRetrier(t, grid.RetryOptions{}, g.Conn(0, 1), g.Conn(0, 2))
	require.Eventually(t, func() bool { return g.Conn(0, 1).State() != grid.StateConnected }, 10*time.Second, time.Millisecond)
	for range 100 {
		_, err := r.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
	}
}
