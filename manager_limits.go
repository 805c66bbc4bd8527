package grid

import (
	"sync"

	"github.com/gridrpc/grid/internal/limit"
)

// totals are the limits for all hosts together, and what each host takes of them.
type totals struct {
	opts                     *ManagerOptions // set once
	bytes, handlers, streams limit.Pool

	mu    sync.Mutex // guards hosts
	hosts map[string]*hostLimits
}

// hostLimits is what a host takes up here, in all sessions: each with a share of a total. A host
// that is removed has them for as long as something of it is left, and finds them when it is added
// again, so that coming and going is of no use to it.
type hostLimits struct {
	handlers, streams limit.Slots
	bytes             limit.Budget
	endings           endings
}

func (t *totals) init(o *ManagerOptions) {
	t.opts = o
	t.hosts = make(map[string]*hostLimits)
	t.bytes.Init("MaxTotalBytes", o.MaxTotalBytes)
	t.handlers.Init("MaxTotalHandlers", o.MaxTotalHandlers)
	t.streams.Init("MaxTotalStreams", o.MaxTotalStreams)
}

// of returns the limits of a host, which is about to be added.
func (t *totals) of(host string) *hostLimits {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.hosts[host]
	if l == nil {
		l = new(hostLimits)
		l.bytes.Init("MaxHostBytes", t.opts.MaxHostBytes, &t.bytes)
		l.handlers.Init("handlers", "MaxHandlers", t.opts.MaxHandlers, &t.handlers, nil)
		l.streams.Init("streams", "MaxStreams", t.opts.MaxStreams, &t.streams, &l.handlers)
		t.hosts[host] = l
	}
	return l
}

// divide divides the totals among the hosts that there are now, and those of which something is
// left. is tells whether there is a host; none may be added meanwhile.
func (t *totals) divide(is func(host string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for host, l := range t.hosts {
		if !is(host) && l.handlers.InUse() == 0 && l.bytes.Used() == 0 && l.endings.none() {
			l.bytes.Leave()
			l.handlers.Leave()
			l.streams.Leave()
			delete(t.hosts, host)
		}
	}
	for _, pool := range []*limit.Pool{&t.bytes, &t.handlers, &t.streams} {
		pool.Divide()
	}
}
