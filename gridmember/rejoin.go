package gridmember

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// memberlist forgets the dead, and contacts seeds only once: the two sides of a partition that
// outlasts its memory would not find each other again. So who is gone is asked now and then, for a
// while, and so are the seeds, for good.
const (
	askGoneFor   = time.Hour
	maxGone      = 1000
	goneAtATime  = 3
	roundsToSeed = 10 // from one seed that is asked to the next

	defaultRound = 30 * time.Second // where there is no PushPullInterval
)

// gone are members that are no more, dead or left: memberlist does not say which. Gossip may have
// made them up, so those that the grid was connected to come first: they are asked before all
// others, and none of them gives way to another.
type gone struct {
	mu      sync.Mutex // guards what follows
	members map[string]goneMember
}

type goneMember struct {
	address string
	since   time.Time
	proved  bool // the grid was connected to it
}

func (g *gone) add(n *memberlist.Node, proved bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members == nil {
		g.members = make(map[string]goneMember)
	}
	if proved && len(g.members) >= maxGone {
		for name, m := range g.members {
			if !m.proved {
				delete(g.members, name)
				break
			}
		}
	}
	if len(g.members) < maxGone {
		g.members[n.Name] = goneMember{n.Address(), time.Now(), proved}
	}
}

func (g *gone) remove(n *memberlist.Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.members, n.Name)
}

// some returns the addresses of a few, and forgets those that have been gone for long.
func (g *gone) some() (addresses []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var others []string
	for name, m := range g.members { // in no order
		switch {
		case time.Since(m.since) > askGoneFor:
			delete(g.members, name)
		case m.proved:
			addresses = append(addresses, m.address)
		default:
			others = append(others, m.address)
		}
	}
	addresses = append(addresses, others...)
	return addresses[:min(len(addresses), goneAtATime)]
}

// rejoin asks who is gone, and seeds, until Close. One that does not answer is memberlist's to log.
func (s *Membership) rejoin(every time.Duration, seeds []string) {
	if every <= 0 { // memberlist takes a negative one as it does 0
		every = defaultRound
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for round := 1; ; round++ {
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
		s.wake() // in case the hosts were changed otherwise
		ask := s.gone.some()
		if len(seeds) > 0 && round%roundsToSeed == 0 {
			ask = append(ask, seeds[rand.N(len(seeds))])
		}
		for _, address := range ask {
			select {
			case <-s.stop:
				return
			default:
				_, _ = s.list.Join([]string{address})
			}
		}
	}
}
