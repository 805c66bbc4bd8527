package gridmember

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

func TestGate_WaitsNoLongerThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		begin := time.Now()
		require.ErrorIs(t, g.AcceptHost(t.Context(), self, nil), errNoMember, "before Join")
		require.Equal(t, gateTime, time.Since(begin))
		over := errors.New("over")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, over)
		defer cancel()
		require.ErrorIs(t, g.AcceptHost(ctx, self, nil), over)
		require.Equal(t, gateTime+time.Second, time.Since(begin))
	})
}

// gossiper makes a member with quick gossip, which is a host if it has a manager.
func gossiper(t *testing.T, name string) *memberlist.Config {
	c := memberlist.DefaultLocalConfig()
	c.Name = name
	c.BindAddr, c.BindPort, c.AdvertisePort = "127.0.0.1", 0, 0
	c.GossipInterval, c.PushPullInterval = 20*time.Millisecond, time.Second
	c.LogOutput = io.Discard
	return c
}

func TestGate_LetsInMembersAsSoonAsTheyAreKnown(t *testing.T) {
	m, err := grid.NewManager(t.Context(), grid.ManagerOptions{
		Local: self, Hosts: []string{self}, Insecure: true, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	defer m.Close()
	var g Gate
	accepted := make(chan error, 2)
	accept := func(host string) { accepted <- g.AcceptHost(t.Context(), host, nil) }
	go accept("http://localhost:2") // comes before Join
	s, err := g.Join(m, gossiper(t, ""))
	require.NoError(t, err)
	go accept("http://localhost:2")
	list, err := memberlist.Create(gossiper(t, "http://LocalHost:2")) // in another spelling
	require.NoError(t, err)
	defer list.Shutdown()
	_, err = list.Join([]string{s.List().LocalNode().Address()})
	require.NoError(t, err)
	require.NoError(t, <-accepted)
	require.NoError(t, <-accepted)
	require.NoError(t, g.AcceptHost(t.Context(), "http://localhost:2", nil))
	require.ErrorIs(t, g.AcceptHost(t.Context(), "http://localhost:3", nil), errNoMember)
	require.NoError(t, s.Close())
	require.ErrorIs(t, g.AcceptHost(t.Context(), "http://localhost:3", nil), errNoGossip)
}

func TestGate_StaysShutWhereJoinFails(t *testing.T) {
	m, err := grid.NewManager(t.Context(), grid.ManagerOptions{
		Local: self, Hosts: []string{self}, Insecure: true, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	defer m.Close()
	var g Gate
	_, err = g.Join(m, gossiper(t, ""), "127.0.0.1:1")
	require.Error(t, err)
	s, _ := g.membership()
	require.Nil(t, s)
	s, err = g.Join(m, gossiper(t, ""))
	require.NoError(t, err)
	require.NoError(t, s.Close())
}
