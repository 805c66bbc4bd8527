package credit

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func newWindow(size int, wide bool) *Window {
	w := new(Window)
	w.Init(size, size, wide)
	return w
}

// drain sends as much as may be sent, and takes all of it: a consumer that keeps up.
func drain(t *testing.T, w *Window, bytes int, mayGrow bool) (sent int) {
	t.Helper()
	for !w.Spent() {
		sent++
		w.Arrived(bytes, sent)
	}
	for i := range sent {
		w.Taken(i == sent-1, mayGrow)
	}
	return sent
}

func TestWindow_ReturnsOneCreditForEachMessage(t *testing.T) {
	w := newWindow(3, false)
	for range 10 {
		require.Equal(t, 3, drain(t, w, 100, true))
		require.Equal(t, 3, w.Size(), "only a wide one grows")
	}
}

func TestWindow_DoublesForAConsumerThatKeepsUp(t *testing.T) {
	w := newWindow(3, true)
	for _, want := range []int{3, 6, 12, 24, 48, 96, 192, 384, 768, 1536, MaxWindow, MaxWindow} {
		require.Equal(t, want, drain(t, w, 100, true))
	}
}

func TestWindow_StaysWhereItMayNotGrow(t *testing.T) {
	w := newWindow(4, true)
	for range 10 {
		require.Equal(t, 4, drain(t, w, 100, false))
	}
}

func TestWindow_StaysForAConsumerThatDoesNotKeepUp(t *testing.T) {
	w := newWindow(4, true)
	sent, taken := 0, 0
	for range 100 {
		for !w.Spent() {
			sent++
			w.Arrived(10, sent-taken)
		}
		taken++
		w.Taken(false, true)
	}
	require.Equal(t, 4, w.Size())
}

// A window is bounded in bytes by the largest message; what it had beyond that it gives up again,
// down to what it began with.
func TestWindow_ShrinksAgainForLargerMessages(t *testing.T) {
	w := newWindow(4, true)
	for range 10 {
		drain(t, w, 10, true)
	}
	require.Equal(t, MaxWindow, w.Size())
	for range 10 {
		drain(t, w, MaxWindowBytes/16, true)
	}
	require.Equal(t, 16, w.Size())
	for range 10 {
		drain(t, w, MaxWindowBytes, true)
	}
	require.Equal(t, 4, w.Size())
}

// What it grows up to in bytes is what it may have: it stops where one step more would be too many.
func TestWindow_GrowsUpToItsBytes(t *testing.T) {
	for _, c := range []struct{ bytes, want int }{{MaxWindowBytes / 16, 16}, {MaxWindowBytes/16 + 1, 8}, {MaxWindowBytes / 15, 8}} {
		w := newWindow(4, true)
		for range 10 {
			drain(t, w, c.bytes, true)
		}
		require.Equal(t, c.want, w.Size(), "messages of %d bytes", c.bytes)
	}
}

// What it says it would hold after it has grown is what it then has room for.
func TestWindow_SaysWhatItWouldHoldWhenGrown(t *testing.T) {
	for _, size := range []int{1, 3, MaxWindow / 2, MaxWindow} {
		w := newWindow(size, true)
		require.EqualValues(t, min(2*size, MaxWindow)*10, w.Grown(10), "of empty messages")
		for i, bytes := range []int{100, 7} {
			w.Arrived(bytes, 1)
			require.EqualValues(t, min(2*w.Size(), MaxWindow)*110, w.Grown(10), "after message %d", i)
			w.Taken(false, false)
		}
		w.Arrived(math.MaxInt32, 1)
		require.EqualValues(t, int64(min(2*w.Size(), MaxWindow))*(math.MaxInt32+168), w.Grown(168))
	}
}

// It grows for a whole window that was taken since it last did, not for a queue that happens to be
// empty.
func TestWindow_GrowsOnceForAWindowThatWasTaken(t *testing.T) {
	w := newWindow(4, true)
	for size := 4; size < MaxWindow; size *= 2 {
		for taken := range size {
			require.Equal(t, size, w.Size(), "after %d messages", taken)
			w.Arrived(10, 1)
			w.Taken(true, true)
		}
		require.Equal(t, 2*size, w.Size(), "after all of them")
	}
}

// Its credits go back when they make up half of it, be that odd or even.
func TestWindow_ReturnsCreditsByTheHalf(t *testing.T) {
	for size := 1; size < 20; size++ {
		w := newWindow(size, true)
		for !w.Spent() {
			w.Arrived(10, 1)
		}
		half := (size + 1) / 2
		for range half - 1 {
			require.Zero(t, w.Taken(false, true), "of %d", size)
		}
		require.Equal(t, half, w.Taken(false, true), "of %d", size)
	}
}

func TestWindow_LearnsASizeThatOnlyTheSenderKnew(t *testing.T) {
	var w Window
	w.Init(1, 1000, true)
	for i := range 100 {
		require.False(t, w.Spent())
		w.Arrived(1, i+1)
	}
	require.Equal(t, 100, w.Size())
}

// FuzzWindow: whatever comes and is taken, no credit is lost or made, the sender is never stuck
// with nothing on its way, and the window stays within its bounds.
// What was sent before the sender knew the size leaves it a debt, which what is owed to it must not
// hold up.
func TestWindow_OwesNoMoreThanASenderWithADebtCanWaitFor(t *testing.T) {
	for _, size := range []int{1, 2, 3, 10, 100, 1000} {
		for early := range 300 {
			var w Window
			w.InitEarly(size, early)
			avail := size - early // as the sender counts, once it knows
			for i := range early {
				require.False(t, w.Spent())
				w.Arrived(10, i+1)
			}
			for i := range early {
				avail += w.Taken(i == early-1, true)
			}
			require.Positive(t, avail, "size %d, %d sent before", size, early)
			require.LessOrEqual(t, avail, w.Size())
		}
	}
}

func FuzzWindow(f *testing.F) {
	f.Add(uint8(1), true, []byte{0, 1, 0, 1, 0, 3, 0, 2})
	f.Add(uint8(16), true, []byte{0, 0, 0, 0, 200, 201, 1, 3, 5, 7, 0, 9, 17, 33, 65, 129})
	f.Add(uint8(7), false, []byte{0, 0, 1, 1, 2, 4, 6, 1})
	f.Fuzz(func(t *testing.T, size uint8, wide bool, steps []byte) {
		first := int(size)
		w := newWindow(first, wide)
		sent, taken, granted := 0, 0, 0
		take := func(mayGrow bool) {
			taken++
			n := w.Taken(taken == sent, mayGrow)
			require.GreaterOrEqual(t, n, 0)
			granted += n
		}
		for _, s := range steps {
			if s&1 == 0 { // some arrive
				bytes := 1 << (s % 24)
				for range 1 + s/8 {
					require.Equal(t, first+granted == sent, w.Spent())
					if w.Spent() {
						break
					}
					sent++
					w.Arrived(bytes, sent-taken)
				}
			} else {
				for range min(sent-taken, 1+int(s)/8) {
					take(s&2 == 0)
				}
			}
			require.LessOrEqual(t, w.Size(), max(first, MaxWindow))
			require.GreaterOrEqual(t, w.Size(), first)
			// What the sender holds, and what waits, is the window but for what is owed, which is
			// less than half of it.
			open := first + granted - taken
			require.LessOrEqual(t, open, w.Size())
			require.Greater(t, 2*open+1, w.Size()-1)
		}
		for taken < sent {
			take(true)
		}
		require.Equal(t, first == 0, w.Spent(), "the sender is stuck")
	})
}
