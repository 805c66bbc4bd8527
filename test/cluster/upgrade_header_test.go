package cluster

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// UpgradeHeader: what the application adds to the upgrade request.

func TestUpgradeHeader_GoesWithEachAttemptOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		s := rig.ListenLone(t, n, rawpeer.Config{})
		var calls atomic.Int32
		var target atomic.Value
		g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) {
			o.UpgradeHeader = func(to string) http.Header {
				calls.Add(1)
				target.Store(to)
				return http.Header{"x-odd-Spelling": {"one", "two"}, "X-Route": {to}}
			}
		})
		for i := range int32(3) {
			p := s.Accept()
			require.NoError(t, g.Manager(0).Connection(raw).WaitForConnect(t.Context()))
			require.Equal(t, i+1, calls.Load())
			require.Equal(t, raw, target.Load())
			require.Equal(t, []string{"one", "two"}, p.Request.Header.Values("X-Odd-Spelling"))
			require.Equal(t, raw, p.Request.Header.Get("X-Route"))
			require.Equal(t, "Bearer "+rig.Token, p.Request.Header.Get("Authorization"))
			p.Close()
			synctest.Wait()
		}
	})
}

func TestUpgradeHeader_ThatMayNotBeSetFailsTheAttempt(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"Authorization":          `UpgradeHeader: the header "Authorization" is not for an application to set`,
		"sec-websocket-protocol": `UpgradeHeader: the header "sec-websocket-protocol" is not`,
		"no name":                `UpgradeHeader: "no name" is no name of a header`,
	} {
		synctest.Test(t, func(t *testing.T) {
			n := faultconn.NewNetwork()
			rig.ListenLone(t, n, rawpeer.Config{})
			logger, log := rig.NewLogBook()
			g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) {
				o.Logger = logger
				o.UpgradeHeader = func(string) http.Header { return http.Header{name: {"a secret value"}} }
			})
			c := g.Manager(0).Connection(raw)
			rig.WaitState(t, c, grid.StateConnectionError)
			require.Contains(t, c.Stats().LastError, want)
			synctest.Wait()
			require.NotEmpty(t, log.About("grid: cannot connect"))
			require.Empty(t, log.About("a secret value"))
		})
	}
}

// What the application sends may be a secret, which nobody gets to see because the other side
// repeats it.
func TestUpgradeHeader_ThatIsRepeatedIsNotShown(t *testing.T) {
	t.Parallel()
	const secret = "key-of-the-proxy-on-the-way"
	for name, serve := range map[string]rawpeer.Config{
		"upgrade":   {ClockHeader: "X-Key"}, // is no number, which the answer says
		"handshake": {Refuse: "no, not with " + secret},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				rig.ListenLone(t, n, serve)
				g, raw := rig.NewLone(t, n, false, func(o *grid.ManagerOptions) {
					o.UpgradeHeader = func(string) http.Header { return http.Header{"X-Key": {secret}} }
				})
				c := g.Manager(0).Connection(raw)
				rig.WaitState(t, c, grid.StateConnectionError)
				require.False(t, strings.Contains(c.Stats().LastError, secret), c.Stats().LastError)
				require.Contains(t, c.Stats().LastError, "[redacted]")
			})
		})
	}
}
