package gridtest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/gridrpc/grid"
)

const (
	// connectTime is how long WaitConnected waits.
	connectTime = time.Minute
	// noticeTime is how long the loss of a link may take to be noticed: it takes longer only where
	// a test has a Dialer that is not the grid's.
	noticeTime = 10 * time.Second
	// step is the pause where there is no signal to wait for.
	step = time.Millisecond
)

// WaitConnected waits until all nodes that run are connected to each other, but for those that are
// partitioned, and those that have removed each other from their hosts. After a minute it fails the
// test, and says which are not and why.
func (g *Grid) WaitConnected() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	for {
		missing := g.missing()
		if len(missing) == 0 {
			return
		}
		if ctx.Err() != nil {
			var why []string
			for _, m := range missing {
				why = append(why, m.String())
			}
			g.t.Fatalf("gridtest: not connected after %v:\n\t%s", connectTime, strings.Join(why, "\n\t"))
		}
		missing[0].wait(ctx)
	}
}

// missingLink is a connection that should be there.
type missingLink struct {
	from, to int
	conn     *grid.Connection
	stats    grid.ConnectionStats
}

// missing are the connections that should be there and are not.
func (g *Grid) missing() (all []missingLink) {
	for from, a := range g.nodes {
		for to, b := range g.nodes {
			near, far := a.life.Load(), b.life.Load()
			if from == to || near == nil || far == nil || g.isBroken(pairOf(from, to)) {
				continue
			}
			c := near.manager.Connection(g.hosts[to])
			if c == nil {
				continue
			}
			st := c.Stats()
			// One to an earlier life of the other node is about to be lost.
			if st.State != grid.StateConnected || st.LastConnect.Before(far.began) {
				all = append(all, missingLink{from, to, c, st})
			}
		}
	}
	return all
}

// wait waits until the connection may be there, or it is time to look whether it still should be.
func (m missingLink) wait(ctx context.Context) {
	if m.stats.State == grid.StateConnected || m.stats.State == grid.StateShutdown {
		time.Sleep(step)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 100*step)
	defer cancel()
	_ = m.conn.WaitForConnect(ctx) // what matters is looked at anew
}

func (m missingLink) String() string {
	s := fmt.Sprintf("node %d to node %d (%s): %v", m.from, m.to, m.stats.HostName, m.stats.State)
	switch {
	case m.stats.State == grid.StateConnected:
		s += " to the node as it was before its restart"
	case m.stats.LastError != "":
		s += ", last error: " + m.stats.LastError
	}
	return s
}

// link is a connection as it was before it was cut.
type link struct {
	conn       *grid.Connection
	reconnects int
}

// links are both ends of the connection between two nodes, as far as it is there.
func (g *Grid) links(p pair) (links []link) {
	for _, way := range [][2]int{{p.a, p.b}, {p.b, p.a}} {
		if l := g.nodes[way[0]].life.Load(); l != nil && way[0] != way[1] {
			c := l.manager.Connection(g.hosts[way[1]])
			if st := c.Stats(); st.State == grid.StateConnected {
				links = append(links, link{c, st.Reconnects})
			}
		}
	}
	return links
}

// linksTo are the ends of connections to a node, where the other nodes can notice their loss.
func (g *Grid) linksTo(i int) (links []link) {
	for j := range g.nodes {
		if p := pairOf(i, j); !g.isBroken(p) {
			links = append(links, g.links(p)...)
		}
	}
	return links
}

// gone reports whether the loss of the connection was noticed.
func (l link) gone() bool {
	st := l.conn.Stats()
	return st.State != grid.StateConnected || st.Reconnects != l.reconnects
}

// waitGone waits until the loss of all links was noticed, for which there is no signal.
func waitGone(links []link) {
	limit := time.Now().Add(noticeTime)
	for _, l := range links {
		for !l.gone() && time.Now().Before(limit) {
			time.Sleep(step)
		}
	}
}
