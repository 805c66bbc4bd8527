package gridprom

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridrpc/grid"
)

// handlerKey is what the handlers have in common that are counted together.
type handlerKey struct{ name, kind string }

// handlerSum is their statistics.
type handlerSum struct {
	running, limit         int
	unlimited              bool // one of them is
	calls, failed, refused int64
}

func (s *handlerSum) add(h *grid.HandlerStats) {
	s.running += h.Running
	s.limit += h.MaxRunning
	s.unlimited = s.unlimited || h.MaxRunning == 0
	s.calls += h.Calls
	s.failed += h.Failed
	s.refused += h.Refused
}

const (
	// maxHandlerNames bounds the series: names may be made of what is not known in advance.
	maxHandlerNames = 1000
	otherHandlers   = "other"
)

// served makes counters of statistics that begin at zero where a handler is registered anew.
type served struct {
	mu    sync.Mutex // guards what follows
	names map[string]bool
	last  map[registration]grid.HandlerStats // of the last scrape
	gone  map[handlerKey]*handlerSum         // what those have counted that are not registered any more
}

// registration is where a handler is registered.
type registration struct {
	id       grid.HandlerID
	subroute string
}

// keyOf is the key of a handler, in one of a bounded number.
func (s *served) keyOf(h *grid.HandlerStats) handlerKey {
	name, kind := labelValue(h.Name), "request"
	if h.Stream {
		kind = "stream"
	}
	if !s.names[name] {
		if len(s.names) >= maxHandlerNames {
			return handlerKey{otherHandlers, kind}
		}
		s.names[name] = true
	}
	return handlerKey{name, kind}
}

// sums adds up what all handlers have counted, so that no counter falls.
func (s *served) sums(handlers func() []grid.HandlerStats) map[handlerKey]*handlerSum {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := handlers() // here, so that no scrape sees what is older than that of another
	if s.names == nil {
		s.names, s.gone = make(map[string]bool), make(map[handlerKey]*handlerSum)
	}
	now := make(map[registration]grid.HandlerStats, len(all))
	for _, h := range all {
		now[registration{h.ID, h.Subroute}] = h
	}
	for r, old := range s.last {
		if h, ok := now[r]; ok && h.Stream == old.Stream && h.Calls >= old.Calls && h.Failed >= old.Failed && h.Refused >= old.Refused {
			continue
		}
		at := sumOf(s.gone, s.keyOf(&old))
		at.calls, at.failed, at.refused = at.calls+old.Calls, at.failed+old.Failed, at.refused+old.Refused
	}
	s.last = now
	sums := make(map[handlerKey]*handlerSum)
	for key, gone := range s.gone {
		*sumOf(sums, key) = *gone
	}
	for i := range all {
		sumOf(sums, s.keyOf(&all[i])).add(&all[i])
	}
	return sums
}

func sumOf(sums map[handlerKey]*handlerSum, key handlerKey) *handlerSum {
	if sums[key] == nil {
		sums[key] = new(handlerSum)
	}
	return sums[key]
}

// handlerMetric is a metric with one number for each handler.
type handlerMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(s *handlerSum) int64
}

func servedMetric(name, help string, kind prometheus.ValueType, value func(s *handlerSum) int64) handlerMetric {
	return handlerMetric{prometheus.NewDesc("grid_handler_"+name, help, []string{"handler", "kind"}, nil), kind, value}
}

var (
	handlerMetrics = []handlerMetric{
		servedMetric("running", "Calls that the handler serves here, from when the whole request is there until it has returned.",
			prometheus.GaugeValue, func(s *handlerSum) int64 { return int64(s.running) }),
		servedMetric("calls_total", "Calls that have come for the handler, those refused included.",
			prometheus.CounterValue, func(s *handlerSum) int64 { return s.calls }),
		servedMetric("failed_total", "Calls that the handler has ended with an error or a panic.",
			prometheus.CounterValue, func(s *handlerSum) int64 { return s.failed }),
		servedMetric("refused_total", "Calls that a limit has kept from the handler.",
			prometheus.CounterValue, func(s *handlerSum) int64 { return s.refused }),
	}
	limitMetric = servedMetric("running_limit", "How many calls the handler may serve at a time; absent where there is no limit.",
		prometheus.GaugeValue, func(s *handlerSum) int64 { return int64(s.limit) })
)

func describeHandlers(ch chan<- *prometheus.Desc) {
	ch <- limitMetric.desc
	for i := range handlerMetrics {
		ch <- handlerMetrics[i].desc
	}
}

func (s *served) collect(ch chan<- prometheus.Metric, handlers func() []grid.HandlerStats) {
	sums := s.sums(handlers)
	keys := slices.SortedFunc(maps.Keys(sums), func(a, b handlerKey) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.kind, b.kind))
	})
	for _, key := range keys {
		sum := sums[key]
		tell := func(m *handlerMetric) {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(sum)), key.name, key.kind)
		}
		for i := range handlerMetrics {
			tell(&handlerMetrics[i])
		}
		if !sum.unlimited && sum.limit > 0 {
			tell(&limitMetric)
		}
	}
}
