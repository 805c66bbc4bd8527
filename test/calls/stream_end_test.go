package calls

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

func TestStream_BurstOfCapacityThenEOFSlowConsumer(t *testing.T) {
	t.Parallel()
	times := 1000
	if bytepool.Strict {
		times = 300
	}
	consumers := map[string]func(s *grid.Stream) ([]string, error){
		"slow": func(s *grid.Stream) ([]string, error) { return rig.Collect(s, time.Millisecond) },
		"starts after the end": func(s *grid.Stream) ([]string, error) {
			<-s.Done()
			return rig.Collect(s, 0)
		},
		"starts late": func(s *grid.Stream) ([]string, error) {
			synctest.Wait()
			return rig.Collect(s, 0)
		},
		"eager": func(s *grid.Stream) ([]string, error) { return rig.Collect(s, 0) },
	}
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		for i, capacity := range []int{1, 2, 10} {
			require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+grid.HandlerID(i), grid.StreamHandler{
				OutCapacity: capacity,
				Handle: func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
					for _, text := range numbered(capacity) {
						out <- rig.Pooled(text)
					}
					return nil
				},
			}))
			want := numbered(capacity)
			for name, consume := range consumers {
				for range times / 3 {
					s, err := c.NewStream(t.Context(), rig.Handler+grid.HandlerID(i), nil)
					require.NoError(t, err)
					got, err := consume(s)
					require.NoError(t, err, name)
					require.Equal(t, want, got, name)
				}
			}
		}
	})
}

// streamFaults are what ends a stream that a handler has filled.
var streamFaults = map[string]struct {
	strike func(g *rig.Grid, cancel context.CancelCauseFunc, fail chan<- struct{})
	// is reports whether err is the fault.
	is func(err error) bool
	// keeps says that what has arrived is still delivered.
	keeps bool
}{
	"handler error": {
		func(_ *rig.Grid, _ context.CancelCauseFunc, fail chan<- struct{}) { close(fail) },
		func(err error) bool { return grid.IsRemoteErr(err) && err.Error() == "handler failed" }, true,
	},
	"deadline": {
		func(*rig.Grid, context.CancelCauseFunc, chan<- struct{}) { time.Sleep(streamTestDeadline) },
		func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, false,
	},
	"cancel": {
		func(_ *rig.Grid, cancel context.CancelCauseFunc, _ chan<- struct{}) { cancel(rig.ErrCause) },
		func(err error) bool { return errors.Is(err, context.Canceled) && errors.Is(err, rig.ErrCause) }, false,
	},
	"lost link": {
		func(g *rig.Grid, _ context.CancelCauseFunc, _ chan<- struct{}) { g.Cut(0, 1) },
		func(err error) bool { return errors.Is(err, grid.ErrDisconnected) }, true,
	},
	"manager closed": {
		func(g *rig.Grid, _ context.CancelCauseFunc, _ chan<- struct{}) { g.Stop(0) },
		func(err error) bool { return errors.Is(err, grid.ErrDisconnected) }, true,
	},
	"remote manager closed": {
		func(g *rig.Grid, _ context.CancelCauseFunc, _ chan<- struct{}) { g.Stop(1) },
		func(err error) bool { return errors.Is(err, grid.ErrDisconnected) }, true,
	},
}

const streamTestDeadline = 10 * time.Second

func TestStream_SlowConsumerHearsTheTruth(t *testing.T) {
	t.Parallel()
	for name, fault := range streamFaults {
		for _, started := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/started=%v", name, started), func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					const sent = 8
					fail := make(chan struct{})
					ended := make(chan error, 1)
					g.Stream(sent, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
						for _, text := range numbered(sent) {
							out <- rig.Pooled(text)
						}
						select {
						case <-fail:
							return grid.NewRemoteErrString("handler failed")
						case <-ctx.Done():
							ended <- context.Cause(ctx)
							return nil // a handler that does not tell
						}
					})
					ctx, stop := context.WithTimeout(t.Context(), streamTestDeadline)
					defer stop()
					ctx, cancel := context.WithCancelCause(ctx)
					defer cancel(nil)
					s := rig.OpenStream(t, ctx, c)
					synctest.Wait() // everything has arrived

					var got []string
					strike := func() {
						fault.strike(g, cancel, fail)
						<-s.Done()
						require.True(t, fault.is(s.Err()), s.Err())
					}
					if !started {
						strike()
					}
					err := s.Results(func(b []byte) error {
						got = append(got, string(b))
						if started && len(got) == 1 {
							strike()
						}
						return nil
					})
					require.True(t, fault.is(err), err)
					switch {
					case fault.keeps:
						require.Equal(t, numbered(sent), got)
					case started:
						require.Len(t, got, 1)
					default:
						require.Empty(t, got)
					}
					if name != "handler error" {
						require.Error(t, <-ended)
					}
				})
			})
		}
	}
}

// The stream has ended well, but its consumer is stopped before it has seen all of it: that is no
// clean end.
func TestStream_ConsumerCancelledAfterACleanEndHearsOfIt(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(8, 0, func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for _, text := range numbered(8) {
				out <- rig.Pooled(text)
			}
			return nil
		})
		for seen := range 8 {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := rig.OpenStream(t, ctx, c)
			<-s.Done()
			require.NoError(t, s.Err())
			if seen == 0 {
				cancel(rig.ErrCause)
			}
			got := 0
			err := s.Results(func([]byte) error {
				if got++; got == seen {
					cancel(rig.ErrCause)
				}
				return nil
			})
			rig.RequireKind(t, err, rig.IsCanceledCause, "Results")
			require.Equal(t, seen, got)
		}
	})
}

// The deadline travels in whole milliseconds, so the server's is the first to pass. The caller's,
// which has the cause, is what ends the stream here.
func TestStream_DeadlineThatPassesOnTheServerFirst(t *testing.T) {
	t.Parallel()
	handlers := map[string]grid.StreamHandlerFn{
		"ignores its context": func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			time.Sleep(5 * time.Second)
			return nil
		},
		"returns its context's error": func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			<-ctx.Done()
			return grid.NewRemoteErr(ctx.Err())
		},
		"returns nil": func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		},
		"blocks sending": func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for ctx.Err() == nil {
				out <- []byte("x")
			}
			return nil
		},
		"waits for input": func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			for range in {
			}
			return grid.NewRemoteErr(ctx.Err())
		},
		"has returned, and nobody reads": func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- []byte("x")
			out <- []byte("x")
			return nil
		},
	}
	for name, h := range handlers {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				causes := make(chan error, 1)
				g.Stream(1, 1, func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
					context.AfterFunc(ctx, func() { causes <- context.Cause(ctx) })
					return h(ctx, payload, in, out)
				})
				const deadline = time.Second + 999*time.Microsecond
				ctx, cancel := context.WithTimeoutCause(t.Context(), deadline, rig.ErrCause)
				defer cancel()
				var s *grid.Stream
				require.Equal(t, deadline, rig.Elapsed(func() {
					s = rig.OpenStream(t, ctx, c)
					<-s.Done()
				}))
				rig.RequireKind(t, s.Err(), rig.IsDeadlineCause, "Err")
				rig.RequireKind(t, s.Results(func([]byte) error { return nil }), rig.IsDeadlineCause, "Results")
				if name != "has returned, and nobody reads" {
					require.Equal(t, context.DeadlineExceeded, <-causes)
				}
				time.Sleep(10 * time.Second) // the handler's
			})
		})
	}
}

func TestStream_NilAndEmptyMessagesThenData(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		messages := [][]byte{nil, {}, []byte("one"), nil, nil, {}, {}, []byte("two"), {}, nil, []byte("three")}
		want := []string{"", "", "one", "", "", "", "", "two", "", "", "three"}
		var got []string // by the handler
		g.Stream(1, 1, func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			got = nil
			for b := range in {
				got = append(got, string(b))
			}
			for _, b := range messages {
				out <- b
			}
			return nil
		})
		for _, through := range []string{"Send", "Requests"} {
			s := rig.OpenStream(t, t.Context(), c)
			go func() {
				for _, b := range messages {
					if through == "Send" {
						if err := s.Send(b); err != nil {
							t.Error(err)
						}
					} else {
						s.Requests <- b
					}
				}
				if through == "Send" {
					s.CloseSend()
				} else {
					close(s.Requests)
				}
			}()
			results, err := rig.Collect(s, 0)
			require.NoError(t, err)
			require.Equal(t, want, got, through)
			require.Equal(t, want, results, through)
		}
	})
}

// A handler acts on what it was told if, and only if, its input has ended with its context alive.
func TestStream_HandlerDoesNotCommitWhenTheLinkIsCut(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end    func(g *rig.Grid, s *grid.Stream, cancel context.CancelFunc)
		busy   bool // the handler is slow, so input waits when the end comes
		commit bool
	}{
		"cut":                 {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Cut(0, 1) }},
		"cut, handler busy":   {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Cut(0, 1) }, busy: true},
		"cancelled":           {end: func(_ *rig.Grid, _ *grid.Stream, cancel context.CancelFunc) { cancel() }},
		"cancelled, busy":     {end: func(_ *rig.Grid, _ *grid.Stream, cancel context.CancelFunc) { cancel() }, busy: true},
		"client closed":       {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Stop(0) }},
		"server closed":       {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Stop(1) }},
		"server closed, busy": {end: func(g *rig.Grid, _ *grid.Stream, _ context.CancelFunc) { g.Stop(1) }, busy: true},
		"deadline":            {end: func(*rig.Grid, *grid.Stream, context.CancelFunc) { time.Sleep(time.Hour) }},
		"input ended, then cut, handler busy": {end: func(g *rig.Grid, s *grid.Stream, _ context.CancelFunc) {
			close(s.Requests)
			synctest.Wait()
			g.Cut(0, 1)
		}, busy: true},
		"input ended":               {end: func(_ *rig.Grid, s *grid.Stream, _ context.CancelFunc) { close(s.Requests) }, commit: true},
		"input ended, handler busy": {end: func(_ *rig.Grid, s *grid.Stream, _ context.CancelFunc) { close(s.Requests) }, busy: true, commit: true},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				committed := make(chan bool, 1)
				g.Stream(1, 4, func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
					for range in {
						if test.busy {
							time.Sleep(time.Second)
						}
					}
					committed <- ctx.Err() == nil
					return nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				s := rig.OpenStream(t, ctx, c)
				for range 4 {
					s.Requests <- []byte("part of it")
				}
				synctest.Wait()
				test.end(g, s, cancel)
				require.Equal(t, test.commit, <-committed)
			})
		})
	}
}

// A handler whose stream is cancelled has read a prefix of what was sent: nothing that was given to
// it is taken away from under it, so it never sees a hole.
func TestStream_InputOfACancelledOneIsAPrefix(t *testing.T) {
	streams := 3000
	if testing.Short() {
		streams = 1500
	}
	g := rig.NewTCP(t, 2, nil)
	read := make(chan []byte, 1)
	require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
		InCapacity: 16,
		Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			<-ctx.Done() // so that it reads while its input is being closed
			var all []byte
			for b := range in {
				all = append(all, b[0])
				grid.PutByteBuffer(b)
			}
			read <- all
			return nil
		},
	}))
	for i := range streams {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := g.Conn(0, 1).NewStream(ctx, rig.Handler, nil)
		require.NoError(t, err)
		for n := range 12 {
			require.NoError(t, s.Send([]byte{byte(n)}))
		}
		for range i % 5 {
			runtime.Gosched()
		}
		cancel()
		for n, b := range <-read {
			require.EqualValues(t, n, b, "stream %d", i)
		}
	}
}

// What a busy handler was given counts for as long as it runs, also where its stream has ended;
// then it does not any more. It is there to be read until then, from the first message on.
func TestStream_InputOfACancelledOneCountsUntilItsHandlerReturns(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		var read []byte
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 16,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				<-release
				for b := range in {
					read = append(read, b[0])
				}
				return nil
			},
		}))
		kept := func() int64 { return g.Conn(1, 0).Stats().KeptBytes }
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.NewStream(ctx, rig.Handler, nil)
		require.NoError(t, err)
		for i := range 16 {
			require.NoError(t, s.Send(append([]byte{byte(i)}, make([]byte, 9_999)...)))
		}
		s.CloseSend()
		synctest.Wait()
		require.Greater(t, kept(), int64(160_000))
		cancel()
		synctest.Wait()
		require.Greater(t, kept(), int64(80_000), "what is in the handler's channel")
		require.Less(t, kept(), int64(100_000), "what is not was dropped")
		close(release)
		synctest.Wait()
		require.Zero(t, kept())
		require.Equal(t, []byte{0, 1, 2, 3, 4, 5, 6, 7}, read)
	})
}

// What the client learns of the end it may act upon: the room that the input took is there before,
// also where there is a wait until the output is sent.
func TestStream_InputIsGivenBackBeforeItsEndIsSent(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		take, answer := make(chan struct{}), make(chan struct{})
		defer close(take) // where the test fails
		defer close(answer)
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 2, OutCapacity: 1,
			Handle: func(_ context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				<-take
				for range payload[0] {
					<-in
				}
				<-answer
				for range 3 { // of which one has a credit, one waits for it, and one is in the channel
					out <- nil
				}
				return nil
			},
		}))
		kept := func() int64 { synctest.Wait(); return g.Conn(1, 0).Stats().KeptBytes }
		for taken := range byte(4) { // with the third it has seen the end
			s, err := c.NewStream(t.Context(), rig.Handler, []byte{taken})
			require.NoError(t, err)
			require.NoError(t, s.Send(make([]byte, 1000)))
			require.NoError(t, s.Send(make([]byte, 1000)))
			s.CloseSend()
			require.Greater(t, kept(), int64(2000))
			take <- struct{}{}
			synctest.Wait()
			answer <- struct{}{}
			require.Zero(t, kept(), "the handler has taken %d, and returned", taken)
			select {
			case <-s.Done():
				require.Fail(t, "the output has not been taken")
			default:
			}
			require.NoError(t, rig.Consume(s))
		}
	})
}

// The last message of an input counts like any other until it is taken, not until its handler, which
// may go on for long, returns.
func TestStream_LastOfAnInputCountsUntilItIsTaken(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		defer close(release) // where the test fails
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 1, // so none is in the handler's channel
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				<-release
				for range in {
				}
				<-release
				return nil
			},
		}))
		kept := func() int64 { synctest.Wait(); return g.Conn(1, 0).Stats().KeptBytes }
		s, err := c.NewStream(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		require.NoError(t, s.Send(make([]byte, 1000)))
		s.CloseSend()
		require.Greater(t, kept(), int64(1000))
		release <- struct{}{}
		require.Zero(t, kept())
		release <- struct{}{}
		require.NoError(t, rig.Consume(s))
	})
}
