package calls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// waitingHandler registers a handler that reads and sends nothing, and reports how its context
// ended.
func waitingHandler(g *rig.Grid) (causes <-chan error) {
	c := make(chan error, 1)
	g.Stream(1, 1, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
		<-ctx.Done()
		c <- context.Cause(ctx)
		return nil
	})
	return c
}

func TestStream_HandlerSeesWhyItsContextEnded(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := waitingHandler(g)

		ctx, cancel := context.WithCancelCause(t.Context())
		s := rig.OpenStream(t, ctx, c)
		go func() { synctest.Wait(); cancel(rig.ErrCause) }()
		rig.RequireKind(t, s.Results(nil), rig.IsCanceledCause, "Results")
		rig.RequireKind(t, s.Err(), rig.IsCanceledCause, "Err")
		require.Equal(t, context.Canceled, <-causes)

		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		s = rig.OpenStream(t, ctx, c)
		require.Equal(t, time.Second, rig.Elapsed(func() { require.ErrorIs(t, s.Results(nil), context.DeadlineExceeded) }))
		require.Equal(t, context.DeadlineExceeded, <-causes)

		s = rig.OpenStream(t, t.Context(), c)
		g.Cut(0, 1)
		require.ErrorIs(t, s.Results(nil), grid.ErrDisconnected)
		require.ErrorIs(t, <-causes, grid.ErrDisconnected)
		g.WaitConnected()

		s = rig.OpenStream(t, t.Context(), c)
		g.Stop(0)
		require.ErrorIs(t, s.Results(nil), grid.ErrDisconnected)
		require.ErrorIs(t, <-causes, grid.ErrDisconnected)
	})
}

func TestStream_DeadlineIsThatOfTheHandler(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		lefts := make(chan time.Duration, 1)
		g.Stream(1, 1, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			deadline, ok := ctx.Deadline()
			if !ok {
				lefts <- 0
			} else {
				lefts <- time.Until(deadline)
			}
			return nil
		})
		for _, left := range []time.Duration{0, 10 * time.Millisecond, 90 * time.Second, 30 * 24 * time.Hour} {
			ctx, cancel := context.WithCancel(t.Context())
			if left > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), left)
			}
			require.NoError(t, rig.OpenStream(t, ctx, c).Results(nil))
			require.Equal(t, left, <-lefts)
			cancel()
		}
	})
}

func TestStream_CallbackErrorEndsTheHandlersContext(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := make(chan error, 1)
		g.Stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for ctx.Err() == nil {
				out <- rig.Pooled("more")
			}
			causes <- context.Cause(ctx)
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		n := 0
		err := s.Results(func(b []byte) error {
			if n++; n == 5 {
				return rig.ErrCause
			}
			return nil
		})
		require.Equal(t, rig.ErrCause, err)
		require.Equal(t, 5, n)
		require.Equal(t, rig.ErrCause, s.Err())
		require.Equal(t, context.Canceled, <-causes)
	})
}

func TestStream_UnreadResponsesThenCancelEndTheHandler(t *testing.T) {
	t.Parallel()
	for name, big := range map[string]int{"small": 1, "that fill the queues": rig.PendingLimit} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				causes := make(chan error, 1)
				g.Stream(20, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
					for ctx.Err() == nil {
						out <- make([]byte, big) // not in a select with ctx
					}
					causes <- context.Cause(ctx)
					return nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				s := rig.OpenStream(t, ctx, c)
				synctest.Wait()
				require.Empty(t, causes, "the handler waits")
				cancel()
				require.Equal(t, context.Canceled, <-causes)
				require.ErrorIs(t, s.Results(nil), context.Canceled)
				synctest.Wait()
				require.Zero(t, g.Conn(1, 0).Stats().Handlers)
				require.Zero(t, c.Stats().Streams)
			})
		})
	}
}

func TestStream_HandlerPanicIsAnErrorAndNothingLeaks(t *testing.T) {
	t.Parallel()
	for name, bad := range rig.BadEnds {
		for _, when := range []string{"at once", "after sending", "with a goroutine running"} {
			t.Run(name+" "+when, func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					g.Stream(2, 2, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
						switch when {
						case "after sending":
							for _, text := range numbered(5) {
								out <- rig.Pooled(text)
							}
						case "with a goroutine running":
							started := make(chan struct{})
							go func() {
								close(started)
								for {
									select {
									case out <- rig.Pooled("from the goroutine"):
									case <-ctx.Done():
										return
									}
								}
							}()
							<-started
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
					synctest.Wait()
					require.Zero(t, g.Conn(1, 0).Stats().Handlers)
					require.Zero(t, c.Stats().Reconnects)
					_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
					require.NoError(t, err)
				})
			})
		}
	}
}

// It must not; but then the client gets what was sent and nothing else.
func TestStream_HandlerThatClosesItsOutput(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(2, 0, func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			defer time.Sleep(time.Second)
			defer close(out)
			for _, text := range numbered(5) {
				out <- rig.Pooled(text)
			}
			return nil
		})
		got, err := rig.Collect(rig.OpenStream(t, t.Context(), c), 0)
		require.NoError(t, err)
		require.Equal(t, numbered(5), got)
	})
}

// Each way for a stream to die, each way to send to it: nobody blocks for ever.
func TestStream_SenderDoesNotBlockWhenItHasDied(t *testing.T) {
	t.Parallel()
	deaths := map[string]func(g *rig.Grid, cancel context.CancelFunc, release chan<- struct{}){
		"cancelled":             func(_ *rig.Grid, cancel context.CancelFunc, _ chan<- struct{}) { cancel() },
		"handler returned":      func(_ *rig.Grid, _ context.CancelFunc, release chan<- struct{}) { close(release) },
		"link cut":              func(g *rig.Grid, _ context.CancelFunc, _ chan<- struct{}) { g.Cut(0, 1) },
		"remote manager closed": func(g *rig.Grid, _ context.CancelFunc, _ chan<- struct{}) { g.Stop(1) },
	}
	for death, kill := range deaths {
		for _, closes := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/closes=%v", death, closes), func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					release := make(chan struct{})
					g.Stream(1, 2, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
						select { // reads nothing
						case <-ctx.Done():
						case <-release:
						}
						return nil
					})
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					raw, sent, typed := rig.OpenStream(t, ctx, c), rig.OpenStream(t, ctx, c), openTyped(t, ctx, c)
					const total = 20
					finished := make(chan error, 3)
					go func() {
						for range total {
							raw.Requests <- rig.Pooled("x")
						}
						if closes {
							close(raw.Requests)
						}
						finished <- nil
					}()
					go func() {
						for range total {
							typed.Requests <- grid.NewBytesWithCopyOf([]byte("x"))
						}
						if closes {
							close(typed.Requests)
						}
						finished <- nil
					}()
					go func() {
						var err error
						for err == nil {
							err = sent.Send([]byte("x"))
						}
						if again := sent.Send([]byte("x")); again != err {
							err = errors.Join(err, again)
						}
						finished <- err
					}()
					synctest.Wait()
					require.Empty(t, finished, "all of them wait for credits")
					kill(g, cancel, release)
					var sendErr error
					for range 3 {
						sendErr = errors.Join(sendErr, <-finished)
					}
					require.ErrorIs(t, sendErr, endedSend(sent.Err()))
				})
			})
		}
	}
}

// endedSend is what Send says when a stream has ended with err.
func endedSend(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

func openTyped(t testing.TB, ctx context.Context, c *grid.Connection) *grid.TypedStream[*grid.Bytes, *grid.Bytes] {
	t.Helper()
	h := grid.NewStream[grid.NoPayload](rig.Handler, nil, grid.NewBytes, grid.NewBytes)
	s, err := h.Call(ctx, c, grid.NoPayload{})
	require.NoError(t, err)
	return s
}

// A sender may be late by hours. When nobody holds the stream any more, its goroutine goes, though
// the channel was never closed.
func TestStream_RequestsAreDrainedForAsLongAsItIsHeld(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := waitingHandler(g)
		open := func() *grid.Stream {
			ctx, cancel := context.WithCancel(t.Context())
			s := rig.OpenStream(t, ctx, c)
			cancel()
			<-s.Done()
			<-causes
			return s
		}
		held := open()
		for range 3 {
			open()
		}
		for range 3 {
			runtime.GC()
			runtime.GC()
			time.Sleep(2 * rig.DrainLook)
		}
		held.Requests <- rig.Pooled("late")
		held.Requests <- rig.Pooled("later")
		require.Equal(t, 1, goroutinesIn("drainRequests"))
		runtime.KeepAlive(held)
	})
}

// One that was sent to after its end goes as well, once nobody holds it.
func TestStream_RequestsThatWereDrainedAreNotForGood(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := waitingHandler(g)
		send := func() {
			ctx, cancel := context.WithCancel(t.Context())
			s := rig.OpenStream(t, ctx, c)
			cancel()
			<-s.Done()
			<-causes
			for range 3 {
				time.Sleep(rig.DrainLook / 2)
				s.Requests <- rig.Pooled("late")
			}
			require.Positive(t, goroutinesIn("drainRequests"))
			runtime.KeepAlive(s)
		}
		for range 3 {
			send()
		}
		for range 3 {
			runtime.GC()
			runtime.GC()
			time.Sleep(2 * rig.DrainLook)
		}
		require.Zero(t, goroutinesIn("drainRequests"))
	})
}

// goroutinesIn counts the goroutines that have a function on their stack.
func goroutinesIn(function string) int {
	buf := make([]byte, 1<<20)
	n := 0
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "grid."+function) {
			n++
		}
	}
	return n
}
