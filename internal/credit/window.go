package credit

const (
	// MaxWindow is how many messages a window grows up to. With fewer, both ends of a long stream of
	// small messages wait for credits, and wake each other, more often than they need.
	MaxWindow = 2048
	// MaxWindowBytes is how many bytes a window grows up to, by the largest message that the stream
	// has seen.
	MaxWindowBytes = 1 << 20
)

// Window is the receiver's account of one direction of a stream: how many messages the sender may
// still send, and when it gets credits for more. It is made up of the credits that the sender
// holds, the messages that wait, and the credits that are owed to it.
//
// A wide window returns credits many at a time, and grows for a consumer that keeps up; any other
// returns one for each message taken. It is not safe for concurrent use.
type Window struct {
	wide    bool
	told    bool // the sender learns the size
	credits int  // held by the sender
	size    int  // credits held by the sender, messages that wait, credits owed
	grown   int  // how much of the size was added: it never falls below what it began with
	owed    int  // messages taken whose credit was not returned
	run     int  // messages taken since the window grew
	largest int  // size of the largest message so far, in bytes
}

// Init sets the size of the window, in messages, and the credits that the sender may hold at first:
// they are more where the sender does not tell how many it has.
func (w *Window) Init(size, credits int, wide bool) {
	*w = Window{wide: wide, size: size, credits: credits}
}

// InitEarly is Init for a wide window whose sender goes by another size, of credits messages at most,
// until it learns this one. What it has sent until then counts against the credits that it has by
// this size, and so may leave it a debt: the size must not take in those messages, or what is owed
// could be all that the sender waits for.
func (w *Window) InitEarly(size, credits int) {
	*w = Window{wide: true, told: true, size: size, credits: max(size, credits)}
}

// Size is the size of the window, in messages.
func (w *Window) Size() int { return w.size }

// Grown is what the window would hold at most, in bytes, if it grew once more: messages like the
// largest so far, of which each takes overhead besides.
func (w *Window) Grown(overhead int) int64 {
	return int64(w.wider()) * (int64(w.largest) + int64(overhead))
}

// wider is the size to which the window grows next.
func (w *Window) wider() int { return min(2*w.size, MaxWindow) }

// Spent reports whether the sender has no credit left.
func (w *Window) Spent() bool { return w.credits == 0 }

// Arrived takes in a message of so many bytes, for which the sender had a credit: see Spent.
// waiting is how many wait now, this one included.
func (w *Window) Arrived(bytes, waiting int) {
	w.credits--
	if !w.told {
		w.size = max(w.size, waiting) // where the sender has not told it
	}
	w.largest = max(w.largest, bytes)
}

// Taken takes in that a message was consumed, and returns how many credits the sender gets now.
// keepsUp says that the consumer has left nothing; mayGrow that the window may grow then.
func (w *Window) Taken(keepsUp, mayGrow bool) (grant int) {
	if !w.wide {
		w.credits++
		return 1
	}
	most := MaxWindowBytes / max(w.largest, 1)
	w.run++
	if w.grown > 0 && w.size > most {
		w.grown--
		w.size-- // messages have become larger: this credit is not returned
	} else {
		w.owed++
	}
	// A consumer that has emptied the queue after a whole window keeps up, and the sender may be
	// waiting for it: more may be under way.
	if keepsUp && w.run >= w.size {
		if wider := w.wider(); mayGrow && wider > w.size && wider <= most {
			w.owed += wider - w.size
			w.grown += wider - w.size
			w.size = wider
		}
		w.run = 0
	}
	if 2*w.owed < w.size {
		return 0
	}
	grant = w.owed
	w.owed = 0
	w.credits += grant
	return grant
}
