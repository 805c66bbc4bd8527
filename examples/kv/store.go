package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// command is what a client wants, and, unless it is a get, an entry of the log.
type command struct {
	// ID tells a command that is tried again from another that is the same.
	ID    string
	Op    string // get, put or delete
	Key   string
	Value []byte
	// If, where it is set, is the version that the key must have, 0 for none at all.
	If *uint64
}

// result is what became of a command.
type result struct {
	Held    bool   // the condition did, if there was one
	Other   bool   // another command had the same ID
	Version uint64 // of the key now, 0 if it is not there: the index of the entry that put it
	Value   []byte // for a get
}

// done is the result of a command, and a hash by which that is told from another one of the same ID.
type done struct {
	result
	Of string
}

// item is the value of a key.
type item struct {
	Value   []byte
	Version uint64
}

// remembered is how many results are kept, for commands that are tried again.
const remembered = 10_000

// store is the state machine. What it does depends on nothing but the entries of the log, which are
// the same on all nodes.
type store struct {
	mu    sync.RWMutex
	state state
}

// state is what a snapshot has.
type state struct {
	Items   map[string]item
	Results map[string]done // by ID
	IDs     []string        // of these, the oldest first
}

func newStore() *store {
	return &store{state: state{Items: map[string]item{}, Results: map[string]done{}}}
}

// Apply implements [raft.FSM].
func (s *store) Apply(l *raft.Log) any {
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return result{} // the same everywhere
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := sha256.Sum256(l.Data)
	of := hex.EncodeToString(sum[:])
	switch was, ok := s.state.Results[c.ID]; {
	case ok && was.Of != of:
		return result{Other: true}
	case ok:
		return was.result // it was done before, and its answer was lost
	}
	r := s.state.do(c, l.Index)
	s.state.Results[c.ID] = done{r, of}
	if s.state.IDs = append(s.state.IDs, c.ID); len(s.state.IDs) > remembered {
		delete(s.state.Results, s.state.IDs[0])
		s.state.IDs = s.state.IDs[1:]
	}
	return r
}

func (s *state) do(c command, index uint64) result {
	was := s.Items[c.Key].Version
	if c.If != nil && *c.If != was {
		return result{Version: was}
	}
	switch c.Op {
	case "put":
		s.Items[c.Key] = item{c.Value, index}
		return result{Held: true, Version: index}
	case "delete":
		delete(s.Items, c.Key)
		return result{Held: true}
	}
	return result{Version: was}
}

// get is not replicated: see node.get for when its answer may be given.
func (s *store) get(key string) result {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i := s.state.Items[key]
	return result{Held: true, Version: i.Version, Value: i.Value}
}

// Snapshot implements [raft.FSM].
func (s *store) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &snapshot{maps.Clone(s.state.Items), maps.Clone(s.state.Results), slices.Clone(s.state.IDs)}, nil
}

// Restore implements [raft.FSM].
func (s *store) Restore(r io.ReadCloser) error {
	defer r.Close()
	next := newStore().state
	if err := json.NewDecoder(r).Decode(&next); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = next
	return nil
}

type snapshot state

// Persist implements [raft.FSMSnapshot].
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

// Release implements [raft.FSMSnapshot].
func (s *snapshot) Release() {}
