package grid

import (
	"fmt"
	"maps"
	"math/bits"
	"sync"

	"github.com/tinylib/msgp/msgp"
)

// What the payload types share that are maps.

// A map of Go's has no slots when it is made, one group of them with its first entry, and for more
// than that tables of groups, of whose slots at most 7 in 8 are used. The number of them is a power
// of two.
const slotsOfGroup = 8

// mapPool keeps maps of one type for reuse. What a map has had room for it keeps, so that those of
// many entries wait for others with as many: a small payload must not be given a large map.
type mapPool struct {
	small sync.Pool    // pointers to maps that have had one group at most
	large [8]sync.Pool // maps, by their class
}

// classOf is the class of maps of n entries, more than are in a group: 0 are those with two groups
// of slots, 1 with four.
func classOf(n int) int { return bits.Len(uint(n*8/7-1)) - bits.Len(slotsOfGroup) }

// makeMap returns an empty map with room for n entries, or for those of them that may be claimed.
func makeMap[M ~map[string]V, V any](pool *mapPool, n int) M {
	if n > slotsOfGroup && n <= maxKept {
		if m, ok := pool.large[classOf(n)].Get().(M); ok {
			return m
		}
	}
	return make(M, min(n, maxReserved))
}

// newMap returns an empty map that is not nil.
func newMap[M ~map[string]V, V any](pool *mapPool) *M {
	m, _ := pool.small.Get().(*M)
	if m == nil {
		m = new(M)
	}
	if *m == nil {
		*m = make(M)
	}
	return m
}

// recycleMap keeps m for reuse, unless it is huge.
func recycleMap[M ~map[string]V, V any](pool *mapPool, m *M) {
	if m == nil {
		return
	}
	if n := len(*m); n > slotsOfGroup {
		if n <= maxKept {
			clear(*m)
			pool.large[classOf(n)].Put(*m)
		}
		*m = nil
	}
	clear(*m)
	pool.small.Put(m)
}

// unmarshalMap replaces what m holds by the map that b starts with, and returns the rest of b.
// After an error m is empty.
func unmarshalMap[M ~map[string]V, V any](m *M, b []byte, pool *mapPool, readValue func([]byte) (V, []byte, error)) ([]byte, error) {
	if msgp.IsNil(b) {
		*m = nil
		return b[1:], nil
	}
	n, o, err := msgp.ReadMapHeaderBytes(b)
	if err == nil {
		err = checkCount(n, 2, o)
	}
	if err != nil {
		*m = make(M)
		return b, err
	}
	if *m == nil || len(*m) > slotsOfGroup || n > slotsOfGroup {
		*m = makeMap[M](pool, int(n))
	} else {
		clear(*m)
	}
	for i := range n {
		var key string
		if key, o, err = readKey(o); err != nil {
			*m = make(M)
			return b, fmt.Errorf("key %d of %d: %w", i, n, err)
		}
		var v V
		if v, o, err = readValue(o); err != nil {
			*m = make(M)
			// The peer chose the key, so an error shows no more than its start.
			return b, fmt.Errorf("value of %.64q: %w", key, err)
		}
		(*m)[key] = v
	}
	if n > slotsOfGroup && len(*m) < int(n) {
		// Keys came twice, so there is room for entries that did not come.
		exact := make(M, len(*m))
		maps.Copy(exact, *m)
		*m = exact
	}
	return o, nil
}

// unmarshalMapElement is [unmarshalMap] for an element of an Array.
func unmarshalMapElement[M ~map[string]V, V any](m *M, b []byte, left *allowance, pool *mapPool, readValue func([]byte) (V, []byte, error)) ([]byte, error) {
	o, err := unmarshalMap(m, b, pool, readValue)
	if err != nil {
		return b, err
	}
	if *m != nil && len(*m) == 0 {
		*m = make(M) // one that was recycled may have a group
	}
	// The texts take their bytes, rounded up to what memory comes in.
	if err := left.take(sizeOfNew[M]() + sizeOfMap(*m) + 2*(len(b)-len(o))); err != nil {
		*m = make(M)
		return b, err
	}
	return o, nil
}

// sizeOfMap is about what m takes without what its keys and values refer to.
func sizeOfMap[M ~map[string]V, V any](m M) int {
	if m == nil {
		return 0
	}
	// As the runtime has it: a header, and what a slot is besides its key and value, and around a
	// table. What is added is the rounding to classes of sizes.
	size, group := 16+4*sizeOf[uintptr](), slotsOfGroup*(1+sizeOf[string]()+sizeOf[V]())
	switch n := len(m); {
	case n == 0:
		return size
	case n <= slotsOfGroup:
		return size + group + group/10
	default:
		groups := group << (1 + classOf(n))
		return size + 5*sizeOf[uintptr]() + groups + groups/6
	}
}
