package grid

import (
	"sync"

	"github.com/gridrpc/grid/internal/limit"
)

// totals are the limits for all hosts together, and what each host takes of them.
type totals struct {
	opts                     *ManagerOptions // set once
	bytes, handlers, streams limit.Pool

	mu    sync.Mutex // guards what follows
	hosts map[string]*hostLimits
	calls map[*handlerCalls]struct{} // of handlers with a limit of their own
}

// hostLimits is what a host takes up here, in all sessions: each with a share of a total. A host
// that is removed has them for as long as something of it is left, and finds them when it is added
// again, so that coming and going is of no use to it.
type hostLimits struct {
	handlers, streams limit.Slots
	bytes             limit.Budget
	endings           endings
	// calls are the shares of the limits that handlers have of their own: a *limit.Budget for each
	// *handlerCalls.
	calls sync.Map
}

// join gives the host a share of the limit of a handler, once that is divided.
func (l *hostLimits) join(c *handlerCalls) {
	b := new(limit.Budget)
	b.Init("MaxRunning", c.max, c.pool)
	l.calls.Store(c, b)
}

// share is that of the limit of a handler; nil, which has no bound, where there is none any more.
func (l *hostLimits) share(c *handlerCalls) *limit.Budget {
	b, _ := l.calls.Load(c)
	share, _ := b.(*limit.Budget)
	return share
}

// leave gives up all shares.
func (l *hostLimits) leave() {
	l.bytes.Leave()
	l.handlers.Leave()
	l.streams.Leave()
	for _, b := range l.calls.Range {
		b.(*limit.Budget).Leave()
	}
}

func (t *totals) init(o *ManagerOptions) {
	t.opts = o
	t.hosts = make(map[string]*hostLimits)
	t.calls = make(map[*handlerCalls]struct{})
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
		for c := range t.calls {
			l.join(c)
		}
	}
	return l
}

// addCalls has all hosts share the limit of a handler, which is about to be registered.
func (t *totals) addCalls(c *handlerCalls) {
	if c.max == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls[c] = struct{}{}
	for _, l := range t.hosts {
		l.join(c)
	}
	c.pool.Divide()
}

// removeCalls forgets the limit of a handler that is registered no more. Calls that run keep what
// they have of it.
func (t *totals) removeCalls(c *handlerCalls) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.calls, c)
	for _, l := range t.hosts {
		l.calls.Delete(c)
	}
}

// divide divides the totals among the hosts that there are now, and those of which something is
// left. is tells whether there is a host; none may be added meanwhile.
func (t *totals) divide(is func(host string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for host, l := range t.hosts {
		if !is(host) && l.handlers.InUse() == 0 && l.bytes.Used() == 0 && l.endings.none() {
			l.leave()
			delete(t.hosts, host)
		}
	}
	for _, pool := range []*limit.Pool{&t.bytes, &t.handlers, &t.streams} {
		pool.Divide()
	}
	for c := range t.calls {
		c.pool.Divide()
	}
}
