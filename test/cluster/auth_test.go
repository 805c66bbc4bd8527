package cluster

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
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
		var tokens []string
		log := new(rig.LogBook)
		logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		keys := [][]byte{rig.Key, rig.OtherKey, rig.Key}
		g := rig.Setup{Hosts: rig.Names("http", 3), Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			sign, validate := grid.SharedSecret(keys[i])
			o.Logger = logger
			o.AuthFn = func() string {
				token := sign()
				mu.Lock()
				defer mu.Unlock()
				tokens = append(tokens, token)
				return token
			}
			o.AuthToken = func(token string) error {
				if err := validate(token); err != nil {
					return fmt.Errorf("%w: %s", err, token) // an application that is careless
				}
				return nil
			}
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
		require.NotEmpty(t, tokens)
		for _, secret := range append(tokens, string(rig.Key), string(rig.OtherKey)) {
			require.NotContains(t, text, secret)
		}
	})
}
