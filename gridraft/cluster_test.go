package gridraft_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
	"github.com/gridrpc/grid/gridtest"
)

// command is what clients ask of the store: to get, put or swap the value of a key.
type command struct {
	Op, Key, Value, Old string
}

// result is the value that a key had before, or has, and whether it was swapped.
type result struct {
	Value string
	OK    bool
}

// store is a state machine with as much ballast in its snapshots as the test wants.
type store struct {
	ballast int

	mu       sync.Mutex
	values   map[string]string
	restored int
	applied  uint64
}

func (s *store) Apply(l *raft.Log) any {
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = l.Index
	old := s.values[c.Key]
	switch {
	case c.Op == "get":
	case c.Op == "put", c.Op == "swap" && old == c.Old:
		s.values[c.Key] = c.Value
		return result{old, true}
	}
	return result{old, false}
}

// image is a snapshot. Its ballast is random, so that what is lost or mixed up shows.
type image struct {
	values  map[string]string
	ballast []byte
}

func (s *store) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := &image{values: maps.Clone(s.values), ballast: make([]byte, s.ballast)}
	_, _ = rand.NewChaCha8([32]byte{byte(s.applied)}).Read(i.ballast)
	return i, nil
}

// Persist writes how long the values are, the values, the ballast and a sum of all that.
func (i *image) Persist(s raft.SnapshotSink) error {
	values, err := json.Marshal(i.values)
	if err != nil {
		return cmp.Or(s.Cancel(), err)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(values)))
	b = slices.Concat(b, values, i.ballast)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	if _, err := s.Write(b); err != nil {
		return cmp.Or(s.Cancel(), err)
	}
	return s.Close()
}

func (i *image) Release() {}

func (s *store) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	n := len(b) - 4
	if n < 4 || crc32.ChecksumIEEE(b[:n]) != binary.BigEndian.Uint32(b[n:]) {
		panic("the snapshot is damaged")
	}
	values := map[string]string{}
	if err := json.Unmarshal(b[4:4+binary.BigEndian.Uint32(b)], &values); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values = values
	s.restored++
	return nil
}

func (s *store) state() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values)
}

// disk is what a server has after a restart.
type disk struct {
	logs  *raft.InmemStore
	snaps *raft.InmemSnapshotStore
}

// server is one life of a node.
type server struct {
	raft  *raft.Raft
	trans *gridraft.Transport
	store *store
	began int // snapshots that it was restored from when it started
}

// cluster is one of servers on a grid, and the clients' history of it.
type cluster struct {
	*gridtest.Grid
	t        *testing.T
	o        clusterOptions
	disks    []disk
	installs atomic.Int64 // snapshots that a leader has sent

	mu      sync.Mutex
	servers []*server // nil while stopped

	clock   atomic.Int64 // the order of what clients do: a bubble's clock stands still meanwhile
	history []porcupine.Operation
	clients sync.WaitGroup
	stop    chan struct{}
}

type clusterOptions struct {
	nodes   int
	seed    uint64
	span    time.Duration // of faults
	clients int
	pause   time.Duration // between two commands of a client, at most
	ballast int           // of a snapshot
	tcp     bool
}

func newCluster(t *testing.T, o clusterOptions) *cluster {
	c := &cluster{t: t, o: o, servers: make([]*server, o.nodes), stop: make(chan struct{})}
	for range o.nodes {
		c.disks = append(c.disks, disk{raft.NewInmemStore(), raft.NewInmemSnapshotStore()})
	}
	opts := []gridtest.Option{
		gridtest.WithHandlers(c.begin),
		gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = time.Second }),
	}
	if o.tcp {
		opts = append(opts, gridtest.TCP())
	}
	c.Grid = gridtest.New(t, o.nodes, opts...)
	t.Cleanup(func() {
		for i := range o.nodes {
			c.end(i)
		}
	})
	return c
}

// begin starts the server of a node.
func (c *cluster) begin(node int, m *grid.Manager) error {
	trans, err := gridraft.New(m, gridraft.Options{FirstID: firstID, Group: "kv", Timeout: 2 * time.Second})
	if err != nil {
		return err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(m.HostName())
	conf.Logger = hclog.NewNullLogger()
	conf.SnapshotInterval, conf.SnapshotThreshold, conf.TrailingLogs = time.Second, 64, 16
	if c.o.tcp {
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 300*time.Millisecond, 300*time.Millisecond, 200*time.Millisecond
	}
	d := c.disks[node]
	if has, err := raft.HasExistingState(d.logs, d.logs, d.snaps); err != nil {
		return err
	} else if !has {
		all := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: trans.LocalAddr()}}}
		for _, host := range m.Targets() {
			all.Servers = append(all.Servers, raft.Server{ID: raft.ServerID(host), Address: raft.ServerAddress(host)})
		}
		if err := raft.BootstrapCluster(conf, d.logs, d.logs, d.snaps, trans, all); err != nil {
			return err
		}
	}
	s := &server{trans: trans, store: &store{ballast: c.o.ballast, values: map[string]string{}}}
	if s.raft, err = raft.NewRaft(conf, s.store, d.logs, d.logs, d.snaps, trans); err != nil {
		return err
	}
	s.store.mu.Lock()
	if s.store.restored > 0 {
		s.began = 1
	}
	s.store.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[node] = s
	return nil
}

// end shuts a server down whose node is stopped, or is to be.
func (c *cluster) end(node int) {
	c.mu.Lock()
	s := c.servers[node]
	c.servers[node] = nil
	c.mu.Unlock()
	if s == nil {
		return
	}
	assert.NoError(c.t, s.raft.Shutdown().Error())
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	c.installs.Add(int64(s.store.restored - s.began))
}

func (c *cluster) server(i int) *server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers[i]
}

// leader returns a node that takes itself for the leader, waiting for one.
func (c *cluster) leader() int {
	for {
		for i := range c.o.nodes {
			if s := c.server(i); s != nil && s.raft.State() == raft.Leader {
				return i
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

var keys = []string{"a", "b", "c", "d", "e"}

// client asks servers, and records what came of it, until the end.
func (c *cluster) client(rng *rand.Rand, id int) {
	var mine []porcupine.Operation
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.history = append(c.history, mine...)
	}()
	at := id % c.o.nodes
	for n := 0; ; n++ {
		select {
		case <-c.stop:
			return
		case <-time.After(time.Duration(rng.Int64N(int64(c.o.pause)))):
		}
		in := command{Op: []string{"get", "put", "swap"}[rng.IntN(3)], Key: keys[rng.IntN(len(keys))]}
		if in.Op != "get" {
			in.Value = fmt.Sprint(id, "-", n)
		}
		s := c.server(at)
		if s == nil {
			at = rng.IntN(c.o.nodes)
			continue
		}
		if in.Op == "swap" {
			in.Old = s.store.state()[in.Key]
		}
		b, err := json.Marshal(in)
		if err != nil {
			panic(err)
		}
		op := porcupine.Operation{ClientId: id, Input: in, Call: c.clock.Add(1)}
		f := s.raft.Apply(b, time.Second)
		switch err := f.Error(); err {
		case nil:
			op.Output, op.Return = f.Response().(result), c.clock.Add(1)
			mine = append(mine, op)
		case raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress:
			at = rng.IntN(c.o.nodes) // it was not taken
		default: // it may still be applied, at any time
			op.Return = math.MaxInt64
			mine = append(mine, op)
			at = rng.IntN(c.o.nodes)
		}
	}
}

// model is the store as it should be, of one key.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		for _, key := range keys {
			var part []porcupine.Operation
			for _, op := range history {
				if op.Input.(command).Key == key {
					part = append(part, op)
				}
			}
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, was := input.(command), state.(string)
		next := was
		if in.Op == "put" || in.Op == "swap" && in.Old == was {
			next = in.Value
		}
		out, known := output.(result)
		return !known || out == result{was, in.Op == "put" || in.Op == "swap" && in.Old == was}, next
	},
}

// faults are what befalls a cluster, one after the other. Each returns how it ends.
var faults = []struct {
	name  string
	begin func(c *cluster, rng *rand.Rand) (end func())
}{
	{"leader partitioned", func(c *cluster, _ *rand.Rand) func() {
		c.Partition([]int{c.leader()})
		return c.Heal
	}},
	{"leader silently partitioned", func(c *cluster, _ *rand.Rand) func() {
		c.PartitionSilently([]int{c.leader()})
		return c.Heal
	}},
	{"some partitioned", func(c *cluster, rng *rand.Rand) func() {
		c.Partition(rng.Perm(c.o.nodes)[:c.o.nodes/2])
		return c.Heal
	}},
	{"links cut", func(c *cluster, rng *rand.Rand) func() {
		for range 5 {
			two := rng.Perm(c.o.nodes)[:2]
			c.Cut(two[0], two[1])
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	}},
	{"leader crashed", func(c *cluster, _ *rand.Rand) func() {
		i := c.leader()
		c.Stop(i)
		c.end(i)
		return func() { c.Start(i) }
	}},
	{"minority crashed", func(c *cluster, rng *rand.Rand) func() {
		some := rng.Perm(c.o.nodes)[:(c.o.nodes-1)/2]
		for _, i := range some {
			c.Stop(i)
			c.end(i)
		}
		return func() {
			for _, i := range some {
				c.Start(i)
			}
		}
	}},
	{"follower shut down", func(c *cluster, rng *rand.Rand) func() {
		i := (c.leader() + 1 + rng.IntN(c.o.nodes-1)) % c.o.nodes
		c.end(i)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = c.Shutdown(ctx, i)
		return func() { c.Start(i) }
	}},
	{"leadership transferred", func(c *cluster, _ *rand.Rand) func() {
		_ = c.server(c.leader()).raft.LeadershipTransfer().Error()
		return nil
	}},
	{"streams closed", func(c *cluster, _ *rand.Rand) func() {
		for i := range c.o.nodes {
			c.server(i).trans.CloseStreams()
		}
		return nil
	}},
	{"leader disconnected from a follower", func(c *cluster, rng *rand.Rand) func() {
		i := c.leader()
		peer := raft.ServerAddress(c.Host((i + 1 + rng.IntN(c.o.nodes-1)) % c.o.nodes))
		c.server(i).trans.Disconnect(peer)
		return func() { c.server(i).trans.Connect(peer, nil) }
	}},
}

// run lets clients work while the cluster has faults, and returns the history.
func (c *cluster) run() {
	rng := rand.New(rand.NewPCG(c.o.seed, 0))
	terms := map[string]bool{c.server(c.leader()).raft.Stats()["term"]: true}
	for id := range c.o.clients {
		c.clients.Go(func() { c.client(rand.New(rand.NewPCG(c.o.seed, uint64(id)+1)), id) })
	}
	pause := c.o.span / 20
	order := rng.Perm(len(faults))
	for n, start := 0, time.Now(); time.Since(start) < c.o.span; n++ {
		fault := faults[order[n%len(order)]]
		c.t.Logf("%v: %s", time.Since(start).Round(time.Millisecond), fault.name)
		end := fault.begin(c, rng)
		time.Sleep(pause + time.Duration(rng.Int64N(int64(2*pause))))
		if end != nil {
			end()
		}
		time.Sleep(pause + time.Duration(rng.Int64N(int64(pause))))
		terms[c.server(c.leader()).raft.Stats()["term"]] = true
	}
	close(c.stop)
	c.clients.Wait()
	c.WaitConnected()
	c.requireSame()
	for i := range c.o.nodes {
		c.end(i)
	}
	c.t.Logf("%d commands, %d leaders, %d snapshots sent", len(c.history), len(terms), c.installs.Load())
	require.Greater(c.t, len(terms), 1, "leaders were to change")
}

// requireSame waits until all servers have the same state.
func (c *cluster) requireSame() {
	c.t.Helper()
	limit := time.Now().Add(time.Minute)
	for {
		same := true
		if c.server(c.leader()).raft.Barrier(time.Second).Error() == nil {
			want := c.server(0).store.state()
			for i := range c.o.nodes {
				same = same && maps.Equal(want, c.server(i).store.state())
			}
			if same {
				return
			}
		}
		require.True(c.t, time.Now().Before(limit), "the servers do not agree")
		time.Sleep(50 * time.Millisecond)
	}
}

// check runs a cluster, and looks at its history, which is long enough to mean something.
func check(t *testing.T, o clusterOptions, commands int) (installs int64) {
	var c *cluster
	run := func(t *testing.T) {
		c = newCluster(t, o)
		c.run()
	}
	if o.tcp {
		run(t)
	} else {
		synctest.Test(t, run)
	}
	known := slices.DeleteFunc(slices.Clone(c.history), func(op porcupine.Operation) bool { return op.Output == nil })
	require.Greater(t, len(known), commands, "of %d commands", len(c.history))
	require.Equal(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, c.history, time.Minute))
	return c.installs.Load()
}

// Clusters lose their leaders, links and logs, and what clients see is as if one server had done
// one command after the other.
func TestCluster_IsLinearizable(t *testing.T) {
	seeds, span, ballast := uint64(1), 15*time.Second, 200<<10
	if !testing.Short() {
		seeds, span, ballast = 4, time.Minute, 2<<20
	}
	for _, nodes := range []int{3, 5} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			var installs int64
			for seed := range seeds {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					o := clusterOptions{nodes: nodes, seed: seed, span: span, clients: 4, pause: 60 * time.Millisecond, ballast: ballast}
					installs += check(t, o, 100)
				})
			}
			if !testing.Short() {
				require.Positive(t, installs, "snapshots were to be sent")
			}
		})
	}
}

func TestCluster_IsLinearizableOverTCP(t *testing.T) {
	span := 3 * time.Second
	if !testing.Short() {
		span = 30 * time.Second
	}
	check(t, clusterOptions{nodes: 3, span: span, clients: 4, pause: 20 * time.Millisecond, ballast: 200 << 10, tcp: true}, 20)
}

// A history that is none is found out, or the tests above mean nothing.
func TestCluster_CheckerFindsStaleReads(t *testing.T) {
	history := []porcupine.Operation{
		{Input: command{Op: "put", Key: "a", Value: "1"}, Output: result{"", true}, Call: 1, Return: 2},
		{Input: command{Op: "get", Key: "a"}, Output: result{"1", false}, Call: 3, Return: 4},
	}
	require.True(t, porcupine.CheckOperations(model, history))
	history[1].Output = result{}
	require.False(t, porcupine.CheckOperations(model, history))
}
