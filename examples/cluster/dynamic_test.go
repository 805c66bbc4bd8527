package main

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// joinCluster starts a process of a cluster that nodes join and leave.
func joinCluster(ctx context.Context, t *testing.T, dir, local string, through ...string) *serving {
	t.Helper()
	return newProcess(ctx, append([]string{local}, through...), local, dir, "-dynamic", "-http", "127.0.0.1:0").start(t)
}

// connectedTo is a condition for until: these are the hosts, and all are connected.
func (s *serving) connectedTo(t *testing.T, hosts ...string) func() bool {
	want := make(map[string]string)
	for _, h := range hosts {
		want[h] = "connected"
	}
	return func() bool { return maps.Equal(want, s.links(t)) }
}

// done is what a node prints when it has used another, of testTree.
const done = "10 entries, 2.1 KiB; it counts 10 itself"

func TestDynamic_NodesJoinOneAfterAnotherAndLeave(t *testing.T) {
	skipWithoutSignals(t)
	ctx, dir, hosts := testContext(t), testTree(t), freeHosts(t, 3)
	a := joinCluster(ctx, t, dir, hosts[0])
	b := joinCluster(ctx, t, dir, hosts[1], hosts[0])
	until(t, within, "the second is connected", a.connectedTo(t, hosts[1]), b.connectedTo(t, hosts[0]))
	c := joinCluster(ctx, t, dir, hosts[2], hosts[0])
	until(t, within, "all are connected", a.connectedTo(t, hosts[1], hosts[2]),
		b.connectedTo(t, hosts[0], hosts[2]), c.connectedTo(t, hosts[0], hosts[1]))
	until(t, within, "all have used each other", a.prints(done, 2), b.prints(done, 2), c.prints(done, 2))
	c.requireMesh(t, 3)

	b.requireEndsWell(t)
	require.Contains(t, b.out.String(), "\nleft, with 2 of the others told\n\nAll 6 checks held\n")
	until(t, within, "it is removed", a.connectedTo(t, hosts[2]), c.connectedTo(t, hosts[0]))
	left := "\n" + hosts[1] + " has left\n"
	until(t, within, "it is reported", a.prints(left, 1), c.prints(left, 1))

	b = joinCluster(ctx, t, dir, hosts[1], hosts[2])
	until(t, within, "it is back, and used again", a.prints(done, 3), b.prints(done, 2), c.prints(done, 3))
	for _, s := range []*serving{a, b, c} {
		s.requireEndsWell(t)
		require.NotContains(t, s.out.String(), "is lost")
	}
}

func TestDynamic_NodesThatJoinAtATimeThroughDifferentNodesKnowEachOther(t *testing.T) {
	ctx, dir, hosts := testContext(t), testTree(t), freeHosts(t, 4)
	a := joinCluster(ctx, t, dir, hosts[0])
	b := joinCluster(ctx, t, dir, hosts[1], hosts[0])
	until(t, within, "two are connected", a.connectedTo(t, hosts[1]), b.connectedTo(t, hosts[0]))

	// joinCluster returns before a node has joined.
	c := joinCluster(ctx, t, dir, hosts[2], hosts[0])
	d := joinCluster(ctx, t, dir, hosts[3], hosts[1])
	until(t, within, "all are connected",
		a.connectedTo(t, hosts[1], hosts[2], hosts[3]), b.connectedTo(t, hosts[0], hosts[2], hosts[3]),
		c.connectedTo(t, hosts[0], hosts[1], hosts[3]), d.connectedTo(t, hosts[0], hosts[1], hosts[2]))
}

func TestDynamic_NodeThatIsKilledComesBackUnderItsURL(t *testing.T) {
	ctx, dir, hosts := testContext(t), testTree(t), freeHosts(t, 3)
	a := joinCluster(ctx, t, dir, hosts[0])
	b := joinCluster(ctx, t, dir, hosts[1], hosts[0])
	until(t, within, "two have used each other", a.prints(done, 1), b.prints(done, 1))

	require.NoError(t, a.Process.Kill())
	lost := func() bool {
		state, known := b.links(t)[hosts[0]]
		return known && state != "connected"
	}
	until(t, within, "it is lost, and stays a host", lost, b.prints("\n"+hosts[0]+" is lost: ", 1))

	// Who joins meanwhile hears of it, and is heard of when it is back.
	c := joinCluster(ctx, t, dir, hosts[2], hosts[1])
	until(t, within, "another has joined", c.prints(done, 1))
	a.Wait()
	a = joinCluster(ctx, t, dir, hosts[0], hosts[1])
	until(t, within, "it is back", a.connectedTo(t, hosts[1], hosts[2]),
		b.connectedTo(t, hosts[0], hosts[2]), c.connectedTo(t, hosts[0], hosts[1]),
		b.prints("\n"+hosts[0]+" is connected again\n", 1))
}

func TestDynamic_NodeWaitsForTheOneToJoinThrough(t *testing.T) {
	ctx, dir, hosts := testContext(t), testTree(t), freeHosts(t, 2)
	b := joinCluster(ctx, t, dir, hosts[1], hosts[0])
	until(t, within, "it goes on trying", b.prints("a node is not there yet", 1))
	a := joinCluster(ctx, t, dir, hosts[0])
	until(t, within, "both are connected", a.connectedTo(t, hosts[1]), b.connectedTo(t, hosts[0]))
}

func TestDynamic_NodeThatIsRefusedSaysWhy(t *testing.T) {
	ctx, dir, hosts := testContext(t), testTree(t), freeHosts(t, 3)
	a := joinCluster(ctx, t, dir, hosts[0])
	newProcess(ctx, hosts[1:], hosts[1], dir, "-http", "127.0.0.1:0").start(t)
	for _, c := range []struct{ through, secret, want string }{
		{hosts[0], "not-the-secret-of-the-others", "refused: 403 Forbidden: "},
		{hosts[1], testSecret, "no request handler with ID"}, // of a fixed cluster, which knows it
	} {
		p := newProcess(ctx, []string{hosts[2], c.through}, hosts[2], dir, "-dynamic", "-secret", c.secret)
		var exit *exec.ExitError
		require.True(t, errors.As(p.Run(), &exit), "%s", &p.out)
		require.Equal(t, 1, exit.ExitCode())
		require.Contains(t, p.errs.String(), "cluster: joining through "+c.through+": ")
		require.Contains(t, p.errs.String(), c.want)
		require.NotContains(t, p.out.String()+p.errs.String(), c.secret)
	}
	require.Empty(t, a.links(t))
}

// A node that leaves while it is used is no reason for another to end with an error.
func TestDynamic_CallsThatEndWithTheLinkAreNoFailureWhereNodesLeave(t *testing.T) {
	a, b := connectedNodes(t)
	b.Close()
	for _, c := range []struct {
		dynamic bool
		checks  int
	}{{true, 0}, {false, 1}} {
		var out bytes.Buffer
		r := newReport(&out)
		m := &member{dynamic: c.dynamic}
		require.False(t, m.use(testContext(t), r, a, b.HostName()))
		require.Contains(t, out.String(), grid.ErrDisconnected.Error())
		require.Equal(t, c.checks, r.checks)
		require.Len(t, r.failed, c.checks)
	}
}
