package calls

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// However long an error's text is, and however small the messages that are allowed, it arrives as
// an error and nothing else is lost.
func TestError_TextIsClippedAndNoOtherCallIsLost(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", rig.MaxErrorText)
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = 16 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString(long) })
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler+1, func([]byte) ([]byte, *grid.RemoteErr) { panic(long) }))
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+2, grid.StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
				return grid.NewRemoteErrString(long)
			},
		}))
		check := func(err error) {
			t.Helper()
			require.True(t, grid.IsRemoteErr(err), "%.100s", err)
			require.LessOrEqual(t, len(err.Error()), rig.MaxErrorText)
			require.Greater(t, len(err.Error()), rig.MaxErrorText-10)
			require.True(t, utf8.ValidString(err.Error()))
			require.True(t, strings.HasSuffix(err.Error(), "é..."))
		}
		st, err := c.NewStream(t.Context(), rig.Block, nil) // what must not be lost
		require.NoError(t, err)
		_, err = c.SingleRequest(t.Context(), rig.Handler, nil)
		check(err)
		_, err = c.SingleRequest(t.Context(), rig.Handler+1, nil)
		check(err)
		failing, err := c.NewStream(t.Context(), rig.Handler+2, nil)
		require.NoError(t, err)
		check(failing.Results(func([]byte) error { return nil }))
		time.Sleep(time.Minute) // pings are larger than such messages, too
		require.Equal(t, grid.StateConnected, c.State())
		require.NoError(t, st.Err())
		close(st.Requests)
	})
}

// A check of the application's that panics ends the handshake, and neither the socket nor Close.
func TestHandshake_TokenCheckThatPanicsEndsNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) {
			check := o.AuthToken
			o.AuthToken = func(token string) error {
				if calls.Add(1) == 2 { // the first time in the handshake
					panic("out of order")
				}
				return check(token)
			}
		})
		g.RequireWorks() // it came at the second attempt
	})
}

func TestUpgrade_TokenWithoutItsSchemeIsRefused(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	for header, want := range map[string]int{
		"Bearer " + rig.Token: http.StatusSwitchingProtocols,
		rig.Token:             http.StatusForbidden,
		"Basic " + rig.Token:  http.StatusForbidden,
		"":                    http.StatusForbidden,
	} {
		req, err := http.NewRequest(http.MethodGet, g.Host(0)+grid.RoutePath, nil)
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
func TestClose_LetsASenderThatWaitsGo(t *testing.T) {
	t.Parallel()
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			g := rig.New(t, 2, nil)
			st, err := g.Conn(0, 1).NewStream(t.Context(), rig.Block, nil)
			require.NoError(t, err)
			st.Requests <- nil // the handler's one credit
			st.Requests <- nil // waits in the forwarder
			sent := make(chan struct{})
			go func() {
				st.Requests <- nil
				close(sent)
			}()
			synctest.Wait()
			require.NoError(t, g.Manager(0).Close())
			<-sent
		})
	}
}

// While an open waits for room, nothing else of the stream may be sent.
func TestPing_StreamThatWaitsToBeOpenedGetsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) {
			o.StreamPingInterval = 100 * time.Millisecond
			o.PingInterval, o.WriteTimeout = time.Hour, time.Hour
		})
		c := g.Conn(0, 1)
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, size := range []int{rig.WholeSize, 1 << 10, 0} { // fill socket and queue, to the last byte
			for range 300 {
				go func() {
					b, _ := c.SingleRequest(ctx, rig.Echo, make([]byte, size))
					grid.PutByteBuffer(b)
				}()
			}
			synctest.Wait()
		}
		opened := make(chan error, 1)
		go func() {
			st, err := c.NewStream(t.Context(), rig.Stream, []byte("abc"))
			if err == nil {
				err = st.Results(func(b []byte) error { grid.PutByteBuffer(b); return nil })
			}
			opened <- err
		}()
		time.Sleep(time.Second)
		require.Empty(t, opened)
		g.Net.Stall(g.Addr(0), g.Addr(1), false)
		require.NoError(t, <-opened)
	})
}

// The default deadline holds for the wait for room as well, and a call that has passed it is not
// made later.
func TestDeadline_DefaultHoldsWhileThereIsNoRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.PingInterval, o.WriteTimeout = time.Hour, time.Hour })
		var ran atomic.Int32
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
			ran.Add(1)
			return b, nil
		}))
		c := g.Conn(0, 1)
		g.Net.Stall(g.Addr(0), g.Addr(1), true)
		ctx, cancel := context.WithCancel(t.Context())
		for range 8 {
			go func() {
				b, _ := c.SingleRequest(ctx, rig.Echo, make([]byte, rig.PendingLimit))
				grid.PutByteBuffer(b)
			}()
		}
		synctest.Wait()
		start := time.Now()
		_, err := c.SingleRequest(t.Context(), rig.Handler, make([]byte, rig.PendingLimit))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.InDelta(t, time.Minute, time.Since(start), float64(2*time.Second))
		cancel()
		g.Net.Stall(g.Addr(0), g.Addr(1), false)
		synctest.Wait()
		require.Zero(t, ran.Load())
		require.Equal(t, grid.StateConnected, c.State())
	})
}
