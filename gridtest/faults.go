package gridtest

import "slices"

// Cut resets the links between two nodes: calls and streams on them end with [grid.ErrDisconnected]
// on both sides. The nodes connect again by themselves, unless they are partitioned. It returns
// when both have noticed the loss, perhaps when they are connected again already.
func (g *Grid) Cut(a, b int) {
	g.t.Helper()
	g.node(a)
	g.node(b)
	links := g.links(pairOf(a, b))
	g.net.cut(a, b)
	waitGone(links)
}

// Partition keeps nodes from reaching each other that have no group in common. Those that are in
// none make up one more group, so that Partition([]int{2}) isolates node 2 from all others, and
// Partition([]int{0, 2}, []int{1, 2}) leaves node 2 as a bridge. Links between groups are cut, as
// by [Grid.Cut], and attempts to connect wait: so calls fail at once, with [grid.ErrDisconnected].
//
// A partition takes the place of the one before: links that it leaves alone are healed. It holds
// for nodes that are started meanwhile too.
func (g *Grid) Partition(groups ...[]int) {
	g.t.Helper()
	g.partition(groups, true)
}

// PartitionSilently is [Grid.Partition] without a cut: nothing arrives from nodes of other groups
// any more, not even that they are stopped, as when a cable is pulled. Calls to them wait, for
// their context, or for the pings of the managers to find out: that is within two of
// ManagerOptions.PingInterval. Partition, with the same groups, or Cut may shorten it.
//
// What is sent waits in buffers: in memory as on a real network, but over TCP not on the side that
// has dialled, whose writes wait instead. So there a [Grid.Shutdown] may take until its context
// ends.
func (g *Grid) PartitionSilently(groups ...[]int) {
	g.t.Helper()
	g.partition(groups, false)
}

// Heal ends all partitions. Attempts to connect that wait go on at once, others come within
// MaxBackoff, or when the connection is wanted. What a silent partition has held back arrives. It
// does not wait for any of that; [Grid.WaitConnected] does.
func (g *Grid) Heal() {
	g.t.Helper()
	g.partition(nil, false)
}

func (g *Grid) partition(groups [][]int, cut bool) {
	g.t.Helper()
	for _, group := range groups {
		for _, i := range group {
			g.node(i)
		}
	}
	links := g.setPartition(groups, cut)
	waitGone(links)
}

// setPartition returns the links that were cut.
func (g *Grid) setPartition(groups [][]int, cut bool) (links []link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for b := range g.nodes {
		for a := range b {
			p := pair{a, b}
			g.broken[p] = !together(a, b, groups)
			g.net.setBroken(a, b, g.broken[p])
			if g.broken[p] && cut {
				links = append(links, g.links(p)...)
				g.net.cut(a, b)
			}
		}
	}
	return links
}

// together reports whether two nodes have a group in common, or are both in none.
func together(a, b int, groups [][]int) bool {
	none := true
	for _, group := range groups {
		hasA, hasB := slices.Contains(group, a), slices.Contains(group, b)
		if hasA && hasB {
			return true
		}
		none = none && !hasA && !hasB
	}
	return none
}

// isBroken reports whether a link is partitioned.
func (g *Grid) isBroken(p pair) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken[p]
}
