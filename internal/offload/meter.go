package offload

import (
	"sync/atomic"
	"time"
)

// MeterInterval is how long a [Meter] keeps what was added, unless its function is busy.
const MeterInterval = time.Second

// Meter tells a function of what was added since it last did, apart from those who add. Nothing is
// lost or told twice. Its methods may be called concurrently, and on nil.
type Meter struct {
	tell func(n int64) // set once
	loop Loop

	sum   atomic.Int64
	armed atomic.Bool // sum will be looked at
}

// NewMeter makes a meter that calls tell, which must not panic, on goroutines of g.
func NewMeter(g *Group, tell func(n int64)) *Meter {
	m := &Meter{tell: tell}
	m.loop.Init(g, m.step)
	return m
}

// Add adds n.
func (m *Meter) Add(n int64) {
	if m == nil {
		return
	}
	m.sum.Add(n)
	if !m.armed.Load() && !m.armed.Swap(true) {
		time.AfterFunc(MeterInterval, m.Flush)
	}
}

// Flush has what there is told now. It does not wait.
func (m *Meter) Flush() {
	if m != nil && m.armed.Load() {
		m.loop.Wake()
	}
}

func (m *Meter) step() bool {
	m.armed.Store(false) // before the sum is taken: what is added afterwards arms it again
	n := m.sum.Swap(0)
	if n != 0 {
		m.tell(n)
	}
	return n != 0
}
