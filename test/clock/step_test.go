package clock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/clockstep"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Steps under hosts that share a clock, in bubbles.

var steps = []time.Duration{time.Minute, -time.Minute, time.Hour, -time.Hour, 24 * time.Hour, -24 * time.Hour}

// inSteps runs f for each step of the clock, which f makes by calling step, in a bubble with two
// connected hosts.
func inSteps(t *testing.T, edit func(i int, o *grid.ManagerOptions), f func(t *testing.T, g *rig.Grid, step func())) {
	t.Helper()
	clockstep.Require(t)
	for _, d := range steps {
		t.Run(d.String(), func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := rig.New(t, 2, edit)
				f(t, g, func() { clockstep.Hold(t, d) })
				for i := range 2 {
					require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects, "the link was lost")
				}
				g.RequireWorks()
			})
		})
	}
}

// echo sends a message over a stream to rig.TwoWay, and requires that it comes back.
func echo(t *testing.T, next func() ([]byte, error, bool), st *grid.Stream, text string) {
	t.Helper()
	require.NoError(t, st.Send([]byte(text)))
	got, err, ok := next()
	require.True(t, ok, "the stream has ended")
	require.NoError(t, err)
	require.Equal(t, text, string(got))
	grid.PutByteBuffer(got)
}

// Streams of all shapes, from both sides, on which nothing is said but pings, are still there after
// as many intervals as anybody waits for.
func TestStep_IdleStreamsAndTheirLinkLive(t *testing.T) {
	inSteps(t, nil, func(t *testing.T, g *rig.Grid, step func()) {
		type idle struct {
			st   *grid.Stream
			next func() ([]byte, error, bool)
		}
		var echoes []idle
		var blocked []<-chan error
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range 2 {
			st, err := g.Conn(i, 1-i).NewStream(ctx, rig.TwoWay, nil)
			require.NoError(t, err)
			next, stop := pull(st)
			defer stop()
			echoes = append(echoes, idle{st, next})
			st, err = g.Conn(i, 1-i).NewStream(ctx, rig.Block, nil)
			require.NoError(t, err)
			blocked = append(blocked, rig.InBackground(func() error { return rig.Consume(st) }))
		}
		step()
		for range 3 {
			time.Sleep(2 * time.Minute) // eight intervals
			for _, e := range echoes {
				echo(t, e.next, e.st, "still there")
			}
		}
		synctest.Wait()
		for i := range 2 {
			require.Equal(t, 2, g.Conn(i, 1-i).Stats().Streams)
			require.Equal(t, 2, g.Conn(i, 1-i).Stats().StreamsServed)
			require.Less(t, g.Conn(i, 1-i).Stats().RoundTrip, time.Second)
		}
		for _, e := range echoes {
			e.st.CloseSend()
			_, _, ok := e.next()
			require.False(t, ok, "it ends well")
		}
		cancel()
		for _, end := range blocked {
			require.ErrorIs(t, <-end, context.Canceled)
		}
	})
}

// A request whose handler is running gets its answer, with a deadline and without, and one without
// has its default as before.
func TestStep_RunningCallsAreAnswered(t *testing.T) {
	inSteps(t, nil, func(t *testing.T, g *rig.Grid, step func()) {
		release, let := rig.Gate(t)
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) {
			<-release
			return b, nil
		})
		limited, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var calls []<-chan error
		for _, ctx := range []context.Context{t.Context(), limited} {
			calls = append(calls, rig.InBackground(func() error {
				b, err := g.Conn(0, 1).SingleRequest(ctx, rig.Handler, []byte("x"))
				grid.PutByteBuffer(b)
				return err
			}))
		}
		time.Sleep(10 * time.Second)
		step()
		time.Sleep(10 * time.Second)
		let()
		for _, call := range calls {
			require.NoError(t, <-call)
		}
	})
}

// A payload that arrives bit by bit, of a request, an answer and a stream, does so for as long as
// it may, and no longer.
func TestStep_PayloadsInFragmentsArrive(t *testing.T) {
	clockstep.Require(t)
	const size, rate = 256 << 10, 16 << 10 // for 40 s, all of them together
	payload := rig.Mixed(size)
	for _, d := range steps {
		t.Run(d.String(), func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g, from, to := rig.NewSlow(t, rate, nil)
				require.NoError(t, g.Manager(to).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
					Handle: func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
						out <- payload
						return nil
					},
				}))
				calls := []<-chan error{
					rig.InBackground(func() error {
						return same(payload)(g.Conn(from, to).SingleRequest(t.Context(), rig.Echo, payload))
					}),
					rig.InBackground(func() error {
						return same(payload[:size/2])(g.Conn(to, from).SingleRequest(t.Context(), rig.Echo, payload[:size/2]))
					}),
					rig.InBackground(func() error {
						st, err := g.Conn(from, to).NewStream(t.Context(), rig.Handler, payload)
						if err != nil {
							return err
						}
						return st.Results(func(b []byte) error { return same(payload)(b, nil) })
					}),
				}
				time.Sleep(10 * time.Second)
				clockstep.Hold(t, d)
				for _, call := range calls {
					require.NoError(t, <-call)
				}
				require.Zero(t, g.Conn(from, to).Stats().Reconnects)
			})
		})
	}
}

// An opening of which no more comes is given up after as long as without a step.
func TestStep_OpeningThatStopsIsGivenUpInTime(t *testing.T) {
	clockstep.Require(t)
	for _, d := range steps {
		t.Run(d.String(), func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) { stoppedOpening(t, d) })
		})
	}
}

// A deadline comes as late as it was set, on both sides, wherever the clock is by then.
func TestStep_DeadlinesPassInTheirTime(t *testing.T) {
	const limit = 40 * time.Second
	for name, call := range map[string]func(ctx context.Context, c *grid.Connection) error{
		"request": func(ctx context.Context, c *grid.Connection) error {
			b, err := c.SingleRequest(ctx, rig.Unused, nil)
			grid.PutByteBuffer(b)
			return err
		},
		"stream": func(ctx context.Context, c *grid.Connection) error {
			st, err := c.NewStream(ctx, rig.Handler, nil)
			if err != nil {
				return err
			}
			return rig.Consume(st)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inSteps(t, nil, func(t *testing.T, g *rig.Grid, step func()) {
				began := time.Now()
				var served time.Duration
				wait := func(ctx context.Context) *grid.RemoteErr {
					<-ctx.Done()
					served = time.Since(began)
					return grid.NewRemoteErr(context.Cause(ctx))
				}
				require.NoError(t, g.Manager(1).RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
					return nil, wait(ctx)
				}))
				g.Stream(0, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
					return wait(ctx)
				})

				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				end := rig.InBackground(func() error { return call(ctx, g.Conn(0, 1)) })
				time.Sleep(10 * time.Second)
				step()
				require.ErrorIs(t, <-end, context.DeadlineExceeded)
				require.InDelta(t, float64(limit), float64(time.Since(began)), float64(100*time.Millisecond))
				synctest.Wait()
				require.InDelta(t, float64(limit), float64(served), float64(100*time.Millisecond))
			})
		})
	}
}

// A deadline that the application has made of a wall time is as far off as it was when the call
// began, for that is what the timer of its context was set to.
func TestStep_DeadlineOfAWallTimeIsThatOfItsTimer(t *testing.T) {
	const limit = 10 * time.Minute // longer than a stream may be silent
	inSteps(t, nil, func(t *testing.T, g *rig.Grid, step func()) {
		began := time.Now()
		ctx, cancel := context.WithDeadline(t.Context(), began.Add(limit).Round(0))
		defer cancel()
		ended := rig.BlockHandler(t, g.Manager(1), rig.Handler)
		st, err := g.Conn(0, 1).NewStream(ctx, rig.Handler, nil)
		require.NoError(t, err)
		time.Sleep(10 * time.Second)
		step()
		require.ErrorIs(t, rig.Consume(st), context.DeadlineExceeded)
		require.InDelta(t, float64(limit), float64(time.Since(began)), float64(100*time.Millisecond))
		require.ErrorIs(t, <-ended, context.DeadlineExceeded)
	})
}

// So it is while a request waits for its turn to be sent, behind others.
func TestStep_DeadlineOfAWallTimeHoldsInTheQueue(t *testing.T) {
	clockstep.Require(t)
	const size, rate = 256 << 10, 16 << 10
	for _, d := range steps {
		t.Run(d.String(), func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g, from, to := rig.NewSlow(t, rate, nil)
				ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(10*time.Minute).Round(0))
				defer cancel()
				payload := rig.Mixed(size)
				var calls []<-chan error
				for i := range 12 {
					calls = append(calls, rig.InBackground(func() error {
						return same(payload[i:])(g.Conn(from, to).SingleRequest(ctx, rig.Echo, payload[i:]))
					}))
				}
				time.Sleep(10 * time.Second)
				require.NotZero(t, g.Conn(from, to).Stats().QueuedSenders)
				clockstep.Hold(t, d)
				for _, call := range calls {
					require.NoError(t, <-call)
				}
			})
		})
	}
}

// Hosts whose clocks are wrong together let each other in, before the step and after it, and so
// again when the clocks are right.
func TestStep_TokensOfHostsThatAreWrongTogetherAreGood(t *testing.T) {
	clockstep.Require(t)
	for name, edit := range auths {
		t.Run(name, func(t *testing.T) {
			for _, d := range steps {
				rig.InBubble(t, func(t *testing.T) {
					g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { edit(o) })
					reconnect := func() {
						g.Cut(0, 1)
						synctest.Wait()
						took := rig.Elapsed(g.WaitConnected)
						require.Less(t, took, time.Minute)
						g.RequireWorks()
					}
					for range 3 {
						for _, by := range []time.Duration{d, -d} {
							clockstep.By(by)
							for range 3 {
								reconnect()
							}
						}
					}
				})
			}
		})
	}
}

// auths are the ways in which hosts let each other in.
var auths = map[string]func(o *grid.ManagerOptions){
	"secret": func(o *grid.ManagerOptions) { rig.WithSecret(o, rig.Key) },
	"token":  func(o *grid.ManagerOptions) {},
}

// pull is the messages of a stream, one by one.
func pull(st *grid.Stream) (next func() ([]byte, error, bool), stop func()) {
	return iter.Pull2(st.All())
}

// same takes the result of a call that is to return want.
func same(want []byte) func([]byte, error) error {
	return func(got []byte, err error) error {
		defer grid.PutByteBuffer(got)
		if err == nil && !bytes.Equal(got, want) {
			err = errors.New("another payload")
		}
		return err
	}
}

// stoppedOpening lets a peer begin with two openings, and leave off one of them at a step.
func stoppedOpening(t *testing.T, d time.Duration) {
	r := rig.NewWire(t, true, rig.FragmentConfig, nil)
	const stopped, goesOn = 7, 9
	part := func(id uint64, handler grid.HandlerID) {
		r.Peer.Send(rawpeer.Fragment(rawpeer.OpRequest, id, 0, handler))
	}
	last := time.Now()
	part(stopped, rig.Echo)
	part(goesOn, rig.Echo)
	time.Sleep(10 * time.Second)
	clockstep.Hold(t, d)
	for range 5 {
		part(goesOn, 0)
		time.Sleep(15 * time.Second)
	}
	synctest.Wait()
	refusal := r.Peer.Take()
	require.Len(t, refusal, 1)
	require.EqualValues(t, stopped, refusal[0].MuxID)
	require.Contains(t, refusal[0].String(), "gave up waiting for the rest")
	require.Less(t, time.Since(last), 90*time.Second)
	end := rawpeer.Fragment(rawpeer.OpRequest, goesOn, 0, 0)
	end.Flags = rawpeer.FlagEOF
	r.Peer.Send(end)
	synctest.Wait()
	require.EqualValues(t, goesOn, r.Peer.Recv().MuxID)
	r.Alive()
}

// A server of version 1 that drops a request without a reason, long before a deadline that was made
// of a wall time, has not run out of time; and one that does so at that deadline has.
func TestStep_DropByAVersion1ServerIsTheDeadlineAtThatAlone(t *testing.T) {
	clockstep.Require(t)
	const limit = 20 * time.Second
	for _, d := range steps {
		for after, want := range map[time.Duration]error{10 * time.Second: grid.ErrDisconnected, limit: context.DeadlineExceeded} {
			t.Run(fmt.Sprint(d, ", after ", after), func(t *testing.T) {
				rig.InBubble(t, func(t *testing.T) {
					r := rig.NewWire(t, true, rawpeer.Config{}, nil)
					ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(limit).Round(0))
					defer cancel()
					call := r.Call(ctx, rig.Unused, nil)
					id := r.Peer.Expect(rawpeer.OpRequest).MuxID
					clockstep.Hold(t, d)
					time.Sleep(after - time.Millisecond)
					r.Peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpDisconnectClientMux})
					require.ErrorIs(t, (<-call).Err, want)
				})
			})
		}
	}
}
