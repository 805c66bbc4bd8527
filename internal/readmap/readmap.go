// Package readmap is a map that is read without a lock while it changes: for what is looked up all
// the time, and changes now and then.
package readmap

import (
	"hash/maphash"
	"sync/atomic"
)

// Map is such a map. Get may be called at any time; of the other methods one at a time. It is made
// by New.
type Map[K comparable, V any] struct {
	seed  maphash.Seed
	table atomic.Pointer[[]bucket[K, V]] // as many as a power of two
	n     int
}

// bucket is the entries whose hashes are alike, in a list that is never changed but replaced.
type bucket[K comparable, V any] struct{ first atomic.Pointer[entry[K, V]] }

type entry[K comparable, V any] struct {
	key   K
	value V
	next  *entry[K, V]
}

// leastBuckets is how many there are at first.
const leastBuckets = 8

// New returns an empty map.
func New[K comparable, V any]() *Map[K, V] {
	m := &Map[K, V]{seed: maphash.MakeSeed()}
	table := make([]bucket[K, V], leastBuckets)
	m.table.Store(&table)
	return m
}

// Len is how many keys there are.
func (m *Map[K, V]) Len() int { return m.n }

// Get returns the value of k, and whether there is one.
func (m *Map[K, V]) Get(k K) (v V, ok bool) {
	for e := m.bucket(*m.table.Load(), k).first.Load(); e != nil; e = e.next {
		if e.key == k {
			return e.value, true
		}
	}
	return v, false
}

// Add gives k a value. It reports false, and does nothing, if it has one.
func (m *Map[K, V]) Add(k K, v V) bool {
	if _, ok := m.Get(k); ok {
		return false
	}
	table := *m.table.Load()
	if m.n == len(table) {
		table = m.grow(table)
	}
	m.bucket(table, k).add(k, v)
	m.n++
	return true
}

// Remove takes k away. It reports whether it was there.
func (m *Map[K, V]) Remove(k K) bool {
	if _, ok := m.Get(k); !ok {
		return false
	}
	b := m.bucket(*m.table.Load(), k)
	var rest bucket[K, V]
	for e := b.first.Load(); e != nil; e = e.next {
		if e.key != k {
			rest.add(e.key, e.value)
		}
	}
	b.first.Store(rest.first.Load())
	m.n--
	return true
}

func (m *Map[K, V]) bucket(table []bucket[K, V], k K) *bucket[K, V] {
	return &table[maphash.Comparable(m.seed, k)&uint64(len(table)-1)]
}

func (b *bucket[K, V]) add(k K, v V) { b.first.Store(&entry[K, V]{k, v, b.first.Load()}) }

// grow makes a table of twice the size, and publishes it when it is complete.
func (m *Map[K, V]) grow(old []bucket[K, V]) []bucket[K, V] {
	table := make([]bucket[K, V], 2*len(old))
	for i := range old {
		for e := old[i].first.Load(); e != nil; e = e.next {
			m.bucket(table, e.key).add(e.key, e.value)
		}
	}
	m.table.Store(&table)
	return table
}
