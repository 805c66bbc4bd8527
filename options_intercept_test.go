package grid_test

import (
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

// recorder is an interceptor of both sides that keeps what it is told.
type recorder struct {
	name   string
	refuse error
	add    map[string]string // metadata

	mu    sync.Mutex
	calls []grid.CallInfo
	ends  []grid.CallResult
	order *[]string // shared with others
}

type recorderKey struct{}

func (r *recorder) begin(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	call := *info
	r.calls = append(r.calls, call)
	if r.order != nil {
		*r.order = append(*r.order, "begin "+r.name)
	}
	if r.refuse != nil {
		return nil, nil, r.refuse
	}
	for k, v := range r.add {
		info.AddMetadata(k, v)
	}
	before, _ := ctx.Value(recorderKey{}).(string)
	return context.WithValue(ctx, recorderKey{}, before+r.name), func(end grid.CallResult) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ends = append(r.ends, end)
		if r.order != nil {
			*r.order = append(*r.order, "end "+r.name)
		}
	}, nil
}

func (r *recorder) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return r.begin(ctx, info)
}

func (r *recorder) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return r.begin(ctx, info)
}

// one returns what it was told of the only call so far, and forgets it.
func (r *recorder) one(t *testing.T) (grid.CallInfo, grid.CallResult) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Len(t, r.calls, 1)
	require.Len(t, r.ends, 1)
	call, end := r.calls[0], r.ends[0]
	r.calls, r.ends = nil, nil
	return call, end
}

// watched runs f with a pair whose calls, from the first to the second, are recorded on both sides.
func watched(t *testing.T, f func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder)) {
	t.Helper()
	calling, serving := new(recorder), new(recorder)
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		o.HandlerNames = map[grid.HandlerID]string{rig.Handler: "worker"}
		if i == 0 {
			o.CallInterceptors = []grid.CallInterceptor{calling}
		} else {
			o.ServeInterceptors = []grid.ServeInterceptor{serving}
		}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) { f(t, g, c, calling, serving) })
}

func TestInterceptor_OfARequest(t *testing.T) {
	for _, size := range []int{0, 10, 300_000} {
		watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder) {
			g.Single(func(b []byte) ([]byte, *grid.RemoteErr) {
				time.Sleep(time.Second)
				return append(b, "12345"...), nil
			}, "a", "b")
			_, err := c.Subroute("a").Subroute("b").SingleRequest(t.Context(), rig.Handler, make([]byte, size))
			require.NoError(t, err)
			want := grid.CallInfo{Handler: rig.Handler, Name: "worker", Subroute: "a/b", PayloadBytes: size}
			info, end := calling.one(t)
			want.Host = g.Host(1)
			require.Equal(t, want, info)
			require.Equal(t, grid.CallResult{
				Duration: time.Second, SentBytes: int64(size), ReceivedBytes: int64(size) + 5, SentMessages: 1, ReceivedMessages: 1,
			}, end)
			info, end = serving.one(t)
			want.Host = g.Host(0)
			require.Equal(t, want, info)
			require.Equal(t, grid.CallResult{
				Duration: time.Second, SentBytes: int64(size) + 5, ReceivedBytes: int64(size), SentMessages: 1, ReceivedMessages: 1,
			}, end)
		})
	}
}

func TestInterceptor_HearsHowARequestFailed(t *testing.T) {
	watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder) {
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) {
			switch string(b) {
			case "fail":
				return nil, grid.NewRemoteErrString("failed")
			case "panic":
				panic("no")
			}
			time.Sleep(time.Minute)
			return nil, nil
		})
		request := func(what string) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := c.SingleRequest(ctx, rig.Handler, []byte(what))
			require.Error(t, err)
			return err
		}
		for _, what := range []string{"fail", "panic"} {
			err := request(what)
			_, end := calling.one(t)
			require.Equal(t, err, end.Err)
			require.Zero(t, end.ReceivedMessages)
			_, end = serving.one(t)
			require.Equal(t, err, end.Err)
			require.Zero(t, end.SentMessages)
		}
		require.ErrorIs(t, request("sleep"), context.DeadlineExceeded)
		time.Sleep(time.Minute)
		_, end := calling.one(t)
		require.ErrorIs(t, end.Err, context.DeadlineExceeded)
		_, end = serving.one(t)
		require.ErrorIs(t, end.Err, context.DeadlineExceeded, "its answer was not sent")
		require.Zero(t, end.SentMessages)

		_, err := c.SingleRequest(t.Context(), rig.Unused, nil)
		require.ErrorContains(t, err, "no request handler")
		info, end := calling.one(t)
		require.Equal(t, fmt.Sprint(rig.Unused), info.Name)
		require.Equal(t, err, end.Err)
		g.Manager(1).Close()
		_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		_, end = calling.one(t)
		require.ErrorIs(t, end.Err, grid.ErrDisconnected)
		require.Empty(t, serving.calls)
	})
}

func TestInterceptor_OfAStream(t *testing.T) {
	watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder) {
		g.Stream(1, 1, func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				out <- b
				out <- make([]byte, 100_000)
			}
			time.Sleep(time.Second)
			if string(payload) == "fail" {
				return grid.NewRemoteErrString("failed")
			}
			return nil
		})
		for _, payload := range []string{"good", "fail"} {
			s := rig.OpenStream(t, t.Context(), c, []byte(payload)...)
			go func() {
				for range 3 {
					_ = s.Send(make([]byte, 70_000))
				}
				s.CloseSend()
			}()
			_, err := rig.Collect(s, 0)
			if payload == "fail" {
				require.ErrorContains(t, err, "failed")
			} else {
				require.NoError(t, err)
			}
			want := grid.CallInfo{Handler: rig.Handler, Name: "worker", Stream: true, PayloadBytes: 4}
			info, end := calling.one(t)
			want.Host = g.Host(1)
			require.Equal(t, want, info)
			require.Equal(t, grid.CallResult{Err: err, Duration: time.Second, SentBytes: 4 + 3*70_000, ReceivedBytes: 3 * 170_000, SentMessages: 4, ReceivedMessages: 6}, end)
			info, end = serving.one(t)
			want.Host = g.Host(0)
			require.Equal(t, want, info)
			require.Equal(t, grid.CallResult{Err: err, Duration: time.Second, SentBytes: 3 * 170_000, ReceivedBytes: 4 + 3*70_000, SentMessages: 6, ReceivedMessages: 4}, end)
		}
	})
}

func TestInterceptor_HearsHowAStreamFailed(t *testing.T) {
	watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder) {
		g.Stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for ctx.Err() == nil {
				out <- []byte("x")
			}
			return nil
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		mine := errors.New("mine")
		s := rig.OpenStream(t, ctx, c)
		cancel(mine)
		require.ErrorIs(t, s.Results(func([]byte) error { return nil }), mine)
		_, end := calling.one(t)
		require.ErrorIs(t, end.Err, mine)
		_, end = serving.one(t)
		require.ErrorIs(t, end.Err, context.Canceled)

		s = rig.OpenStream(t, t.Context(), c)
		g.Cut(0, 1)
		require.ErrorIs(t, s.Results(func([]byte) error { return nil }), grid.ErrDisconnected)
		_, end = calling.one(t)
		require.ErrorIs(t, end.Err, grid.ErrDisconnected)
		_, end = serving.one(t)
		require.ErrorIs(t, end.Err, grid.ErrDisconnected)

		g.WaitConnected()
		_, err := c.NewStream(t.Context(), rig.Unused, nil)
		require.Error(t, err)
		_, end = calling.one(t)
		require.Equal(t, err, end.Err)
		done, cancelled := context.WithCancel(t.Context())
		cancelled()
		_, err = c.NewStream(done, rig.Handler, nil)
		require.ErrorIs(t, err, context.Canceled)
		_, end = calling.one(t)
		require.Equal(t, err, end.Err)
		require.Empty(t, serving.calls)
	})
}

// scoped ends the context that it makes with the call, as one does.
type scoped struct{}

func (scoped) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	return ctx, func(grid.CallResult) { cancel() }, nil
}

func TestInterceptor_MayEndItsContextWithTheCall(t *testing.T) {
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.CallInterceptors = []grid.CallInterceptor{scoped{}} }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(8, 0, func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- []byte("x")
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		time.Sleep(time.Second) // it has ended, and nobody has consumed
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"x"}, got)
		_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
		s = rig.OpenStream(t, t.Context(), c)
		require.NoError(t, s.Results(func(b []byte) error { return nil }))

		// Its own end is that of the call.
		g.Manager(1).RegisterSingleHandlerContext(rig.Handler+1, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			<-ctx.Done()
			return nil, nil
		})
		require.Equal(t, time.Minute, rig.Elapsed(func() {
			_, err := c.SingleRequest(t.Context(), rig.Handler+1, nil)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}))
	})
}

// An answer that is not sent is no success.
func TestInterceptor_HearsOfAnswersThatAreNotSent(t *testing.T) {
	watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder) {
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { return make([]byte, rig.MaxMessageSize+1), nil })
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.True(t, grid.IsRemoteErr(err))
		_, end := serving.one(t)
		require.ErrorIs(t, end.Err, grid.ErrMessageTooLarge)
		require.Zero(t, end.SentMessages)
	})
}

// Who was told of a call before one panics is told of the end.
func TestInterceptor_BeforeOneThatPanicsHearsOfTheEnd(t *testing.T) {
	first := new(recorder)
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			o.CallInterceptors = []grid.CallInterceptor{first, panicking{}}
		}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.Panics(t, func() { _, _ = c.SingleRequest(t.Context(), rig.Echo, nil) })
		_, end := first.one(t)
		require.Equal(t, grid.ErrInterceptorPanicked, end.Err)
		require.Panics(t, func() { _, _ = c.NewStream(t.Context(), rig.TwoWay, nil) })
		first.one(t)
	})
}

type panicking struct{}

func (panicking) InterceptCall(context.Context, *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	panic("no")
}

// Interceptors are told in order, of the end in reverse, and each sees the context of those before
// it, which the handler gets.
func TestInterceptor_SeveralMakeAChain(t *testing.T) {
	var calling, serving []string // the ends of the two sides are not ordered
	a, b := &recorder{name: "a", order: &calling}, &recorder{name: "b", order: &calling}
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			o.CallInterceptors = []grid.CallInterceptor{a, b}
		} else {
			o.ServeInterceptors = []grid.ServeInterceptor{&recorder{name: "b", order: &serving}, &recorder{name: "a", order: &serving}}
		}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var seen string
		require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
			seen, _ = ctx.Value(recorderKey{}).(string)
			require.Equal(t, g.Host(0), grid.GetCaller(ctx).Name)
			serving = append(serving, "handler")
			return nil, nil
		}))
		g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			seen, _ = ctx.Value(recorderKey{}).(string)
			serving = append(serving, "handler")
			return nil
		}})
		check := func() {
			t.Helper()
			synctest.Wait()
			require.Equal(t, []string{"begin a", "begin b", "end b", "end a"}, calling)
			require.Equal(t, []string{"begin b", "begin a", "handler", "end a", "end b"}, serving)
			require.Equal(t, "ba", seen)
			calling, serving, seen = nil, nil, ""
		}
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		check()
		s, err := c.NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, err)
		require.NoError(t, s.Results(func([]byte) error { return nil }))
		check()

		// Who has begun hears of the end, also when the next one refuses.
		for _, refusing := range []int{0, 1} {
			calling = nil
			b.refuse = errors.New("not this one")
			if refusing == 1 {
				a.refuse, b.refuse = b.refuse, nil
			}
			_, err = c.SingleRequest(t.Context(), rig.Handler, nil)
			require.ErrorContains(t, err, "not this one")
			require.False(t, grid.IsRemoteErr(err))
			_, err = c.NewStream(t.Context(), rig.Handler+1, nil)
			require.ErrorContains(t, err, "not this one")
			if refusing == 0 {
				require.Equal(t, []string{"begin a", "begin b", "end a", "begin a", "begin b", "end a"}, calling)
			} else {
				require.Equal(t, []string{"begin a", "begin a"}, calling)
			}
		}
	})
}

func TestInterceptor_OfWhatIsServedRefuses(t *testing.T) {
	watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, _, serving *recorder) {
		ran := false
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { ran = true; return nil, nil })
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
			ran = true
			return nil
		}, InCapacity: 1}))
		serving.refuse = errors.New("not you")
		_, err := c.SingleRequest(t.Context(), rig.Handler, []byte("x"))
		require.EqualError(t, err, "not you")
		require.True(t, grid.IsRemoteErr(err))
		s, err := c.NewStream(t.Context(), rig.Handler+1, []byte("x"))
		require.NoError(t, err)
		_, err = rig.Collect(s, 0)
		require.EqualError(t, err, "not you")
		require.True(t, grid.IsRemoteErr(err))
		require.False(t, ran)
		close(s.Requests)
		g.RequireNothingKept()
	})
}

// badInterceptor panics, at the begin or at the end.
type badInterceptor struct{ atEnd bool }

func (b badInterceptor) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	if !b.atEnd {
		panic("at the begin")
	}
	return ctx, func(grid.CallResult) { panic("at the end") }, nil
}

func (b badInterceptor) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, func(grid.CallResult) { panic("at the end") }, nil
}

func TestInterceptor_ThatPanics(t *testing.T) {
	for _, atEnd := range []bool{false, true} {
		rig.InPair(t, func(i int, o *grid.ManagerOptions) {
			if i == 1 {
				o.ServeInterceptors = []grid.ServeInterceptor{badInterceptor{atEnd}}
			} else {
				o.CallInterceptors = []grid.CallInterceptor{badInterceptor{}}
			}
		}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
			s, serr := c.NewStream(t.Context(), rig.TwoWay, nil)
			require.NoError(t, serr)
			close(s.Requests)
			_, serr = rig.Collect(s, 0)
			if atEnd {
				require.NoError(t, err)
				require.NoError(t, serr)
			} else {
				require.ErrorContains(t, err, "panicked: at the begin")
				require.ErrorContains(t, serr, "panicked: at the begin")
			}
			g.RequireNothingKept()
		})
	}
}

func TestMetadata_GoesWithACall(t *testing.T) {
	for _, size := range []int{0, 200_000} { // in one message, and in fragments
		watched(t, func(t *testing.T, g *rig.Grid, c *grid.Connection, calling, serving *recorder) {
			g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, "sub")
			g.Stream(1, 1, func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil })
			calling.add = map[string]string{"traceparent": "00-abc", "": "empty key", "empty value": ""}
			answer, err := c.Subroute("sub").SingleRequest(t.Context(), rig.Handler, make([]byte, size))
			require.NoError(t, err)
			require.Len(t, answer, size)
			info, _ := serving.one(t)
			require.Equal(t, calling.add, info.Metadata)
			s := rig.OpenStream(t, t.Context(), c, make([]byte, size)...)
			_, err = rig.Collect(s, 0)
			require.NoError(t, err)
			close(s.Requests)
			info, _ = serving.one(t)
			require.Equal(t, calling.add, info.Metadata)
			calling.calls, calling.ends = nil, nil

			calling.add = map[string]string{"k": strings.Repeat("x", rig.MaxMetadata)}
			_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
			require.ErrorIs(t, err, grid.ErrMessageTooLarge)
			require.ErrorContains(t, err, "metadata")
			_, end := calling.one(t)
			require.Equal(t, err, end.Err)
			_, err = c.NewStream(t.Context(), rig.Echo, nil)
			require.ErrorIs(t, err, grid.ErrMessageTooLarge)

			calling.add = nil
			_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)
			info, _ = serving.one(t)
			require.Nil(t, info.Metadata)
		})
	}
}

func TestInterceptor_StatusOfAResult(t *testing.T) {
	for want, err := range map[string]error{
		"ok":                nil,
		"overloaded":        grid.Refusal("grid: overloaded: too much"),
		"remote_error":      grid.NewRemoteErrString("no"),
		"disconnected":      grid.Disconnected("http://b", grid.ErrClosed),
		"deadline_exceeded": fmt.Errorf("wrapped: %w", context.DeadlineExceeded),
		"canceled":          context.Canceled,
		"message_too_large": grid.TooLarge(2, 1),
		"protocol_error":    grid.ErrFlowControl,
		"error":             errors.New("mine"),
	} {
		require.Equal(t, want, grid.CallResult{Err: err}.Status())
	}
}

// counter is the cheapest interceptor that there is.
type counter struct{ calls atomic.Int64 }

func (c *counter) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, c.end, nil
}

func (c *counter) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return ctx, c.end, nil
}

func (c *counter) end(grid.CallResult) { c.calls.Add(1) }

// BenchmarkInterceptors is what a request costs with so many interceptors on each side.
func BenchmarkInterceptors(b *testing.B) {
	for _, n := range []int{0, 1, 3} {
		b.Run(fmt.Sprint("interceptors=", n), func(b *testing.B) {
			g := rig.NewTCP(b, 2, func(_ int, o *grid.ManagerOptions) {
				for range n {
					c := new(counter)
					o.CallInterceptors = append(o.CallInterceptors, c)
					o.ServeInterceptors = append(o.ServeInterceptors, c)
				}
			})
			c, payload := g.Conn(0, 1), make([]byte, benchPayload)
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					answer, err := c.SingleRequest(context.Background(), rig.Echo, payload)
					if err != nil {
						b.Error(err)
						return
					}
					grid.PutByteBuffer(answer)
				}
			})
		})
	}
}

// slow takes a second to be told of an end, or until stuck is closed.
type slow struct {
	stuck chan struct{}
	told  atomic.Int32
}

func (s *slow) begin(ctx context.Context) (context.Context, func(grid.CallResult), error) {
	return ctx, func(grid.CallResult) {
		if s.stuck != nil {
			<-s.stuck
		} else {
			time.Sleep(time.Second)
		}
		s.told.Add(1)
	}, nil
}

func (s *slow) InterceptCall(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return s.begin(ctx)
}

func (s *slow) InterceptServe(ctx context.Context, _ *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return s.begin(ctx)
}

// Shutdown waits until the interceptors have been told of the ends of what was under way: who
// closes what they write to after it has all of them.
func TestInterceptor_HearsOfTheEndBeforeShutdownReturns(t *testing.T) {
	for _, side := range []int{0, 1} {
		for _, stream := range []bool{false, true} {
			told := new(slow)
			rig.InPair(t, func(i int, o *grid.ManagerOptions) {
				switch {
				case i != side:
				case side == 0:
					o.CallInterceptors = []grid.CallInterceptor{told}
				default:
					o.ServeInterceptors = []grid.ServeInterceptor{told}
				}
			}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				if stream {
					s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
					require.NoError(t, err)
					s.CloseSend()
					require.NoError(t, s.Results(func([]byte) error { return nil }))
				} else {
					_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
					require.NoError(t, err)
				}
				require.Equal(t, side == 0 && !stream, told.told.Load() == 1)
				require.NoError(t, g.Manager(side).Shutdown(t.Context()))
				require.Equal(t, int32(1), told.told.Load())
			})
		}
	}
}

// But no longer than its context lasts.
func TestInterceptor_ThatIsStuckEndsShutdownWithItsContext(t *testing.T) {
	var stuck chan struct{}
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			stuck = make(chan struct{}) // of the bubble
			o.CallInterceptors = []grid.CallInterceptor{&slow{stuck: stuck}}
		}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		defer close(stuck)
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		s.CloseSend()
		require.NoError(t, s.Results(func([]byte) error { return nil }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Equal(t, time.Minute+time.Second, rig.Elapsed(func() {
			require.ErrorIs(t, g.Manager(0).Shutdown(ctx), context.DeadlineExceeded)
		}))
	})
}

// Ends that nobody hears of do not add up: what is new is refused, and only to that host.
func TestInterceptor_WhoseEndsAreStuckIsBounded(t *testing.T) {
	const limit = 3
	var stuck chan struct{}
	edit := func(side int) func(i int, o *grid.ManagerOptions) {
		return func(i int, o *grid.ManagerOptions) {
			if i != side {
				return
			}
			stuck = make(chan struct{})
			o.MaxStreams, o.MaxHandlers = limit, limit
			if side == 0 {
				o.CallInterceptors = []grid.CallInterceptor{&slow{stuck: stuck}}
			} else {
				o.ServeInterceptors = []grid.ServeInterceptor{&slow{stuck: stuck}}
			}
		}
	}
	stream := func(t *testing.T, c *grid.Connection) error {
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		if err != nil {
			return err
		}
		s.CloseSend()
		return s.Results(func([]byte) error { return nil })
	}
	request := func(t *testing.T, c *grid.Connection) error {
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		return err
	}
	for _, c := range []struct {
		side int
		call func(t *testing.T, c *grid.Connection) error
		says string
	}{{0, stream, "how 3 streams to this host ended"}, {1, stream, "how 3 calls of this host ended"}, {1, request, "how 3 calls of this host ended"}} {
		rig.InPair(t, edit(c.side), func(t *testing.T, g *rig.Grid, conn *grid.Connection) {
			for range limit {
				require.NoError(t, c.call(t, conn))
				synctest.Wait()
			}
			for range 10 {
				err := c.call(t, conn)
				require.ErrorIs(t, err, grid.ErrOverloaded)
				require.ErrorContains(t, err, c.says)
			}
			time.Sleep(time.Hour) // the link is well
			require.Zero(t, conn.Stats().Reconnects)
			require.Equal(t, grid.StateConnected, conn.State())
			require.NoError(t, request(t, g.Conn(1, 0)))
			close(stuck)
			synctest.Wait()
			require.NoError(t, c.call(t, conn))
		})
	}
}

// Also where the host comes and goes.
func TestInterceptor_WhoseEndsAreStuckIsBoundedWhileTheHostComesAndGoes(t *testing.T) {
	const limit = 3
	var stuck chan struct{}
	rig.InPair(t, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			stuck = make(chan struct{})
			o.MaxStreams = limit
			o.CallInterceptors = []grid.CallInterceptor{&slow{stuck: stuck}}
		}
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m, host := g.Manager(0), g.Host(1)
		for i := range 3 * limit {
			_, err := c.NewStream(t.Context(), rig.TwoWay, nil)
			if i < limit {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, grid.ErrOverloaded)
			}
			require.NoError(t, m.RemoveHost(host)) // which ends the stream
			require.NoError(t, m.AddHost(host))
			g.WaitConnected()
			c = m.Connection(host)
		}
		close(stuck)
		synctest.Wait()
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		s.CloseSend()
		require.NoError(t, rig.Consume(s))
	})
}
