package grid

import (
	"container/list"
	"time"
)

// room bounds the messages of one kind that wait for a session's writer, in bytes.
// Senders that find none wait in line, and each is woken when it is its turn, so that
// those behind it, however many, cost nothing.
//
// The queue's lock guards it. Room becomes free when the writer takes the batch, and
// when a turn ends.
type room struct {
	limit    int
	taken    int       // by the messages in the batch
	promised int       // to the turns that were granted, and have not ended
	passed   int64     // bytes that were ever promised
	line     list.List // of *turn, not granted yet, by rank
	behind   list.List // the same: those that were late when they were first in line
}

// turn is a sender's place in line, and then the room that it was granted.
type turn struct {
	room    *room
	size    int
	rank    int64 // those of a low rank are before those of a high one
	granted chan struct{}
	place   *list.Element // in its list; nil once it was granted
	list    *list.List
	late    time.Time // see lateAfter; zero for never
}

// fits tells whether there is room for a message. One that is larger than all of it
// is taken when there is no other.
func (r *room) fits(size int) bool {
	used := r.taken + r.promised
	return used == 0 || used+size <= r.limit
}

// enter puts t in line, behind those of its rank.
func (r *room) enter(t *turn) {
	t.room, t.list, t.granted = r, &r.line, make(chan struct{})
	switch first, last := r.line.Front(), r.line.Back(); {
	case last == nil || last.Value.(*turn).rank <= t.rank:
		t.place = r.line.PushBack(t)
	case t.rank < first.Value.(*turn).rank:
		t.place = r.line.PushFront(t)
	default:
		for last.Value.(*turn).rank > t.rank {
			last = last.Prev()
		}
		t.place = r.line.InsertAfter(t, last)
	}
	r.grant()
}

// grant gives what room there is to those that are next.
func (r *room) grant() {
	for next := r.next(); next != nil && r.fits(next.size); next = r.next() {
		r.promise(next)
	}
}

// next is the first in line that is not late, or else the last of those that are: where
// more arrives than can be sent, some is sent in time then, rather than all too late.
func (r *room) next() *turn {
	var now time.Time
	for first := r.line.Front(); first != nil; first = r.line.Front() {
		t := first.Value.(*turn)
		if t.late.IsZero() {
			return t
		}
		if now.IsZero() {
			now = time.Now()
		}
		if now.Before(t.late) {
			return t
		}
		r.line.Remove(first)
		t.place, t.list = r.behind.PushBack(t), &r.behind
	}
	if last := r.behind.Back(); last != nil {
		return last.Value.(*turn)
	}
	return nil
}

func (r *room) promise(t *turn) {
	t.list.Remove(t.place)
	t.place = nil
	r.promised += t.size
	r.passed += int64(t.size)
	close(t.granted)
}

// leave ends a turn, granted or not. What room that leaves is for grant to give.
func (r *room) leave(t *turn) {
	if t.place != nil {
		t.list.Remove(t.place)
		return
	}
	r.promised -= t.size
}

// waits tells whether anybody is in line.
func (r *room) waits() bool { return r.line.Len()+r.behind.Len() > 0 }

// stuck tells whether no sender can go on before the batch is taken.
func (r *room) stuck() bool { return r.waits() && r.promised == 0 }

// open lets everybody go on, to find that the queue has ended.
func (r *room) open() {
	for r.waits() {
		r.promise(r.next())
	}
}
