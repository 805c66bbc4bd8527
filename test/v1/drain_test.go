package v1

import (
	"context"
	"crypto/tls"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// shutdownInBackground calls Shutdown and returns its result, once there is one.
func (r *wire) shutdownInBackground() <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- r.Node.Shutdown(r.Context()) }()
	synctest.Wait()
	return ended
}

func TestShutdown_IsAnnouncedOnceToWhoUnderstands(t *testing.T) {
	t.Parallel()
	for name, caps := range map[string]uint64{"version 1": 0, "without drain": uint64(rawpeer.CapWideCredits | rawpeer.CapFragments), "drain": uint64(rig.AllCaps)} {
		t.Run(name, func(t *testing.T) {
			inWire(t, rawpeer.Config{Caps: caps}, nil, func(r *wire) {
				release := make(chan struct{})
				require.NoError(r, r.Node.RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
				r.Peer.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Unused), Op: rawpeer.OpRequest, Flags: rig.CRCEOF, Payload: []byte("slow")})
				synctest.Wait()

				ended := r.shutdownInBackground()
				if caps&uint64(rawpeer.CapDrain) != 0 {
					r.Expect(rawpeer.Msg{Op: rawpeer.OpDisconnect, Flags: rawpeer.FlagCRC})
					// Of a stream that the peer does not know: it has to answer behind all else.
					require.NotZero(r, r.Peer.Expect(rawpeer.OpPing).MuxID)
				}
				again := r.shutdownInBackground()
				r.Quiet()
				// Whoever asks all the same is told why, if it may know that it should not.
				for _, op := range []uint8{rawpeer.OpRequest, rawpeer.OpConnectMux} {
					handler := map[uint8]grid.HandlerID{rawpeer.OpRequest: rig.Echo, rawpeer.OpConnectMux: rig.TwoWay}[op]
					r.Peer.Send(rawpeer.Msg{MuxID: 2, Handler: uint8(handler), Op: op, Flags: rig.CRCEOF})
					if caps&uint64(rawpeer.CapDrain) != 0 {
						require.Contains(r, string(r.Peer.Expect(rawpeer.OpMuxConnectError).Payload), "the manager is shutting down")
					} else {
						r.Expect(rawpeer.Msg{MuxID: 2, Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC})
					}
				}

				require.Empty(r, ended)
				close(release)
				r.Expect(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("slow")})
				r.Peer.ExpectClosed()
				r.Peer.Close()
				require.NoError(r, <-ended)
				require.NoError(r, <-again)
				require.Equal(r, grid.StateShutdown, r.Conn.State())
			})
		})
	}
}

func TestShutdown_OfAPeerFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	inWire(t, rig.DrainConfig, nil, func(r *wire) {
		answer := r.Call(r.Context(), rig.Echo, []byte("one"))
		req := r.Peer.Expect(rawpeer.OpRequest)
		r.Server.Draining.Store(true)
		r.Peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
		r.Peer.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect}) // once is enough, twice no harm
		synctest.Wait()

		require.Equal(r, grid.StateConnectionError, r.Conn.State())
		for id, err := range map[grid.HandlerID]error{
			rig.Echo:   func() error { _, err := r.Conn.SingleRequest(r.Context(), rig.Echo, nil); return err }(),
			rig.TwoWay: func() error { _, err := r.Conn.NewStream(r.Context(), rig.TwoWay, nil); return err }(),
		} {
			require.ErrorIs(r, err, grid.ErrDisconnected)
			require.EqualError(r, err, "grid: disconnected: "+r.Conn.HostName()+": the remote host is shutting down (handler "+strconv.Itoa(int(id))+")")
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		require.ErrorIs(r, r.Conn.WaitForConnect(ctx), context.DeadlineExceeded)

		// It may still ask, and answers what it was asked.
		r.Alive()
		r.Peer.Send(rawpeer.Msg{MuxID: req.MuxID, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("two")})
		got := <-answer
		require.NoError(r, got.Err)
		require.Equal(r, "two", string(got.Payload))
		require.Len(r, r.Book.About("the remote host is shutting down"), 1)

		r.Peer.Close()
		synctest.Wait()
		require.Empty(r, r.Book.About("connection lost"), "it was announced")
		_, err := r.Conn.SingleRequest(r.Context(), rig.Echo, nil)
		require.ErrorContains(r, err, "grid: disconnected: "+r.Conn.HostName()+": no connection for 0s")
		if r.Conn.Stats().Dials {
			require.ErrorContains(r, err, ": upgrade refused: 503", "it was dialled again at once")
		} else {
			require.ErrorContains(r, err, ": the peer has closed the connection")
		}

		r.Server.Draining.Store(false)
		r.Peer = r.Next()
		require.NoError(r, r.Conn.WaitForConnect(r.Context()))
		r.Alive()
	})
}

// A process that is restarted need not wait for the old one to have finished.
func TestShutdown_RestartedPeerConnectsBesideTheOldOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newWire(t, true, rig.DrainConfig, nil)
		answer := r.Call(r.Context(), rig.Echo, []byte("one"))
		req := r.Peer.Expect(rawpeer.OpRequest)
		old := r.Peer
		old.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect})
		synctest.Wait()

		r.Peer = r.Next()
		require.Equal(r, grid.StateConnected, r.Conn.State())
		r.Alive()
		old.Send(rawpeer.Msg{MuxID: req.MuxID, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("two")})
		require.Equal(r, "two", string((<-answer).Payload))
		in, out := r.Conn.Stats().BytesIn, r.Conn.Stats().BytesOut
		old.Close()
		synctest.Wait()
		require.Equal(r, grid.StateConnected, r.Conn.State())
		require.GreaterOrEqual(r, r.Conn.Stats().BytesIn, in)
		require.GreaterOrEqual(r, r.Conn.Stats().BytesOut, out)
		r.Alive()
	})
}

func TestShutdown_TakesNoNewConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		g, raw := rig.NewLone(t, n, true, nil)
		first := g.DialLone(raw, rig.DrainConfig)
		first.Send(rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Block), Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC})
		first.Expect(rawpeer.OpAckMux)
		ended := make(chan error, 1)
		go func() { ended <- g.Manager(0).Shutdown(t.Context()) }()
		synctest.Wait()
		require.Contains(t, g.RequireRefused(rig.Bearer(rig.Token), http.StatusServiceUnavailable), "shutting down")
		require.Empty(t, ended)
		first.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux})
		first.Drain()
		first.Close()
		require.NoError(t, <-ended)
	})
}

// Both sides shut down at the same time, with calls in both directions.
func TestShutdown_OfBothSidesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		release := make(chan struct{})
		results := make(chan error, 2)
		for i := range 2 {
			require.NoError(t, g.Manager(i).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil }))
		}
		for i := range 2 {
			go func() {
				_, err := g.Conn(i, 1-i).SingleRequest(t.Context(), rig.Unused, nil)
				results <- err
			}()
		}
		synctest.Wait()
		ended := make(chan error, 2)
		for _, n := range g.Nodes() {
			go func() { ended <- n.Shutdown(t.Context()) }()
		}
		synctest.Wait()
		require.Empty(t, ended)
		time.Sleep(30 * time.Second) // as long as it takes
		start := time.Now()
		close(release)
		for range 2 {
			require.NoError(t, <-results)
		}
		for range 2 {
			require.NoError(t, <-ended)
		}
		require.LessOrEqual(t, time.Since(start), time.Second)
	})
}

// Under TLS the end of what is sent is a message of its own, for which the socket of a peer that
// does not read may have no room.
func TestShutdown_OverTLSDoesNotWaitForAPeerThatReadsNothing(t *testing.T) {
	t.Parallel()
	a := rig.NewAuthority(t)
	certs := []tls.Certificate{a.Issue("node0"), a.Issue("node1")}
	waited := 0
	for extra := 0; extra < 160; extra += 10 {
		synctest.Test(t, func(t *testing.T) {
			g := rig.NewBound(t, 2, a, func(i int) (server, client tls.Certificate) { return certs[i], certs[i] }, nil)
			g.Net.SetBuffer(4000 + extra)
			g.WaitConnected()
			g.Cut(0, 1) // what is connected has the buffers of before
			synctest.Wait()
			time.Sleep(time.Second)
			g.WaitConnected()
			g.Net.Stall(g.Addr(0), g.Addr(1), true)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			_, err := g.Conn(0, 1).SingleRequest(ctx, rig.Echo, make([]byte, 3900))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			synctest.Wait()

			start := time.Now()
			ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := g.Manager(0).Shutdown(ctx); err == nil {
				waited++
			}
			require.LessOrEqual(t, time.Since(start), 3*time.Second, "extra %d", extra)
			g.Net.Stall(g.Addr(0), g.Addr(1), false)
		})
	}
	require.NotZero(t, waited, "the socket was full each time")
}
