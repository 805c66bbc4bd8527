package gridstatus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

// Mesh is what all hosts together see.
type Mesh struct {
	// Host is the base URL of the host that has asked the others.
	Host string
	// Time is when it had done so.
	Time time.Time
	// Every is how often that may be, in nanoseconds.
	Every time.Duration
	// Nodes are that host and those it knows, in the order of their names.
	Nodes []Node
	// Others are hosts that some of them have a link to, and Host has not: 20 at most.
	Others []string `json:",omitempty"`
}

// Node is a host and what it has said.
type Node struct {
	Host string
	// Err is why there is no View; empty if there is one.
	Err string `json:",omitzero"`
	// View is nil if there is none.
	View *View `json:",omitempty"`
}

// What another host may say, so that one that lies can't make a page grow without
// bounds.
const (
	maxView   = 4 << 20 // bytes
	maxLinks  = 10_000
	maxText   = 1000 // bytes
	maxOthers = 20
	maxLimits = 20
)

// oldestForRate is how old an earlier view may be for rates to be measured from it.
const oldestForRate = time.Minute

// kept is a value that is made anew when it is older than good. Who asks while it is
// made waits for it.
type kept[T any] struct {
	good time.Duration

	mu    sync.Mutex
	made  time.Time
	value T
}

// get calls make with the value of before, which is the zero value at first.
func (k *kept[T]) get(make func(before T) T) T {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.made.IsZero() || time.Since(k.made) >= k.good {
		k.value = make(k.value)
		k.made = time.Now()
	}
	return k.value
}

// serveView answers other hosts.
func (s *Status) serveView([]byte) ([]byte, *grid.RemoteErr) {
	v := s.served.get(func(*View) *View { return viewOf(s.m) })
	b, err := json.Marshal(v)
	if err != nil {
		return nil, grid.NewRemoteErr(err)
	}
	return b, nil
}

// Mesh asks all hosts for their views, unless that was done within Options.Every: then
// it returns the same again, which nobody may change. It takes Options.Timeout at the
// most, and the streams and calls of the application are not waited for.
func (s *Status) Mesh() *Mesh { return s.mesh.get(s.gather) }

func (s *Status) gather(before *Mesh) *Mesh {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Timeout)
	defer cancel()
	m := &Mesh{Host: s.m.HostName(), Every: s.opts.Every}
	m.Nodes = append(m.Nodes, Node{Host: m.Host, View: viewOf(s.m)}) // its own: rates are added to it
	for _, host := range s.m.Targets() {
		m.Nodes = append(m.Nodes, Node{Host: host})
	}
	var wg sync.WaitGroup
	for i := range m.Nodes[1:] {
		n := &m.Nodes[i+1]
		wg.Go(func() {
			v, err := s.ask(ctx, n.Host)
			if err != nil {
				n.Err = clip(err.Error())
				return
			}
			n.View = v
		})
	}
	wg.Wait()
	m.Time = time.Now()
	slices.SortFunc(m.Nodes, func(a, b Node) int { return cmp.Compare(a.Host, b.Host) })
	m.addRates(before)
	m.findOthers()
	return m
}

// ask returns the view of another host.
func (s *Status) ask(ctx context.Context, host string) (*View, error) {
	conn := s.m.Connection(host)
	b, err := conn.SingleRequest(ctx, s.id, nil)
	if err != nil {
		if why := conn.Stats().LastError; errors.Is(err, grid.ErrDisconnected) && why != "" {
			return nil, fmt.Errorf("not connected: %s", why)
		}
		return nil, err
	}
	defer grid.PutByteBuffer(b)
	if len(b) > maxView {
		return nil, fmt.Errorf("its view has %d bytes, the limit is %d", len(b), maxView)
	}
	v := new(View)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("its view can't be read: %w", err)
	}
	switch {
	case v.Host != host:
		return nil, fmt.Errorf("it calls itself %q", clip(v.Host))
	case len(v.Links) > maxLinks:
		return nil, fmt.Errorf("its view has %d links, the limit is %d", len(v.Links), maxLinks)
	}
	for i := range v.Links {
		l := &v.Links[i]
		l.Host, l.LastError, l.Rate = clip(l.Host), clip(l.LastError), nil
		if len(l.LimitsReached) > maxLimits {
			l.LimitsReached = nil
		}
	}
	return v, nil
}

func clip(text string) string {
	if len(text) > maxText {
		return strings.ToValidUTF8(text[:maxText], "") + " ..."
	}
	return text
}

func (m *Mesh) addRates(before *Mesh) {
	if before == nil {
		return
	}
	views := make(map[string]*View, len(before.Nodes))
	for _, n := range before.Nodes {
		views[n.Host] = n.View
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		old := views[n.Host]
		switch {
		case n.View == nil || old == nil:
		case old.ID == n.View.ID && old.Time.Equal(n.View.Time):
			n.View = old // the same view, which has its rates
		default:
			n.View.rateFrom(old)
		}
	}
}

func (m *Mesh) findOthers() {
	known := make(map[string]bool, len(m.Nodes))
	for _, n := range m.Nodes {
		known[n.Host] = true
	}
	for _, n := range m.Nodes {
		if n.View == nil {
			continue
		}
		for _, l := range n.View.Links {
			if len(m.Others) == maxOthers {
				return
			}
			if !known[l.Host] {
				known[l.Host] = true
				m.Others = append(m.Others, l.Host)
			}
		}
	}
	slices.Sort(m.Others)
}
