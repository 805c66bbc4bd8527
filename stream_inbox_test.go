package grid

import (
	"cmp"
	"errors"
	"fmt"
	"testing"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/stretchr/testify/require"
)

// Between peers of this implementation a window does not fall below the capacity of the handler,
// whichever side receives.
func TestInbox_WindowNeverFallsBelowItsCapacity(t *testing.T) {
	s := &inboxSender{t: t, b: newUntoldInbox(), credits: 64, size: credit.MaxWindowBytes / 4} // it has 64 credits of its own
	for range 10 {
		require.GreaterOrEqual(t, s.fill(), 64)
		s.consume()
	}
}

func newInbox(capacity int, wide bool) *inbox {
	b := new(inbox)
	b.init(capacity, wide)
	return b
}

// newUntoldInbox is of a stream whose sender does not tell its credits.
func newUntoldInbox() *inbox {
	b := new(inbox)
	b.initUntold()
	return b
}

// takeOne takes a message that must be there, and returns the credits due.
func takeOne(t *testing.T, b *inbox, want string) int {
	t.Helper()
	msg, grant, ok, _, _ := b.take()
	require.True(t, ok)
	require.Equal(t, want, string(msg.join()))
	return grant
}

func requireEnded(t *testing.T, b *inbox, want error) {
	t.Helper()
	_, _, ok, ended, err := b.take()
	require.False(t, ok)
	require.True(t, ended)
	require.Equal(t, want, err)
}

func TestInbox_DeliversWhatCameBeforeTheEnd(t *testing.T) {
	gone := errors.New("gone")
	for _, end := range []error{nil, gone} {
		b := newInbox(3, false)
		require.NoError(t, push(b, []byte("a")))
		require.NoError(t, push(b, []byte("b")))
		b.end(end)
		b.end(errors.New("too late"))
		require.NoError(t, push(b, []byte("dropped")))
		takeOne(t, b, "a")
		takeOne(t, b, "b")
		requireEnded(t, b, end)
	}
}

func TestInbox_DropNeverMakesAShortCleanEnd(t *testing.T) {
	why := errors.New("cancelled")
	b := newInbox(3, false)
	require.NoError(t, push(b, []byte("a")))
	b.end(nil)
	b.drop(why)
	requireEnded(t, b, why)

	b = newInbox(3, false)
	require.NoError(t, push(b, []byte("a")))
	takeOne(t, b, "a")
	b.end(nil)
	b.drop(why)
	requireEnded(t, b, nil)

	b = newInbox(3, false)
	require.NoError(t, push(b, []byte("a")))
	failed := errors.New("failed")
	b.end(failed)
	b.drop(why)
	requireEnded(t, b, failed)
}

func TestInbox_RefusesMessagesWithoutACredit(t *testing.T) {
	for _, wide := range []bool{false, true} {
		b := newInbox(2, wide)
		require.NoError(t, push(b, []byte("a")))
		require.NoError(t, push(b, []byte("b")))
		require.ErrorIs(t, push(b, []byte("c")), ErrFlowControl)
	}
	require.ErrorIs(t, push(newInbox(0, true), []byte("a")), ErrFlowControl)
	b := newUntoldInbox()
	for range 1000 {
		require.NoError(t, push(b, []byte("a")))
	}
}

func TestInbox_BeginsWithTheCapacityThatItIsTold(t *testing.T) {
	for _, capacity := range []int{1, 3, 1000} {
		b := newInbox(0, true)
		require.False(t, b.isFull(), "nothing has come")
		b.begin(capacity)
		for range capacity {
			require.False(t, b.isFull())
			require.NoError(t, pushFrom(b, []byte("a"), nil))
		}
		require.True(t, b.isFull())
		require.ErrorIs(t, pushFrom(b, []byte("a"), nil), ErrFlowControl)
		require.ErrorContains(t, pushFrom(b, []byte("a"), nil), fmt.Sprint("window is ", capacity))
		granted := 0
		for range capacity {
			granted += takeOne(t, b, "a")
		}
		require.Equal(t, max(min(2*capacity, credit.MaxWindow), capacity), granted, "the window has grown")
	}
}

func TestInbox_ReturnsOneCreditAtATimeToVersion1(t *testing.T) {
	b := newInbox(2, false)
	for range 100 {
		require.NoError(t, push(b, []byte("a")))
		require.Equal(t, 1, takeOne(t, b, "a"))
	}
}

// A capacity of version 1 that is the largest here may be larger there, up to any number.
func TestInbox_LargestCapacityOfVersion1IsNotCounted(t *testing.T) {
	for _, capacity := range []int{1, maxCapacity - 1, maxCapacity} {
		b := new(inbox)
		b.initV1(capacity)
		for range capacity {
			require.NoError(t, push(b, nil))
		}
		if capacity < maxCapacity {
			require.ErrorIs(t, push(b, nil), ErrFlowControl)
			continue
		}
		for range capacity {
			require.NoError(t, push(b, nil))
		}
		require.Equal(t, 1, takeOne(t, b, ""))
		require.False(t, b.isFull())
	}
}

// What comes beside the end of its stream returns no credit, also to a consumer that takes it
// before that end.
func TestInbox_ReturnsNoCreditForTheLastMessage(t *testing.T) {
	for _, wide := range []bool{false, true} {
		for _, held := range []bool{false, true} {
			b := newInbox(2, wide)
			last := &message{Op: opMuxClientMsg, Flags: flagEOF, Payload: []byte("b")}
			require.NoError(t, push(b, []byte("a")))
			failure, err := b.receive(parcel{last, &intake{maxSize: maxMaxMessageSize}})
			require.NoError(t, cmp.Or(failure, err))
			for _, want := range []string{"a", "b"} {
				if !held {
					require.Zero(t, takeOne(t, b, want))
					continue
				}
				msg, ok, _, _ := b.hold()
				require.True(t, ok)
				require.Equal(t, want, string(msg.join()))
				require.Zero(t, b.handedOn(1, true))
			}
			b.end(nil)
			requireEnded(t, b, nil)
		}
	}
}

// inboxSender plays the other end: it sends whenever it may.
type inboxSender struct {
	t       *testing.T
	b       *inbox
	credits int
	size    int
}

// fill sends until there are no credits left, and returns how many messages that were.
func (s *inboxSender) fill() int {
	n := s.credits
	for range n {
		require.NoError(s.t, push(s.b, make([]byte, s.size)))
	}
	s.credits = 0
	return n
}

// consume takes everything, and returns the credits.
func (s *inboxSender) consume() {
	for {
		_, grant, ok, _, _ := s.b.take()
		if !ok {
			return
		}
		s.credits += grant
	}
}

func TestInbox_WindowGrowsForAConsumerThatKeepsUp(t *testing.T) {
	s := &inboxSender{t: t, b: newInbox(1, true), credits: 1, size: 100}
	rounds := 0
	for sent := 0; sent < 10_000; rounds++ {
		sent += s.fill()
		s.consume()
		require.Positive(t, s.credits, "the sender is stuck")
	}
	require.Equal(t, credit.MaxWindow, s.b.window.Size())
	require.Less(t, rounds, 40)
	// It stalls now, with no more than its window.
	require.LessOrEqual(t, s.fill(), credit.MaxWindow)
	require.ErrorIs(t, push(s.b, nil), ErrFlowControl)
}

func TestInbox_WindowIsBoundedInBytes(t *testing.T) {
	const size = 100 << 10
	s := &inboxSender{t: t, b: newInbox(1, true), credits: 1, size: size}
	for range 100 {
		s.fill()
		s.consume()
	}
	require.LessOrEqual(t, s.b.window.Size(), credit.MaxWindowBytes/size)

	// A window that grew for small messages shrinks when they become large, but never below what
	// the stream was registered with.
	s = &inboxSender{t: t, b: newInbox(4, true), credits: 4, size: 10}
	for range 100 {
		s.fill()
		s.consume()
	}
	require.Equal(t, credit.MaxWindow, s.b.window.Size())
	s.size = credit.MaxWindowBytes
	s.fill()
	for range 10 {
		s.consume()
		require.Positive(t, s.fill(), "the sender is stuck")
	}
	require.Equal(t, 4, s.b.window.Size())
}

// A consumer that takes every message late gets no wider window.
func TestInbox_WindowStaysForAConsumerThatLagsBehind(t *testing.T) {
	s := &inboxSender{t: t, b: newInbox(4, true), credits: 4, size: 10}
	s.fill()
	for range 1000 {
		_, grant, ok, _, _ := s.b.take()
		require.True(t, ok)
		s.credits += grant
		s.fill()
	}
	require.Equal(t, 4, s.b.window.Size())
}

func TestInbox_QueueDoesNotGrowWithTheStream(t *testing.T) {
	b := newInbox(4, false)
	require.NoError(t, push(b, []byte("a")))
	for range 10_000 {
		require.NoError(t, push(b, []byte("a")))
		takeOne(t, b, "a")
	}
	require.LessOrEqual(t, cap(b.queue), 16)
}

// push has a message arrive, which is not copied.
func push(b *inbox, payload []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil
	}
	if err := b.checkLocked(); err != nil {
		return err
	}
	return b.pushLocked(arrived{buf: payload})
}

// pushFrom has a message arrive as the reader does.
func pushFrom(b *inbox, payload []byte, budget *limit.Budget) error {
	m := &message{Op: opMuxServerMsg, Payload: payload}
	failure, err := b.receive(parcel{m, &intake{maxSize: maxMaxMessageSize, budget: budget}})
	return cmp.Or(failure, err)
}

// heldMessages is a holder that says what it is told to.
type heldMessages int

func (h *heldMessages) holds() int { return int(*h) }

// A message that is held is taken once: when a look at its holder finds it gone, or when that
// releases it, whichever comes first.
func TestInbox_HeldMessageIsTakenOnce(t *testing.T) {
	const n, size = 3, 100
	for gone := range n + 1 { // found by the look
		var budget limit.Budget
		budget.Init("MaxHostBytes", 1<<20, nil)
		var held heldMessages
		b := newInbox(n, false)
		b.setHolder(&held, 0)
		requireWaiting := func(messages int) {
			t.Helper()
			require.Equal(t, messages*(size+messageCost), b.bytes)
			require.EqualValues(t, b.bytes, budget.Used())
		}
		for round := range 3 {
			for range n {
				require.NoError(t, pushFrom(b, make([]byte, size), &budget))
				msg, ok, _, _ := b.hold()
				require.True(t, ok)
				PutByteBuffer(msg.join())
				held++
			}
			requireWaiting(n)
			require.True(t, b.isFull(), "round %d", round)
			held = heldMessages(n - gone)
			for range 2 { // the second finds nothing more
				b.recount()
				requireWaiting(n - gone)
			}
			require.Equal(t, gone < n, b.isFull(), "by what was found")
			require.Equal(t, 2, b.handedOn(2, true), "each has its credit once")
			requireWaiting(n - max(gone, 2))
			require.Equal(t, 1, b.handedOn(1, true))
			requireWaiting(0)
			held = 0
		}
	}
}
