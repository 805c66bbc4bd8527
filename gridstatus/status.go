package gridstatus

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gridrpc/grid"
)

// Options are those of [New]; their zero value stands for the defaults.
type Options struct {
	// Title is the heading of the page; "grid" by default.
	Title string
	// Every is how often an open page refreshes itself, and for how long what the
	// other hosts have said is taken to be fresh; 2 s by default, at least 100 ms.
	Every time.Duration
	// Timeout is how long to wait for the other hosts' views; 1 s by default.
	Timeout time.Duration
}

// Status answers other hosts with the view of this one, and browsers with a page, or
// with JSON, on what all of them see. It may be used concurrently.
type Status struct {
	m      *grid.Manager
	id     grid.HandlerID
	opts   Options
	served kept[*View]
	mesh   kept[*Mesh]
}

// New registers a handler at m that tells other hosts how this one sees the mesh, under
// id, which must be the same on all hosts and used for nothing else. It needs no
// closing: it does something only when it is asked.
func New(m *grid.Manager, id grid.HandlerID, o Options) (*Status, error) {
	if m == nil {
		return nil, errors.New("gridstatus: the Manager is nil")
	}
	if o.Title == "" {
		o.Title = "grid"
	}
	if o.Every == 0 {
		o.Every = 2 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Every < 100*time.Millisecond {
		return nil, fmt.Errorf("gridstatus: Every is %v, must be 100ms or more", o.Every)
	}
	if o.Timeout < 0 {
		return nil, fmt.Errorf("gridstatus: Timeout is %v, must be positive", o.Timeout)
	}
	s := &Status{m: m, id: id, opts: o}
	s.served.good = o.Every / 2
	s.mesh.good = o.Every
	if err := m.RegisterSingleHandler(id, s.serveView); err != nil {
		return nil, fmt.Errorf("gridstatus: %w", err)
	}
	return s, nil
}

// ServeHTTP answers GET and HEAD with the page, at whatever path it is mounted. With
// ?format=json, or where the request accepts application/json and not text/html, the
// answer is a [Mesh] as JSON. ?node= and the base URL of a host chooses whose
// connections the page lists one by one; it is this host by default.
func (s *Status) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "gridstatus: only GET and HEAD are answered", http.StatusMethodNotAllowed)
		return
	}
	var body bytes.Buffer
	var err error
	if wantsJSON(r) {
		h.Set("Content-Type", "application/json")
		err = json.NewEncoder(&body).Encode(s.Mesh())
	} else {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "no-referrer")
		err = writePage(&body, s.opts.Title, s.Mesh(), r.URL.Query().Get("node"))
	}
	if err != nil {
		h.Del("Content-Security-Policy")
		http.Error(w, "gridstatus: "+err.Error(), http.StatusInternalServerError)
		return
	}
	h.Set("Vary", "Accept, Accept-Encoding")
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		_, _ = body.WriteTo(w)
		return
	}
	h.Set("Content-Encoding", "gzip")
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	_, _ = body.WriteTo(z)
	_ = z.Close()
}

func wantsJSON(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return true
	case "html":
		return false
	}
	accept := r.Header.Get("Accept")
	return strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html")
}
