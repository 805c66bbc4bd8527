package limit

import (
	"sync"
	"sync/atomic"
)

// Pool is a limit that several budgets share, and fairly so: what one of them takes must not starve
// the others, however many there are and whatever they do. Half of it is divided among them, and is
// each one's own, one at least where there are so many. The other half is lent: each may borrow,
// beyond its own, as much as is left for the others when it has; and who has nothing yet all that is
// left, for one payload, which can't be had in part. So one alone gets half of what is lent, two a
// third each, and one who comes late always finds something.
//
// A budget within its own does not come here, so the lock is only for those that have much.
type Pool struct {
	// Set once.
	option string
	limit  int64

	left atomic.Int64 // to be lent

	mu       sync.Mutex // guards what follows, and what budgets have of the pool
	budgets  map[*Budget]struct{}
	own      int64 // of each of them, when it was last divided
	lendable int64
	lent     int64 // above lendable only for a moment, or where it was more before
}

// Init sets the limit, and the option that it comes from.
func (p *Pool) Init(option string, limit int) {
	p.option, p.limit = option, int64(limit)
	p.lendable = p.limit
	p.left.Store(p.limit)
	p.budgets = make(map[*Budget]struct{})
}

func (p *Pool) join(b *Budget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budgets[b] = struct{}{}
}

func (p *Pool) leave(b *Budget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.budgets, b)
	b.own = 0
	p.settleLocked(b)
}

// Divide divides the pool among the budgets that there are now. It takes time in proportion to
// them, so it is called once after some have been added, or have left.
func (p *Pool) Divide() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n := int64(len(p.budgets)); n {
	case 0:
		p.own = 0
	case 1:
		p.own = p.limit // nobody to leave anything for
	default:
		if p.own = p.limit / 2 / n; p.own == 0 && n <= p.limit {
			p.own = 1
		}
	}
	p.lendable = p.limit - p.own*int64(len(p.budgets))
	for b := range p.budgets {
		b.own = p.own
		p.settleLocked(b)
	}
}

// lend is take for a budget that has not enough of its own.
func (p *Pool) lend(b *Budget, r request) *Exceeded {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		used := b.used.Load()
		total, exceeded := b.add(used, r)
		if exceeded != nil {
			return exceeded
		}
		others := p.lent - b.borrowed
		left := max(p.lendable-others, 0)
		share, first := (left+1)/2, used <= int64(r.have)
		if first || p.lent == 0 {
			share = left
		}
		// Where nothing is lent, one payload of any size is taken.
		if borrow := total - b.own - int64(r.slack); borrow > share && !(first && others == 0) {
			return &Exceeded{Option: p.option, Would: total, Limit: b.own + share, Pool: p.limit}
		}
		if b.used.CompareAndSwap(used, total) {
			p.settleLocked(b)
			return nil
		}
	}
}

// settle accounts for what a budget has used.
func (p *Pool) settle(b *Budget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settleLocked(b)
}

func (p *Pool) settleLocked(b *Budget) {
	for {
		borrowed := max(b.used.Load()-b.own, 0)
		p.lent += borrowed - b.borrowed
		b.borrowed = borrowed
		b.borrows.Store(borrowed > 0)
		b.open.Store(b.own + borrowed)
		// Who takes or puts some back now has seen what was stored, and comes here, or is seen.
		if max(b.used.Load()-b.own, 0) == borrowed {
			break
		}
	}
	p.left.Store(p.lendable - p.lent)
}
