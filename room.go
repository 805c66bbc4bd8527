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
	line     list.List // of *turn, not granted yet
}

// turn is a sender's place in line, and then the room that it was granted.
type turn struct {
	room    *room
	size    int
	granted chan struct{} // closed when there is room for it
	place   *list.Element // nil once it was granted
	// late is when half of the way from its coming to its deadline is over; zero for
	// none.
	late time.Time
}

// fits tells whether there is room for a message. One that is larger than all of it
// is taken when there is no other.
func (r *room) fits(size int) bool {
	used := r.taken + r.promised
	return used == 0 || used+size <= r.limit
}

// enter takes a place at the end of the line.
func (r *room) enter(size int, late time.Time) *turn {
	t := &turn{room: r, size: size, late: late, granted: make(chan struct{})}
	t.place = r.line.PushBack(t)
	r.grant()
	return t
}

// grant gives what room there is to those that are next.
func (r *room) grant() {
	for next := r.next(); next != nil && r.fits(next.size); next = r.next() {
		r.promise(next)
	}
}

// next is the first in line, or the last if the first is late: where more arrives
// than can be sent, some is sent in time then, rather than all too late.
func (r *room) next() *turn {
	if r.line.Len() == 0 {
		return nil
	}
	first := r.line.Front().Value.(*turn)
	if !first.late.IsZero() && r.line.Len() > 1 && time.Now().After(first.late) {
		return r.line.Back().Value.(*turn)
	}
	return first
}

func (r *room) promise(t *turn) {
	r.line.Remove(t.place)
	t.place = nil
	r.promised += t.size
	close(t.granted)
}

// leave ends a turn, granted or not. What room that leaves is for grant to give.
func (r *room) leave(t *turn) {
	if t.place != nil {
		r.line.Remove(t.place)
		return
	}
	r.promised -= t.size
}

// stuck tells whether no sender can go on before the batch is taken.
func (r *room) stuck() bool { return r.line.Len() > 0 && r.promised == 0 }

// open lets everybody go on, to find that the queue has ended.
func (r *room) open() {
	for first := r.line.Front(); first != nil; first = r.line.Front() {
		r.promise(first.Value.(*turn))
	}
}
