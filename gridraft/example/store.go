package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// store is the state machine: what raft has replicated is applied to it, on all servers in the same
// order.
type store struct {
	mu     sync.Mutex
	values map[string]string
}

func newStore() *store { return &store{values: map[string]string{}} }

// command is an entry of the log.
type command struct{ Key, Value string }

// Apply implements [raft.FSM].
func (s *store) Apply(l *raft.Log) any {
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[c.Key] = c.Value
	return nil
}

func (s *store) get(key string) (value string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok = s.values[key]
	return value, ok
}

// Snapshot implements [raft.FSM].
func (s *store) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return snapshot(maps.Clone(s.values)), nil
}

// Restore implements [raft.FSM].
func (s *store) Restore(r io.ReadCloser) error {
	defer r.Close()
	values := map[string]string{}
	if err := json.NewDecoder(r).Decode(&values); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values = values
	return nil
}

type snapshot map[string]string

// Persist implements [raft.FSMSnapshot].
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

// Release implements [raft.FSMSnapshot].
func (snapshot) Release() {}

// server is the HTTP API.
type server struct {
	raft  *raft.Raft
	store *store
}

const (
	applyTime = 5 * time.Second
	maxValue  = 1 << 20
)

func (s *server) put(w http.ResponseWriter, r *http.Request) {
	if s.goneToLeader(w, r) {
		return
	}
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxValue))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	entry, err := json.Marshal(command{r.PathValue("key"), string(value)})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := s.raft.Apply(entry, applyTime).Error(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) get(w http.ResponseWriter, r *http.Request) {
	if s.goneToLeader(w, r) {
		return
	}
	// Once this is through, all that was put before is here, and this server still leads.
	if err := s.raft.Barrier(applyTime).Error(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	value, ok := s.store.get(r.PathValue("key"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, value)
}

// goneToLeader answers the request unless this server leads. The address of a server is the base
// URL of its host, which has the same API.
func (s *server) goneToLeader(w http.ResponseWriter, r *http.Request) bool {
	if s.raft.State() == raft.Leader {
		return false
	}
	leader, _ := s.raft.LeaderWithID()
	if leader == "" {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "there is no leader", http.StatusServiceUnavailable)
		return true
	}
	http.Redirect(w, r, string(leader)+r.URL.Path, http.StatusTemporaryRedirect)
	return true
}
