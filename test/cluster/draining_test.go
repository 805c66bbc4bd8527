package cluster

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

// How handlers, and who called them, hear of a shutdown.

func isDraining(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// untilDraining registers, at node i, handlers of both kinds that run until they hear of it, and
// send on the channel what they know of their context then.
func untilDraining(t *testing.T, g *rig.Grid, i int) <-chan error {
	heard := make(chan error, 4)
	wait := func(ctx context.Context) *grid.RemoteErr {
		derived, cancel := context.WithCancel(ctx)
		defer cancel()
		<-grid.Draining(derived)
		heard <- ctx.Err()
		return grid.NewRemoteErrString("come again")
	}
	require.NoError(t, g.Manager(i).RegisterSingleHandlerContext(rig.Handler, func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
		return nil, wait(ctx)
	}))
	require.NoError(t, g.Manager(i).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
		OutCapacity: 1, InCapacity: 1,
		Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			return wait(ctx)
		},
	}))
	return heard
}

// Whichever side shuts down, an idle long stream and a long request hear of it at once, and the
// shutdown ends as soon as they have.
func TestDraining_HandlersAndCallersHearOfAShutdown(t *testing.T) {
	for name, who := range map[string]int{"of the caller": 0, "of the handler": 1} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				heard := untilDraining(t, g, 1)
				s, err := c.NewStream(t.Context(), rig.Handler+1, nil)
				require.NoError(t, err)
				single := rig.InBackground(func() error {
					_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
					return err
				})
				time.Sleep(30 * time.Second)
				require.False(t, isDraining(s.Draining()))
				require.Empty(t, heard)

				begin := time.Now()
				require.NoError(t, g.Manager(who).Shutdown(t.Context()))
				require.LessOrEqual(t, time.Since(begin), 2*time.Second)
				<-s.Draining()
				for range 2 {
					require.NoError(t, <-heard, "the context had not ended")
				}
				require.EqualError(t, <-single, "come again")
				require.EqualError(t, rig.Consume(s), "come again")
			})
		})
	}
}

// Who is told by its handler to come again finds the host disconnected.
func TestDraining_CallerThatIsSentAwayWaitsForTheSuccessor(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		untilDraining(t, g, 1)
		s, err := c.NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, err)
		sent := rig.InBackground(func() error {
			err := rig.Consume(s)
			require.NotEqual(t, grid.StateConnected, c.State())
			return err
		})
		require.NoError(t, g.Manager(1).Shutdown(t.Context()))
		require.EqualError(t, <-sent, "come again")
	})
}

// It is closed as well when the link is lost, after the contexts have ended.
func TestDraining_OfALinkThatIsLost(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		heard := untilDraining(t, g, 1)
		s, err := c.NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, err)
		synctest.Wait()
		g.Cut(0, 1)
		<-s.Draining()
		require.ErrorIs(t, s.Err(), grid.ErrDisconnected)
		require.ErrorIs(t, <-heard, context.Canceled)
		g.WaitConnected()
		s, err = c.NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, err)
		require.False(t, isDraining(s.Draining()), "of another link")
	})
}

// What a peer announces again and again is told once; a typed stream hears of it too, and a context
// that is no handler's has nothing to tell.
func TestDraining_OfAPeerThatAnnouncesItAgain(t *testing.T) {
	require.Nil(t, grid.Draining(t.Context()))
	rig.InWire(t, rig.DrainConfig, nil, func(r *rig.Wire) {
		typed := grid.NewStream[grid.NoPayload, *grid.MSS, *grid.MSS](rig.Handler, nil, grid.NewMSS, grid.NewMSS)
		type opened struct {
			s   *grid.TypedStream[*grid.MSS, *grid.MSS]
			err error
		}
		done := make(chan opened, 1)
		go func() {
			s, err := typed.Call(r.Context(), r.Conn, grid.NoPayload{})
			done <- opened{s, err}
		}()
		open := r.Peer.Expect(rawpeer.OpConnectMux)
		r.Peer.Send(rawpeer.Msg{MuxID: open.MuxID, Op: rawpeer.OpAckMux, Flags: rawpeer.FlagCRC, Payload: []byte{1, 1}})
		o := <-done
		require.NoError(r, o.err)
		require.False(r, isDraining(o.s.Draining()))
		for range 3 {
			r.Peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
			synctest.Wait()
			require.True(r, isDraining(o.s.Draining()))
			require.NoError(r, o.s.Err(), "the stream goes on")
		}
		o.s.CloseSend()
		r.Peer.Send(rawpeer.Msg{MuxID: open.MuxID, Seq: 1, Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
		require.NoError(r, o.s.Results(func(*grid.MSS) error { return nil }))
	})
}

// Many links, and both sides at once.
func TestDraining_AllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5
		g := rig.New(t, n, nil)
		for i := range n {
			untilDraining(t, g, i)
		}
		var streams []<-chan error
		for i := range n {
			for j := range n {
				if i != j {
					s, err := g.Conn(i, j).NewStream(t.Context(), rig.Handler+1, nil)
					require.NoError(t, err)
					streams = append(streams, rig.InBackground(func() error { <-s.Draining(); return rig.Consume(s) }))
				}
			}
		}
		begin := time.Now()
		var ends []<-chan error
		for i := range n {
			ends = append(ends, rig.InBackground(func() error { return g.Manager(i).Shutdown(t.Context()) }))
		}
		for _, e := range ends {
			require.NoError(t, <-e)
		}
		require.LessOrEqual(t, time.Since(begin), 3*time.Second)
		for _, s := range streams {
			<-s
		}
	})
}
