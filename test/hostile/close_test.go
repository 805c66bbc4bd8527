package hostile

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
	"github.com/gridrpc/grid/internal/seed"
)

// Close and Shutdown, while the peer and everybody else makes it hard.

// withUnread has a peer make the node owe more than a socket takes, and not read it.
func withUnread(t *testing.T, f func(r *hostileRig)) {
	t.Helper()
	eachPeer(t, func(t *testing.T, dials bool, c rawpeer.Config) {
		c.Unread = true
		r := newHostileRig(t, dials, c, nil)
		for id := range uint64(40) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: rawpeer.OpRequest, Handler: uint8(rig.Echo), Flags: rawpeer.FlagEOF, Payload: make([]byte, 60<<10)})
		}
		synctest.Wait()
		require.Positive(r, r.Conn.Stats().Handlers, "answers wait for room")
		f(r)
		r.peer.StartReading()
		_, _ = r.peer.Drain()
		r.over()
	})
}

// Nothing waits for such a peer for long, however often it is closed.
func TestClose_OfAPeerThatReadsNothing(t *testing.T) {
	withUnread(t, func(r *hostileRig) {
		m := r.Node
		require.Zero(r, rig.Elapsed(func() {
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

func TestShutdown_OfAPeerThatReadsNothing(t *testing.T) {
	withUnread(t, func(r *hostileRig) {
		m := r.Node
		took := rig.Elapsed(func() {
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
		require.LessOrEqual(r, took, 20*time.Second+rig.HangUpTime+time.Second)
		r.idle()
	})
	t.Run("within its context", func(t *testing.T) {
		withUnread(t, func(r *hostileRig) {
			ctx, cancel := context.WithTimeoutCause(r.Context(), time.Second, rig.ErrCause)
			defer cancel()
			require.Equal(r, time.Second, rig.Elapsed(func() {
				require.ErrorIs(r, r.Node.Shutdown(ctx), rig.ErrCause)
			}))
			r.idle()
		})
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		withUnread(t, func(r *hostileRig) {
			ended := rig.InBackground(func() error { return r.Node.Shutdown(context.Background()) })
			synctest.Wait()
			require.Empty(r, ended)
			require.Zero(r, rig.Elapsed(func() { _ = r.Node.Close(); require.NoError(r, <-ended) }))
			r.idle()
		})
	})
}

// A handler that shuts its own manager down waits for itself, until the context ends.
func TestShutdown_FromAHandlerEndsWithItsContext(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		result := make(chan error, 1)
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) {
			ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, rig.ErrCause)
			defer cancel()
			result <- g.Manager(1).Shutdown(ctx)
			return b, nil
		})
		require.Equal(t, time.Second, rig.Elapsed(func() {
			_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
			require.ErrorIs(t, err, grid.ErrDisconnected)
			require.ErrorIs(t, <-result, rig.ErrCause)
		}))
		synctest.Wait()
		require.Zero(t, g.Manager(1).Connection(g.Host(0)).Stats().Handlers)
	})
}

// Two hosts that shut down at once let each other's calls finish. Over TCP, because in memory a
// connection can't be closed in one direction. beside starts another process in the name of a node
// whose first one still runs, but has let go of its address.
func beside(t *testing.T, g *rig.Grid, i int) *grid.Manager {
	t.Helper()
	o := rig.Options(g.Host(i), g.Hosts())
	o.Dialer = g.Net.Dialer(g.Addr(i))
	m, err := grid.NewManager(context.Background(), o)
	require.NoError(t, err)
	rig.RegisterHandlers(t, m)
	l, err := g.Net.Listen(g.Addr(i))
	require.NoError(t, err)
	server := &http.Server{Handler: m.Handler()}
	go server.Serve(l)
	t.Cleanup(func() { server.Close(); m.Close() })
	return m
}

// A host that is started again while its old process still drains is connected at once, whether it
// dials or is dialled. What was under way finishes on the old link, and what is new finds the new
// one.
func TestShutdown_RestartedHostConnectsWhileItsOldProcessDrains(t *testing.T) {
	hosts := []string{"http://node0:9000", "http://node1:9000"}
	for old := range hosts {
		dials := rawpeer.DialOrder(hosts[old], hosts[1-old])
		t.Run(map[bool]string{true: "it dials", false: "it is dialled"}[dials], func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
				const before, after = rig.Handler, rig.Handler + 1
				release, let := rig.Gate(t)
				first := g.Node(old)
				require.NoError(t, first.RegisterSingleHandler(before, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
				c := g.Conn(1-old, old)
				call := rig.InBackground(func() error { _, err := c.SingleRequest(t.Context(), before, nil); return err })
				s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
				require.NoError(t, err)
				synctest.Wait()
				ended := rig.InBackground(func() error { return first.Shutdown(context.Background()) })
				synctest.Wait()
				require.Empty(t, ended)

				first.Server.Close() // its port is free
				synctest.Wait()
				second := beside(t, g, old)
				require.NoError(t, second.RegisterSingleHandler(after, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
				works := func() {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					require.NoError(t, c.WaitForConnect(ctx))
					_, err = c.SingleRequest(ctx, after, nil)
					require.NoError(t, err)
				}
				time.Sleep(10 * time.Second)
				works()
				require.Equal(t, 1, c.Stats().Calls)
				require.Equal(t, 1, c.Stats().Streams)
				require.NoError(t, s.Send([]byte("old")))

				let()
				require.NoError(t, <-call)
				n := 0
				require.NoError(t, s.Results(func(b []byte) error {
					require.Equal(t, "old", string(b))
					grid.PutByteBuffer(b)
					n++
					s.CloseSend()
					return nil
				}))
				require.Equal(t, 1, n)
				require.NoError(t, <-ended)
				works()
				back := second.Connection(g.Host(1 - old))
				_, err = back.SingleRequest(t.Context(), rig.Echo, nil)
				require.NoError(t, err)
				synctest.Wait()
				for _, c := range []*grid.Connection{c, back} {
					st := c.Stats()
					require.Zero(t, st.KeptBytes)
					require.Zero(t, st.Handlers+st.StreamsServed+st.Streams+st.Calls, "%+v", st)
				}
			})
		})
	}
}

// Everything at once: calls, streams, cuts, Close and Shutdown on both sides.
func TestShutdown_DuringEverything(t *testing.T) {
	random := seed.Rand(t)
	upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	for range rig.Scaled(10) {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
			var users sync.WaitGroup
			for i := range 2 {
				c := g.Conn(i, 1-i)
				for _, f := range []func() error{
					func() error {
						b, err := c.SingleRequest(context.Background(), rig.Echo, make([]byte, 70<<10))
						grid.PutByteBuffer(b)
						return err
					},
					func() error {
						s, err := c.NewStream(context.Background(), rig.Stream, make([]byte, 10))
						if err != nil {
							return err
						}
						return rig.Consume(s)
					},
					func() error {
						s, err := c.NewStream(context.Background(), rig.TwoWay, nil)
						if err != nil {
							return err
						}
						for range 2 {
							_ = s.Send(make([]byte, 70<<10))
						}
						s.CloseSend()
						return rig.Consume(s)
					},
				} {
					users.Go(func() {
						for {
							err := f()
							time.Sleep(upTo(100 * time.Microsecond)) // lets the time pass
							switch {
							case err == nil:
							case errors.Is(err, grid.ErrDisconnected):
								return
							case grid.IsRemoteErr(err): // the other side shuts down, or has lost the link
							default:
								t.Error(err)
								return
							}
						}
					})
				}
			}
			end := []func(){
				func() { _ = g.Manager(0).Shutdown(context.Background()) },
				func() { _ = g.Manager(1).Shutdown(context.Background()) },
				func() { g.Cut(0, 1) },
				func() { _ = g.Manager(1).Close() },
				func() { _ = g.Manager(0).Close() },
			}
			random.Shuffle(len(end), func(i, j int) { end[i], end[j] = end[j], end[i] })
			for _, f := range end[:2+random.IntN(3)] {
				users.Go(func() {
					time.Sleep(upTo(2 * time.Millisecond))
					f()
				})
			}
			time.Sleep(3 * time.Millisecond)
			_ = g.Manager(0).Close()
			_ = g.Manager(1).Close()
			users.Wait()
			g.RequireNothingKept()
		})
	}
}

// A peer that says that it leaves, and stays: what is new goes nowhere, what it asks for is
// answered, and of its links one such is kept at most.
func TestShutdown_PeerThatLeavesAgainAndAgainAndStays(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		config := rawpeer.Config{Caps: rawpeer.CapWideCredits | rawpeer.CapFragments | rawpeer.CapDrain}
		r := newHostileRig(t, true, config, nil)
		leave := rawpeer.Msg{Op: rawpeer.OpDisconnect}
		var before *rawpeer.Peer
		for range 3 {
			call := make(chan error, 1)
			go func() { _, err := r.Conn.SingleRequest(t.Context(), rig.Echo, nil); call <- err }()
			asked := r.peer.Expect(rawpeer.OpRequest)
			r.peer.Send(leave)
			r.peer.Send(leave)
			synctest.Wait()
			if before != nil {
				before.ExpectClosed()
			}
			require.Equal(t, grid.StateConnectionError, r.Conn.State())
			_, err := r.Conn.SingleRequest(t.Context(), rig.Echo, nil)
			require.ErrorIs(t, err, grid.ErrDisconnected)
			r.peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpRequest, Handler: uint8(rig.Echo), Flags: rawpeer.FlagEOF, Payload: []byte("x")})
			require.Equal(t, "x", string(r.peer.Expect(rawpeer.OpResponse).Payload))
			r.peer.Send(rawpeer.Msg{MuxID: asked.MuxID, Op: rawpeer.OpResponse, Flags: rawpeer.FlagEOF})
			require.NoError(t, <-call)
			before = r.peer
			r.connect()
			r.works()
		}
		r.peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect, MuxID: 3})
		require.False(t, r.isUp(), "of a mux it is the end")
		before.Close()
		r.over()
	})
}
