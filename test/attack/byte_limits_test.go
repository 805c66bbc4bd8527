package attack

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Requests of the largest size to handlers that do not return.
func TestLimits_LargeRequestsToHandlersThatBlock(t *testing.T) {
	rig.Long(t)
	for name, c := range map[string]struct {
		op      uint8
		handler grid.HandlerID
	}{"requests": {rawpeer.OpRequest, rig.BlockSingle}, "streams": {rawpeer.OpConnectMux, rig.BlockStream}} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.KeptLimits, func(a *rig.Attacked) {
				b := a.Block(1)
				p := a.Next()
				s := a.Session()
				w := a.Swallow(p)
				n := rig.Scaled(100)
				fit := s.Opts.MaxHostBytes / s.Opts.MaxMessageSize
				a.During(func() {
					for i := range uint64(n) {
						p.Send(rawpeer.Msg{MuxID: i + 1, Handler: uint8(c.handler), Op: c.op, Flags: rawpeer.FlagEOF, Payload: make([]byte, s.Opts.MaxMessageSize)})
					}
					synctest.Wait()
				})
				require.EqualValues(a, fit, b.Most.Load())
				require.EqualValues(a, s.Opts.MaxHostBytes, a.Conn.Stats().KeptBytes)
				require.EqualValues(a, n-fit, w.Overloaded.Load())
				require.Equal(a, n-fit, w.Count(rawpeer.OpMuxConnectError))
				a.RequireGrown(2*int64(s.Opts.MaxHostBytes) + 2<<20)
				a.Logged("limit reached", "MaxHostBytes is 4194304")
				// Small ones must wait for their turn, too; those of others need not.
				p.Send(rawpeer.Msg{MuxID: 1000, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: []byte("x")})
				synctest.Wait()
				require.Zero(a, w.Count(rawpeer.OpResponse))
				// A link of its own does not help.
				p.Close()
				p = a.Next()
				w = a.Swallow(p)
				p.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(c.handler), Op: c.op, Flags: rawpeer.FlagEOF, Payload: make([]byte, s.Opts.MaxMessageSize)})
				synctest.Wait()
				require.EqualValues(a, 1, w.Overloaded.Load())
				b.Release()
				a.Idle()
			})
		})
	}
}

// The reason of a cancel is kept with the context of a handler that does not end. It is the peer's
// text, so it must not be long.
func TestStream_CancelWithALongReasonIsClipped(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.KeptLimits, func(a *rig.Attacked) {
		b := a.Block(1)
		p := a.Next()
		s := a.Session()
		a.Swallow(p)
		n := rig.Scaled(100)
		a.During(func() {
			for i := range uint64(n) {
				p.Send(rawpeer.Msg{MuxID: i + 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
				p.Send(rawpeer.Msg{MuxID: i + 1, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagPayloadIsErr, Payload: make([]byte, s.Opts.MaxMessageSize)})
			}
			synctest.Wait()
		})
		require.Equal(a, n, a.Conn.Stats().Handlers)
		require.Zero(a, a.Conn.Stats().StreamsServed)
		a.RequireGrown(int64(s.Opts.MaxHostBytes) + 4<<20 + int64(n)*rig.MaxErrorText)
		b.Release()
		a.Idle()
	})
}

// Messages that a handler does not take wait within MaxStreamBytes. What it was given of a stream
// that has ended for it counts for as long as the handler runs, within MaxHostBytes.
func TestLimits_LargeMessagesThatNoHandlerTakes(t *testing.T) {
	rig.Long(t)
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.KeptLimits, func(a *rig.Attacked) {
		b := a.Block(1000)
		p := a.Next()
		s := a.Session()
		w := a.Swallow(p)
		const messages, size = 50, 60_000
		require.Greater(a, (messages-rig.MaxInBuffer-1)*size, s.Opts.MaxStreamBytes)
		a.During(func() {
			for i := range uint64(20) {
				p.Send(rawpeer.Msg{MuxID: i + 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
				for seq := range uint32(messages) {
					p.Send(rawpeer.Msg{MuxID: i + 1, Seq: seq + 1, Op: rawpeer.OpMuxClientMsg, Payload: make([]byte, size)})
				}
				synctest.Wait()
				require.LessOrEqual(a, a.Conn.Stats().KeptBytes, min(int64(i+1)*int64(s.Opts.MaxStreamBytes), int64(s.Opts.MaxHostBytes)))
			}
		})
		require.Zero(a, a.Conn.Stats().StreamsServed)
		require.EqualValues(a, 20, w.Overloaded.Load())
		a.RequireGrown(int64(s.Opts.MaxHostBytes) + 4<<20)
		b.Release()
		a.Idle()
	})
}

// What has been handed on to a handler that takes nothing waits as well, and counts.
func TestLimits_MessagesInTheChannelsOfHandlersCount(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.KeptLimits, func(a *rig.Attacked) {
		b := a.Block(2 * rig.MaxInBuffer)
		p := a.Next()
		s := a.Session()
		a.Swallow(p)
		const size = 200_000
		a.During(func() {
			for i := range uint64(10) {
				p.Send(rawpeer.Msg{MuxID: i + 1, Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux})
				for seq := range uint32(rig.MaxInBuffer) {
					p.Send(rawpeer.Msg{MuxID: i + 1, Seq: seq + 1, Op: rawpeer.OpMuxClientMsg, Payload: make([]byte, size)})
					synctest.Wait()
				}
			}
		})
		a.Logf("%d KiB count", a.Conn.Stats().KeptBytes>>10)
		a.RequireGrown(2*int64(s.Opts.MaxHostBytes) + 2<<20)
		b.Release()
		a.Idle()
	})
}

// A handler that has taken all its input, and waits for more, leaves nothing that counts: else idle
// streams would use up what their host may have.
func TestLimits_InputThatAHandlerHasTakenDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		took := 0
		require.NoError(t, g.Manager(0).RegisterStreamingHandler(rig.Unused, grid.StreamHandler{
			InCapacity: 32, Handle: func(_ context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
				for b := range in {
					took++
					grid.PutByteBuffer(b)
				}
				return nil
			},
		}))
		st, err := g.Conn(1, 0).NewStream(t.Context(), rig.Unused, nil)
		require.NoError(t, err)
		for range 16 {
			require.NoError(t, st.Send(make([]byte, 60_000)))
		}
		synctest.Wait()
		require.Equal(t, 16, took)
		time.Sleep(2 * time.Second)
		require.Less(t, g.Conn(0, 1).Stats().KeptBytes, int64(60_000))
		st.CloseSend()
		require.NoError(t, rig.Consume(st))
	})
}
