package cluster

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

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// reconnectTime is the most that an attempt to dial again may take from the loss of a session that
// had lived.
const reconnectTime = rig.MinBackoff * 3 / 2

// Lesson 13.
func TestReconnect_AfterACutWithTheQueueFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ran atomic.Int64
		g := rig.New(t, 2, nil)
		for i := range 2 {
			require.NoError(t, g.Manager(i).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
				ran.Add(1)
				return b, nil
			}))
		}
		for round := range 5 {
			g.RequireWorks()
			for i := range 2 {
				g.Net.Stall(g.Addr(i), g.Addr(1-i), true)
			}
			// More than the sockets, the writers and the queues take.
			var calls []<-chan error
			for i := range 2 {
				c := g.Conn(i, 1-i)
				for n := range 100 {
					calls = append(calls, rig.InBackground(func() error {
						_, err := c.SingleRequest(context.Background(), rig.Unused, make([]byte, 32<<10))
						return err
					}))
					if n%10 == 0 {
						calls = append(calls, rig.InBackground(func() error {
							_, err := c.NewStream(context.Background(), rig.TwoWay, make([]byte, 32<<10))
							return err
						}))
					}
				}
			}
			synctest.Wait()
			begin := time.Now()
			g.Cut(0, 1)
			for _, call := range calls {
				require.ErrorIs(t, <-call, grid.ErrDisconnected)
			}
			require.Zero(t, time.Since(begin), "a caller waits although the link is gone")
			for i := range 2 {
				g.Net.Stall(g.Addr(i), g.Addr(1-i), false)
			}
			g.WaitConnected()
			require.LessOrEqual(t, time.Since(begin), reconnectTime)
			g.RequireWorks()
			// Lesson 17: what failed with the queue does not run later.
			time.Sleep(time.Minute)
			require.Zero(t, ran.Load(), "round %d", round)
		}
	})
}

// Lesson 13, the same with answers that nobody reads: a peer that floods, and does not read, must
// not keep the next connection from working.
func TestReconnect_AfterAFloodOfWhatMustBeAnswered(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	for name, flood := range map[string]func(i int) rawpeer.Msg{
		"pings":           func(int) rawpeer.Msg { return rawpeer.Ping(time.Now()) },
		"stream pings":    func(i int) rawpeer.Msg { return rawpeer.Msg{Op: rawpeer.OpPing, MuxID: uint64(i + 1)} },
		"unknown streams": func(i int) rawpeer.Msg { return rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, MuxID: uint64(i + 1), Seq: 1} },
		"new streams": func(i int) rawpeer.Msg {
			if i >= 2000 { // and pings of all of them
				return rawpeer.Msg{Op: rawpeer.OpPing, MuxID: uint64(i%2000 + 1), Seq: uint32(i / 2000)}
			}
			return rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: uint64(i + 1), Handler: uint8(rig.Block)}
		},
		"no such handler": func(i int) rawpeer.Msg {
			return rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: uint64(i + 1), Handler: 200, Flags: rawpeer.FlagEOF}
		},
	} {
		for _, most := range []int{1000, 20_000} { // within what is put up with, and not
			t.Run(fmt.Sprintf("%s, %d", name, most), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := faultconn.NewNetwork()
					n.SetBuffer(16 << 10)
					g, raw := rig.NewLone(t, n, true, nil)
					c := g.Manager(0).Connection(raw)
					p := g.DialLone(raw, rawpeer.Config{Unread: true})
					for sent := 0; sent < most; {
						var msgs []rawpeer.Msg
						for range 500 {
							msgs = append(msgs, flood(sent))
							sent++
						}
						if p.TrySendBytes(rawpeer.EncodeMerged(msgs...)) != nil {
							break // it was thrown out
						}
					}
					call := rig.InBackground(func() error {
						_, err := c.SingleRequest(context.Background(), rig.Echo, nil)
						return err
					})
					synctest.Wait()
					begin := time.Now()
					g.Net.Cut(rig.HostAddr(raw), rig.HostAddr(rig.LoneHost))
					require.ErrorIs(t, <-call, grid.ErrDisconnected)
					require.Zero(t, time.Since(begin))
					p = g.DialLone(raw, rawpeer.Config{})
					require.Equal(t, grid.StateConnected, c.State())
					p.Send(rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 1 << 40, Handler: uint8(rig.Echo), Flags: rawpeer.FlagEOF | rawpeer.FlagCRC})
					require.Equal(t, uint64(1<<40), p.Expect(rawpeer.OpResponse).MuxID)
				})
			})
		}
	}
}

// Lesson 15.
func TestReconnect_BothSidesRestartDropAndDialAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		restart := func(i int) {
			g.Stop(i)
			g.Start(i)
		}
		for i := range 500 {
			var stop atomic.Bool
			var callers, streamers sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			for from := range 2 {
				c := g.Conn(from, 1-from)
				callers.Go(func() { // whatever comes of it, it must end
					for !stop.Load() {
						b, err := c.SingleRequest(context.Background(), rig.Echo, []byte("x"))
						if err != nil {
							return
						}
						grid.PutByteBuffer(b)
					}
				})
				streamers.Go(func() {
					if st, err := c.NewStream(ctx, rig.Block, nil); err == nil {
						_ = rig.Consume(st)
					}
				})
			}
			if i%3 == 0 {
				g.RequireWorks() // else while all that begins
			}
			begin := time.Now()
			var both sync.WaitGroup
			switch i % 5 {
			case 0:
				g.Cut(0, 1)
			case 1:
				both.Go(func() { restart(0) })
			case 2:
				both.Go(func() { restart(1) })
			case 3:
				both.Go(func() { restart(0) })
				both.Go(func() { restart(1) })
			case 4:
				both.Go(func() { restart(i % 2) })
				both.Go(func() { g.Cut(0, 1) })
			}
			both.Wait()
			stop.Store(true)
			callers.Wait()
			synctest.Wait()
			g.WaitConnected()
			cancel() // of streams that were opened on the new connection
			streamers.Wait()
			require.Less(t, time.Since(begin), time.Second, "iteration %d", i)
			synctest.Wait()
			g.RequireWorks()
		}
	})
}

// Lesson 16: a minute of the bubble's time would pass if a call were forgotten between two tables.
func TestReconnect_CallStartedWhileTheLinkDropsFailsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		for range 100 {
			var callers sync.WaitGroup
			var cut atomic.Bool // upon which there may be another link before a caller begins again
			begin := time.Now()
			for caller := range 8 {
				c := g.Conn(caller%2, 1-caller%2)
				callers.Go(func() {
					for !cut.Load() {
						var err error
						if caller < 4 {
							var b []byte
							b, err = c.SingleRequest(context.Background(), rig.Echo, []byte("x"))
							grid.PutByteBuffer(b)
						} else {
							var st *grid.Stream
							if st, err = c.NewStream(context.Background(), rig.Stream, []byte("x")); err == nil {
								err = rig.Consume(st)
							}
						}
						if err != nil {
							if !errors.Is(err, grid.ErrDisconnected) || time.Since(begin) > 0 {
								t.Errorf("after %v: %v", time.Since(begin), err)
							}
							return
						}
					}
				})
			}
			callers.Go(func() {
				g.Cut(0, 1)
				cut.Store(true)
			})
			callers.Wait()
			g.WaitConnected()
			synctest.Wait()
		}
	})
}
