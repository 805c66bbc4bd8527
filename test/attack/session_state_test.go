package attack

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Messages that do not belong where they come.

// allOps are every op that there is, and some that there are not.
func allOps() (ops []uint8) {
	for op := range uint8(20) {
		ops = append(ops, op)
	}
	return append(ops, 127, 255)
}

// Before the handshake nothing is taken but what begins it.
func TestHandshake_OtherOpsInItsPlaceAreRefused(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Bare: true, Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
		var ran atomic.Int64
		require.NoError(a, a.Node.RegisterSingleHandler(rig.AttackAnswer, func(b []byte) ([]byte, *grid.RemoteErr) { ran.Add(1); return b, nil }))
		hello := rawpeer.Connect{ID: make([]byte, 16), Host: a.Raw, Time: time.Now(), Token: rig.AttackToken, Caps: rig.AllCaps}.Encode()
		answer := rawpeer.ConnectResponse{ID: make([]byte, 16), Accepted: true, Caps: rig.AllCaps}.Encode()
		a.During(func() {
			for _, op := range allOps() {
				p := a.Next()
				want, payload := uint8(rawpeer.OpConnect), hello
				if p.Request != nil {
					p.Expect(rawpeer.OpConnect)
					want, payload = rawpeer.OpConnectResponse, answer
				}
				if op == want {
					p.Close()
					continue
				}
				m := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.AttackAnswer), Op: op, Payload: payload}
				b := m.Encode()
				if op == rawpeer.OpMerged {
					b = rawpeer.EncodeMerged(rawpeer.Msg{Op: want, Payload: payload})
				}
				require.NoError(a, p.TrySendBytes(b))
				msgs, _ := p.Drain()
				if p.Request == nil {
					require.Len(a, msgs, 1, "op %d", op)
					got, err := rawpeer.DecodeConnectResponse(msgs[0].Payload)
					require.NoError(a, err)
					require.False(a, got.Accepted)
					require.Contains(a, got.Reason, "in place of Connect")
				} else {
					require.Empty(a, msgs, "op %d", op)
				}
				require.NotEqual(a, grid.StateConnected, a.Conn.State())
			}
		})
		require.Zero(a, ran.Load())
		a.LoggedFew("in place of Connect")
	})
}

// After it neither may come again.
func TestHandshake_SecondOneEndsTheLink(t *testing.T) {
	for _, op := range []uint8{rawpeer.OpConnect, rawpeer.OpConnectResponse} {
		t.Run(rawpeer.OpName(op), func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				payload := rawpeer.Connect{ID: make([]byte, 16), Host: rig.AttackOther, Time: time.Now(), Token: rig.AttackToken}.Encode()
				a.During(func() {
					p.Send(rawpeer.Msg{Op: op, Payload: payload})
					a.RequireEnded(s)
				})
				a.Lost(s, rawpeer.OpName(op)+" after the handshake")
				a.Idle()
			})
		})
	}
}

// What comes behind a message that ends the link is not acted on, in the same websocket message or
// the next.
func TestMsg_BehindTheEndIsNotActedOn(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, nil, func(a *rig.Attacked) {
		var ran atomic.Int64
		require.NoError(a, a.Node.RegisterSingleHandler(rig.AttackAnswer, func(b []byte) ([]byte, *grid.RemoteErr) { ran.Add(1); return b, nil }))
		request := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.AttackAnswer), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF}
		for _, end := range []rawpeer.Msg{
			{Op: rawpeer.OpMerged},
			{Op: rawpeer.OpConnect},
			{Op: rawpeer.OpPing, Payload: []byte("no ping")},
			{MuxID: 7, Op: rawpeer.OpDisconnect},
			{MuxID: 7, Op: rawpeer.OpPing, Flags: rawpeer.FlagMore, Payload: []byte("x")},
		} {
			p := a.Next()
			s := a.Session()
			a.During(func() {
				if p.TrySendBytes(rawpeer.EncodeMerged(end, request, request)) == nil {
					for range 100 {
						_ = p.TrySend(request)
					}
				}
				a.RequireEnded(s)
			})
			synctest.Wait()
			require.Zero(a, ran.Load(), "%v", end)
			p.Close()
		}
		a.Logged("connection lost")
		a.Idle()
	})
}

// An op that nobody knows is dropped, and told of once, however often its peer connects.
func TestLog_UnknownOpOnManyLinksIsToldOnce(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(a *rig.Attacked) {
		a.During(func() {
			for range 10 {
				p := a.Next()
				p.Send(rawpeer.Msg{Op: 200, Payload: []byte("x")})
				a.Echoes(p)
				p.Close()
				synctest.Wait()
			}
		})
		a.Logged("unknown op", "op=200")
	})
}

// A Disconnect without extension 4, or for a mux, is the end.
func TestShutdown_DisconnectThatIsNoDrainIsTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		caps uint64
		m    rawpeer.Msg
	}{
		"without the extension": {rawpeer.CapWideCredits | rawpeer.CapFragments, rawpeer.Msg{Op: rawpeer.OpDisconnect}},
		"for a mux":             {rig.AllCaps, rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnect}},
		"in fragments":          {rig.AllCaps, rawpeer.Msg{Op: rawpeer.OpDisconnect, Flags: rawpeer.FlagMore, Payload: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: c.caps}, nil, func(a *rig.Attacked) {
				p := a.Next()
				s := a.Session()
				calls := rig.InBackground(func() error { _, err := a.Conn.SingleRequest(a.Context(), 50, nil); return err })
				p.Expect(rawpeer.OpRequest)
				a.During(func() {
					_ = p.TrySendBytes(rawpeer.EncodeMerged(c.m, c.m, c.m))
					require.ErrorIs(a, <-calls, grid.ErrDisconnected)
				})
				a.Lost(s)
				a.Idle()
			})
		})
	}
}

// A peer that says again and again that it shuts down, goes on with calls, and never closes: it is
// served, nothing is asked of it, and it is told of once.
func TestShutdown_DrainThatDoesNotEndIsServedAndToldOnce(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, func(o *grid.ManagerOptions) { o.MaxHandlers, o.MaxStreams = 40, 10 }, func(a *rig.Attacked) {
		b := a.Block(1)
		p := a.Next()
		s := a.Session()
		w := a.Swallow(p)
		a.Server.Draining.Store(true)
		before := rig.BubbleGoroutines()
		a.During(func() {
			for round := range uint64(50) {
				var msgs []rawpeer.Msg
				for i := range uint64(20) {
					msgs = append(msgs, rawpeer.Msg{Op: rawpeer.OpDisconnect},
						rawpeer.Msg{MuxID: 1000*round + i + 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux},
						rawpeer.Msg{MuxID: 1000*round + i + 500, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
				}
				p.SendMerged(msgs...)
				time.Sleep(time.Second)
			}
			synctest.Wait()
		})
		require.Equal(a, 10, a.Conn.Stats().Handlers)
		require.EqualValues(a, 10, b.Most.Load())
		require.Equal(a, 50*20, w.Count(rawpeer.OpResponse))
		require.LessOrEqual(a, rig.BubbleGoroutines()-before, 2*10+20+1, "two for each stream, a worker for each request at once, and one that dials")
		require.NoError(a, p.Err(), "the link was ended")
		_, err := a.Conn.SingleRequest(a.Context(), 50, nil)
		require.ErrorIs(a, err, grid.ErrDisconnected)
		require.ErrorContains(a, err, "shutting down")
		a.Logged("shutting down")
		a.Server.Draining.Store(false)
		b.Release()
		p.Close()
		a.RequireEnded(s)
		a.Idle()
		// It comes back, and all is well.
		p = a.Next()
		s = a.Session()
		w = a.Swallow(p)
		p.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
		synctest.Wait()
		require.Equal(a, 1, w.Count(rawpeer.OpResponse))
		a.Same(s)
	})
}

// Calls that are sent together with the Connect, before the answer to it has come, are those of
// somebody who is let in; or of somebody who is not.
func TestHandshake_CallsBeforeItsAnswer(t *testing.T) {
	for token, served := range map[string]bool{rig.AttackToken: true, "guess": false} {
		t.Run(fmt.Sprint("served ", served), func(t *testing.T) {
			rig.InAttackByDialler(t, rawpeer.Config{Bare: true}, nil, func(a *rig.Attacked) {
				var ran atomic.Int64
				require.NoError(a, a.Node.RegisterSingleHandler(rig.AttackAnswer, func(b []byte) ([]byte, *grid.RemoteErr) { ran.Add(1); return b, nil }))
				p := a.Next()
				p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: rawpeer.Connect{ID: make([]byte, 16), Host: a.Raw, Time: time.Now(), Token: token}.Encode()})
				for i := range uint64(10) {
					_ = p.TrySend(rawpeer.Msg{MuxID: i + 1, Handler: uint8(rig.AttackAnswer), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF})
				}
				synctest.Wait()
				if served {
					require.EqualValues(a, 10, ran.Load())
				} else {
					require.Zero(a, ran.Load())
					a.Logged("handshake failed", "invalid token")
				}
			})
		})
	}
}
