package grid

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
)

// waitingHandler registers a handler that reads and sends nothing, and reports
// how its context ended.
func (g *testGrid) waitingHandler() (causes <-chan error) {
	c := make(chan error, 1)
	g.stream(1, 1, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
		<-ctx.Done()
		c <- context.Cause(ctx)
		return nil
	})
	return c
}

func TestStreamHandlerSeesWhyItsContextEnded(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		causes := g.waitingHandler()

		ctx, cancel := context.WithCancelCause(t.Context())
		s := openStream(t, ctx, c)
		go func() { synctest.Wait(); cancel(errTestCause) }()
		require.Equal(t, errTestCause, s.Results(nil))
		require.Equal(t, errTestCause, s.Err())
		require.Equal(t, context.Canceled, <-causes)

		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		s = openStream(t, ctx, c)
		require.Equal(t, time.Second, elapsed(func() { require.Equal(t, context.DeadlineExceeded, s.Results(nil)) }))
		require.Equal(t, context.DeadlineExceeded, <-causes)

		s = openStream(t, t.Context(), c)
		g.cut(0, 1)
		require.ErrorIs(t, s.Results(nil), ErrDisconnected)
		require.ErrorIs(t, <-causes, ErrDisconnected)
		g.waitConnected()

		s = openStream(t, t.Context(), c)
		g.stop(0)
		require.ErrorIs(t, s.Results(nil), ErrDisconnected)
		require.ErrorIs(t, <-causes, ErrDisconnected)
	})
}

func TestStreamDeadlineIsThatOfTheHandler(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		lefts := make(chan time.Duration, 1)
		g.stream(1, 1, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
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
			require.NoError(t, openStream(t, ctx, c).Results(nil))
			require.Equal(t, left, <-lefts)
			cancel()
		}
	})
}

func TestStreamCallbackErrorEndsTheHandlersContext(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		causes := make(chan error, 1)
		g.stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
			for ctx.Err() == nil {
				out <- pooled("more")
			}
			causes <- context.Cause(ctx)
			return nil
		})
		s := openStream(t, t.Context(), c)
		n := 0
		err := s.Results(func(b []byte) error {
			if n++; n == 5 {
				return errTestCause
			}
			return nil
		})
		require.Equal(t, errTestCause, err)
		require.Equal(t, 5, n)
		require.Equal(t, errTestCause, s.Err())
		require.Equal(t, context.Canceled, <-causes)
	})
}

func TestUnreadResponsesThenCancelEndTheHandler(t *testing.T) {
	for name, big := range map[string]int{"small": 1, "that fill the queues": pendingLimit} {
		t.Run(name, func(t *testing.T) {
			inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
				causes := make(chan error, 1)
				g.stream(20, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
					for ctx.Err() == nil {
						out <- make([]byte, big) // not in a select with ctx
					}
					causes <- context.Cause(ctx)
					return nil
				})
				ctx, cancel := context.WithCancel(t.Context())
				s := openStream(t, ctx, c)
				synctest.Wait()
				require.Empty(t, causes, "the handler waits")
				cancel()
				require.Equal(t, context.Canceled, <-causes)
				require.Equal(t, context.Canceled, s.Results(nil))
				synctest.Wait()
				require.Zero(t, g.conn(1, 0).Stats().Handlers)
				require.Zero(t, c.Stats().Streams)
			})
		})
	}
}

func TestStreamHandlerPanicIsAnErrorAndNothingLeaks(t *testing.T) {
	for name, bad := range badEnds {
		for _, when := range []string{"at once", "after sending", "with a goroutine running"} {
			t.Run(name+" "+when, func(t *testing.T) {
				inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
					g.stream(2, 2, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
						switch when {
						case "after sending":
							for _, text := range numbered(5) {
								out <- pooled(text)
							}
						case "with a goroutine running":
							started := make(chan struct{})
							go func() {
								close(started)
								for {
									select {
									case out <- pooled("from the goroutine"):
									case <-ctx.Done():
										return
									}
								}
							}()
							<-started
						}
						bad.end()
						return nil
					})
					s := openStream(t, t.Context(), c)
					got, err := collect(s, 0)
					require.True(t, IsRemoteErr(err), err)
					require.ErrorContains(t, err, bad.want)
					if when == "after sending" {
						require.Equal(t, numbered(5), got)
					}
					synctest.Wait()
					require.Zero(t, g.conn(1, 0).Stats().Handlers)
					require.Zero(t, c.Stats().Reconnects)
					_, err = c.SingleRequest(t.Context(), testEcho, nil)
					require.NoError(t, err)
				})
			})
		}
	}
}

// It must not; but then the client gets what was sent and nothing else.
func TestStreamHandlerThatClosesItsOutput(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		g.stream(2, 0, func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
			defer time.Sleep(time.Second)
			defer close(out)
			for _, text := range numbered(5) {
				out <- pooled(text)
			}
			return nil
		})
		got, err := collect(openStream(t, t.Context(), c), 0)
		require.NoError(t, err)
		require.Equal(t, numbered(5), got)
	})
}

// Each way for a stream to die, each way to send to it: nobody blocks for ever.
func TestSenderWhoseStreamHasDiedDoesNotBlock(t *testing.T) {
	deaths := map[string]func(g *testGrid, cancel context.CancelFunc, release chan<- struct{}){
		"cancelled":             func(_ *testGrid, cancel context.CancelFunc, _ chan<- struct{}) { cancel() },
		"handler returned":      func(_ *testGrid, _ context.CancelFunc, release chan<- struct{}) { close(release) },
		"link cut":              func(g *testGrid, _ context.CancelFunc, _ chan<- struct{}) { g.cut(0, 1) },
		"remote manager closed": func(g *testGrid, _ context.CancelFunc, _ chan<- struct{}) { g.stop(1) },
	}
	for death, kill := range deaths {
		for _, closes := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/closes=%v", death, closes), func(t *testing.T) {
				inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
					release := make(chan struct{})
					g.stream(1, 2, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
						select { // reads nothing
						case <-ctx.Done():
						case <-release:
						}
						return nil
					})
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					raw, sent, typed := openStream(t, ctx, c), openStream(t, ctx, c), openTyped(t, ctx, c)
					const total = 20
					finished := make(chan error, 3)
					go func() {
						for range total {
							raw.Requests <- pooled("x")
						}
						if closes {
							close(raw.Requests)
						}
						finished <- nil
					}()
					go func() {
						for range total {
							typed.Requests <- NewBytesWithCopyOf([]byte("x"))
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

func openTyped(t testing.TB, ctx context.Context, c *Connection) *TypedStream[*Bytes, *Bytes] {
	t.Helper()
	h := NewStream[NoPayload](testHandler, nil, NewBytes, NewBytes)
	s, err := h.Call(ctx, c, NoPayload{})
	require.NoError(t, err)
	return s
}

// A sender may be late by hours. When nobody holds the stream any more, its
// goroutine goes, though the channel was never closed.
func TestRequestsAreDrainedForAsLongAsTheStreamIsHeld(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		causes := g.waitingHandler()
		open := func() *Stream {
			ctx, cancel := context.WithCancel(t.Context())
			s := openStream(t, ctx, c)
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
			time.Sleep(2 * drainLook)
		}
		held.Requests <- pooled("late")
		held.Requests <- pooled("later")
		require.Equal(t, 1, goroutinesIn("drainRequests"))
		runtime.KeepAlive(held)
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

func TestErrorTextsAreCopiedBeforeTheirBufferIsReused(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		long := strings.Repeat("a long text ", 30)
		g.stream(1, 1, func(ctx context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
			if len(payload) > 0 {
				return NewRemoteErrString(string(payload))
			}
			<-ctx.Done()
			return nil
		})
		var errs []error
		keep := func(err error) { require.Error(t, err); errs = append(errs, err) }
		_, err := c.SingleRequest(t.Context(), testFail, []byte(long))
		keep(err)
		keep(openStream(t, t.Context(), c, []byte(long)...).Results(nil))
		_, err = c.Subroute("nowhere").NewStream(t.Context(), testHandler, nil)
		keep(err)
		// Dropped by the server, with a reason.
		s := openStream(t, t.Context(), c)
		s.mux.host.post(message{MuxID: s.mux.id, Op: opMuxClientMsg, Seq: 99}, nil)
		keep(s.Results(nil))

		before := errors.Join(errs...).Error()
		for range 200 { // every buffer of the pool is reused
			answer, err := c.SingleRequest(t.Context(), testEcho, []byte(strings.Repeat("Z", 300)))
			require.NoError(t, err)
			PutByteBuffer(answer)
		}
		require.Equal(t, before, errors.Join(errs...).Error())
		require.Equal(t, 2, strings.Count(before, long))
		require.Contains(t, before, "under that subroute")
		require.Contains(t, before, "out of sequence")
	})
}
