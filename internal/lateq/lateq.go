// Package lateq is a queue for those who wait with a deadline. They are served in order, but one
// that is late when it is first in line goes behind all others, and of those behind the newest is
// next: where more arrives than can be served, some is served in time then, rather than all too
// late.
package lateq

import "github.com/gridrpc/grid/internal/monotime"

// Item is something that waits.
type Item interface {
	// Late reports whether so much time has passed that it would probably be over too late, but is
	// not yet.
	Late(now monotime.Time) bool
}

// Queue is a queue of items, each with a link that its owner keeps for it. The zero value is empty.
// It is not safe for concurrent use.
type Queue[T Item] struct {
	line   list[T]
	behind list[T] // those that were late when they were first in line
}

// Link is an item's place in a queue. The zero value is in none.
type Link[T Item] struct {
	item       T
	list       *list[T] // nil: in none
	prev, next *Link[T]
}

type list[T Item] struct {
	first, last *Link[T]
	n           int
}

// Len is how many items wait.
func (q *Queue[T]) Len() int { return q.line.n + q.behind.n }

// Push puts an item at the end of the line. l must be in no queue.
func (q *Queue[T]) Push(l *Link[T], item T) {
	l.item = item
	q.line.insertAfter(q.line.last, l)
}

// Insert puts an item in line in front of all those that it is to be before, which must be the last
// ones. l must be in no queue.
func (q *Queue[T]) Insert(l *Link[T], item T, before func(other T) bool) {
	l.item = item
	at := q.line.last
	if at != nil && before(q.line.first.item) {
		at = nil // the front, without a walk
	}
	for at != nil && before(at.item) {
		at = at.prev
	}
	q.line.insertAfter(at, l)
}

// Next returns the link of the item that is next, nil if none waits, and leaves it in the queue. Of
// those behind, one whose time is over is out of the way first.
func (q *Queue[T]) Next(now monotime.Time) *Link[T] {
	if b := q.behind.first; b != nil && !b.item.Late(now) {
		return b
	}
	for first := q.line.first; first != nil; first = q.line.first {
		if !first.item.Late(now) {
			return first
		}
		q.line.remove(first)
		q.behind.insertAfter(q.behind.last, first)
	}
	return q.behind.last
}

// Behind returns the item that has been behind for longest.
func (q *Queue[T]) Behind() (item T, ok bool) {
	if q.behind.first == nil {
		return item, false
	}
	return q.behind.first.item, true
}

// Item returns the item of a link that is in a queue.
func (l *Link[T]) Item() T { return l.item }

// Remove takes the link's item out of its queue. It reports whether it was in one.
func (l *Link[T]) Remove() bool {
	if l.list == nil {
		return false
	}
	l.list.remove(l)
	var none T
	l.item = none // nothing here must hold it
	return true
}

func (s *list[T]) insertAfter(at, l *Link[T]) {
	l.list, l.prev = s, at
	if at == nil {
		l.next, s.first = s.first, l
	} else {
		l.next, at.next = at.next, l
	}
	if l.next == nil {
		s.last = l
	} else {
		l.next.prev = l
	}
	s.n++
}

func (s *list[T]) remove(l *Link[T]) {
	if l.prev == nil {
		s.first = l.next
	} else {
		l.prev.next = l.next
	}
	if l.next == nil {
		s.last = l.prev
	} else {
		l.next.prev = l.prev
	}
	l.list, l.prev, l.next = nil, nil, nil
	s.n--
}
