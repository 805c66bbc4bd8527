package gridstatus

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
	// Every is [Options].Every.
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

const (
	maxOthers = 20
	// maxDecoding is how many views are decoded at a time.
	maxDecoding = 4
)

// serveView answers other hosts.
func (s *Status) serveView(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
	b, err := s.served.get(ctx, func([]byte) []byte {
		b, err := json.Marshal(viewOf(s.m))
		if err != nil {
			return fmt.Appendf(nil, "no JSON: %v", err) // which the other side will say
		}
		return b
	})
	if err != nil {
		return nil, grid.NewRemoteErr(err)
	}
	return bytes.Clone(b), nil // what a handler returns is not its own any more
}

// Mesh asks all hosts for their views, unless that was done within Options.Every: then it returns
// the same again, which nobody may change. It takes a little longer than Options.Timeout at the
// most. The error is that of ctx, with the text of its cause.
func (s *Status) Mesh(ctx context.Context) (*Mesh, error) { return s.mesh.get(ctx, s.gather) }

func (s *Status) gather(before *Mesh) *Mesh {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Timeout)
	defer cancel()
	m := &Mesh{Host: s.m.HostName(), Every: s.opts.Every}
	m.Nodes = append(m.Nodes, Node{Host: m.Host, View: viewOf(s.m)}) // its own: rates are added to it
	for _, host := range s.m.Targets() {
		m.Nodes = append(m.Nodes, Node{Host: host})
	}
	var wg sync.WaitGroup
	decoding := make(chan struct{}, maxDecoding)
	for i := range m.Nodes[1:] {
		n := &m.Nodes[i+1]
		wg.Go(func() {
			b, err := s.m.Connection(n.Host).SingleRequest(ctx, s.id, nil)
			if err == nil {
				decoding <- struct{}{}
				n.View, err = decodeView(n.Host, b)
				<-decoding
				grid.PutByteBuffer(b)
			}
			var remote *grid.RemoteErr
			if errors.As(err, &remote) {
				err = remote // without the host, which is named beside it
			}
			if err != nil {
				n.Err = clip(cmp.Or(err.Error(), "it has answered with an error that has no text"), maxText)
			}
		})
	}
	wg.Wait()
	m.Time = time.Now()
	slices.SortFunc(m.Nodes, func(a, b Node) int { return cmp.Compare(a.Host, b.Host) })
	if before != nil {
		m.addRates(before)
	}
	m.findOthers()
	return m
}

func (m *Mesh) addRates(before *Mesh) {
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
			n.View.rateFrom(old, max(time.Minute, 3*m.Every))
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
			if !known[l.Host] && len(m.Others) < maxOthers {
				known[l.Host] = true
				m.Others = append(m.Others, l.Host)
			}
		}
	}
	slices.Sort(m.Others)
}
