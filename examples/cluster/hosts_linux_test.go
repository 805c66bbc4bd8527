package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

const (
	// labNotice is the time after which a dead link must have been noticed, by what the library
	// promises, and what a busy machine may add to it.
	labNotice = 3*labPing + labPing/4
	// labHeal is the longest pause between attempts to connect, and time for the attempt.
	labHeal = 6 * time.Second
	// labStart is the time for processes to start, connect and do their work.
	labStart = 15 * time.Second
)

// pings formats a time as what it is in ping intervals.
func pings(d time.Duration) string {
	return fmt.Sprintf("%.2f ping intervals (%v)", d.Seconds()/labPing.Seconds(), d.Round(time.Millisecond))
}

// Three hosts, in network namespaces of their own, go through what happens to hosts and links, as
// it is seen from outside their processes.
func TestLab_AcrossHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make test-long runs it")
	}
	l := newLab(t)
	a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
	for _, h := range l.hosts {
		l.requireWorkDone(t, h)
	}
	if a.linkTo(t, b).Dials {
		a, b = b, a
	}
	// Now b dials a.
	for _, s := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"link down where it is dialled", func(t *testing.T) {
			l.fault(t, a, b, c, func() { l.set(t, a, b, "down") }, func() { l.set(t, a, b, "up") })
		}},
		{"link down where it dials", func(t *testing.T) {
			l.fault(t, b, a, c, func() { l.set(t, b, a, "down") }, func() { l.set(t, b, a, "up") })
		}},
		{"link that swallows everything", func(t *testing.T) {
			l.fault(t, a, b, c, func() { l.impair(t, a, b, impairment{loss: 100}) }, func() { l.impair(t, a, b, impairment{}) })
		}},
		{"poor link", func(t *testing.T) { l.poorLink(t, a, b) }},
		{"process frozen", func(t *testing.T) { l.freeze(t, a, b, c) }},
		{"process killed and started again", func(t *testing.T) { l.restart(t, a, b, c) }},
	} {
		if !t.Run(s.name, s.run) {
			break // the lab is not as it was
		}
	}
}

// requireWorkDone waits until the process of a host has used all others, and is content with what
// came.
func (l *lab) requireWorkDone(t *testing.T, h *labHost) {
	times := until(t, labStart, h.url+" has done its work",
		func() bool { return strings.Contains(h.out.String(), "serving; stop with Ctrl-C") })
	require.Contains(t, h.out.String(), "All 7 checks held")
	t.Logf("%s has used both others after %v", h.url, times[0].Round(time.Millisecond))
}

func isConnected(t *testing.T, a, b *labHost) func() bool {
	return func() bool { return a.linkTo(t, b).State == grid.StateConnected.String() }
}

func isLost(t *testing.T, a, b *labHost) func() bool {
	return func() bool { return a.linkTo(t, b).State != grid.StateConnected.String() }
}

// fault has the link between a and b fail, with a call and a stream on it, and checks who notices,
// and that it heals.
func (l *lab) fault(t *testing.T, a, b, c *labHost, begin, end func()) {
	others := func() (links []linkStatus) {
		for _, pair := range [][2]*labHost{{a, c}, {c, a}, {b, c}, {c, b}} {
			require.NoError(t, pair[0].askDisk(pair[1]))
			k := pair[0].linkTo(t, pair[1])
			links = append(links, linkStatus{ConnectionStats: grid.ConnectionStats{
				LastConnect: k.LastConnect, Reconnects: k.Reconnects}, State: k.State})
		}
		return links
	}
	before := others()

	tree, err := a.openTree(b, "?forever=true")
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, tree, 100<<10)
	require.NoError(t, err)
	var failed sync.WaitGroup
	var last string
	var treeErr, callErr error
	failed.Go(func() { _, last, treeErr = readTree(tree) })
	begin()
	failed.Go(func() { callErr = b.askDisk(a) })
	noticed := until(t, labNotice, "noticed on both sides", isLost(t, a, b), isLost(t, b, a))
	failed.Wait()
	require.NoError(t, treeErr)
	require.Contains(t, last, `{"Error":"grid: disconnected`)
	require.ErrorContains(t, callErr, "503 Service Unavailable: grid: disconnected")
	t.Logf("noticed at one host after %s, at the other after %s", pings(noticed[0]), pings(noticed[1]))
	t.Logf("the call failed with %q, the stream with %s", callErr, last)

	start := time.Now()
	require.ErrorContains(t, a.askDisk(b), "503 Service Unavailable: grid: disconnected: ")
	require.ErrorContains(t, b.askDisk(a), "503 Service Unavailable: grid: disconnected: ")
	require.Less(t, time.Since(start), labPing, "a call without a link waits")
	require.Equal(t, before, others(), "other links have suffered")

	// It goes on until an attempt to connect has met it.
	until(t, labHeal, "an attempt to connect", func() bool {
		ab, ba := a.linkTo(t, b), b.linkTo(t, a)
		return ab.State == grid.StateConnecting.String() || ba.State == grid.StateConnecting.String() ||
			strings.Contains(ab.LastError+ba.LastError, "dial") // refused, or timed out
	})
	end()
	healed := until(t, labHeal, "healed on both sides", isConnected(t, a, b), isConnected(t, b, a))
	t.Logf("healed at one host after %s, at the other after %s", pings(healed[0]), pings(healed[1]))
	require.NoError(t, a.askDisk(b))
	require.NoError(t, b.askDisk(a))
	require.Equal(t, before, others(), "other links have suffered")
}

// poorLink uses a link that loses and delays packets, and puts them out of order: TCP makes up for
// that, and the pings are in time nevertheless.
func (l *lab) poorLink(t *testing.T, a, b *labHost) {
	want, err := count(t.Context(), a.dir) // b's is the same
	require.NoError(t, err)
	wantLast := fmt.Sprintf(`{"Files":%d,"Dirs":%d,"Bytes":%d}`, want.Files, want.Dirs, want.Bytes)
	before := a.linkTo(t, b)
	l.impair(t, a, b, impairment{delay: 50 * time.Millisecond, jitter: 10 * time.Millisecond, loss: 2})
	defer l.impair(t, a, b, impairment{})

	const callers, calls = 8, 40
	var wg sync.WaitGroup
	var mu sync.Mutex
	var slowest time.Duration
	for i := range callers {
		from, to := a, b
		if i%2 == 0 {
			from, to = b, a
		}
		wg.Go(func() {
			for range calls {
				start := time.Now()
				if err := from.askDisk(to); err != nil {
					t.Errorf("a call failed: %v", err)
				}
				mu.Lock()
				slowest = max(slowest, time.Since(start))
				mu.Unlock()
			}
		})
		wg.Go(func() {
			start := time.Now()
			tree, err := from.openTree(to, "")
			if err != nil {
				t.Errorf("no stream: %v", err)
				return
			}
			if n, last, err := readTree(tree); err != nil || n != want.entries()+1 || last != wantLast {
				t.Errorf("a stream ended after %d lines with %s, %v", n, last, err)
			}
			mu.Lock()
			t.Logf("a stream took %v", time.Since(start).Round(time.Millisecond))
			mu.Unlock()
		})
	}
	wg.Wait()
	after := a.linkTo(t, b)
	t.Logf("the slowest of %d calls took %v; a ping and back %s", callers*calls, slowest.Round(time.Millisecond), after.RoundTrip)
	rtt, err := time.ParseDuration(after.RoundTrip)
	require.NoError(t, err)
	require.Greater(t, rtt, 60*time.Millisecond, "nothing was delayed")
	require.Equal(t, before.Reconnects, after.Reconnects, "the link was lost: %s", after.LastError)
}

// freeze stops the process of a host for a while: its kernel goes on to take and acknowledge what
// the others send.
func (l *lab) freeze(t *testing.T, a, b, c *labHost) {
	require.NoError(t, a.process.Process.Signal(syscall.SIGSTOP))
	noticed := until(t, labNotice, "noticed by both", isLost(t, b, a), isLost(t, c, a))
	t.Logf("noticed at one host after %s, at the other after %s", pings(noticed[0]), pings(noticed[1]))
	require.NoError(t, b.askDisk(c))

	require.NoError(t, a.process.Process.Signal(syscall.SIGCONT))
	healed := until(t, labHeal, "connected to both", isConnected(t, b, a), isConnected(t, c, a))
	t.Logf("connected to one host after %s, to the other after %s", pings(healed[0]), pings(healed[1]))
	for _, pair := range [][2]*labHost{{a, b}, {b, a}, {a, c}, {c, a}} {
		until(t, labHeal, "a call goes through", func() bool { return pair[0].askDisk(pair[1]) == nil })
	}
}

// restart kills the process of a host and starts another.
func (l *lab) restart(t *testing.T, a, b, c *labHost) {
	was := []int{b.linkTo(t, a).Reconnects, c.linkTo(t, a).Reconnects}
	require.NoError(t, a.process.Process.Kill())
	noticed := until(t, labNotice, "noticed on both sides", isLost(t, b, a), isLost(t, c, a))
	t.Logf("noticed at one host after %s, at the other after %s", pings(noticed[0]), pings(noticed[1]))
	a.process.Wait()
	require.ErrorContains(t, b.askDisk(a), "503 Service Unavailable: grid: disconnected: ")
	require.NoError(t, b.askDisk(c))

	a.start(t)
	healed := until(t, labHeal, "connected to both", isConnected(t, b, a), isConnected(t, c, a))
	t.Logf("connected to one host %s after the start, to the other after %s", pings(healed[0]), pings(healed[1]))
	l.requireWorkDone(t, a)
	require.NoError(t, b.askDisk(a))
	require.NoError(t, c.askDisk(a))
	require.Equal(t, []int{was[0] + 1, was[1] + 1}, []int{b.linkTo(t, a).Reconnects, c.linkTo(t, a).Reconnects})
}
