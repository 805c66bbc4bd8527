package grid

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// A handler that takes the place of one that was unregistered a moment ago knows how much input
// clients may still send by that.
func TestRegistry_HandlerKnowsOfTheOneBeforeIt(t *testing.T) {
	for _, subroute := range []string{"", "a"} {
		var r registry
		r.init(new(ManagerOptions), new(totals))
		const id = 7
		entry := func(in int) handler { return handler{stream: &streamEntry{inCapacity: in}} }
		for in := range 5000 {
			require.NoError(t, r.add(id, subroute, entry(in)))
			go r.remove(id, subroute)
			next := entry(0)
			for r.add(id, subroute, next) != nil {
				runtime.Gosched()
			}
			require.GreaterOrEqual(t, next.stream.before(), in)
			require.True(t, r.remove(id, subroute))
			require.False(t, r.remove(id, subroute))
		}
	}
}
