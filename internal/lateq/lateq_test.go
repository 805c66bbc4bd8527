package lateq

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/monotime"
)

// waiter is late from one time to another.
type waiter struct {
	link     Link[*waiter]
	id, rank int
	from, to monotime.Time
}

func (w *waiter) Late(now monotime.Time) bool { return w.from <= now && now < w.to }

const never = monotime.Time(1 << 62)

func push(q *Queue[*waiter], ids ...int) (all []*waiter) {
	for _, id := range ids {
		w := &waiter{id: id, from: never, to: never}
		q.Push(&w.link, w)
		all = append(all, w)
	}
	return all
}

// serve takes all that wait at a time.
func serve(q *Queue[*waiter], now monotime.Time) (ids []int) {
	for l := q.Next(now); l != nil; l = q.Next(now) {
		ids = append(ids, l.Item().id)
		l.Remove()
	}
	return ids
}

func TestQueue_ServesInOrder(t *testing.T) {
	var q Queue[*waiter]
	push(&q, 1, 2, 3)
	require.Equal(t, 3, q.Len())
	require.Equal(t, []int{1, 2, 3}, serve(&q, 0))
	require.Zero(t, q.Len())
	require.Nil(t, q.Next(0))
}

func TestQueue_PutsWhatIsLateBehindAndTheNewestOfThatFirst(t *testing.T) {
	var q Queue[*waiter]
	all := push(&q, 1, 2, 3, 4)
	all[0].from, all[2].from = 5, 5
	require.Equal(t, []int{2, 4, 3, 1}, serve(&q, 5))
}

func TestQueue_PutsWhatIsOverOutOfTheWayFirst(t *testing.T) {
	var q Queue[*waiter]
	all := push(&q, 1, 2, 3)
	all[0].from, all[0].to = 1, 10
	all[1].from = 1
	require.Equal(t, 3, q.Next(5).Item().id)
	require.Equal(t, []int{1, 3, 2}, serve(&q, 10))
}

func TestQueue_InsertsByRank(t *testing.T) {
	var q Queue[*waiter]
	for id, rank := range []int{5, 3, 5, 9, 1, 4} {
		w := &waiter{id: id, rank: rank, from: never}
		q.Insert(&w.link, w, func(other *waiter) bool { return rank < other.rank })
	}
	require.Equal(t, []int{4, 1, 5, 0, 2, 3}, serve(&q, 0))
}

func TestLink_LeavesFromAnywhere(t *testing.T) {
	for _, gone := range [][]int{{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}, {0, 1, 2}} {
		var q Queue[*waiter]
		all := push(&q, 0, 1, 2)
		want := []int{0, 1, 2}
		for _, i := range gone {
			require.True(t, all[i].link.Remove())
			require.False(t, all[i].link.Remove(), "it is in no queue")
			want = slices.DeleteFunc(want, func(id int) bool { return id == i })
		}
		require.ElementsMatch(t, want, serve(&q, 0))
	}
}

// FuzzQueue holds a queue against one of plain slices.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 9, 0, 2, 1, 3, 9, 4, 4, 4})
	f.Add([]byte{0, 1, 1, 0, 2, 1, 1, 2, 2, 3, 0, 2, 4, 0, 3, 3, 3, 3})
	f.Fuzz(func(t *testing.T, program []byte) {
		next := func() (b int) {
			if len(program) > 0 {
				b, program = int(program[0]), program[1:]
			}
			return b
		}
		var q Queue[*waiter]
		var line, behind []*waiter
		var now monotime.Time
		modelNext := func() *waiter {
			if len(behind) > 0 && !behind[0].Late(now) {
				return behind[0]
			}
			for len(line) > 0 {
				if !line[0].Late(now) {
					return line[0]
				}
				behind, line = append(behind, line[0]), line[1:]
			}
			if len(behind) > 0 {
				return behind[len(behind)-1]
			}
			return nil
		}
		remove := func(w *waiter) {
			is := func(o *waiter) bool { return o == w }
			line, behind = slices.DeleteFunc(slices.Clone(line), is), slices.DeleteFunc(slices.Clone(behind), is)
			require.True(t, w.link.Remove())
		}
		for id := 0; len(program) > 0; id++ {
			switch next() % 5 {
			case 0, 1: // one more, by rank
				w := &waiter{id: id, rank: next() % 4, from: now + monotime.Time(next()%8), to: now + monotime.Time(next()%16)}
				at := len(line)
				for at > 0 && w.rank < line[at-1].rank {
					at--
				}
				line = slices.Insert(slices.Clone(line), at, w)
				q.Insert(&w.link, w, func(other *waiter) bool { return w.rank < other.rank })
			case 2: // one gives up
				if all := append(slices.Clone(line), behind...); len(all) > 0 {
					remove(all[next()%len(all)])
				}
			case 3:
				now += monotime.Time(next() % 8)
			case 4: // one is served
				want, got := modelNext(), q.Next(now)
				if want == nil {
					require.Nil(t, got)
				} else {
					require.Equal(t, want.id, got.Item().id)
					remove(want)
				}
			}
			require.Equal(t, len(line)+len(behind), q.Len())
		}
	})
}
