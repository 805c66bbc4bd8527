package gridraft_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
	"github.com/gridrpc/grid/gridtest"
)

// strangers are nodes of which each knows itself alone, and takes in whoever comes.
func strangers() gridtest.Option {
	return gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) {
		o.Hosts = []string{o.Local}
		o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
	})
}

// startAlone starts the raft server of a node. The first one is a cluster of its own.
func startAlone(t *testing.T, r *rig, node int) *raft.Raft {
	tr := r.at(node)
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = raft.ServerID(tr.LocalAddr()), hclog.NewNullLogger()
	store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	if node == 0 {
		me := raft.Configuration{Servers: []raft.Server{{ID: c.LocalID, Address: tr.LocalAddr()}}}
		require.NoError(t, raft.BootstrapCluster(c, store, store, snaps, tr, me))
	}
	s, err := raft.NewRaft(c, nothing{}, store, store, snaps, tr)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Shutdown().Error()) })
	require.NoError(t, tr.ServeJoin(s))
	return s
}

// Each node knows one other, which need not lead. In the end all know all, and outlive the first.
func TestJoin_ByOneThatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 4, nil, strangers())
		var servers []*raft.Raft
		for i := range 4 {
			servers = append(servers, startAlone(t, r, i))
		}
		joined := make(chan error, 3)
		for i := 3; i > 0; i-- { // those that they ask have not joined yet
			go func() { joined <- r.at(i).Join(t.Context(), raft.ServerID(r.Host(i)), r.Host(i-1)) }()
			time.Sleep(time.Second)
		}
		for range 3 {
			require.NoError(t, <-joined)
		}
		time.Sleep(10 * time.Second)
		for i := range servers {
			require.Len(t, servers[i].GetConfiguration().Configuration().Servers, 4)
			require.Len(t, r.Manager(i).Targets(), 3)
		}
		require.Equal(t, raft.Leader, servers[0].State())
		require.NoError(t, servers[0].Apply([]byte("a"), time.Second).Error())
		r.Stop(0)
		time.Sleep(10 * time.Second)
		leaders := 0
		for _, s := range servers[1:] {
			if s.State() == raft.Leader {
				leaders++
				require.NoError(t, s.Apply([]byte("b"), time.Second).Error())
			}
		}
		require.Equal(t, 1, leaders)
		// Whoever is in already stays as it is.
		require.NoError(t, r.at(1).Join(t.Context(), raft.ServerID(r.Host(1)), r.Host(2)))
	})
}

func TestJoin_EndsWithItsContextAndTheTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, nil, strangers())
		startAlone(t, r, 1) // which leads nobody
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, r.at(0).ServeJoin(nil), nil)
		require.ErrorIs(t, r.at(0).ServeJoin(nil), grid.ErrHandlerAlreadyExists)
		err := r.at(2).Join(ctx, "two", r.Host(1))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "there is no leader")
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Error(t, r.at(2).Join(ctx, "two", "no host"))
		time.AfterFunc(time.Second, func() { r.at(2).Close() })
		begin := time.Now()
		require.ErrorIs(t, r.at(2).Join(t.Context(), "two", r.Host(1)), raft.ErrTransportShutdown)
		require.Equal(t, time.Second, time.Since(begin))
		require.Equal(t, raft.ErrTransportShutdown, r.at(2).ServeJoin(nil))
	})
}

// A join by the ID of a server that is in already takes nobody's place.
func TestJoin_ByAnIDThatIsTakenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 4, nil, strangers())
		var servers []*raft.Raft
		for i := range 4 {
			servers = append(servers, startAlone(t, r, i))
		}
		for i := 1; i < 3; i++ {
			require.NoError(t, r.at(i).Join(t.Context(), raft.ServerID(r.Host(i)), r.Host(0)))
		}
		before := servers[0].GetConfiguration().Configuration()
		for _, taken := range []int{0, 1} {
			require.ErrorIs(t, r.at(3).Join(t.Context(), raft.ServerID(r.Host(taken)), r.Host(0)), gridraft.ErrServerExists)
		}
		require.Equal(t, before, servers[0].GetConfiguration().Configuration())
		require.NoError(t, r.at(3).Join(t.Context(), raft.ServerID(r.Host(3)), r.Host(1)))
	})
}
