package faultconn

import "time"

// direction is one way of a link.
type direction struct{ from, to string }

func (d direction) back() direction { return direction{d.to, d.from} }

// Cut resets every connection between hosts a and b, also on a stalled or partitioned link: what
// was under way is lost, and both ends fail with ECONNRESET. New ones can be dialled at once.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pipes {
		if p.joins(a, b) {
			p.reset()
		}
	}
}

// HalfOpen takes from host dead its connections to host alive, as a crash of the machine does: its
// ends fail with ECONNRESET, while those of alive are told nothing, for good. They are silent, and
// take what is written until the buffer is full. New connections can be dialled at once.
func (n *Network) HalfOpen(dead, alive string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pipes {
		switch (direction{dead, alive}) {
		case p.link:
			p.halfOpen(&p.dialler)
		case p.link.back():
			p.halfOpen(&p.acceptor)
		}
	}
}

// Partition silences the link between hosts a and b as a broken network does: nothing arrives in
// either direction, not even that the other end was closed, and writes wait once the buffer is
// full. A dial between the two waits. [Network.Heal] ends it.
func (n *Network) Partition(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.partitionLocked(a, b)
	n.changedLocked()
}

// Split partitions every host of a group from all hosts of the other groups. Links inside of a
// group, and those of hosts in none, are left as they are.
func (n *Network) Split(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, group := range groups {
		for _, other := range groups[i+1:] {
			for _, a := range group {
				for _, b := range other {
					n.partitionLocked(a, b)
				}
			}
		}
	}
	n.changedLocked()
}

func (n *Network) partitionLocked(a, b string) {
	d := direction{a, b}
	if n.partitioned[d] == nil {
		healed := make(chan struct{})
		n.partitioned[d], n.partitioned[d.back()] = healed, healed
	}
}

// Heal ends the partition of a link: what was held back arrives. Faults of any other kind it leaves
// as they are.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.healLocked(direction{a, b})
	n.changedLocked()
}

func (n *Network) healLocked(d direction) {
	if healed := n.partitioned[d]; healed != nil {
		close(healed)
		delete(n.partitioned, d)
		delete(n.partitioned, d.back())
	}
}

// HealAll ends all partitions, stalls, rates, delays and corruptions. What was cut or half-open
// stays so.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for d := range n.partitioned {
		n.healLocked(d)
	}
	clear(n.faults)
	n.changedLocked()
}

// Stall holds back what host from sends to host to, or lets it go again. The other direction is
// left alone, and connections can still be dialled, in both directions.
func (n *Network) Stall(from, to string, on bool) {
	n.set(from, to, func(f *faults) { f.silent = on })
}

// Rate lets no more than that many bytes per second, of each connection, arrive at host to from
// host from, in pieces of 10 ms' worth. 0 takes the limit away.
func (n *Network) Rate(from, to string, bytesPerSecond int) {
	n.set(from, to, func(f *faults) { f.rate = bytesPerSecond })
}

// Delay makes what host from sends to host to from now on arrive that much later, the close of a
// connection included, and never before what was sent earlier. What is on its way takes up room in
// the buffer.
func (n *Network) Delay(from, to string, d time.Duration) {
	n.set(from, to, func(f *faults) { f.delay = d })
}

// Corrupt flips bits of what host from sends to host to from now on, until the zero Corruption ends
// it.
func (n *Network) Corrupt(from, to string, c Corruption) {
	n.set(from, to, func(f *faults) { f.corrupt = c })
}

func (n *Network) set(from, to string, change func(*faults)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := direction{from, to}
	f := n.faults[d]
	change(&f)
	n.faults[d] = f
	n.changedLocked()
}

// changedLocked brings all connections up to date.
func (n *Network) changedLocked() {
	for p := range n.pipes {
		n.applyLocked(p)
	}
}

func (n *Network) applyLocked(p *pipe) {
	p.set(n.faultsLocked(p.link), n.faultsLocked(p.link.back()))
}

func (n *Network) faultsLocked(d direction) faults {
	f := n.faults[d]
	f.silent = f.silent || n.partitioned[d] != nil
	return f
}
