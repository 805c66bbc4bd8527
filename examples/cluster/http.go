package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gridrpc/grid"
)

// nodeStatus is what /status shows.
type nodeStatus struct {
	HostName  string
	Connected int // links
	Links     []linkStatus
}

// linkStatus is grid's, with words in place of its numbers.
type linkStatus struct {
	grid.ConnectionStats
	State     string
	RoundTrip string
}

func (n *node) status() nodeStatus {
	st := n.Stats()
	out := nodeStatus{HostName: st.HostName, Connected: st.Connected}
	for _, c := range st.Connections {
		out.Links = append(out.Links, linkStatus{c, c.State.String(), c.RoundTrip.String()})
	}
	return out
}

// routes are what an operator asks of a node, over plain HTTP. They ask for no secret, so they are
// not for the address that the peers dial.
func (n *node) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", n.page)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, n.status()) })
	mux.HandleFunc("GET /disk/{host}", n.toPeer(n.showDisk))
	mux.HandleFunc("GET /tree/{host}", n.toPeer(n.showTree))
	return mux
}

// listenHTTP listens where an operator is answered; it returns nil for nowhere.
func listenHTTP(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("-http: %w", err)
	}
	return l, nil
}

// answerHTTP serves the routes at l, which may be nil, until stop is called.
func (n *node) answerHTTP(l net.Listener) (stop func()) {
	if l == nil {
		return func() {}
	}
	srv := &http.Server{Handler: n.routes(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(l)
	}()
	return func() {
		srv.Close()
		<-served
	}
}

// toPeer finds the peer that the path names, and tells by the status whether the peer could not be
// reached, or has answered with an error.
func (n *node) toPeer(show func(context.Context, *grid.Connection, http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host := "http://" + r.PathValue("host")
		conn := n.Connection(host)
		if conn == nil {
			http.Error(w, host+" is no peer of "+n.HostName()+"; these are: "+strings.Join(n.Targets(), " "), http.StatusNotFound)
			return
		}
		err := show(r.Context(), conn, w, r)
		switch {
		case errors.Is(err, grid.ErrDisconnected):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}
}

func (n *node) showDisk(ctx context.Context, conn *grid.Connection, w http.ResponseWriter, r *http.Request) error {
	d, err := disks.Call(ctx, conn, &diskRequest{Dir: r.FormValue("dir")})
	if err != nil {
		return err
	}
	writeJSON(w, d)
	disks.PutResponse(d)
	return nil
}

// showTree writes a line for each entry as it comes, and a last one that is the tally, or why there
// is none. Who reads slowly slows down the walk at the peer.
func (n *node) showTree(ctx context.Context, conn *grid.Connection, w http.ResponseWriter, r *http.Request) error {
	s, err := walks.Call(ctx, conn, &walkRequest{Forever: r.FormValue("forever") == "true"})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines, t := json.NewEncoder(w), new(tally)
	err = s.Results(func(e *entry) error {
		defer walks.PutResponse(e)
		t.add(e)
		return lines.Encode(e)
	})
	if err != nil {
		lines.Encode(treeError{err.Error()})
		return nil // the status has gone out
	}
	lines.Encode(t)
	return nil
}

// treeError is the last line of a tree that is not whole.
type treeError struct{ Error string }

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(v)
}
