package grid

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

var (
	testKey  = []byte("0123456789abcdef")
	otherKey = []byte("fedcba9876543210 and more")
)

// Nothing secret is logged, neither where all is well nor where it is not.
func TestSecretsAreNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var tokens []string
		log := new(logBook)
		logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		keys := [][]byte{testKey, otherKey, testKey}
		g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: []string{"http://node0:9000", "http://node1:9000", "http://node2:9000"}}
		g.edit = func(i int, o *ManagerOptions) {
			sign, validate := SharedSecret(keys[i])
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
		}
		g.nodes = make([]*node, 3)
		t.Cleanup(g.stopAll)
		for i := range g.nodes {
			g.start(i)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, StateConnected, g.conn(0, 2).State())
		require.Equal(t, StateConnected, g.conn(2, 0).State())
		require.NotEqual(t, StateConnected, g.conn(0, 1).State())
		text := strings.Join(log.about(""), "\n")
		for _, n := range g.nodes {
			text += fmt.Sprintf("%+v", n.Stats())
		}
		require.Contains(t, text, "403", text)
		mu.Lock()
		defer mu.Unlock()
		require.NotEmpty(t, tokens)
		for _, secret := range append(tokens, string(testKey), string(otherKey)) {
			require.NotContains(t, text, secret)
		}
	})
}
