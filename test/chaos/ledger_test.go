package chaos

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// ledger knows what became of every call, a few bits each. Calls that have ended long ago it
// forgets, so that it does not grow.
type ledger struct {
	last atomic.Uint64 // the number of the last call

	mu    sync.RWMutex // guards what follows
	pages map[uint64]*page
}

const (
	pageCalls = 1 << 14
	// pageLife is how many ticks of a second a page is kept after the last of its calls has ended.
	pageLife = 30
)

type page struct {
	calls [pageCalls]atomic.Uint32
	ended atomic.Int32 // how many of them have
	ticks int          // since all have; under the ledger's lock
}

// What a ledger knows of a call, above the number of its runs.
const (
	runsMask = 1<<8 - 1
	ranWell  = 1 << 8 // its handler is about to return without an error
	isLost   = 1 << 9 // it failed, and can't have arrived
	// Its caller was told that it has not run and will not.
	isRefused = 1 << 10
	gaveUp    = 1 << 11 // its caller is about to
	// Its handler has come to the end of the input, after as many messages as the bits above
	// inputsShift say. Only of streams whose client may end that early.
	hasInputs   = 1 << 12
	inputsShift = 16
)

func newLedger() *ledger { return &ledger{pages: make(map[uint64]*page)} }

// begin returns the number of a new call.
func (l *ledger) begin() uint64 { return l.beginMany(1) }

// beginMany returns the first of n numbers.
func (l *ledger) beginMany(n uint64) (first uint64) {
	last := l.last.Add(n)
	first = last - n + 1
	for id := first; id <= last; id++ {
		l.page(id, true)
	}
	return first
}

// page returns nil for calls that are forgotten, or were never made.
func (l *ledger) page(id uint64, begins bool) *page {
	n := id / pageCalls
	l.mu.RLock()
	p := l.pages[n]
	l.mu.RUnlock()
	if p != nil || !begins {
		return p
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p = l.pages[n]; p == nil {
		p = new(page)
		if n == 0 {
			p.ended.Add(1) // there is no call 0
		}
		l.pages[n] = p
	}
	return p
}

// run notes that the handler of a call runs, and returns what is known of the call; ok is false if
// nothing is.
func (l *ledger) run(id uint64) (state uint32, ok bool) {
	p := l.page(id, false)
	if p == nil {
		return 0, false
	}
	return p.calls[id%pageCalls].Add(1), true
}

// mark adds to what is known of a call that has not ended, and returns it.
func (l *ledger) mark(id uint64, bits uint32) uint32 {
	p := l.page(id, false)
	if p == nil {
		return 0
	}
	return p.calls[id%pageCalls].Or(bits) | bits
}

// end notes that a call has ended. It is called once, last.
func (l *ledger) end(id uint64) { l.page(id, false).ended.Add(1) }

// tick forgets what is old. It counts calls of itself rather than the time, so that a machine that
// was asleep does not forget what is about to run.
func (l *ledger) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, p := range l.pages {
		if p.ended.Load() < pageCalls {
			continue
		}
		if p.ticks++; p.ticks > pageLife {
			delete(l.pages, n)
		}
	}
}

func TestLedger_ForgetsCallsThatEndedLongAgo(t *testing.T) {
	l := newLedger()
	for range 3 * pageCalls {
		l.begin()
	}
	const old, open = 5, pageCalls + 5
	for id := uint64(1); id <= 3*pageCalls; id++ {
		if id != open && id < 3*pageCalls {
			l.end(id)
		}
	}
	for range pageLife {
		l.tick()
	}
	state, ok := l.run(old)
	require.True(t, ok)
	require.EqualValues(t, 1, state)
	l.tick()
	_, ok = l.run(old)
	require.False(t, ok)
	_, ok = l.run(open)
	require.True(t, ok)
	l.mark(open, isLost)
	state, _ = l.run(open)
	require.EqualValues(t, 2|isLost, state)
	require.Len(t, l.pages, 2, "that of a call that has not ended, and the present one")
}
