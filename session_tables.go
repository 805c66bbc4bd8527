package grid

import (
	"sync"

	"github.com/gridrpc/grid/internal/limit"
)

// toldCapacities are the InCapacity of handlers, as acks of the session have told them. They may be
// different by now.
type toldCapacities struct {
	mu sync.Mutex
	m  map[toldKey]int
}

// toldKey names a handler.
type toldKey struct {
	id  HandlerID
	sub subHandlerID // zero for none
}

// maxTold is of how many handlers a session remembers the capacities.
const maxTold = 1024

func newToldKey(id HandlerID, sub *subHandlerID) toldKey {
	k := toldKey{id: id}
	if sub != nil {
		k.sub = *sub
	}
	return k
}

// get returns 0 where nothing is known.
func (t *toldCapacities) get(k toldKey) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[k]
}

// put remembers a capacity. 0 is not worth it.
func (t *toldCapacities) put(k toldKey, in int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if in == 0 {
		delete(t.m, k)
		return
	}
	if t.m == nil || len(t.m) >= maxTold {
		t.m = make(map[toldKey]int)
	}
	t.m[k] = in
}

// muxTable is streams of a session, or openings that are not complete, by their ID.
type muxTable[T any] struct {
	mu     sync.Mutex
	m      map[uint64]T
	idle   limit.Idle
	closed bool
}

func (t *muxTable[T]) init() { t.m = make(map[uint64]T) }

// add publishes a complete stream. It reports whether the table is open.
func (t *muxTable[T]) add(id uint64, v T) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.m[id] = v
	return true
}

func (t *muxTable[T]) get(id uint64) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.m[id]
	return v, ok
}

// remove takes a stream out. It returns it, and whether it was there.
func (t *muxTable[T]) remove(id uint64) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.m[id]
	delete(t.m, id)
	if len(t.m) == 0 {
		t.idle.Notify()
	}
	return v, ok
}

// untilIdle returns nil if the table is empty, else what is closed when that may have changed.
func (t *muxTable[T]) untilIdle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) == 0 {
		return nil
	}
	return t.idle.Wait()
}

func (t *muxTable[T]) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

// all appends the streams to buf.
func (t *muxTable[T]) all(buf []T) []T {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.m {
		buf = append(buf, v)
	}
	return buf
}

// close refuses further streams, and returns those that there are.
func (t *muxTable[T]) close() []T {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	return t.all(nil)
}
