package grid

import (
	"context"
	"crypto/tls"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

var drainConfig = rawConfig{Caps: uint64(ourCaps)}

// shutdownInBackground calls Shutdown and returns its result, once there is one.
func (r *v1Rig) shutdownInBackground() <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- r.node.Shutdown(r.Context()) }()
	synctest.Wait()
	return ended
}

func TestShutdownIsAnnouncedOnceToWhoUnderstands(t *testing.T) {
	for name, caps := range map[string]uint64{"version 1": 0, "without drain": uint64(capWideCredits | capFragments), "drain": uint64(ourCaps)} {
		t.Run(name, func(t *testing.T) {
			inV1(t, rawConfig{Caps: caps}, nil, func(r *v1Rig) {
				release := make(chan struct{})
				require.NoError(r, r.node.RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) { <-release; return b, nil }))
				r.peer.send(rawMsg{MuxID: 1, Handler: uint8(testUnused), Op: rawOpRequest, Flags: crcEOF, Payload: []byte("slow")})
				synctest.Wait()

				ended := r.shutdownInBackground()
				if caps&uint64(capDrain) != 0 {
					r.expect(rawMsg{Op: rawOpDisconnect, Flags: rawFlagCRC})
				}
				again := r.shutdownInBackground()
				r.quiet()
				// Whoever asks all the same is told.
				r.peer.send(rawMsg{MuxID: 2, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF})
				require.Contains(r, string(r.peer.expect(rawOpMuxConnectError).Payload), "the manager is shutting down")

				require.Empty(r, ended)
				close(release)
				r.expect(rawMsg{MuxID: 1, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("slow")})
				r.peer.expectClosed()
				r.peer.close()
				require.NoError(r, <-ended)
				require.NoError(r, <-again)
				require.Equal(r, StateShutdown, r.conn.State())
			})
		})
	}
}

func TestPeerThatShutsDownFinishesWhatIsUnderWay(t *testing.T) {
	inV1(t, drainConfig, nil, func(r *v1Rig) {
		answer := r.call(r.Context(), testEcho, []byte("one"))
		req := r.peer.expect(rawOpRequest)
		r.peer.send(rawMsg{Op: rawOpDisconnect})
		r.peer.send(rawMsg{Op: rawOpDisconnect}) // once is enough, twice no harm
		synctest.Wait()

		require.Equal(r, StateConnectionError, r.conn.State())
		for _, err := range []error{
			func() error { _, err := r.conn.SingleRequest(r.Context(), testEcho, nil); return err }(),
			func() error { _, err := r.conn.NewStream(r.Context(), testTwoWay, nil); return err }(),
		} {
			require.ErrorIs(r, err, ErrDisconnected)
			require.EqualError(r, err, "grid: disconnected: the remote host is shutting down")
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		require.ErrorIs(r, r.conn.WaitForConnect(ctx), context.DeadlineExceeded)

		// It may still ask, and answers what it was asked.
		r.alive()
		r.peer.send(rawMsg{MuxID: req.MuxID, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("two")})
		got := <-answer
		require.NoError(r, got.err)
		require.Equal(r, "two", string(got.payload))
		require.Len(r, r.log.about("the remote host is shutting down"), 1)

		r.peer.close()
		synctest.Wait()
		require.Empty(r, r.log.about("connection lost"), "it was announced")
		_, err := r.conn.SingleRequest(r.Context(), testEcho, nil)
		require.EqualError(r, err, "grid: disconnected")

		r.peer = r.next()
		require.NoError(r, r.conn.WaitForConnect(r.Context()))
		r.alive()
	})
}

// A process that is restarted need not wait for the old one to have finished.
func TestRestartedPeerConnectsBesideTheOneThatShutsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newV1Rig(t, true, drainConfig, nil)
		answer := r.call(r.Context(), testEcho, []byte("one"))
		req := r.peer.expect(rawOpRequest)
		old := r.peer
		old.send(rawMsg{Op: rawOpDisconnect})
		synctest.Wait()

		r.peer = r.next()
		require.Equal(r, StateConnected, r.conn.State())
		r.alive()
		old.send(rawMsg{MuxID: req.MuxID, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("two")})
		require.Equal(r, "two", string((<-answer).payload))
		in, out := r.conn.Stats().BytesIn, r.conn.Stats().BytesOut
		old.close()
		synctest.Wait()
		require.Equal(r, StateConnected, r.conn.State())
		require.GreaterOrEqual(r, r.conn.Stats().BytesIn, in)
		require.GreaterOrEqual(r, r.conn.Stats().BytesOut, out)
		r.alive()
	})
}

// Of those that shut down and come back without end, one old link is kept.
func TestPeerThatShutsDownAgainAndAgainKeepsOneOldLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newV1Rig(t, true, drainConfig, nil)
		var old []*rawPeer
		for range 5 {
			old = append(old, r.peer)
			r.peer.send(rawMsg{Op: rawOpDisconnect})
			synctest.Wait()
			r.peer = r.next()
		}
		for _, p := range old[:4] {
			p.expectClosed()
		}
		require.Len(r, r.conn.sessions(), 2)
		r.alive()
		require.NoError(r, r.node.Close())
		old[4].expectClosed()
		r.peer.expectClosed()
	})
}

func TestHostThatShutsDownTakesNoNewConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		g, raw := newLoneGrid(t, n, true, nil)
		first := g.dialLone(raw, drainConfig)
		first.send(rawMsg{MuxID: 1, Handler: uint8(testBlock), Op: rawOpConnectMux, Flags: rawFlagCRC})
		first.expect(rawOpAckMux)
		ended := make(chan error, 1)
		go func() { ended <- g.nodes[0].Shutdown(t.Context()) }()
		synctest.Wait()
		require.Contains(t, g.requireRefused(bearer(testToken), http.StatusServiceUnavailable), "shutting down")
		require.Empty(t, ended)
		first.send(rawMsg{MuxID: 1, Op: rawOpDisconnectServerMux})
		first.drain()
		first.close()
		require.NoError(t, <-ended)
	})
}

// Both sides shut down at the same time, with calls in both directions.
func TestBothSidesShutDownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, nil)
		release := make(chan struct{})
		results := make(chan error, 2)
		for i := range 2 {
			require.NoError(t, g.nodes[i].RegisterSingleHandler(testUnused, func(b []byte) ([]byte, *RemoteErr) { <-release; return b, nil }))
		}
		for i := range 2 {
			go func() {
				_, err := g.conn(i, 1-i).SingleRequest(t.Context(), testUnused, nil)
				results <- err
			}()
		}
		synctest.Wait()
		ended := make(chan error, 2)
		for _, n := range g.nodes {
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

// Under TLS the end of what is sent is a message of its own, for which the socket of a
// peer that does not read may have no room.
func TestShutdownOverTLSDoesNotWaitForAPeerThatReadsNothing(t *testing.T) {
	a := newAuthority(t)
	certs := []tls.Certificate{a.issue("node0"), a.issue("node1")}
	waited := 0
	for extra := 0; extra < 160; extra += 10 {
		synctest.Test(t, func(t *testing.T) {
			g := newBoundGrid(t, 2, a, func(i int) (server, client tls.Certificate) { return certs[i], certs[i] }, nil)
			g.net.SetBuffer(4000 + extra)
			g.waitConnected()
			g.cut(0, 1) // what is connected has the buffers of before
			synctest.Wait()
			time.Sleep(time.Second)
			g.waitConnected()
			g.net.Stall(g.addr(0), g.addr(1), true)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			_, err := g.conn(0, 1).SingleRequest(ctx, testEcho, make([]byte, 3900))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			synctest.Wait()

			start := time.Now()
			ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := g.nodes[0].Shutdown(ctx); err == nil {
				waited++
			}
			require.LessOrEqual(t, time.Since(start), 3*time.Second, "extra %d", extra)
			g.net.Stall(g.addr(0), g.addr(1), false)
		})
	}
	require.NotZero(t, waited, "the socket was full each time")
}
