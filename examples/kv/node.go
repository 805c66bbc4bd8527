package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
)

// Handler IDs, the same on all nodes.
const (
	forwardID grid.HandlerID = 1
	statusID  grid.HandlerID = 2
	raftID    grid.HandlerID = 100 // and those that follow
)

// forward is how a node hands a command to the leader.
var (
	commands = grid.NewJSONPool[command]()
	results  = grid.NewJSONPool[result]()
	forward  = grid.NewSingleHandler(forwardID, commands.NewJSON, results.NewJSON)
)

// node is a server of the store.
type node struct {
	m     *grid.Manager
	store *store
	raft  *raft.Raft
	trans *gridraft.Transport
	disk  *raftboltdb.BoltStore
	// ready is the term for which everything that earlier leaders have acknowledged is in the store,
	// if this node leads in it.
	ready atomic.Uint64
}

// startNode starts one whose log and votes are in a folder. With alone, one that has none yet is a
// cluster of its own, which others may join.
func startNode(m *grid.Manager, dir string, alone bool) (_ *node, err error) {
	n := &node{m: m, store: newStore()}
	if n.trans, err = gridraft.New(m, gridraft.Options{FirstID: raftID}); err != nil {
		return nil, err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(m.HostName())
	conf.Logger = hclog.NewNullLogger() // tellLeaders says what matters
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, conf.Logger)
	if err != nil {
		return nil, err
	}
	if n.disk, err = raftboltdb.NewBoltStore(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	if alone {
		me := raft.Server{ID: conf.LocalID, Address: n.trans.LocalAddr()}
		err := raft.BootstrapCluster(conf, n.disk, n.disk, snaps, n.trans, raft.Configuration{Servers: []raft.Server{me}})
		if err != nil && err != raft.ErrCantBootstrap { // it has been started before
			return nil, errors.Join(err, n.disk.Close())
		}
	}
	if n.raft, err = raft.NewRaft(conf, n.store, n.disk, n.disk, snaps, n.trans); err != nil {
		return nil, errors.Join(err, n.disk.Close())
	}
	if err := errors.Join(forward.Register(m, n.forwarded), n.trans.ServeJoin(n.raft)); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

// join makes the node one of the cluster that another is in. One that has been in a cluster before
// has only to know the hosts again, and its log has them.
func (n *node) join(ctx context.Context, host string) error {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return err
	}
	all := f.Configuration().Servers
	if len(all) == 0 {
		return n.trans.Join(ctx, raft.ServerID(n.m.HostName()), host)
	}
	for _, s := range all {
		if s.Address == n.trans.LocalAddr() {
			continue
		}
		if err := n.m.AddHost(string(s.Address)); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the raft server, after it has handed its leadership over.
func (n *node) stop() error {
	n.handOver()
	return errors.Join(n.raft.Shutdown().Error(), n.disk.Close())
}

// handOver makes another node the leader, if this one is.
func (n *node) handOver() {
	for try := 0; try < 5 && n.raft.State() == raft.Leader; try++ {
		if n.raft.LeadershipTransfer().Error() != nil {
			time.Sleep(pause)
		}
	}
}

// pause is between two attempts.
const pause = 20 * time.Millisecond

var errNotLeader = errors.New("this node does not lead")

// do has the leader, wherever it is, execute a command, and tries until ctx ends. It may have been
// executed where that is an error, but never twice: it has an ID.
func (n *node) do(ctx context.Context, c command) (result, error) {
	for {
		r, err := n.try(ctx, c)
		if err == nil {
			return r, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return result{}, fmt.Errorf("%w, last: %w", ctx.Err(), err)
		}
	}
}

// try asks the node that leads, as far as this one knows.
func (n *node) try(ctx context.Context, c command) (result, error) {
	leader, _ := n.raft.LeaderWithID()
	switch string(leader) {
	case "":
		return result{}, errors.New("there is no leader")
	case n.m.HostName():
		return n.lead(c)
	}
	conn, err := n.m.Lookup(string(leader))
	if err != nil {
		return result{}, err
	}
	answer, err := forward.Call(ctx, conn, commands.NewJSONWith(&c))
	if err != nil {
		return result{}, err
	}
	return *answer.Value(), nil
}

// forwarded is the handler of what other nodes forward.
func (n *node) forwarded(c *grid.JSON[command]) (*grid.JSON[result], *grid.RemoteErr) {
	r, err := n.lead(*c.Value())
	if err != nil {
		return nil, grid.NewRemoteErr(err)
	}
	return results.NewJSONWith(&r), nil
}

// lead executes a command as the leader.
func (n *node) lead(c command) (result, error) {
	if n.raft.State() != raft.Leader {
		return result{}, errNotLeader
	}
	if c.Op == "get" {
		return n.get(c.Key)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return result{}, err
	}
	f := n.raft.Apply(b, time.Second)
	if err := f.Error(); err != nil {
		return result{}, err
	}
	return f.Response().(result), nil
}

// get reads what is at least as new as anything that was acknowledged before, without an entry in
// the log. What this leader has acknowledged it has applied; for what others have, the first get of
// a term waits. Then it makes sure that there is no other leader by now.
func (n *node) get(key string) (result, error) {
	term := n.raft.CurrentTerm()
	if n.ready.Load() != term {
		if err := n.raft.Barrier(time.Second).Error(); err != nil {
			return result{}, err
		}
		n.ready.Store(term)
	}
	if err := n.raft.VerifyLeader().Error(); err != nil {
		return result{}, err
	}
	r := n.store.get(key)
	if n.raft.CurrentTerm() != term {
		return result{}, errNotLeader
	}
	return r, nil
}

// caughtUp reports whether the node takes part, so that another may be restarted.
func (n *node) caughtUp() error {
	leader, _ := n.raft.LeaderWithID()
	var away []string
	for _, host := range n.m.Targets() {
		if state := n.m.Connection(host).State(); state != grid.StateConnected {
			away = append(away, fmt.Sprintf("%s is %v", host, state))
		}
	}
	switch {
	case leader == "":
		return errors.New("there is no leader")
	case n.raft.AppliedIndex() < n.raft.CommitIndex():
		return errors.New("not all entries are applied")
	case len(away) > 0:
		return errors.New(strings.Join(away, ", "))
	}
	return nil
}
