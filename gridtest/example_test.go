package gridtest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
)

// store is a service to be tested: it keeps what it was told, and asks the other
// hosts for what it does not know.
type store struct {
	m      *grid.Manager
	mu     sync.Mutex
	values map[string]string
}

const storeGet grid.HandlerID = 1

func newStore(m *grid.Manager) (*store, error) {
	s := &store{m: m, values: make(map[string]string)}
	return s, m.RegisterSingleHandler(storeGet, func(key []byte) ([]byte, *grid.RemoteErr) {
		value, ok := s.local(string(key))
		if !ok {
			return nil, grid.NewRemoteErrf("no %s here", key)
		}
		return []byte(value), nil
	})
}

func (s *store) set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = value
}

func (s *store) local(key string) (value string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok = s.values[key]
	return value, ok
}

func (s *store) get(ctx context.Context, key string) (string, error) {
	if value, ok := s.local(key); ok {
		return value, nil
	}
	err := fmt.Errorf("nobody to ask for %s", key)
	for _, host := range s.m.Targets() {
		var answer []byte
		if answer, err = s.m.Connection(host).SingleRequest(ctx, storeGet, []byte(key)); err == nil {
			s.set(key, string(answer))
			return string(answer), nil
		}
	}
	return "", err
}

// The package documentation shows this test; TestGridtestDocs_ShowTheExample keeps the two
// the same.

func TestStore_OutlivesFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stores := make([]*store, 3)
		g := gridtest.New(t, 3, gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
			stores[node], err = newStore(m)
			return err
		}))
		require := func(node int, key, want string) {
			t.Helper()
			if got, err := stores[node].get(t.Context(), key); got != want || err != nil {
				t.Fatalf("node %d says that %s is %q, %v", node, key, got, err)
			}
		}
		stores[0].set("sky", "blue")
		require(1, "sky", "blue")

		// A link is lost, and comes back.
		stores[0].set("grass", "green")
		g.Cut(0, 2)
		g.WaitConnected()
		require(2, "grass", "green")

		// Node 0 forgets everything. Node 1 has asked before.
		g.Restart(0)
		g.WaitConnected()
		require(0, "sky", "blue")

		// Node 2 is on its own.
		g.Partition([]int{2})
		if _, err := stores[2].get(t.Context(), "sky"); err == nil {
			t.Fatal("node 2 knows about the sky")
		}
		g.Heal()
		g.WaitConnected()
		require(2, "sky", "blue")
	})
}
