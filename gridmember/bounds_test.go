package gridmember

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// Whoever can gossip makes members up.

func named(name string) *memberlist.Node {
	return &memberlist.Node{Name: name, Addr: net.IP{127, 0, 0, 1}, Port: 1}
}

const self = "http://127.0.0.1:1"

func newTestAdmission(next memberlist.AliveDelegate) *admission {
	return newAdmission(&memberlist.Config{
		Name: self, Alive: next, GossipToTheDeadTime: 30 * time.Second, ProbeInterval: time.Second,
	})
}

func TestAdmission_RefusesWhatNoHostHas(t *testing.T) {
	a := newTestAdmission(nil)
	require.NoError(t, a.NotifyAlive(named("odd")), "it may be there for the gossip alone")
	require.NoError(t, a.NotifyAlive(named(strings.Repeat("x", maxName))))
	require.ErrorIs(t, a.NotifyAlive(named(strings.Repeat("x", maxName+1))), errLongName)
	n := named("http://127.0.0.1:2")
	n.Meta = make([]byte, memberlist.MetaMaxSize)
	require.NoError(t, a.NotifyAlive(n))
	n.Meta = make([]byte, memberlist.MetaMaxSize+1)
	require.ErrorIs(t, a.NotifyAlive(n), errLongMeta, "also of one that is known")
	for _, size := range []int{0, 5, 60_000} {
		n = named("http://127.0.0.1:3")
		n.Addr = make([]byte, size)
		require.ErrorIs(t, a.NotifyAlive(n), errAddress)
	}
	n.Addr = net.IPv6loopback
	require.NoError(t, a.NotifyAlive(n))
	require.Len(t, a.names, 4)
}

type aliveFunc func(n *memberlist.Node) error

func (f aliveFunc) NotifyAlive(n *memberlist.Node) error { return f(n) }

func TestAdmission_AsksTheDelegateOfTheConfiguration(t *testing.T) {
	no := errors.New("no")
	a := newTestAdmission(aliveFunc(func(n *memberlist.Node) error {
		if n.Name == "b" {
			return no
		}
		return nil
	}))
	require.NoError(t, a.NotifyAlive(named("a")))
	require.ErrorIs(t, a.NotifyAlive(named("b")), no)
	require.Len(t, a.names, 1)
}

// No more than so many names are known, and those that memberlist has forgotten make room.
func TestAdmission_KnowsNoMoreNamesThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAdmission(nil)
		require.NoError(t, a.NotifyAlive(named(self)))
		a.joined(self)
		for i := range 100_000 {
			name := fmt.Sprint("invented ", i)
			if i < maxMembers-1 {
				require.NoError(t, a.NotifyAlive(named(name)))
				switch i % 3 {
				case 0:
					a.joined(name)
				case 1:
					a.joined(name)
					a.left(name)
				}
			} else {
				require.ErrorIs(t, a.NotifyAlive(named(name)), errFull)
			}
		}
		require.Len(t, a.names, maxMembers)
		require.NoError(t, a.NotifyAlive(named(self)))
		require.NoError(t, a.NotifyAlive(named("invented 0")), "it is known")
		time.Sleep(time.Minute)
		require.ErrorIs(t, a.NotifyAlive(named("new")), errFull, "memberlist may have them still")
		time.Sleep(time.Hour)
		require.NoError(t, a.NotifyAlive(named("new")))
		require.Len(t, a.names, maxMembers/3+2, "members stay")
	})
}

func TestGone_ThoseThatWereConnectedComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gone
		for i := range 10 * maxGone {
			g.add(named(fmt.Sprint("invented ", i)), false)
		}
		require.Len(t, g.members, maxGone)
		for i := range goneAtATime {
			n := named(fmt.Sprint("real ", i))
			n.Port = uint16(1000 + i)
			g.add(n, true)
		}
		for i := range 10 * maxGone {
			g.add(named(fmt.Sprint("invented again ", i)), false)
		}
		require.Len(t, g.members, maxGone)
		require.ElementsMatch(t, []string{"127.0.0.1:1000", "127.0.0.1:1001", "127.0.0.1:1002"}, g.some())
		g.remove(named("real 1"))
		require.Subset(t, g.some(), []string{"127.0.0.1:1000", "127.0.0.1:1002"})
		require.Len(t, g.some(), goneAtATime)
		for i := range 2 * maxGone {
			g.add(named(fmt.Sprint("also real ", i)), true)
		}
		require.Len(t, g.members, maxGone)
		require.Contains(t, g.members, "real 0")
		time.Sleep(askGoneFor + time.Second)
		require.Empty(t, g.some())
		require.Empty(t, g.members)
	})
}

func TestRationed_LogHasSoManyLinesAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := log.New(&rationed{to: func() io.Writer { return &b }}, "", log.LstdFlags)
		for range 3 {
			for i := range 100_000 {
				l.Printf("[WARN] memberlist: %d", i)
			}
			require.Equal(t, linesAtOnce, strings.Count(b.String(), "[WARN] memberlist:"))
			b.Reset()
			time.Sleep(time.Minute)
			l.Printf("[ERR] memberlist: %s", strings.Repeat("x", 1<<20))
			lines := strings.Split(b.String(), "\n")
			require.Equal(t, "[WARN] gridmember: 99900 lines of memberlist were dropped", lines[0])
			require.Len(t, lines, 3)
			require.Len(t, lines[1], 1024)
			time.Sleep(time.Minute)
			b.Reset()
		}
	})
}

// A gossiped name may have line ends in it, and what looks like a line of the log.
func TestRationed_LogHasOneLineForEach(t *testing.T) {
	var b bytes.Buffer
	l := log.New(&rationed{to: func() io.Writer { return &b }}, "", 0)
	l.Printf("[WARN] memberlist: member %s\r\x1b[2J", "x\n2026/01/01 00:00:00 [ERR] grid: forged\n\n")
	require.Equal(t, "[WARN] memberlist: member x 2026/01/01 00:00:00 [ERR] grid: forged    [2J\n", b.String())
}

// safeBuffer may be written to while it is read.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// joinAlone makes a member that others can gossip with, and returns the sockets that they do it by,
// and all logs.
func joinAlone(t *testing.T, local string) (m *grid.Manager, s *Membership, gossip net.Conn, logged, memberlistLogged *safeBuffer) {
	t.Helper()
	logged, memberlistLogged = new(safeBuffer), new(safeBuffer)
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(logged, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	m, err := grid.NewManager(t.Context(), grid.ManagerOptions{
		Local: local, Hosts: []string{local}, Insecure: true, Logger: slog.New(slog.DiscardHandler),
		Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
	})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	c := memberlist.DefaultLocalConfig()
	c.BindAddr, c.BindPort, c.AdvertisePort = "127.0.0.1", 0, 0
	c.Logger = log.New(memberlistLogged, "", 0)
	c.PushPullInterval = time.Second
	s, err = Join(m, c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	gossip, err = net.Dial("udp", s.List().LocalNode().Address())
	require.NoError(t, err)
	t.Cleanup(func() { gossip.Close() })
	return m, s, gossip, logged, memberlistLogged
}

// alive is the packet by which memberlist is told of a member.
func alive(name string, incarnation uint8) []byte {
	raw := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	b := raw([]byte{4, 0x86}, "Incarnation") // the type of the message, and a map of 6
	b = raw(raw(append(b, incarnation), "Node"), name)
	b = raw(raw(b, "Addr"), "\x7f\x00\x00\x01")
	b = append(raw(b, "Port"), 1)
	b = raw(raw(b, "Meta"), "")
	return raw(raw(b, "Vsn"), "\x01\x05\x02\x02\x05\x04")
}

// invent gossips names until as many are known as may be.
func invent(t *testing.T, s *Membership, gossip net.Conn, name func(i int) string) {
	t.Helper()
	known := func() int {
		s.admit.mu.Lock()
		defer s.admit.mu.Unlock()
		return len(s.admit.names)
	}
	for i := 0; i < 2*maxMembers || known() < maxMembers; i++ {
		_, err := gossip.Write(alive(name(i), 1))
		require.NoError(t, err)
		if i%100 == 0 {
			time.Sleep(2 * time.Millisecond) // it drops what it can't take
		}
		require.Less(t, i, 100*maxMembers)
	}
	require.Equal(t, maxMembers, known())
}

func TestMember_InventedNamesThatAreNoHostsAreBounded(t *testing.T) {
	m, s, gossip, logged, memberlistLogged := joinAlone(t, self)
	for i := range 100 {
		_, err := gossip.Write(alive(strings.Repeat("long ", 10_000)+fmt.Sprint(i), 1))
		require.NoError(t, err)
	}
	invent(t, s, gossip, func(i int) string { return fmt.Sprint("no host ", i) })
	require.LessOrEqual(t, len(s.Members()), maxMembers)
	require.Empty(t, m.Targets())
	require.Eventually(t, func() bool { return logged.String() != "" }, 10*time.Second, time.Millisecond)
	s.wake()
	time.Sleep(2 * time.Second)
	require.Equal(t, 1, strings.Count(logged.String(), "member is no host"))
	require.LessOrEqual(t, strings.Count(memberlistLogged.String(), "\n"), 3*linesAtOnce)
	for line := range strings.Lines(memberlistLogged.String()) {
		require.LessOrEqual(t, len(line), 1025)
	}
	require.Contains(t, memberlistLogged.String(), "ignoring alive message for 'long long")
}

// Those that are hosts are dialled, so they are bounded as well. One beside them that is none, or
// may not be here, keeps none out.
func TestMember_InventedHostsAreBounded(t *testing.T) {
	m, s, gossip, logged, _ := joinAlone(t, "https://127.0.0.1:1")
	invent(t, s, gossip, func(i int) string {
		switch i % 16 {
		case 0:
			return fmt.Sprintf("http://10.0.%d.%d", i/256%256, i%256) // beside https
		case 1:
			return fmt.Sprint("no host ", i)
		case 2:
			return fmt.Sprintf("HTTPS://10.0.%d.%d", (i+1)/256%256, (i+1)%256) // the next one
		}
		return fmt.Sprintf("https://10.0.%d.%d", i/256%256, i%256)
	})
	require.Eventually(t, func() bool { return len(m.Targets()) > maxMembers/2 }, 30*time.Second, 10*time.Millisecond)
	require.LessOrEqual(t, len(m.Targets()), maxMembers)
	for _, host := range m.Targets() {
		require.True(t, strings.HasPrefix(host, "https://10.0."), host)
	}
	require.Equal(t, 2, strings.Count(logged.String(), "member is no host"), "one for each reason")
	for line := range strings.Lines(logged.String()) {
		require.Less(t, len(line), 2000)
	}
}

// What was refused is forgotten with its member.
func TestMember_RefusedNamesAreForgotten(t *testing.T) {
	_, s, gossip, _, _ := joinAlone(t, self)
	_, err := gossip.Write(alive("no host", 1))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(s.Members()) == 2 }, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Close()) // what follows is its goroutine's
	s.refused = map[string]bool{"gone": true}
	s.apply()
	require.Equal(t, map[string]bool{"no host": true}, s.refused)
}
