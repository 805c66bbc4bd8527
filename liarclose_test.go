package grid

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Close and Shutdown, while the peer and everybody else makes it hard.

// withUnread has a liar make the node owe more than a socket takes, and not read it.
func withUnread(t *testing.T, f func(r *liarRig)) {
	t.Helper()
	eachLiar(t, func(t *testing.T, dials bool, c rawConfig) {
		c.Unread = true
		r := newLiarRig(t, dials, c, nil)
		for id := range uint64(40) {
			r.peer.send(rawMsg{MuxID: id, Op: rawOpRequest, Handler: uint8(testEcho), Flags: rawFlagEOF, Payload: make([]byte, 60<<10)})
		}
		synctest.Wait()
		require.Positive(r, r.conn.Stats().Handlers, "answers wait for room")
		f(r)
		r.peer.startReading()
		_, _ = r.peer.drain()
		r.over()
	})
}

// Nothing waits for such a peer for long, however often it is closed.
func TestCloseOfAPeerThatReadsNothing(t *testing.T) {
	withUnread(t, func(r *liarRig) {
		m := r.g.nodes[0].Manager
		require.Zero(r, elapsed(func() {
			var closers sync.WaitGroup
			for range 4 {
				closers.Go(func() { _ = m.Close() })
			}
			closers.Wait()
			_ = m.Close()
		}))
		r.idle()
	})
}

func TestShutdownOfAPeerThatReadsNothing(t *testing.T) {
	withUnread(t, func(r *liarRig) {
		m := r.g.nodes[0].Manager
		took := elapsed(func() {
			var closers sync.WaitGroup
			for range 4 {
				closers.Go(func() {
					if err := m.Shutdown(context.Background()); err != nil {
						r.Error(err)
					}
				})
			}
			closers.Wait()
		})
		require.Positive(r, took)
		require.LessOrEqual(r, took, m.opts.WriteTimeout+hangUpTime+time.Second)
		r.idle()
	})
	t.Run("within its context", func(t *testing.T) {
		withUnread(t, func(r *liarRig) {
			ctx, cancel := context.WithTimeoutCause(r.Context(), time.Second, errTestCause)
			defer cancel()
			require.Equal(r, time.Second, elapsed(func() {
				require.ErrorIs(r, r.g.nodes[0].Shutdown(ctx), errTestCause)
			}))
			r.idle()
		})
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		withUnread(t, func(r *liarRig) {
			ended := inBackground(func() error { return r.g.nodes[0].Shutdown(context.Background()) })
			synctest.Wait()
			require.Empty(r, ended)
			require.Zero(r, elapsed(func() { _ = r.g.nodes[0].Close(); require.NoError(r, <-ended) }))
			r.idle()
		})
	})
}

// A handler that shuts its own manager down waits for itself, until the context ends.
func TestShutdownFromAHandlerEndsWithItsContext(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		result := make(chan error, 1)
		g.single(func(b []byte) ([]byte, *RemoteErr) {
			ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, errTestCause)
			defer cancel()
			result <- g.nodes[1].Shutdown(ctx)
			return b, nil
		})
		require.Equal(t, time.Second, elapsed(func() {
			_, err := c.SingleRequest(t.Context(), testHandler, nil)
			require.ErrorIs(t, err, ErrDisconnected)
			require.ErrorIs(t, <-result, errTestCause)
		}))
		synctest.Wait()
		require.Zero(t, g.nodes[1].Connection(g.hosts[0]).Stats().Handlers)
	})
}

// gate is what handlers wait for, and opens it: at the end of the test at the latest.
func gate(t *testing.T) (release <-chan struct{}, let func()) {
	c := make(chan struct{})
	let = sync.OnceFunc(func() { close(c) })
	t.Cleanup(let)
	return c, let
}

// Two hosts that shut down at once let each other's calls finish. Over TCP, because in
// memory a connection can't be closed in one direction.
func TestBothSidesShutDownWithCallsBothWays(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	release, let := gate(t)
	running := make(chan struct{}, 100)
	var results []<-chan error
	for i := range 2 {
		require.NoError(t, g.nodes[i].RegisterSingleHandler(testHandler, func(b []byte) ([]byte, *RemoteErr) {
			running <- struct{}{}
			<-release
			return b, nil
		}))
	}
	for i := range 2 {
		c := g.conn(i, 1-i)
		for range 10 {
			results = append(results, inBackground(func() error {
				b, err := c.SingleRequest(t.Context(), testHandler, make([]byte, 100<<10))
				PutByteBuffer(b)
				return err
			}), inBackground(func() error {
				s, err := c.NewStream(t.Context(), testTwoWay, nil)
				if err != nil {
					return err
				}
				running <- struct{}{}
				go func() {
					<-release
					for range 100 {
						_ = s.Send(make([]byte, 1000))
					}
					s.CloseSend()
				}()
				n := 0
				err = s.Results(func(b []byte) error { n++; PutByteBuffer(b); return nil })
				if err == nil && n != 100 {
					err = errors.New("messages are missing")
				}
				return err
			}))
		}
	}
	for range 40 {
		<-running
	}
	var ended []<-chan error
	for i := range 2 {
		for range 2 {
			ended = append(ended, inBackground(func() error { return g.nodes[i].Shutdown(context.Background()) }))
		}
	}
	for i := range 2 {
		waitState(t, g.conn(i, 1-i), StateConnectionError)
		_, err := g.conn(i, 1-i).SingleRequest(t.Context(), testEcho, nil)
		require.ErrorIs(t, err, ErrDisconnected)
	}
	let()
	for _, c := range append(results, ended...) {
		require.NoError(t, <-c)
	}
	for i := range 2 {
		st := g.conn(i, 1-i).Stats()
		require.Zero(t, st.KeptBytes)
		require.Zero(t, st.Handlers+st.Calls+st.Streams+st.StreamsServed)
	}
}

// A host that is started again while its old process still drains: where it dials, it
// is let in at once, and where it is dialled, when the old one has gone. What was under
// way finishes on the old link either way, and what is new finds the new one.
func TestRestartedHostConnectsWhileItsOldProcessDrains(t *testing.T) {
	hosts := []string{"http://node0:9000", "http://node1:9000"}
	for old := range hosts {
		dials := shouldDial(hosts[old], hosts[1-old])
		t.Run(map[bool]string{true: "it dials", false: "it is dialled"}[dials], func(t *testing.T) {
			inPair(t, nil, func(t *testing.T, g *testGrid, _ *Connection) {
				const before, after = testHandler, testHandler + 1
				release, let := gate(t)
				first := g.nodes[old]
				require.NoError(t, first.RegisterSingleHandler(before, func(b []byte) ([]byte, *RemoteErr) { <-release; return b, nil }))
				c := g.conn(1-old, old)
				call := inBackground(func() error { _, err := c.SingleRequest(t.Context(), before, nil); return err })
				s, err := c.NewStream(t.Context(), testTwoWay, nil)
				require.NoError(t, err)
				synctest.Wait()
				ended := inBackground(func() error { return first.Shutdown(context.Background()) })
				synctest.Wait()
				require.Empty(t, ended)

				first.server.Close() // its port is free
				synctest.Wait()
				second := g.start(old)
				require.NoError(t, second.RegisterSingleHandler(after, func(b []byte) ([]byte, *RemoteErr) { return b, nil }))
				works := func() {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					require.NoError(t, c.WaitForConnect(ctx))
					_, err = c.SingleRequest(ctx, after, nil)
					require.NoError(t, err)
				}
				time.Sleep(10 * time.Second)
				if dials {
					works()
				} else {
					_, err = c.SingleRequest(t.Context(), after, nil)
					require.ErrorIs(t, err, ErrDisconnected)
				}
				require.Equal(t, 1, c.Stats().Calls)
				require.Equal(t, 1, c.Stats().Streams)
				require.NoError(t, s.Send([]byte("old")))

				let()
				require.NoError(t, <-call)
				n := 0
				require.NoError(t, s.Results(func(b []byte) error {
					require.Equal(t, "old", string(b))
					PutByteBuffer(b)
					n++
					s.CloseSend()
					return nil
				}))
				require.Equal(t, 1, n)
				require.NoError(t, <-ended)
				works()
				g.requireWorks()
				g.requireNothingKept()
			})
		})
	}
}

// Everything at once: calls, streams, cuts, Close and Shutdown on both sides.
func TestShutdownDuringEverything(t *testing.T) {
	for range scaled(10) {
		inPair(t, nil, func(t *testing.T, g *testGrid, _ *Connection) {
			var users sync.WaitGroup
			for i := range 2 {
				c := g.conn(i, 1-i)
				for _, f := range []func() error{
					func() error {
						b, err := c.SingleRequest(context.Background(), testEcho, make([]byte, 70<<10))
						PutByteBuffer(b)
						return err
					},
					func() error {
						s, err := c.NewStream(context.Background(), testStream, make([]byte, 10))
						if err != nil {
							return err
						}
						return consume(s)
					},
					func() error {
						s, err := c.NewStream(context.Background(), testTwoWay, nil)
						if err != nil {
							return err
						}
						for range 2 {
							_ = s.Send(make([]byte, 70<<10))
						}
						s.CloseSend()
						return consume(s)
					},
				} {
					users.Go(func() {
						for {
							err := f()
							time.Sleep(rand.N(100 * time.Microsecond)) // lets the time pass
							switch {
							case err == nil:
							case errors.Is(err, ErrDisconnected):
								return
							case IsRemoteErr(err): // the other side shuts down, or has lost the link
							default:
								t.Error(err)
								return
							}
						}
					})
				}
			}
			end := []func(){
				func() { _ = g.nodes[0].Shutdown(context.Background()) },
				func() { _ = g.nodes[1].Shutdown(context.Background()) },
				func() { g.cut(0, 1) },
				func() { _ = g.nodes[1].Close() },
				func() { _ = g.nodes[0].Close() },
			}
			rand.Shuffle(len(end), func(i, j int) { end[i], end[j] = end[j], end[i] })
			for _, f := range end[:2+rand.IntN(3)] {
				users.Go(func() {
					time.Sleep(rand.N(2 * time.Millisecond))
					f()
				})
			}
			time.Sleep(3 * time.Millisecond)
			_ = g.nodes[0].Close()
			_ = g.nodes[1].Close()
			users.Wait()
			g.requireNothingKept()
		})
	}
}
