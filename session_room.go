package grid

import (
	"github.com/gridrpc/grid/internal/lateq"
	"github.com/gridrpc/grid/internal/monotime"
)

// room bounds the messages of one kind that wait for a session's writer, in bytes. Senders that
// find none wait in line, and each is woken when it is its turn, so that those behind it, however
// many, cost nothing.
//
// The queue's lock guards it. Room becomes free when the writer takes the batch, and when a turn
// ends.
type room struct {
	limit    int
	taken    int   // by the messages in the batch
	promised int   // to the turns that were granted, and have not ended
	ahead    int   // to streams that have had a turn, for more in the same batch; see sequence
	sent     int64 // bytes of all turns that were granted so far
	line     lateq.Queue[*turn]
	// Streams whose turns come with room for more wait by themselves: a call behind hundreds of them
	// would have to wait for all that. The two take turns, in bytes.
	streams lateq.Queue[*turn]
	calls   int // bytes of turns that were granted in front of the stream that is next
}

// turn is a sender's place in line, and then the room that it was granted.
type turn struct {
	room    *room
	size    int
	rank    int64 // those of a low rank are before those of a high one
	granted chan struct{}
	place   lateq.Link[*turn]
	late    monotime.Time // see lateAfter
	ahead   int           // room for what the stream sends behind it
}

// Late implements lateq.Item: it reports whether the message will probably be of no use by the time
// it is there.
func (t *turn) Late(now monotime.Time) bool { return now >= t.late }

// fits reports whether there is room for a message. One that is larger than all of it is taken when
// there is no other.
func (r *room) fits(size int) bool {
	used := r.taken + r.promised + r.ahead
	return used == 0 || size <= r.limit-used // the sum might overflow
}

// enter puts t in line, behind those of its rank.
func (r *room) enter(t *turn) {
	t.room, t.granted = r, make(chan struct{})
	if t.ahead > 0 {
		r.streams.Push(&t.place, t)
	} else {
		r.line.Insert(&t.place, t, func(other *turn) bool { return t.rank < other.rank })
	}
	r.grant()
}

// next returns the turn that is next, nil if nobody waits.
func (r *room) next(now monotime.Time) *turn {
	next := r.line.Next(now)
	if s := r.streams.Next(now); s != nil && (next == nil || r.calls >= s.Item().ahead) {
		next = s
	}
	if next == nil {
		return nil
	}
	return next.Item()
}

// grant gives what room there is to those that are next.
func (r *room) grant() {
	if !r.waits() {
		return
	}
	now := monotime.Now()
	for t := r.next(now); t != nil && r.fits(t.size+t.ahead); t = r.next(now) {
		r.promise(t)
	}
}

func (r *room) promise(t *turn) {
	t.place.Remove()
	r.promised += t.size + t.ahead
	r.sent += int64(t.size)
	if t.ahead > 0 || r.streams.Len() == 0 {
		r.calls = 0
	} else {
		r.calls += t.size
	}
	close(t.granted)
}

// leave ends a turn, granted or not. What room that leaves is for grant to give.
func (r *room) leave(t *turn) {
	if !t.place.Remove() {
		r.promised -= t.size + t.ahead
	}
}

// waits reports whether anybody is in line.
func (r *room) waits() bool { return r.waiting() > 0 }

// waiting is how many are in line.
func (r *room) waiting() int { return r.line.Len() + r.streams.Len() }

// stuck reports whether no sender can go on before the batch is taken.
func (r *room) stuck() bool { return r.waits() && r.promised == 0 }

// wakeAll lets everybody go on, to find that the queue has ended.
func (r *room) wakeAll() {
	for t := r.next(0); t != nil; t = r.next(0) {
		r.promise(t)
	}
}
