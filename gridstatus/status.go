package gridstatus

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/httpbody"
)

// Options are those of [New]; their zero value stands for the defaults.
type Options struct {
	// Title is the heading of the page; "grid" by default.
	Title string
	// Every is how often an open page refreshes itself, and for how long what the other hosts have
	// said is taken to be fresh; 2 s by default, from 100 ms to an hour.
	Every time.Duration
	// Timeout is how long to wait for the other hosts' views; 1 s by default, 10 s at the most.
	Timeout time.Duration
}

// The bounds of options: page.js has to know when to give up.
const (
	minEvery, maxEvery = 100 * time.Millisecond, time.Hour
	maxTimeout         = 10 * time.Second
)

// Status answers other hosts with the view of this one, and browsers with a page, or with JSON, on
// what all of them see. It may be used concurrently.
type Status struct {
	m      *grid.Manager
	id     grid.HandlerID
	opts   Options
	served kept[[]byte] // the view of this host, as JSON
	mesh   kept[*Mesh]
	bodies bodies
}

// New registers a handler at m that tells other hosts how this one sees the mesh, under id, which
// must be the same on all hosts and used for nothing else. It needs no closing: it does something
// only when it is asked.
//
// The error is one of [grid.Manager.RegisterSingleHandlerContext], or names the option that is out
// of its bounds.
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
	if o.Every < minEvery || o.Every > maxEvery {
		return nil, fmt.Errorf("gridstatus: Every is %v, must be from %v to %v", o.Every, minEvery, maxEvery)
	}
	if o.Timeout < 0 || o.Timeout > maxTimeout {
		return nil, fmt.Errorf("gridstatus: Timeout is %v, must be up to %v", o.Timeout, maxTimeout)
	}
	s := &Status{m: m, id: id, opts: o}
	s.served.good = o.Every / 2
	s.mesh.good = o.Every
	if err := m.RegisterSingleHandlerContext(id, s.serveView); err != nil {
		return nil, fmt.Errorf("gridstatus: %w", err)
	}
	return s, nil
}

// ServeHTTP answers GET and HEAD with the page, at whatever path it is mounted. With ?format=json,
// or where the request accepts application/json and not text/html, the answer is a [Mesh] as JSON.
// ?node= and the base URL of a host chooses whose links the page lists one by one; it is this host
// by default.
func (s *Status) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	httpbody.Unread(w, r)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "gridstatus: only GET and HEAD are answered", http.StatusMethodNotAllowed)
		return
	}
	m, err := s.Mesh(r.Context())
	if err != nil {
		http.Error(w, "gridstatus: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	kind := bodyKind{json: wantsJSON(r), gzip: accepts(r, "Accept-Encoding", "gzip")}
	if !kind.json {
		kind.node = m.chosen(r.URL.Query().Get("node"))
	}
	body, err := s.bodies.get(m, kind, s.opts.Title)
	if err != nil {
		http.Error(w, "gridstatus: "+err.Error(), http.StatusInternalServerError)
		return
	}
	if kind.json {
		h.Set("Content-Type", "application/json")
	} else {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "no-referrer")
	}
	h.Set("Vary", "Accept, Accept-Encoding")
	if kind.gzip {
		h.Set("Content-Encoding", "gzip")
	}
	_, _ = w.Write(body)
}

// wantsJSON reports whether the answer to r is to be JSON, in place of a page.
func wantsJSON(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return true
	case "html":
		return false
	}
	return accepts(r, "Accept", "application/json") && !accepts(r, "Accept", "text/html")
}

// accepts reports whether a header lists something, with a weight that is not 0.
func accepts(r *http.Request, header, what string) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values(header), ","), ",") {
		name, params, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(name), what) {
			continue
		}
		q := strings.TrimRight(strings.ReplaceAll(params, " ", ""), "0")
		return q != "q=" && q != "q=0."
	}
	return false
}

// maxBodies is how many answers from one Mesh are kept: that of most readers, and some that have
// chosen other hosts.
const maxBodies = 16

// bodies are the answers that were made from a Mesh, for further readers. They are made one at a
// time: that of a large mesh takes a core for some 50 ms.
type bodies struct {
	mu   sync.Mutex // guards what follows
	mesh *Mesh
	made map[bodyKind][]byte
}

type bodyKind struct {
	json, gzip bool
	node       string
}

// get returns what nobody may change.
func (b *bodies) get(m *Mesh, kind bodyKind, title string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mesh != m {
		b.mesh, b.made = m, make(map[bodyKind][]byte)
	}
	if body, ok := b.made[kind]; ok {
		return body, nil
	}
	var body bytes.Buffer
	var out io.Writer = &body
	var z *gzip.Writer
	if kind.gzip {
		z, _ = gzip.NewWriterLevel(&body, gzip.BestSpeed)
		out = z
	}
	var err error
	if kind.json {
		err = json.NewEncoder(out).Encode(m)
	} else {
		err = writePage(out, title, m, kind.node)
	}
	if z != nil {
		err = errors.Join(err, z.Close())
	}
	if err != nil {
		return nil, err
	}
	if len(b.made) < maxBodies {
		b.made[kind] = body.Bytes()
	}
	return body.Bytes(), nil
}
