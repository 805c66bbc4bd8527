package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// startDynamic starts a node that others may join, to be stopped with the test.
func startDynamic(t *testing.T, host string) *dynamic {
	l, err := net.Listen("tcp", addr(host))
	require.NoError(t, err)
	d := &dynamic{leaving: make(map[string]time.Time)}
	n, err := startNode(t.Context(), host, l, testSecret, testTree(t), grid.ManagerOptions{
		Local:         host,
		Hosts:         []string{host},
		AcceptHost:    d.accept,
		OnStateChange: func(c grid.StateChange) { d.removeLeft(c) },
		Logger:        slog.New(slog.DiscardHandler),
	}, d.register)
	require.NoError(t, err)
	t.Cleanup(n.stop)
	return d
}

// startJoining has a node join through another, until the test ends.
func startJoining(ctx context.Context, t *testing.T, d *dynamic, through string) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.join(ctx, []string{through}) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// A host may have another program at its address by now.
func TestJoin_IsNotPreventedByAHostThatFails(t *testing.T) {
	hosts := freeHosts(t, 3)
	a, b, d := startDynamic(t, hosts[0]), startDynamic(t, hosts[1]), startDynamic(t, hosts[2])
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for _, host := range []string{other.URL, hosts[1]} {
		require.NoError(t, a.add(host))
	}
	startJoining(testContext(t), t, d, hosts[0])
	until(t, within, "the node knows all, and they know it", func() bool {
		return slices.Contains(d.Targets(), hosts[1]) && slices.Contains(d.Targets(), other.URL) &&
			slices.Contains(a.Targets(), hosts[2]) && slices.Contains(b.Targets(), hosts[2])
	})
	until(t, within, "those that are there are connected", func() bool { return d.Stats().Connected == 2 })
}

// joined are two nodes of which the second has joined through the first.
func joined(t *testing.T) (a, b *dynamic) {
	hosts := freeHosts(t, 2)
	a, b = startDynamic(t, hosts[0]), startDynamic(t, hosts[1])
	ctx := testContext(t)
	startJoining(ctx, t, b, hosts[0])
	until(t, within, "the two know each other",
		func() bool { return len(a.Targets()) == 1 }, func() bool { return len(b.Targets()) == 1 })
	require.NoError(t, a.waitConnected(ctx))
	require.NoError(t, b.waitConnected(ctx))
	return a, b
}

func TestLeave_InPlaceOfAnotherIsRefused(t *testing.T) {
	ctx := testContext(t)
	a, b := joined(t)
	require.NoError(t, a.add("http://127.0.0.1:1"))
	for _, host := range []string{"http://127.0.0.1:1", a.HostName(), ""} {
		_, err := b.Connection(a.HostName()).SingleRequest(ctx, leaveID, []byte(host))
		require.True(t, grid.IsRemoteErr(err), "%v", err)
		require.ErrorContains(t, err, b.HostName()+" may not leave in place of another host")
	}
	b.Close()
	until(t, within, "the link has ended", func() bool { return a.Stats().Connected == 0 })
	require.ElementsMatch(t, []string{b.HostName(), "http://127.0.0.1:1"}, a.Targets())
}

func TestLeave_RemovesTheNodeWhenItsLinkHasEnded(t *testing.T) {
	a, b := joined(t)
	require.Equal(t, 1, b.leave(testContext(t)))
	require.Equal(t, []string{b.HostName()}, a.Targets())
	b.Close()
	until(t, within, "it is removed", func() bool { return len(a.Targets()) == 0 })
}

// A node that is back, over a new link, before the end of the old one was noticed, stays.
func TestLeave_IsOverWithTheNextLink(t *testing.T) {
	a, b := joined(t)
	before := grid.StateChange{Host: b.HostName(), To: grid.StateConnected, Time: time.Now()}
	require.Equal(t, 1, b.leave(testContext(t)))
	require.False(t, a.removeLeft(before), "which was told late")
	require.NotContains(t, a.staying(), b.HostName())
	require.False(t, a.removeLeft(grid.StateChange{Host: b.HostName(), To: grid.StateConnected, Time: time.Now()}))
	require.Contains(t, a.staying(), b.HostName())
	b.Close()
	until(t, within, "the link has ended", func() bool { return a.Stats().Connected == 0 })
	require.Equal(t, []string{b.HostName()}, a.Targets())
}

// A node that leaves would not tell one that joins now.
func TestJoin_NodeThatLeavesCantBeJoined(t *testing.T) {
	hosts := freeHosts(t, 2)
	a, b := startDynamic(t, hosts[0]), startDynamic(t, hosts[1])
	require.Zero(t, a.leave(t.Context()))
	err := b.join(t.Context(), hosts[:1])
	require.ErrorIs(t, err, grid.ErrNotAccepted)
	require.ErrorContains(t, err, "this node leaves")
	require.Empty(t, a.Targets())
	require.Empty(t, b.Targets())
}

// Who answers knows the secret, and is not believed without limit even then.
func TestJoin_AnswersAreChecked(t *testing.T) {
	var many []string
	for i := range maxHosts + 1 {
		many = append(many, fmt.Sprintf("http://127.0.0.1:1%04d", i))
	}
	for want, answer := range map[string][]string{
		"the answer has 1001 hosts, the limit is 1000": many,
		"": {"http://127.0.0.1:1/delete?x=", "http://u:p@127.0.0.1:1", "::", ""},
	} {
		hosts := freeHosts(t, 2)
		l, err := net.Listen("tcp", addr(hosts[0]))
		require.NoError(t, err)
		liar, err := startNode(t.Context(), hosts[0], l, testSecret, testTree(t), grid.ManagerOptions{
			Local: hosts[0], Hosts: hosts, Logger: slog.New(slog.DiscardHandler),
		}, func(n *node) error {
			return hostsOf.Register(n.Manager, func(grid.NoPayload) (*grid.JSON[[]string], *grid.RemoteErr) {
				return hostLists.NewJSONWith(&answer), nil
			})
		})
		require.NoError(t, err)
		d := startDynamic(t, hosts[1])
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- d.join(ctx, hosts[:1]) }()
		if want == "" { // it is a host now, and the others are not
			until(t, within, "it is connected", func() bool { return d.Stats().Connected == 1 })
			time.Sleep(100 * time.Millisecond)
			require.Equal(t, hosts[:1], d.Targets())
			cancel()
			require.NoError(t, <-ended)
		} else {
			require.ErrorContains(t, <-ended, want)
			require.Empty(t, d.Targets())
		}
		liar.stop()
	}
}
