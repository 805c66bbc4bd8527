package chaos

import (
	"math/rand/v2"
	"time"

	"github.com/gridrpc/grid"
)

// limits are those in which a host differs from the others, from one restart to the next.
type limits struct {
	queued     int
	handlers   int
	pings      int
	ping       time.Duration
	streamPing time.Duration
	messages   int
}

// leastSize is the least MaxMessageSize.
const leastSize = 64 << 10

func drawLimits(rng *rand.Rand) *limits {
	between := func(least, most int) int { return least + rng.IntN(most-least) }
	return &limits{
		queued:     between(4<<10, 512<<10),
		handlers:   between(20, 1000),
		pings:      between(200, 10_000),
		ping:       time.Duration(between(300, 500)) * time.Millisecond, // or silence is noticed too late
		streamPing: time.Duration(between(300, 800)) * time.Millisecond,
		messages:   between(leastSize, 512<<10),
	}
}

// options sets the limits; nil has none of its own.
func (l *limits) options(o *grid.ManagerOptions) {
	if l == nil {
		return
	}
	o.MaxQueuedBytes, o.MaxHandlers, o.MaxPings = l.queued, l.handlers, l.pings
	o.PingInterval, o.StreamPingInterval = l.ping, l.streamPing
	o.MaxMessageSize = l.messages
}
