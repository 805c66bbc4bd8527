package gridmember_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridmember"
)

const (
	nodeEnv                = "GRIDMEMBER_TEST_NODE" // makes the test binary a node; its seeds
	echo    grid.HandlerID = 1
)

func TestMain(m *testing.M) {
	if seeds, ok := os.LookupEnv(nodeEnv); ok {
		if err := runNode(strings.Fields(seeds)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// quick is a configuration that notices a death within a second or two.
func quick() *memberlist.Config {
	c := memberlist.DefaultLocalConfig()
	c.BindAddr, c.BindPort, c.AdvertisePort = "127.0.0.1", 0, 0
	c.ProbeInterval, c.ProbeTimeout = 200*time.Millisecond, 100*time.Millisecond
	c.SuspicionMult = 2
	c.GossipInterval = 50 * time.Millisecond
	c.PushPullInterval = time.Second // when gossip that was lost is made good
	c.LogOutput = io.Discard
	return c
}

// runNode is a process of the test: a host that says where it is, answers at /hosts which others it
// can call, and leaves when its input ends.
func runNode(seeds []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	local := "http://" + l.Addr().String()
	var gate gridmember.Gate
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local: local, Hosts: []string{local}, Insecure: true, PingInterval: time.Second, Logger: slog.New(slog.DiscardHandler),
		AcceptHost: gate.AcceptHost,
	})
	if err != nil {
		return err
	}
	if err := m.RegisterSingleHandler(echo, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	mux.HandleFunc("/hosts", func(w http.ResponseWriter, r *http.Request) {
		var can []string
		for _, host := range m.Targets() {
			if b, err := m.Connection(host).SingleRequest(r.Context(), echo, []byte("x")); err == nil && string(b) == "x" {
				can = append(can, host)
			} else {
				can = append(can, "not "+host)
			}
		}
		_ = json.NewEncoder(w).Encode(can)
	})
	go func() { _ = http.Serve(l, mux) }()
	members, err := gate.Join(m, quick(), seeds...)
	if err != nil {
		return err
	}
	fmt.Println(local, members.List().LocalNode().Address())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := members.Leave(5 * time.Second); err != nil {
		return err
	}
	return m.Shutdown(context.Background())
}

// process is a running node.
type process struct {
	cmd          *exec.Cmd
	in           io.WriteCloser
	host, gossip string
}

func start(t *testing.T, seeds ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), nodeEnv+"="+strings.Join(seeds, " "))
	p.cmd.Stderr = os.Stderr
	var err error
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	_, err = fmt.Sscan(line, &p.host, &p.gossip)
	require.NoError(t, err)
	return p
}

// canCall returns the hosts that p has, those that it can't call marked.
func (p *process) canCall() (hosts []string) {
	r, err := http.Get(p.host + "/hosts")
	if err != nil {
		return []string{err.Error()}
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&hosts); err != nil {
		return []string{err.Error()}
	}
	return hosts
}

// requireMesh waits until each of the processes has the others as its hosts, and can call them.
func requireMesh(t *testing.T, all ...*process) {
	t.Helper()
	for _, p := range all {
		var want []string
		for _, o := range all {
			if o != p {
				want = append(want, o.host)
			}
		}
		slices.Sort(want)
		var got []string
		require.Eventually(t, func() bool { got = p.canCall(); return slices.Equal(want, got) }, 30*time.Second, 50*time.Millisecond,
			"%s wants %v", p.host, want)
	}
}

func TestMember_ProcessesJoinLeaveAndDie(t *testing.T) {
	first := start(t)
	all := []*process{first}
	for range 4 {
		all = append(all, start(t, first.gossip))
	}
	requireMesh(t, all...)

	// The last one leaves in order.
	last := all[4]
	require.NoError(t, last.in.Close())
	require.NoError(t, last.cmd.Wait())
	requireMesh(t, all[:4]...)

	// The first one, which all others have joined through, is killed.
	require.NoError(t, first.cmd.Process.Kill())
	_ = first.cmd.Wait()
	requireMesh(t, all[1:4]...)

	// A new one joins through any of those that are left.
	requireMesh(t, append(all[1:4:4], start(t, all[2].gossip))...)
}

func newManager(t *testing.T, local string) *grid.Manager {
	m, err := grid.NewManager(t.Context(), grid.ManagerOptions{
		Local: local, Hosts: []string{local}, Insecure: true, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

func TestMember_JoinFails(t *testing.T) {
	m := newManager(t, "http://127.0.0.1:1")
	_, err := gridmember.Join(m, quick(), "127.0.0.1:1")
	require.ErrorContains(t, err, "gridmember: join:")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c := quick()
	c.BindPort = l.Addr().(*net.TCPAddr).Port
	_, err = gridmember.Join(m, c)
	require.ErrorContains(t, err, "gridmember:")
}

// A member whose name is no host is left out, and keeps out no other.
func TestMember_ThatIsNoHostIsLeftOut(t *testing.T) {
	m := newManager(t, "http://127.0.0.1:1")
	s, err := gridmember.Join(m, quick())
	require.NoError(t, err)
	defer s.Close()
	seed := s.List().LocalNode().Address()
	for _, name := range []string{"odd", "http://127.0.0.1:2"} {
		c := quick()
		c.Name = name
		list, err := memberlist.Create(c)
		require.NoError(t, err)
		defer list.Shutdown()
		_, err = list.Join([]string{seed})
		require.NoError(t, err)
	}
	// Who joins knows the seed before that has taken it in.
	members := []string{"http://127.0.0.1:1", "http://127.0.0.1:2", "odd"}
	require.Eventually(t, func() bool { return slices.Equal(s.Members(), members) }, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return slices.Equal(m.Targets(), []string{"http://127.0.0.1:2"}) }, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.Equal(t, []string{"http://127.0.0.1:2"}, m.Targets(), "they stay")
}

// A member that spells its name in another way than this host does is that host, and stays it.
func TestMember_ThatSpellsItsNameInAnotherWayStays(t *testing.T) {
	m := newManager(t, "http://127.0.0.1:1")
	s, err := gridmember.Join(m, quick())
	require.NoError(t, err)
	defer s.Close()
	seed := s.List().LocalNode().Address()
	want := []string{"http://localhost:2"}
	var conn *grid.Connection
	for i, name := range []string{"http://LocalHost:2", "http://127.0.0.1:3", "http://127.0.0.1:4"} {
		c := quick()
		c.Name = name
		list, err := memberlist.Create(c)
		require.NoError(t, err)
		defer list.Shutdown()
		_, err = list.Join([]string{seed})
		require.NoError(t, err)
		if i > 0 { // in front of the first, by the order of names
			want = slices.Insert(want, i-1, name)
		}
		require.Eventually(t, func() bool { return slices.Equal(m.Targets(), want) }, 10*time.Second, time.Millisecond)
		if conn == nil {
			conn = m.Connection("http://localhost:2")
		}
		require.True(t, conn == m.Connection("http://localhost:2"), "it was removed, and added again")
	}
}

// cable is a transport that can be cut. Nothing gets past a cut, and no error tells.
type cable struct {
	*memberlist.MockTransport
	cut *atomic.Bool
}

var errCut = errors.New("timeout")

func (c cable) WriteTo(b []byte, addr string) (time.Time, error) {
	return c.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (c cable) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if c.cut.Load() {
		return time.Now(), nil
	}
	return c.MockTransport.WriteToAddress(b, a)
}

func (c cable) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return c.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (c cable) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if c.cut.Load() {
		return nil, errCut
	}
	return c.MockTransport.DialAddressTimeout(a, timeout)
}

// A partition may outlast memberlist's memory.
func TestMember_SidesOfALongPartitionFindEachOther(t *testing.T) {
	var network memberlist.MockNetwork
	var cut atomic.Bool
	hosts := []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}
	var managers []*grid.Manager
	var seeds []string
	for _, host := range hosts {
		m := newManager(t, host)
		c := quick()
		c.Transport = cable{network.NewTransport(host), &cut}
		c.GossipToTheDeadTime = 500 * time.Millisecond
		s, err := gridmember.Join(m, c, seeds...)
		require.NoError(t, err)
		defer s.Close()
		managers, seeds = append(managers, m), []string{s.List().LocalNode().Address()}
	}
	requireTargets := func(want ...[]string) {
		t.Helper()
		for i, m := range managers {
			require.Eventually(t, func() bool { return slices.Equal(m.Targets(), want[i]) }, 30*time.Second, 10*time.Millisecond, "%s", hosts[i])
		}
	}
	requireTargets(hosts[1:], hosts[:1])
	cut.Store(true)
	requireTargets(nil, nil)
	time.Sleep(2 * time.Second) // four times what memberlist remembers
	cut.Store(false)
	requireTargets(hosts[1:], hosts[:1])
}

func TestMember_LeaveAndCloseMayBeRepeated(t *testing.T) {
	for i, ends := range [][]func(*gridmember.Membership) error{{leave, leave}, {leave, shut}, {shut, leave}, {shut, shut}} {
		s, err := gridmember.Join(newManager(t, fmt.Sprintf("http://127.0.0.1:%d", i+1)), quick())
		require.NoError(t, err)
		var both sync.WaitGroup
		for _, end := range append(ends, ends...) {
			both.Go(func() { assert.NoError(t, end(s)) })
		}
		both.Wait()
		for _, end := range ends {
			require.NoError(t, end(s))
		}
	}
}

// memberlist takes an interval that is 0 or less as none; so it must not end the process here.
func TestMember_JoinsWithoutAPushPullInterval(t *testing.T) {
	for _, every := range []time.Duration{0, -1, math.MinInt64, math.MaxInt64} {
		c := quick()
		c.PushPullInterval = every
		s, err := gridmember.Join(newManager(t, "http://127.0.0.1:1"), c)
		require.NoError(t, err)
		time.Sleep(50 * time.Millisecond)
		require.Equal(t, []string{"http://127.0.0.1:1"}, s.Members())
		require.NoError(t, s.Close())
	}
}

func leave(s *gridmember.Membership) error { return s.Leave(time.Second) }
func shut(s *gridmember.Membership) error  { return s.Close() }

// What the hosts are set to otherwise does not last.
func TestMember_HostsThatWereSetOtherwiseComeBack(t *testing.T) {
	a, b := newManager(t, "http://127.0.0.1:1"), newManager(t, "http://127.0.0.1:2")
	s, err := gridmember.Join(a, quick())
	require.NoError(t, err)
	defer s.Close()
	other, err := gridmember.Join(b, quick(), s.List().LocalNode().Address())
	require.NoError(t, err)
	defer other.Close()
	for range 2 {
		require.Eventually(t, func() bool { return slices.Equal(a.Targets(), []string{"http://127.0.0.1:2"}) }, 10*time.Second, time.Millisecond)
		require.NoError(t, a.SetHosts([]string{"http://127.0.0.1:1"}))
	}
}

// The hosts of the options are there to fall back on.
func TestMember_JoinThatFailsLeavesTheHosts(t *testing.T) {
	m := newManager(t, "http://127.0.0.1:1")
	require.NoError(t, m.AddHost("http://127.0.0.1:2"))
	_, err := gridmember.Join(m, quick(), "127.0.0.1:1")
	require.ErrorContains(t, err, "gridmember: join:")
	require.Equal(t, []string{"http://127.0.0.1:2"}, m.Targets())
}
