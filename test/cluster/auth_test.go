package cluster

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// Nothing secret is logged, neither where all is well nor where it is not.
func TestSecret_IsNotLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var passes []string
		log := new(rig.LogBook)
		logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		keys := [][]byte{rig.Key, rig.OtherKey, rig.Key}
		g := rig.Setup{Hosts: rig.Names("http", 3), Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			o.Logger = logger
			rig.WithSecret(o, keys[i])
		}, Prepare: func(n *rig.Node) {
			h := n.Server.Handler
			n.Server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				passes = append(passes, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
				mu.Unlock()
				h.ServeHTTP(w, r)
			})
		}}.Start(t)
		for i := range g.Nodes() {
			g.Start(i)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, grid.StateConnected, g.Conn(0, 2).State())
		require.Equal(t, grid.StateConnected, g.Conn(2, 0).State())
		require.NotEqual(t, grid.StateConnected, g.Conn(0, 1).State())
		text := strings.Join(log.About(""), "\n")
		for _, n := range g.Nodes() {
			text += fmt.Sprintf("%+v", n.Stats())
		}
		require.Contains(t, text, "403", text)
		mu.Lock()
		defer mu.Unlock()
		require.NotEmpty(t, passes)
		for _, secret := range append(passes, string(rig.Key), string(rig.OtherKey)) {
			require.NotEmpty(t, secret)
			require.NotContains(t, text, secret)
		}
	})
}

// An application that repeats a token in the error of its check does not have it logged.
func TestToken_CheckThatRepeatsItIsNotLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(rig.LogBook)
		logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		const token = `the token of "a host"`
		g := rig.Setup{Hosts: rig.Names("http", 2), Stopped: true, Edit: func(_ int, o *grid.ManagerOptions) {
			o.Logger = logger
			o.AuthFn = func() string { return token }
			o.AuthToken = func(token string) error { return fmt.Errorf("%q is not valid", token) }
		}}.Start(t)
		g.Start(0)
		g.Start(1)
		time.Sleep(time.Minute)
		synctest.Wait()
		text := strings.Join(log.About(""), "\n")
		require.Contains(t, text, "[redacted]")
		require.NotContains(t, text, "the token of")
		require.NotContains(t, text, "a host")
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
