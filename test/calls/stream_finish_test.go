package calls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// countInput registers a handler that takes all of its input, sends answers and returns result. It
// reports how much it has got, and how its input has ended.
func countInput(g *rig.Grid, answers int, result *grid.RemoteErr) <-chan inputEnd {
	ends := make(chan inputEnd, 1)
	serve(g, 2, 3, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
		var end inputEnd
		for end.err == nil {
			if _, end.err = s.Recv(); end.err == nil {
				end.n++
			}
		}
		ends <- end
		for i := range answers {
			if err := s.Send(ctx, []byte{byte(i)}); err != nil {
				return grid.NewRemoteErr(err)
			}
		}
		return result
	})
	return ends
}

type inputEnd struct {
	n   int
	err error
}

// Everything that was sent before arrives, and only then the end; what the handler sends is not
// waited for by anybody else.
func TestFinish_TellsHowTheHandlerEnded(t *testing.T) {
	t.Parallel()
	const n = 100
	ways := map[string]func(s *grid.Stream){
		"nothing": func(*grid.Stream) {},
		"Send": func(s *grid.Stream) {
			for range n {
				_ = s.Send([]byte("x"))
			}
		},
		"Send, CloseSend": func(s *grid.Stream) {
			for range n {
				_ = s.Send([]byte("x"))
			}
			s.CloseSend()
		},
		"Requests": func(s *grid.Stream) {
			for range n {
				s.Requests <- rig.Pooled("x")
			}
		},
		"one of Requests": func(s *grid.Stream) { s.Requests <- rig.Pooled("x") },
		"Requests, closed": func(s *grid.Stream) {
			for range n {
				s.Requests <- rig.Pooled("x")
			}
			close(s.Requests)
		},
	}
	want := map[string]int{"nothing": 0, "one of Requests": 1}
	for name, send := range ways {
		for _, answers := range []int{0, 1, 50} {
			for _, result := range []*grid.RemoteErr{nil, grid.NewRemoteErrString("refused")} {
				t.Run(fmt.Sprintf("%s, %d answers, %v", name, answers, result), func(t *testing.T) {
					rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
						ends := countInput(g, answers, result)
						for range 5 {
							s := rig.OpenStream(t, t.Context(), c)
							send(s)
							err := s.Finish(t.Context())
							if result == nil {
								require.NoError(t, err)
							} else {
								require.Equal(t, result, err)
							}
							require.Equal(t, err, s.Finish(t.Context()), "again")
							require.Equal(t, err, s.Err())
							sent, known := want[name]
							if !known {
								sent = n
							}
							require.Equal(t, inputEnd{sent, io.EOF}, <-ends)
						}
						synctest.Wait()
						require.Zero(t, g.Conn(1, 0).Stats().Handlers)
						require.Zero(t, c.Stats().KeptBytes)
					})
				})
			}
		}
	}
}

func TestFinish_TypedAndWithHandlersOverChannels(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		got := 0
		h := grid.NewStream[grid.NoPayload](rig.Handler, nil, grid.NewBytes, grid.NewBytes)
		require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ grid.NoPayload, in <-chan *grid.Bytes, out chan<- *grid.Bytes) *grid.RemoteErr {
			for b := range in {
				got++
				out <- b
			}
			return grid.NewRemoteErr(context.Cause(ctx))
		}))
		open := func() *grid.TypedStream[*grid.Bytes, *grid.Bytes] {
			s, err := h.Call(t.Context(), c, grid.NoPayload{})
			require.NoError(t, err)
			return s
		}
		s := open()
		for range 2 { // more would wait for somebody to take the answers
			require.NoError(t, s.Send(grid.NewBytesWithCopyOf([]byte("x"))))
		}
		v, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, "x", string(*v))
		require.NoError(t, s.SendContext(t.Context(), grid.NewBytesWithCopyOf([]byte("y"))))
		require.NoError(t, s.Finish(t.Context()))
		require.Equal(t, 3, got)
		_, err = s.Recv()
		require.ErrorContains(t, err, "thrown away")
		require.ErrorIs(t, s.Send(grid.NewBytes()), io.EOF)

		s = open()
		s.Requests <- grid.NewBytesWithCopyOf([]byte("z"))
		require.NoError(t, s.Finish(t.Context()))
		require.Equal(t, 4, got)

		s = open()
		s.CloseSend()
		_, err = s.Recv()
		require.Equal(t, io.EOF, err)
	})
}

// Cancelling is the opposite of it: what waits is dropped.
func TestFinish_LosesNothingWhereCancellingDoes(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ends := make(chan inputEnd, 1)
		serve(g, 1, 1000, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			var end inputEnd
			for {
				time.Sleep(time.Millisecond)
				if _, end.err = s.Recv(); end.err != nil {
					ends <- end
					return nil
				}
				end.n++
			}
		})
		for _, cancels := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			s := rig.OpenStream(t, ctx, c)
			for range 1000 {
				require.NoError(t, s.Send([]byte("x")))
			}
			if cancels {
				cancel()
				require.ErrorIs(t, s.Finish(t.Context()), context.Canceled)
				end := <-ends
				require.Less(t, end.n, 10)
				require.Equal(t, context.Canceled, end.err)
			} else {
				require.NoError(t, s.Finish(t.Context()))
				require.Equal(t, inputEnd{1000, io.EOF}, <-ends)
			}
			cancel()
		}
	})
}

func TestFinish_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(s *grid.Stream) func(){
		"nothing": func(*grid.Stream) func() { return func() {} },
		"a sender that waits": func(s *grid.Stream) func() {
			ended := make(chan error)
			go func() {
				var err error
				for err == nil {
					err = s.Send(nil)
				}
				ended <- err
			}()
			synctest.Wait()
			return func() { <-ended }
		},
		"a request that waits": func(s *grid.Stream) func() {
			s.Requests <- nil
			s.Requests <- nil
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				causes := waitingHandler(g)
				s := rig.OpenStream(t, t.Context(), c)
				wait := before(s)
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, rig.ErrCause)
				defer cancel()
				took := rig.Elapsed(func() {
					err := s.Finish(ctx)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorIs(t, err, rig.ErrCause)
					require.Equal(t, err, s.Err())
				})
				require.Equal(t, time.Second, took)
				require.Equal(t, context.Canceled, <-causes)
				wait()

				s = rig.OpenStream(t, t.Context(), c)
				require.ErrorIs(t, s.Finish(ctx), context.DeadlineExceeded, "one that has ended")
				require.Equal(t, context.Canceled, <-causes)
				close(s.Requests)
			})
		})
	}
}

func TestFinish_OfAStreamThatHasEnded(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		open := func(n int) *grid.Stream {
			s, err := c.NewStream(t.Context(), rig.Stream, make([]byte, n))
			require.NoError(t, err)
			return s
		}
		s := open(1)
		<-s.Done()
		require.NoError(t, s.Finish(ended), "its handler takes no input, and has returned before")

		s = open(10)
		require.ErrorIs(t, s.Results(func([]byte) error { return rig.ErrCause }), rig.ErrCause)
		require.ErrorIs(t, s.Finish(t.Context()), rig.ErrCause)

		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		g.Cut(0, 1)
		require.ErrorIs(t, s.Finish(t.Context()), grid.ErrDisconnected)
	})
}

func TestFinish_LinkIsCutMeanwhile(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := waitingHandler(g)
		s := rig.OpenStream(t, t.Context(), c)
		finished := rig.InBackground(func() error { return s.Finish(t.Context()) })
		synctest.Wait()
		g.Cut(0, 1)
		require.ErrorIs(t, <-finished, grid.ErrDisconnected)
		require.ErrorIs(t, <-causes, grid.ErrDisconnected)
	})
}

// Whoever consumes beside it, or after it, never takes a part for the whole.
func TestFinish_ConsumersThatHaveMissedMessagesHearOfIt(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		open := func(n int) *grid.Stream {
			s, err := c.NewStream(t.Context(), rig.Stream, make([]byte, n))
			require.NoError(t, err)
			return s
		}
		// Seen enough, within the loop.
		s, n := open(50), 0
		for _, err := range s.All() {
			require.NoError(t, err)
			if n++; n == 3 {
				require.NoError(t, s.Finish(t.Context()))
				break
			}
		}
		// Going on with it.
		s, n = open(50), 0
		var last error
		for _, err := range s.All() {
			if n++; err == nil {
				require.NoError(t, s.Finish(t.Context()))
			}
			last = err
		}
		require.Equal(t, 2, n)
		require.ErrorContains(t, last, "thrown away")

		s = open(50)
		_, err := s.Recv()
		require.NoError(t, err)
		require.NoError(t, s.Finish(t.Context()))
		_, err = s.Recv()
		require.ErrorContains(t, err, "thrown away")
		require.ErrorContains(t, s.Results(nil), "thrown away")

		s = open(1)
		_, err = s.Recv()
		require.NoError(t, err)
		require.NoError(t, s.Finish(t.Context()))
		require.NoError(t, s.Results(nil), "there was nothing to throw away")
		_, err = s.Recv()
		require.Equal(t, io.EOF, err)

		// From another goroutine.
		s = open(50)
		hold, went := make(chan struct{}), make(chan error)
		go func() { went <- s.Results(func([]byte) error { <-hold; return nil }) }()
		synctest.Wait()
		require.NoError(t, s.Finish(t.Context()))
		close(hold)
		require.ErrorContains(t, <-went, "thrown away")
	})
}

// What is sent after the end of the input is an error that somebody hears of; but for what comes
// through a channel after Finish, which says that it is thrown away.
func TestFinish_WhatIsSentAfterwardsIsNotLostInSilence(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *grid.Stream) <-chan error{
		"Finish": func(s *grid.Stream) <-chan error {
			return rig.InBackground(func() error { return s.Finish(context.Background()) })
		},
		"CloseSend": func(s *grid.Stream) <-chan error {
			s.CloseSend()
			return rig.InBackground(func() error { return s.Results(nil) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				causes := waitingHandler(g)
				ctx, cancel := context.WithCancel(t.Context())
				s := rig.OpenStream(t, ctx, c)
				ended := end(s)
				synctest.Wait()
				require.ErrorIs(t, s.Send(nil), io.ErrClosedPipe)
				require.ErrorIs(t, s.SendContext(ctx, nil), io.ErrClosedPipe)
				require.NoError(t, s.Err(), "the stream lives on")
				s.Requests <- rig.Pooled("x")
				if name == "Finish" {
					synctest.Wait()
					require.NoError(t, s.Err())
					cancel()
					rig.RequireKind(t, <-ended, rig.IsCanceled, "Finish")
				} else {
					require.ErrorIs(t, <-ended, io.ErrClosedPipe)
				}
				require.Equal(t, context.Canceled, <-causes)
				cancel()
				if name == "Finish" {
					close(s.Requests)
				}
			})
		})
	}
}

// It is an EOF on the wire, behind all that was sent, and nothing else.
func TestFinish_OnTheWire(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rawpeer.CapWideCredits} {
		withPeer(t, rawpeer.Config{Caps: caps}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
			registerLocally(g, 3, 3)
			for _, result := range []string{"", "EOF"} {
				s, id := openToPeer(t, t.Context(), c, peer, 3)
				require.NoError(t, s.Send([]byte("one")))
				require.NoError(t, s.Send([]byte("two")))
				finished := rig.InBackground(func() error { return s.Finish(t.Context()) })
				for seq, text := range []string{"one", "two"} {
					m := peer.Expect(rawpeer.OpMuxClientMsg)
					require.Equal(t, text, string(m.Payload))
					require.EqualValues(t, seq+1, m.Seq)
				}
				m := peer.Expect(rawpeer.OpMuxClientMsg)
				require.EqualValues(t, 3, m.Seq)
				require.NotZero(t, m.Flags&rawpeer.FlagEOF)
				require.Empty(t, m.Payload)
				msgs := serverMsgs(id, "a", "b")
				if result != "" {
					msgs[2].Payload, msgs[2].Flags = []byte(result), rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr
				}
				peer.SendMerged(msgs...)
				err := <-finished
				if result == "" {
					require.NoError(t, err)
				} else {
					require.True(t, grid.IsRemoteErr(err), err)
					require.NotErrorIs(t, err, io.EOF)
				}
				synctest.Wait()
				for range peer.Pending() {
					peer.Expect(rawpeer.OpUnblockSrvMux) // credits at most
				}
			}
		})
	}
}

// SendContext waits no longer than its context, whatever for; the stream goes on, without a hole.
func TestSendContext_EndsEachWait(t *testing.T) {
	t.Parallel()
	short := func(t *testing.T, s *grid.Stream, b []byte) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, rig.ErrCause)
		defer cancel()
		took := rig.Elapsed(func() {
			err := s.SendContext(ctx, b)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorIs(t, err, rig.ErrCause)
		})
		require.Equal(t, time.Second, took)
		require.Zero(t, rig.Elapsed(func() { require.ErrorIs(t, s.SendContext(ctx, b), rig.ErrCause) }), "has ended")
	}
	t.Run("credit", func(t *testing.T) {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			release := make(chan struct{})
			var got []string
			serve(g, 1, 3, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
				<-release
				for b, err := range s.All() {
					if err != nil {
						return grid.NewRemoteErr(err)
					}
					got = append(got, string(b))
				}
				return nil
			})
			s := rig.OpenStream(t, t.Context(), c)
			for i := range 3 {
				require.NoError(t, s.SendContext(t.Context(), fmt.Append(nil, "message ", i)))
			}
			short(t, s, []byte("not sent"))
			short(t, s, []byte("not sent"))
			// Another one waits meanwhile.
			waiting := rig.InBackground(func() error { return s.Send([]byte("message 3")) })
			synctest.Wait()
			short(t, s, []byte("not sent"))
			close(release)
			require.NoError(t, <-waiting)
			for i := range 5 {
				require.NoError(t, s.SendContext(t.Context(), fmt.Append(nil, "message ", i+4)))
			}
			require.NoError(t, s.Finish(t.Context()))
			require.Equal(t, numbered(9), got)
		})
	})
	for _, size := range []int{10_000, 0} { // with and without room for anything smaller
		t.Run(fmt.Sprint("room ", size), func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				var got atomic.Int64
				serve(g, 1, 5000, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					for _, err := range s.All() {
						if err != nil {
							return grid.NewRemoteErr(err)
						}
						got.Add(1)
					}
					return nil
				})
				full, s := rig.OpenStream(t, t.Context(), c), rig.OpenStream(t, t.Context(), c)
				require.NoError(t, s.Send(nil))
				synctest.Wait()
				g.Net.Stall(g.Addr(0), g.Addr(1), true)
				sent := int64(1)
				for _, n := range []int{10_000, size} {
					for {
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
						err := full.SendContext(ctx, make([]byte, n))
						cancel()
						if err != nil {
							require.ErrorIs(t, err, context.DeadlineExceeded)
							break
						}
						sent++
					}
				}
				short(t, s, make([]byte, 10_000))
				g.Net.Stall(g.Addr(0), g.Addr(1), false)
				for range 10 {
					require.NoError(t, s.SendContext(t.Context(), make([]byte, 10_000)))
					sent++
				}
				require.NoError(t, full.Finish(t.Context()))
				require.NoError(t, s.Finish(t.Context()))
				require.Equal(t, sent, got.Load())
			})
		})
	}
	t.Run("the stream's end", func(t *testing.T) {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			waitingHandler(g)
			ctx, cancel := context.WithCancelCause(t.Context())
			s := rig.OpenStream(t, ctx, c)
			other, stop := context.WithTimeout(t.Context(), time.Hour)
			defer stop()
			require.NoError(t, s.SendContext(other, nil))
			sent := make(chan error, 2)
			go func() { sent <- s.SendContext(other, nil); sent <- s.SendContext(ctx, nil) }()
			synctest.Wait()
			cancel(rig.ErrCause)
			require.ErrorIs(t, <-sent, rig.ErrCause)
			require.ErrorIs(t, <-sent, rig.ErrCause)
			require.Equal(t, s.Err(), s.SendContext(other, nil))
		})
	})
}

// A Send either precedes the end of the input or fails, and says which.
func TestCloseSend_BesideSend(t *testing.T) {
	t.Parallel()
	for size, rounds := range map[int]int{10: 40, 70_000: 6} { // whole, and in fragments
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				ends := countInput(g, 0, nil)
				for round := range rounds {
					s := rig.OpenStream(t, t.Context(), c)
					var sent atomic.Int64
					var senders sync.WaitGroup
					for i := range 4 {
						senders.Go(func() {
							var err error
							for n := 0; err == nil; n++ {
								if err = s.Send(make([]byte, size)); err == nil {
									sent.Add(1)
								}
								if i == 0 && n == round {
									s.CloseSend()
								}
							}
							// The handler may have returned by then.
							if !errors.Is(err, io.ErrClosedPipe) && err != io.EOF {
								t.Error(err)
							}
						})
					}
					senders.Go(func() {
						for range round {
							time.Sleep(time.Microsecond)
						}
						s.CloseSend()
					})
					require.NoError(t, rig.Consume(s))
					senders.Wait()
					require.Equal(t, inputEnd{int(sent.Load()), io.EOF}, <-ends)
				}
			})
		})
	}
}

// It waits for no credit, whoever else does.
func TestCloseSend_WaitsForNoHandler(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		ends := make(chan inputEnd, 1)
		serve(g, 1, 2, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			<-release
			var end inputEnd
			for end.err == nil {
				if _, end.err = s.Recv(); end.err == nil {
					end.n++
				}
			}
			ends <- end
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		require.NoError(t, s.Send(nil))
		require.NoError(t, s.Send(nil))
		waiting := make(chan error)
		for range 3 {
			go func() { waiting <- s.Send(nil) }()
		}
		synctest.Wait()
		require.Zero(t, rig.Elapsed(s.CloseSend))
		for range 3 {
			require.ErrorIs(t, <-waiting, io.ErrClosedPipe)
		}
		close(release)
		require.NoError(t, s.Finish(t.Context()))
		require.Equal(t, inputEnd{2, io.EOF}, <-ends)
	})
}

func TestRecv_EndsWithEOFOnlyWhereTheHandlerReturnedNil(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		recv := func(s *grid.Stream) (n int, err error) {
			for ; err == nil; n++ {
				_, err = s.Recv()
			}
			_, again := s.Recv()
			require.Equal(t, err, again)
			return n - 1, err
		}
		s, err := c.NewStream(t.Context(), rig.Stream, make([]byte, 30))
		require.NoError(t, err)
		n, err := recv(s)
		require.Equal(t, 30, n)
		require.Equal(t, io.EOF, err)

		g.Stream(1, 0, func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- nil
			return grid.NewRemoteErr(io.EOF)
		})
		n, err = recv(rig.OpenStream(t, t.Context(), c))
		require.Equal(t, 1, n)
		require.True(t, grid.IsRemoteErr(err), err)
		require.NotErrorIs(t, err, io.EOF)

		ctx, cancel := context.WithCancelCause(t.Context())
		s, err = c.NewStream(ctx, rig.Block, nil)
		require.NoError(t, err)
		go func() { synctest.Wait(); cancel(io.EOF) }()
		_, err = recv(s)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, io.EOF)

		// A consumer's own reason to stop.
		s, err = c.NewStream(t.Context(), rig.Stream, make([]byte, 30))
		require.NoError(t, err)
		require.Equal(t, io.EOF, s.Results(func([]byte) error { return io.EOF }))
		_, err = s.Recv()
		require.NotErrorIs(t, err, io.EOF)
		require.Error(t, err)
	})
}

// A sender that is still at it when the stream is finished loses what comes too late, and nothing
// else.
func TestFinish_BesideASenderOnRequests(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(s *grid.Stream){
		"Requests alone": func(*grid.Stream) {},
		"Send as well":   func(s *grid.Stream) { _ = s.Send([]byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				release, let := rig.Gate(t)
				got := make(chan int, 1)
				serve(g, 2, 3, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					n := 0
					for _, err := range s.All() {
						if err != nil {
							return grid.NewRemoteErr(err)
						}
						n++
					}
					<-release
					got <- n
					return nil
				})
				s := rig.OpenStream(t, t.Context(), c)
				s.Requests <- rig.Pooled("first")
				synctest.Wait()
				use(s)
				finished := rig.InBackground(func() error { return s.Finish(t.Context()) })
				synctest.Wait()
				for range 100 {
					s.Requests <- rig.Pooled("late")
				}
				require.NoError(t, s.Err())
				let()
				require.NoError(t, <-finished)
				require.LessOrEqual(t, <-got, 2)
				for range 100 {
					if name == "Requests alone" { // else nobody looks after them
						s.Requests <- rig.Pooled("later")
					}
				}
				close(s.Requests)
				require.NoError(t, s.Finish(t.Context()))
			})
		})
	}
}
