package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
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
		match, matches := one(r.Header, "If-Match")
		none, isNone := one(r.Header, "If-None-Match")
		switch {
		case len(c.ID) > maxID || !utf8.ValidString(c.ID):
			http.Error(w, "the Idempotency-Key is too long, or not UTF-8", http.StatusBadRequest)
			return
		case !utf8.ValidString(c.Key): // which JSON would make another one of
			http.Error(w, "the key is not UTF-8", http.StatusBadRequest)
			return
		case op == "get" || !matches && !isNone:
		case !matches && none == "*":
			c.If = new(uint64)
		default:
			version, err := strconv.ParseUint(strings.Trim(match, `"`), 10, 64)
			if err != nil || version == 0 || isNone {
				http.Error(w, "the condition is not a version", http.StatusBadRequest)
				return
			}
			c.If = &version
		}
		if c.Value, err = readBody(w, r); err != nil {
			status := http.StatusRequestTimeout
			if large := new(http.MaxBytesError); errors.As(err, &large) {
				status = http.StatusRequestEntityTooLarge
			}
			http.Error(w, err.Error(), status)
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
		case got.Other:
			http.Error(w, "the Idempotency-Key is that of another request", http.StatusUnprocessableEntity)
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

// one is the header of a name, and whether there is any: an empty condition is one that never holds.
func one(h http.Header, name string) (value string, is bool) {
	values := h.Values(name)
	return strings.Join(values, ","), len(values) > 0
}

// readBody reads the body of a request, which must come in a time: else a client that never sends it
// would hold up the end of the server.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(requestTime))
	// It would end the context of the request as well.
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	return io.ReadAll(http.MaxBytesReader(w, r.Body, maxValue))
}
