package calls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
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

// serve registers a handler of the form without channels.
func serve(g *rig.Grid, outCapacity, inCapacity int, h grid.StreamServeFn) {
	g.T.Helper()
	require.NoError(g.T, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
		Serve: h, OutCapacity: outCapacity, InCapacity: inCapacity,
	}))
}

func TestServe_ShapesAndCapacities(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var got []string // by the handler
		id := rig.Handler
		for _, out := range []int{0, 1, 2, 65} {
			for _, in := range []int{0, 1, 3, 1000} {
				id++
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(id, grid.StreamHandler{
					OutCapacity: out, InCapacity: in,
					Serve: func(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
						got = nil
						for i := range int(payload[0]) {
							if err := s.Send(ctx, fmt.Append(nil, "message ", i)); err != nil {
								return grid.NewRemoteErr(err)
							}
						}
						for b, err := range s.All() {
							if err != nil {
								return grid.NewRemoteErr(err)
							}
							got = append(got, string(b))
							if payload[1] != 0 {
								if err := s.Send(ctx, b); err != nil {
									return grid.NewRemoteErr(err)
								}
							}
						}
						for range 2 { // the end stays
							if _, err := s.Recv(); err != io.EOF {
								return grid.NewRemoteErrf("%v at the end", err)
							}
						}
						return nil
					},
				}))
				for _, n := range []int{0, 1, 3, 70} {
					what := fmt.Sprint("out ", out, " in ", in, " messages ", n)
					s, err := c.NewStream(t.Context(), id, []byte{byte(n), 0})
					require.NoError(t, err)
					require.Equal(t, in > 0, s.Requests != nil, what)
					s.CloseSend()
					results, err := rig.Collect(s, 0)
					require.NoError(t, err, what)
					require.Equal(t, numbered(n), results, what)
					if in == 0 {
						continue
					}
					for _, echo := range []byte{0, 1} {
						s, err = c.NewStream(t.Context(), id, []byte{0, echo})
						require.NoError(t, err)
						go func() {
							defer s.CloseSend()
							for _, text := range numbered(n) {
								_ = s.Send([]byte(text)) // Collect tells of an error
							}
						}()
						results, err = rig.Collect(s, 0)
						require.NoError(t, err, what)
						require.Equal(t, numbered(n), got, what)
						if echo != 0 {
							require.Equal(t, numbered(n), results, what)
						}
					}
				}
			}
		}
	})
}

// What is nil arrives as empty, and a buffer that was given to Send can be used again at once; also
// a large one.
func TestServe_SentBuffersStayTheHandlers(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		sizes := []int{1, 1000, 70_000, 3, 300_000, 64 << 10}
		serve(g, 2, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			if err := s.Send(ctx, nil); err != nil {
				return grid.NewRemoteErr(err)
			}
			buf := make([]byte, 300_000)
			for i, n := range sizes {
				for at := range buf {
					buf[at] = byte(i)
				}
				if err := s.Send(ctx, buf[:n]); err != nil {
					return grid.NewRemoteErr(err)
				}
				clear(buf)
			}
			return nil
		})
		n := -1
		require.NoError(t, rig.OpenStream(t, t.Context(), c).Results(func(b []byte) error {
			if n < 0 {
				require.Equal(t, []byte{}, b)
			} else {
				require.Len(t, b, sizes[n])
				require.Equal(t, strings.Repeat(string(rune(n)), sizes[n]), string(b))
			}
			n++
			return nil
		}))
		require.Equal(t, len(sizes), n)
	})
}

// A handler acts on what it was told if, and only if, Recv says io.EOF.
func TestServe_HalfAnInputIsNotTakenForAWholeOne(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end    func(g *rig.Grid, s *grid.Stream, cancel context.CancelFunc)
		busy   bool // the handler is slow, so input waits when the end comes
		commit bool
		cause  error
	}{
		"cut":                 {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Cut(0, 1) }, cause: grid.ErrDisconnected},
		"cut, handler busy":   {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Cut(0, 1) }, busy: true, cause: grid.ErrDisconnected},
		"cancelled":           {end: func(_ *rig.Grid, _ *grid.Stream, cancel context.CancelFunc) { cancel() }, cause: context.Canceled},
		"cancelled, busy":     {end: func(_ *rig.Grid, _ *grid.Stream, cancel context.CancelFunc) { cancel() }, busy: true, cause: context.Canceled},
		"client closed":       {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Stop(0) }, cause: grid.ErrDisconnected},
		"server closed":       {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Stop(1) }, cause: grid.ErrDisconnected},
		"server closed, busy": {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Stop(1) }, busy: true, cause: grid.ErrDisconnected},
		"deadline":            {end: func(*rig.Grid, *grid.Stream, context.CancelFunc) { time.Sleep(time.Hour) }, cause: context.DeadlineExceeded},
		"input ended, then cut, handler busy": {end: func(g *rig.Grid, s *grid.Stream, _ context.CancelFunc) {
			s.CloseSend()
			synctest.Wait()
			g.Cut(0, 1)
		}, busy: true, cause: grid.ErrDisconnected},
		"input ended":               {end: func(_ *rig.Grid, s *grid.Stream, _ context.CancelFunc) { s.CloseSend() }, commit: true, cause: io.EOF},
		"input ended, handler busy": {end: func(_ *rig.Grid, s *grid.Stream, _ context.CancelFunc) { s.CloseSend() }, busy: true, commit: true, cause: io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				type end struct {
					err, again, cause, sent error
				}
				ends := make(chan end, 1)
				serve(g, 1, 4, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					for {
						_, err := s.Recv()
						if err != nil {
							_, again := s.Recv()
							ends <- end{err, again, context.Cause(ctx), s.Send(ctx, nil)}
							return nil
						}
						if test.busy {
							time.Sleep(time.Second)
						}
					}
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				s := rig.OpenStream(t, ctx, c)
				for range 4 {
					require.NoError(t, s.Send([]byte("part of it")))
				}
				synctest.Wait()
				test.end(g, s, cancel)
				e := <-ends
				require.ErrorIs(t, e.err, test.cause)
				require.Equal(t, e.err, e.again, "the end stays")
				if test.commit {
					require.Equal(t, io.EOF, e.err)
					require.NoError(t, e.cause)
					require.NoError(t, e.sent)
				} else {
					require.Equal(t, e.cause, e.err)
					require.Equal(t, e.cause, e.sent)
				}
			})
		})
	}
}

func TestServe_BadEndsAreErrorsAndNothingLeaks(t *testing.T) {
	t.Parallel()
	for name, bad := range rig.BadEnds {
		for _, when := range []string{"at once", "after sending", "with a goroutine that sends", "with a goroutine that receives"} {
			t.Run(name+" "+when, func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					left := make(chan error, 1)
					serve(g, 2, 2, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
						switch when {
						case "after sending":
							for _, text := range numbered(5) {
								if err := s.Send(ctx, []byte(text)); err != nil {
									t.Error(err)
								}
							}
						case "with a goroutine that sends":
							go func() {
								for {
									if err := s.Send(t.Context(), []byte("from the goroutine")); err != nil {
										left <- err
										return
									}
								}
							}()
							runtime.Gosched()
						case "with a goroutine that receives":
							go func() {
								_, err := s.Recv()
								left <- err
							}()
							runtime.Gosched()
						}
						bad.End()
						return nil
					})
					s := rig.OpenStream(t, t.Context(), c)
					got, err := rig.Collect(s, 0)
					require.True(t, grid.IsRemoteErr(err), err)
					require.ErrorContains(t, err, bad.Want)
					if when == "after sending" {
						require.Equal(t, numbered(5), got)
					}
					if strings.HasPrefix(when, "with") {
						require.ErrorContains(t, <-left, "handler has returned")
					}
					synctest.Wait()
					require.Zero(t, g.Conn(1, 0).Stats().Handlers)
					require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
					require.Zero(t, c.Stats().Reconnects)
					_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
					require.NoError(t, err)
				})
			})
		}
	}
}

// What is left of the input when the handler returns is dropped, and counts no more; and the stream
// is of no use to who has kept it.
func TestServe_AfterTheReturnNothingIsTouched(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var kept *grid.ServerStream
		var handlerCtx context.Context
		served := make(chan struct{})
		serve(g, 4, 8, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			kept, handlerCtx = s, ctx
			<-served
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		for range 8 {
			require.NoError(t, s.Send(make([]byte, 1000)))
		}
		synctest.Wait()
		require.Greater(t, g.Conn(1, 0).Stats().KeptBytes, int64(8000))
		close(served)
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Empty(t, got)
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
		for _, ctx := range []context.Context{t.Context(), handlerCtx} {
			require.ErrorContains(t, kept.Send(ctx, []byte("late")), "handler has returned")
		}
		_, err = kept.Recv()
		require.ErrorContains(t, err, "handler has returned")
		for _, err := range kept.All() {
			require.ErrorContains(t, err, "handler has returned")
		}
	})
}

// Send's context ends the wait for a client that is slow, and for a link that is; the stream goes on.
func TestServe_SendEndsWithItsContext(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		serve(g, 3, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			n := 0
			var err error
			took := rig.Elapsed(func() {
				for ; err == nil; n++ {
					err = s.Send(short, []byte{byte(n)})
				}
			})
			if n != 4 || took != time.Second || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("message %d failed after %v: %v", n, took, err)
			}
			if err := s.Send(short, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("with a context that has ended: %v", err)
			}
			return grid.NewRemoteErr(s.Send(ctx, []byte{3}))
		})
		s := rig.OpenStream(t, t.Context(), c)
		time.Sleep(2 * time.Second)
		n := 0
		require.NoError(t, s.Results(func(b []byte) error {
			require.Equal(t, []byte{byte(n)}, b)
			n++
			return nil
		}))
		require.Equal(t, 4, n)
	})
}

// A message that a full link has kept from being sent takes no credit.
func TestServe_SendThatFindsNoRoomKeepsItsCredit(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		full, healed := make(chan struct{}), make(chan struct{})
		fills := func(ctx context.Context, s *grid.ServerStream) error {
			defer close(full)
			for _, size := range []int{10_000, 0} {
				for {
					short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
					err := s.Send(short, make([]byte, size))
					cancel()
					if err != nil {
						break
					}
				}
			}
			return nil
		}
		serve(g, 5000, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			return grid.NewRemoteErr(fills(ctx, s))
		})
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
			Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
				<-full
				short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
				if err := s.Send(short, []byte("late")); !errors.Is(err, context.DeadlineExceeded) {
					return grid.NewRemoteErrf("sent without room: %v", err)
				}
				<-healed
				return grid.NewRemoteErr(s.Send(ctx, []byte("in time")))
			},
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		second, err := c.NewStream(ctx, rig.Handler+1, nil)
		require.NoError(t, err)
		first := rig.OpenStream(t, ctx, c)
		g.Net.Stall(g.Addr(1), g.Addr(0), true)
		<-full
		time.Sleep(200 * time.Millisecond)
		g.Net.Stall(g.Addr(1), g.Addr(0), false)
		close(healed)
		got, err := rig.Collect(second, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"in time"}, got)
		require.NoError(t, first.Results(func([]byte) error { return nil }))
	})
}

func TestServe_SendIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		const senders, each = 8, 40
		serve(g, 5, 5, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			var wg sync.WaitGroup
			for i := range senders {
				wg.Go(func() {
					b := make([]byte, 1+i%3*70_000) // some in fragments
					for n := range each {
						b[0], b[len(b)-1] = byte(i), byte(i)
						if err := s.Send(ctx, b); err != nil {
							t.Errorf("message %d of %d: %v", n, i, err)
						}
					}
				})
			}
			n := 0
			for _, err := range s.All() {
				if err != nil {
					t.Error(err)
				}
				n++
			}
			wg.Wait()
			if n != 100 {
				t.Errorf("received %d", n)
			}
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		go func() {
			defer s.CloseSend()
			for range 100 {
				_ = s.Send(make([]byte, 10))
			}
		}()
		got := map[byte]int{}
		require.NoError(t, s.Results(func(b []byte) error {
			require.Equal(t, b[0], b[len(b)-1])
			require.Len(t, b, 1+int(b[0])%3*70_000)
			got[b[0]]++
			return nil
		}))
		require.Len(t, got, senders)
		for _, n := range got {
			require.Equal(t, each, n)
		}
	})
}

func TestServe_MessageAboveTheSizeLimitIsRefusedAndTheStreamLivesOn(t *testing.T) {
	t.Parallel()
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = 100_000 }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		serve(g, 1, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			if err := s.Send(ctx, make([]byte, 100_001)); !errors.Is(err, grid.ErrMessageTooLarge) {
				return grid.NewRemoteErrf("it says %v", err)
			}
			return grid.NewRemoteErr(s.Send(ctx, make([]byte, 100_000)))
		})
		n := 0
		require.NoError(t, rig.OpenStream(t, t.Context(), c).Results(func(b []byte) error { n += len(b); return nil }))
		require.Equal(t, 100_000, n)
	})
}

// A loop over All may be left and another begun.
func TestServe_AllGoesOnWhereItWasLeft(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		serve(g, 1, 2, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			var got []string
			for range 3 {
				for b, err := range s.All() {
					if err != nil {
						t.Error(err)
					}
					if got = append(got, string(b)); len(got)%3 == 0 {
						break
					}
				}
			}
			return grid.NewRemoteErrString(strings.Join(got, ", "))
		})
		s := rig.OpenStream(t, t.Context(), c)
		for _, text := range numbered(8) {
			require.NoError(t, s.Send([]byte(text)))
		}
		s.CloseSend()
		require.EqualError(t, s.Results(nil), strings.Join(numbered(8), ", "))
	})
}

// An interceptor's context, derived from the handler's, and its end.
func TestServe_InterceptorsSeeTheStream(t *testing.T) {
	t.Parallel()
	var ended atomic.Pointer[grid.CallResult]
	type key struct{}
	edit := func(i int, o *grid.ManagerOptions) {
		if i == 1 {
			o.ServeInterceptors = []grid.ServeInterceptor{serveFunc(func(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
				if info.PayloadBytes == 1 {
					return nil, nil, errors.New("not this one")
				}
				return context.WithValue(ctx, key{}, "value"), func(r grid.CallResult) { ended.Store(&r) }, nil
			})}
		}
	}
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		serve(g, 1, 1, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			if ctx.Value(key{}) != "value" || grid.GetCaller(ctx) == nil {
				t.Error("wrong context")
			}
			for b, err := range s.All() {
				if err != nil {
					t.Error(err)
				}
				if err := s.Send(ctx, b); err != nil {
					t.Error(err)
				}
			}
			return grid.NewRemoteErrString("done")
		})
		s := rig.OpenStream(t, t.Context(), c)
		go func() {
			for range 7 {
				_ = s.Send(make([]byte, 11))
			}
			s.CloseSend()
		}()
		got, err := rig.Collect(s, 0)
		require.EqualError(t, err, "done")
		require.Len(t, got, 7)
		synctest.Wait()
		r := ended.Load()
		require.EqualError(t, r.Err, "done")
		require.EqualValues(t, 7, r.SentMessages)
		require.EqualValues(t, 77, r.SentBytes)
		require.EqualValues(t, 77, r.ReceivedBytes)

		require.ErrorContains(t, rig.OpenStream(t, t.Context(), c, 1).Results(nil), "not this one")
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
	})
}

type serveFunc func(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error)

func (f serveFunc) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	return f(ctx, info)
}

func TestServe_RegistrationWantsOneForm(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		m := g.Manager(1)
		both := grid.StreamHandler{
			Serve:  func(context.Context, []byte, *grid.ServerStream) *grid.RemoteErr { return nil },
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil },
		}
		require.ErrorContains(t, m.RegisterStreamingHandler(rig.Handler, both), "both Serve and Handle")
		both.Handle = nil
		require.NoError(t, m.RegisterStreamingHandler(rig.Handler, both))
		both.OutCapacity = -1
		require.ErrorContains(t, m.RegisterStreamingHandler(rig.Handler+1, both), "must be")
	})
}
