package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	requestTime = 10 * time.Second // for a command, with all attempts
	maxValue    = 1 << 20
	maxID       = 64
)

// routes are those of clients, and of those who restart nodes.
func (n *node) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /kv/{key...}", n.serve("get"))
	mux.HandleFunc("PUT /kv/{key...}", n.serve("put"))
	mux.HandleFunc("DELETE /kv/{key...}", n.serve("delete"))
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.caughtUp(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /raft", func(w http.ResponseWriter, _ *http.Request) {
		leader, _ := n.raft.LeaderWithID()
		stats := n.raft.Stats()
		stats["leader"] = string(leader)
		_ = json.NewEncoder(w).Encode(stats)
	})
}

// serve answers requests of one kind. The version of a key is its ETag, and conditions are those of
// HTTP: If-Match: "7" for that version, If-None-Match: * for a key that is not there.
func (n *node) serve(op string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := command{ID: r.Header.Get("Idempotency-Key"), Op: op, Key: r.PathValue("key")}
		if c.ID == "" {
			c.ID = rand.Text()
		}
		var err error
		switch match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match"); {
		case len(c.ID) > maxID:
			http.Error(w, "Idempotency-Key is too long", http.StatusBadRequest)
			return
		case op == "get" || match == "" && none == "":
		case match == "" && none == "*":
			c.If = new(uint64)
		default:
			version, err := strconv.ParseUint(strings.Trim(match, `"`), 10, 64)
			if err != nil || version == 0 || none != "" {
				http.Error(w, "the condition is not a version", http.StatusBadRequest)
				return
			}
			c.If = &version
		}
		if c.Value, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxValue)); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTime)
		defer cancel()
		got, err := n.do(ctx, c)
		if err != nil {
			w.Header().Set("Retry-After", "1")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if got.Version > 0 {
			w.Header().Set("ETag", strconv.Quote(strconv.FormatUint(got.Version, 10)))
		}
		switch {
		case !got.Held:
			http.Error(w, "the key has another version", http.StatusPreconditionFailed)
		case op != "get":
			w.WriteHeader(http.StatusNoContent)
		case got.Version == 0:
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(got.Value)
		}
	}
}
