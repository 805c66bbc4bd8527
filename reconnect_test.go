package grid

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/faultconn"
)

// reconnectTime is the most that an attempt to dial again may take from the
// loss of a session that had lived.
const reconnectTime = backoff.Min * 3 / 2

// Lesson 13.
func TestReconnectsAfterACutWithTheQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran atomic.Int64
		g := newTestGrid(t, 2, nil)
		for i := range 2 {
			require.NoError(t, g.nodes[i].RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) {
				ran.Add(1)
				return b, nil
			}))
		}
		for round := range 5 {
			g.requireWorks()
			for i := range 2 {
				g.net.Stall(g.addr(i), g.addr(1-i), true)
			}
			// More than the sockets, the writers and the queues take.
			var calls []<-chan error
			for i := range 2 {
				c := g.conn(i, 1-i)
				for n := range 100 {
					calls = append(calls, inBackground(func() error {
						_, err := c.SingleRequest(context.Background(), testUnused, make([]byte, 32<<10))
						return err
					}))
					if n%10 == 0 {
						calls = append(calls, inBackground(func() error {
							_, err := c.NewStream(context.Background(), testTwoWay, make([]byte, 32<<10))
							return err
						}))
					}
				}
			}
			synctest.Wait()
			begin := time.Now()
			g.cut(0, 1)
			for _, call := range calls {
				require.ErrorIs(t, <-call, ErrDisconnected)
			}
			require.Zero(t, time.Since(begin), "a caller waits although the link is gone")
			for i := range 2 {
				g.net.Stall(g.addr(i), g.addr(1-i), false)
			}
			g.waitConnected()
			require.LessOrEqual(t, time.Since(begin), reconnectTime)
			g.requireWorks()
			// Lesson 17: what failed with the queue does not run later.
			time.Sleep(time.Minute)
			require.Zero(t, ran.Load(), "round %d", round)
		}
	})
}

// Lesson 13, the same with answers that nobody reads: a peer that floods, and
// does not read, must not keep the next connection from working.
func TestReconnectsAfterAFloodOfWhatMustBeAnswered(t *testing.T) {
	for name, flood := range map[string]func(i int) rawMsg{
		"pings":           func(int) rawMsg { return rawPing(time.Now()) },
		"stream pings":    func(i int) rawMsg { return rawMsg{Op: rawOpPing, MuxID: uint64(i + 1)} },
		"unknown streams": func(i int) rawMsg { return rawMsg{Op: rawOpMuxClientMsg, MuxID: uint64(i + 1), Seq: 1} },
		"new streams": func(i int) rawMsg {
			if i >= 2000 { // and pings of all of them
				return rawMsg{Op: rawOpPing, MuxID: uint64(i%2000 + 1), Seq: uint32(i / 2000)}
			}
			return rawMsg{Op: rawOpConnectMux, MuxID: uint64(i + 1), Handler: uint8(testBlock)}
		},
		"no such handler": func(i int) rawMsg {
			return rawMsg{Op: rawOpRequest, MuxID: uint64(i + 1), Handler: 200, Flags: rawFlagEOF}
		},
	} {
		for _, most := range []int{1000, 20_000} { // within what is put up with, and not
			t.Run(fmt.Sprintf("%s, %d", name, most), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := faultconn.NewNetwork()
					n.SetBuffer(16 << 10)
					g, raw := newLoneGrid(t, n, true, nil)
					c := g.nodes[0].Connection(raw)
					p := g.dialLone(raw, rawConfig{Unread: true})
					for sent := 0; sent < most; {
						var msgs []rawMsg
						for range 500 {
							msgs = append(msgs, flood(sent))
							sent++
						}
						if p.trySendBytes(encodeMerged(msgs...)) != nil {
							break // it was thrown out
						}
					}
					call := inBackground(func() error {
						_, err := c.SingleRequest(context.Background(), testEcho, nil)
						return err
					})
					synctest.Wait()
					begin := time.Now()
					g.net.Cut(hostAddr(raw), hostAddr(loneHost))
					require.ErrorIs(t, <-call, ErrDisconnected)
					require.Zero(t, time.Since(begin))
					p = g.dialLone(raw, rawConfig{})
					require.Equal(t, StateConnected, c.State())
					p.send(rawMsg{Op: rawOpRequest, MuxID: 1 << 40, Handler: uint8(testEcho), Flags: rawFlagEOF | rawFlagCRC})
					require.Equal(t, uint64(1<<40), p.expect(rawOpResponse).MuxID)
				})
			})
		}
	}
}

// Lesson 15.
func TestBothSidesRestartDropAndDialAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		restart := func(i int) {
			g.stop(i)
			g.start(i)
		}
		for i := range 500 {
			var stop atomic.Bool
			var callers, streamers sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			for from := range 2 {
				c := g.conn(from, 1-from)
				callers.Go(func() { // whatever comes of it, it must end
					for !stop.Load() {
						b, err := c.SingleRequest(context.Background(), testEcho, []byte("x"))
						if err != nil {
							return
						}
						PutByteBuffer(b)
					}
				})
				streamers.Go(func() {
					if st, err := c.NewStream(ctx, testBlock, nil); err == nil {
						_ = consume(st)
					}
				})
			}
			if i%3 == 0 {
				g.requireWorks() // else while all that begins
			}
			begin := time.Now()
			var both sync.WaitGroup
			switch i % 5 {
			case 0:
				g.cut(0, 1)
			case 1:
				both.Go(func() { restart(0) })
			case 2:
				both.Go(func() { restart(1) })
			case 3:
				both.Go(func() { restart(0) })
				both.Go(func() { restart(1) })
			case 4:
				both.Go(func() { restart(i % 2) })
				both.Go(func() { g.cut(0, 1) })
			}
			both.Wait()
			stop.Store(true)
			callers.Wait()
			synctest.Wait()
			g.waitConnected()
			cancel() // of streams that were opened on the new connection
			streamers.Wait()
			require.Less(t, time.Since(begin), time.Second, "iteration %d", i)
			synctest.Wait()
			g.requireWorks()
		}
	})
}

// Lesson 16: a minute of the bubble's time would pass if a call were forgotten
// between two tables.
func TestCallStartedWhileTheLinkDropsFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		for range 100 {
			var callers sync.WaitGroup
			begin := time.Now()
			for caller := range 8 {
				c := g.conn(caller%2, 1-caller%2)
				callers.Go(func() {
					for {
						var err error
						if caller < 4 {
							var b []byte
							b, err = c.SingleRequest(context.Background(), testEcho, []byte("x"))
							PutByteBuffer(b)
						} else {
							var st *Stream
							if st, err = c.NewStream(context.Background(), testStream, []byte("x")); err == nil {
								err = consume(st)
							}
						}
						if err != nil {
							if !errors.Is(err, ErrDisconnected) || time.Since(begin) > 0 {
								t.Errorf("after %v: %v", time.Since(begin), err)
							}
							return
						}
					}
				})
			}
			callers.Go(func() { g.cut(0, 1) })
			callers.Wait()
			g.waitConnected()
			synctest.Wait()
		}
	})
}

// Lesson 17.
func TestAnswerOfAnOldSessionNeverReachesTheNewCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := map[string]chan struct{}{}
		g := newTestGrid(t, 2, nil)
		for i := range 20 {
			for _, who := range []string{"old", "new"} {
				release[fmt.Sprintf("%s %d", who, i)] = make(chan struct{})
			}
		}
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) {
			<-release[string(b)]
			return b, nil
		}))
		call := func(text string) <-chan error {
			return inBackground(func() error {
				b, err := g.conn(0, 1).SingleRequest(t.Context(), testUnused, []byte(text))
				if err == nil && string(b) != text {
					err = fmt.Errorf("%q was answered with %q", text, b)
				}
				return err
			})
		}
		ids := func() uint64 { return g.conn(0, 1).lastMux.Load() }
		for i := range 20 {
			before := ids()
			old := call(fmt.Sprint("old ", i))
			synctest.Wait()
			require.Equal(t, before+1, ids())
			if i%2 == 0 { // a new process counts from 1 again
				g.stop(0)
				require.ErrorIs(t, <-old, ErrDisconnected)
				g.start(0)
				before = 0
			} else {
				g.cut(0, 1)
				require.ErrorIs(t, <-old, ErrDisconnected)
				before++
			}
			g.waitConnected()
			young := call(fmt.Sprint("new ", i))
			synctest.Wait()
			require.Equal(t, before+1, ids(), "the case is not what it should be")
			close(release[fmt.Sprint("old ", i)])
			synctest.Wait()
			require.Empty(t, young, "the answer to another's call")
			close(release[fmt.Sprint("new ", i)])
			require.NoError(t, <-young)
			if i%2 == 1 {
				g.stop(0)
				g.start(0)
				g.waitConnected()
			}
		}
	})
}
