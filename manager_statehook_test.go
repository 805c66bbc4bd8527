package grid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/offload"
	"github.com/gridrpc/grid/internal/seed"
)

// hookRig is a hook that is told of states which change as those of connections do.
type hookRig struct {
	*stateHook
	group   offload.Group
	states  map[string]*stateMachine // of hosts that are there
	told    map[string]int           // how many changes there were
	toldAll int
	err     error // of those changes that have one
}

// newHookRig makes a hook that passes changes on to f, or to nobody if that is nil.
func newHookRig(f func(StateChange)) *hookRig {
	r := &hookRig{states: make(map[string]*stateMachine), told: make(map[string]int), err: errors.New("why")}
	r.stateHook = newStateHook(&r.group, f, slog.New(slog.DiscardHandler))
	if f == nil {
		r.stateHook.loop.Init(&r.group, func() bool { return false })
	}
	return r
}

func (r *hookRig) set(host string, to State) {
	s := r.states[host]
	if s == nil {
		s = &stateMachine{host: host, hook: r.stateHook}
		r.states[host] = s
	}
	err := r.err
	if to == StateConnecting || to == StateConnected {
		err = nil
	}
	if !s.set(to, err) {
		panic(fmt.Sprintf("%v to %v", s.state, to))
	}
	r.told[host]++
	r.toldAll++
	if to == StateShutdown {
		delete(r.states, host)
	}
}

func (r *hookRig) setAny(random *rand.Rand, host string) {
	from := StateUnconnected
	if s := r.states[host]; s != nil {
		from = s.state
	}
	next := transitions[from]
	r.set(host, next[random.IntN(len(next))])
}

// takeAll is what would be told now.
func (r *hookRig) takeAll() (all []StateChange) {
	for r.queue.Len() > 0 {
		all = append(all, r.take())
	}
	return all
}

// chains checks that the changes of each host follow each other.
type chains map[string]State

func (c chains) requireNext(t *testing.T, s StateChange) {
	t.Helper()
	from := c[s.Host]
	if from == StateShutdown {
		from = StateUnconnected // it was added again
	}
	require.Equal(t, from, s.From, "%v", s)
	c[s.Host] = s.To
}

// manyChanges is many times what may wait.
func manyChanges() int {
	if testing.Short() {
		return 20 * keptOfRemoved
	}
	return 100_000
}

func TestStateHook_KeepsThoseOfOneHostUpToTheLimit(t *testing.T) {
	r := newHookRig(nil)
	r.set("a", StateConnecting)
	for range manyChanges() {
		r.set("a", StateConnected)
		r.set("a", StateConnectionError)
		r.set("a", StateConnecting)
	}
	r.set("a", StateConnected)
	all := r.takeAll()
	require.Len(t, all, keptChanges)
	c := make(chains)
	for _, s := range all[:keptChanges-1] {
		c.requireNext(t, s)
		require.Zero(t, s.Missed)
	}
	last := all[keptChanges-1]
	c.requireNext(t, last)
	require.Equal(t, StateConnected, last.To)
	require.Equal(t, r.err, last.Err, "that it was lost in between")
	require.Equal(t, r.toldAll-keptChanges, last.Missed)
	require.EqualValues(t, last.Missed, r.missedChanges())
	require.Equal(t, fmt.Sprintf("a: %v, now connected (changes missed: %d): why", last.From, last.Missed), last.String())
	require.Empty(t, r.waiting)
}

// A change that was merged has its place by its time, and others keep theirs.
func TestStateHook_KeepsTheOrder(t *testing.T) {
	r := newHookRig(nil)
	r.set("a", StateConnecting)
	for range 100 {
		r.set("a", StateConnected)
		r.set("a", StateConnectionError)
		r.set("a", StateConnecting)
		r.set("b", StateConnected)
	}
	all := r.takeAll()
	require.Len(t, all, 2*keptChanges)
	for i, s := range all[1:] {
		require.False(t, s.Time.Before(all[i].Time))
	}
	require.Equal(t, "a", all[2*keptChanges-2].Host)
}

// Hosts that come and go while nothing is told leave nothing, or one change where something was.
func TestStateHook_HostsThatComeAndGoDoNotAddUp(t *testing.T) {
	r := newHookRig(nil)
	const known = 100
	c := make(chains)
	for i := range known {
		r.set(fmt.Sprint("known ", i), StateConnected)
	}
	for _, s := range r.takeAll() {
		c.requireNext(t, s)
	}
	for i := range manyChanges() {
		host := fmt.Sprint("new ", i)
		r.set(host, StateConnecting)
		r.set(host, StateConnected)
		r.set(host, StateShutdown)
		r.set("from the door", StateShutdown)
	}
	for i := range known {
		for range 100 { // it comes back
			host := fmt.Sprint("known ", i)
			if r.states[host] == nil {
				r.set(host, StateConnected)
			}
			r.set(host, StateConnectionError)
			r.set(host, StateShutdown)
		}
	}
	require.LessOrEqual(t, r.queue.Len(), keptOfRemoved+known+keptChanges)
	require.Len(t, r.waiting, r.queue.Len()-countMore(r.stateHook))
	missed, ended := 0, 0
	all := r.takeAll()
	for _, s := range all {
		c.requireNext(t, s)
		missed += s.Missed
		if strings.HasPrefix(s.Host, "known") && s.To == StateShutdown {
			ended++
		}
	}
	require.Equal(t, known, ended, "who was told of them is told of their end")
	require.EqualValues(t, r.toldAll-known-len(all), r.missedChanges())
	require.Greater(t, r.missedChanges(), int64(missed), "some were dropped")
	require.Empty(t, r.waiting)
}

// countMore is how many of what waits is not the only one of its host.
func countMore(h *stateHook) (n int) {
	for _, all := range h.waiting {
		n += len(all) - 1
	}
	return n
}

// Whatever happens, and however late it is told: what is told of a host is a chain, ends where the
// host does, and stands for all that happened; and what waits is bounded.
func TestStateHook_WhatIsToldIsAChain(t *testing.T) {
	random := seed.Rand(t)
	for range 15 {
		r := newHookRig(nil)
		c := make(chains)
		hosts, kinds := 1+random.IntN(200), 1+random.IntN(3)
		stands := make(map[string]int)
		told := int64(0)
		tell := func() {
			s := r.take()
			c.requireNext(t, s)
			require.Equal(t, "h", s.Host[:1])
			stands[s.Host] += 1 + s.Missed
			told += 1 + int64(s.Missed)
		}
		for range 1000 {
			host := fmt.Sprint("h", random.IntN(hosts))
			if random.IntN(3) == 0 { // one that won't be seen again
				host = fmt.Sprint("h once ", random.IntN(1_000_000))
			}
			for range 1 + random.IntN(40) {
				r.setAny(random, host)
			}
			if strings.HasPrefix(host, "h once") {
				if s := r.states[host]; s != nil && s.state != StateShutdown {
					r.set(host, StateShutdown)
				}
			}
			for range random.IntN(kinds) * random.IntN(20) {
				if r.queue.Len() > 0 {
					tell()
				}
			}
			require.LessOrEqual(t, r.queue.Len(), (keptChanges+1)*(hosts+1)+2*keptOfRemoved)
		}
		for r.queue.Len() > 0 {
			tell()
		}
		require.Empty(t, r.waiting)
		for host, n := range stands {
			require.LessOrEqual(t, n, r.told[host], host)
		}
		for host, s := range r.states {
			require.Equal(t, s.state, c[host], "the last of %s", host)
		}
		for host, last := range c {
			if r.states[host] == nil {
				require.Equal(t, StateShutdown, last, host)
			}
		}
		require.LessOrEqual(t, told, int64(r.toldAll))
	}
}

// An error that is long is not kept.
func TestStateHook_ClipsErrors(t *testing.T) {
	r := newHookRig(nil)
	r.err = errors.New(strings.Repeat("x", 1<<20))
	r.set("a", StateConnecting)
	r.set("a", StateConnectionError)
	all := r.takeAll()
	require.NoError(t, all[0].Err)
	require.Len(t, all[1].Err.Error(), clip.Most)
}

// All that waits is told before the hook ends, also where it was stuck before.
func TestStateHook_TellsAllBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		var got []StateChange
		r := newHookRig(func(s StateChange) {
			<-stuck
			got = append(got, s)
		})
		r.set("a", StateConnecting)
		synctest.Wait()
		for range 1000 {
			r.set("a", StateConnected)
			r.set("a", StateConnectionError)
			r.set("a", StateConnecting)
		}
		r.set("a", StateShutdown)
		r.close()
		r.stateHook.tell(StateChange{Host: "a"}) // too late
		time.Sleep(time.Minute)
		close(stuck)
		r.group.Wait(time.Minute)
		require.Len(t, got, 1+keptChanges)
		c, all := make(chains), 0
		for _, s := range got {
			c.requireNext(t, s)
			all += 1 + s.Missed
		}
		require.Equal(t, r.toldAll, all)
		require.Equal(t, StateShutdown, c["a"])
	})
}

// Also where a host is removed and added again by several at once, the end of a connection is told
// before the begin of the next.
func TestStateHook_HostThatIsAddedAgainIsAChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const local, other = "http://a:1", "http://b:1"
		var all []StateChange
		m, err := NewManager(t.Context(), ManagerOptions{
			Local: local, Hosts: []string{local}, Insecure: true, Logger: slog.New(slog.DiscardHandler),
			Dialer:        func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
			OnStateChange: func(s StateChange) { all = append(all, s) },
		})
		require.NoError(t, err)
		var changing sync.WaitGroup
		for range 8 {
			changing.Go(func() {
				for i := range 500 {
					assert.NoError(t, m.AddHost(other))
					if i%3 == 0 {
						time.Sleep(time.Millisecond)
					}
					assert.NoError(t, m.RemoveHost(other))
				}
			})
		}
		changing.Wait()
		require.NoError(t, m.Close())
		c := make(chains)
		for _, s := range all {
			c.requireNext(t, s)
		}
		require.Equal(t, StateShutdown, c[other])
		require.Greater(t, len(all), 500)
	})
}
