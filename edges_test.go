package grid

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/stretchr/testify/require"
)

// However long an error's text is, and however small the messages that are
// allowed, it arrives as an error and nothing else is lost.
func TestErrorTextIsClippedAndNoOtherCallIsLost(t *testing.T) {
	long := strings.Repeat("é", maxErrorText)
	inPair(t, func(_ int, o *ManagerOptions) { o.MaxMessageSize = 16 }, func(t *testing.T, g *testGrid, c *Connection) {
		g.single(func([]byte) ([]byte, *RemoteErr) { return nil, NewRemoteErrString(long) })
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testHandler+1, func([]byte) ([]byte, *RemoteErr) { panic(long) }))
		require.NoError(t, g.nodes[1].RegisterStreamingHandler(testHandler+2, StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr {
				return NewRemoteErrString(long)
			},
		}))
		check := func(err error) {
			t.Helper()
			require.True(t, IsRemoteErr(err), "%.100s", err)
			require.LessOrEqual(t, len(err.Error()), maxErrorText)
			require.Greater(t, len(err.Error()), maxErrorText-10)
			require.True(t, utf8.ValidString(err.Error()))
			require.True(t, strings.HasSuffix(err.Error(), "é..."))
		}
		st, err := c.NewStream(t.Context(), testBlock, nil) // what must not be lost
		require.NoError(t, err)
		_, err = c.SingleRequest(t.Context(), testHandler, nil)
		check(err)
		_, err = c.SingleRequest(t.Context(), testHandler+1, nil)
		check(err)
		failing, err := c.NewStream(t.Context(), testHandler+2, nil)
		require.NoError(t, err)
		check(failing.Results(func([]byte) error { return nil }))
		time.Sleep(time.Minute) // pings are larger than such messages, too
		require.Equal(t, StateConnected, c.State())
		require.NoError(t, st.Err())
		close(st.Requests)
	})
}

// A check of the application's that panics ends the handshake, and neither the
// socket nor Close.
func TestTokenCheckThatPanicsEndsTheHandshakeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		g := newTestGrid(t, 2, func(_ int, o *ManagerOptions) {
			check := o.AuthToken
			o.AuthToken = func(token string) error {
				if calls.Add(1) == 2 { // the first time in the handshake
					panic("out of order")
				}
				return check(token)
			}
		})
		g.requireWorks() // it came at the second attempt
	})
}

func TestTokenWithoutItsSchemeIsRefused(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	for header, want := range map[string]int{
		"Bearer " + testToken: http.StatusSwitchingProtocols,
		testToken:             http.StatusForbidden,
		"Basic " + testToken:  http.StatusForbidden,
		"":                    http.StatusForbidden,
	} {
		req, err := http.NewRequest(http.MethodGet, g.hosts[0]+RoutePath, nil)
		require.NoError(t, err)
		for k, v := range map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket", "Authorization": header,
			"Sec-Websocket-Version": "13", "Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
		} {
			req.Header.Set(k, v)
		}
		var tr http.Transport
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, want, resp.StatusCode, "Authorization: %q", header)
	}
}

// A sender that waits when its own manager is closed is let go.
func TestSenderThatWaitsWhenItsManagerClosesIsLetGo(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			g := newTestGrid(t, 2, nil)
			st, err := g.conn(0, 1).NewStream(t.Context(), testBlock, nil)
			require.NoError(t, err)
			st.Requests <- nil // the handler's one credit
			st.Requests <- nil // waits in the forwarder
			sent := make(chan struct{})
			go func() {
				st.Requests <- nil
				close(sent)
			}()
			synctest.Wait()
			require.NoError(t, g.nodes[0].Close())
			<-sent
		})
	}
}

// While an open waits for room, nothing else of the stream may be sent.
func TestStreamThatWaitsToBeOpenedIsNotPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, func(_ int, o *ManagerOptions) {
			o.StreamPingInterval = 100 * time.Millisecond
			o.PingInterval, o.WriteTimeout = time.Hour, time.Hour
		})
		c := g.conn(0, 1)
		g.net.Stall(g.addr(0), g.addr(1), true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, size := range []int{wholeSize, 1 << 10, 0} { // fill socket and queue, to the last byte
			for range 300 {
				go func() {
					b, _ := c.SingleRequest(ctx, testEcho, make([]byte, size))
					PutByteBuffer(b)
				}()
			}
			synctest.Wait()
		}
		opened := make(chan error, 1)
		go func() {
			st, err := c.NewStream(t.Context(), testStream, []byte("abc"))
			if err == nil {
				err = st.Results(func(b []byte) error { PutByteBuffer(b); return nil })
			}
			opened <- err
		}()
		time.Sleep(time.Second)
		require.Empty(t, opened)
		g.net.Stall(g.addr(0), g.addr(1), false)
		require.NoError(t, <-opened)
	})
}

// The default deadline holds for the wait for room as well, and a call that has
// passed it is not made later.
func TestDefaultDeadlineHoldsWhileThereIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGrid(t, 2, func(_ int, o *ManagerOptions) { o.PingInterval, o.WriteTimeout = time.Hour, time.Hour })
		var ran atomic.Int32
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testHandler, func(b []byte) ([]byte, *RemoteErr) {
			ran.Add(1)
			return b, nil
		}))
		c := g.conn(0, 1)
		g.net.Stall(g.addr(0), g.addr(1), true)
		ctx, cancel := context.WithCancel(t.Context())
		for range 8 {
			go func() {
				b, _ := c.SingleRequest(ctx, testEcho, make([]byte, pendingLimit))
				PutByteBuffer(b)
			}()
		}
		synctest.Wait()
		start := time.Now()
		_, err := c.SingleRequest(t.Context(), testHandler, make([]byte, pendingLimit))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.InDelta(t, time.Minute, time.Since(start), float64(2*time.Second))
		cancel()
		g.net.Stall(g.addr(0), g.addr(1), false)
		synctest.Wait()
		require.Zero(t, ran.Load())
		require.Equal(t, StateConnected, c.State())
	})
}

// Between peers of this implementation a window does not fall below the
// capacity of the handler, whichever side receives.
func TestInboxWindowNeverFallsBelowItsCapacity(t *testing.T) {
	b := new(inbox)
	b.init(1, false, true)
	s := &inboxSender{t: t, b: b, credits: 64, size: credit.MaxWindowBytes / 4} // it has 64 credits of its own
	for range 10 {
		require.GreaterOrEqual(t, s.fill(), 64)
		s.consume()
	}
}

func TestRemoteErrIsNoErrorOfThisPackage(t *testing.T) {
	for _, local := range []error{ErrDisconnected, ErrUnknownHandler, ErrHandlerAlreadyExists, ErrIncorrectSequence, ErrFlowControl, ErrMessageTooLarge, ErrProtocol} {
		require.NotErrorIs(t, NewRemoteErr(local), local)
	}
	var none *RemoteErr
	require.False(t, IsRemoteErr(none))
	require.False(t, IsRemoteErr(errors.Join(errClosed)))
}
