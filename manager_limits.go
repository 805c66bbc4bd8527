package grid

import "github.com/gridrpc/grid/internal/limit"

// totals are the limits for all hosts together. Each Connection has a share of each.
type totals struct{ bytes, handlers, streams limit.Pool }

func (t *totals) init(o *ManagerOptions) {
	t.bytes.Init("MaxTotalBytes", o.MaxTotalBytes)
	t.handlers.Init("MaxTotalHandlers", o.MaxTotalHandlers)
	t.streams.Init("MaxTotalStreams", o.MaxTotalStreams)
}

// divide divides them among the hosts that there are now.
func (t *totals) divide() {
	for _, pool := range []*limit.Pool{&t.bytes, &t.handlers, &t.streams} {
		pool.Divide()
	}
}
