package limit

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/seed"
)

// newPool returns a pool that is divided among so many budgets, whose own limit is never reached.
func newPool(limit, n int) (*Pool, []*Budget) {
	p := new(Pool)
	p.Init("MaxTotalBytes", limit)
	budgets := make([]*Budget, n)
	for i := range budgets {
		budgets[i] = new(Budget)
		budgets[i].Init("MaxHostBytes", math.MaxInt, p)
	}
	p.Divide()
	return p, budgets
}

// fill takes one at a time until that is too much.
func fill(b *Budget) (n int) {
	for b.Take(1) == nil {
		n++
	}
	return n
}

func TestPool_GreedyBudgetsLeaveSomethingForOthers(t *testing.T) {
	_, b := newPool(1000, 5) // 100 of each one's own, 500 to be lent
	require.Equal(t, 100+250, fill(b[0]))
	require.Equal(t, 100+125, fill(b[1]))
	require.Equal(t, &Exceeded{Option: "MaxTotalBytes", Would: 226, Limit: 225, Pool: 1000}, b[1].Take(1))
	require.Equal(t, 100+63, fill(b[2]))
	require.Equal(t, 100+31, fill(b[3]))
	require.Equal(t, 100+16, fill(b[4]))
	require.EqualValues(t, 350+225+163+131+116, b[0].Used()+b[1].Used()+b[2].Used()+b[3].Used()+b[4].Used())

	// They may take what the first gives back. It finds its own again whatever they do.
	require.Zero(t, b[0].Put(350))
	for _, other := range b[1:] {
		fill(other)
	}
	require.GreaterOrEqual(t, fill(b[0]), 100)
}

func TestPool_SharesAlikeAmongThoseWhoComeAndGo(t *testing.T) {
	_, b := newPool(1000, 5)
	fill(b[0])
	for range 300 {
		for _, each := range b {
			if used := each.Used(); used > 100 {
				each.Put(1 + int(used)/50) // what ends
			}
			for range 5 {
				each.Take(1)
			}
		}
	}
	for _, each := range b {
		require.InDelta(t, 100+500/6, each.Used(), 10, "five shares, and one that is left")
	}
}

func TestPool_OfOneBudgetIsItsOwn(t *testing.T) {
	_, b := newPool(1000, 1)
	require.Equal(t, 1000, fill(b[0]))
	require.EqualValues(t, 1001, b[0].Take(1).Would)
}

// A message of any size comes through where nothing is lent, but not beside what is.
func TestPool_LendsAnythingToOneAlone(t *testing.T) {
	_, b := newPool(100, 10)
	require.Nil(t, b[0].Take(5000))
	require.Nil(t, b[1].Take(5), "its own")
	require.NotNil(t, b[1].Take(1))
	b[0].Put(5000)
	require.Nil(t, b[1].Take(50), "all that may be lent")
	require.NotNil(t, b[1].Take(1))
}

func TestPool_SmallerThanItsBudgetsAreMany(t *testing.T) {
	_, b := newPool(1, 10)
	require.Nil(t, b[3].Take(1))
	for _, other := range b {
		require.NotNil(t, other.Take(1))
	}
	b[3].Put(1)
	require.Nil(t, b[4].Take(1))

	_, b = newPool(16, 9) // one for each, and seven to be lent
	require.Equal(t, 1+4, fill(b[0]))
	require.Equal(t, 1+2, fill(b[1]))
	require.Equal(t, 1+1, fill(b[2]))
	for _, other := range b[3:] {
		require.Equal(t, 1, fill(other))
	}
}

// What somebody has who is a little above its own does not keep a large payload from the others.
func TestPool_LendsAllThatIsLeftToTheFirstPayloadOfAnother(t *testing.T) {
	_, b := newPool(1000, 5)
	require.Nil(t, b[0].Take(101))
	require.Nil(t, b[1].Take(400))
	require.Nil(t, b[1].Grow(400, 199, 0), "it is still the only one")
	require.NotNil(t, b[1].Take(1))
	require.NotNil(t, b[2].Take(101), "nothing is left to be lent")
	require.Nil(t, b[2].Take(100), "its own")
}

// Before it is divided, and when it has left, a budget has what it can borrow.
func TestPool_ChangesWithItsBudgets(t *testing.T) {
	p, b := newPool(1000, 2)
	require.Equal(t, 250+250, fill(b[0]))
	late := new(Budget)
	late.Init("MaxHostBytes", 1000, p)
	require.Equal(t, 125, fill(late))
	p.Divide()
	require.EqualValues(t, 166, late.open.Load())
	b[0].Leave()
	b[0].Leave()
	p.Divide()
	require.EqualValues(t, 500, p.lent, "what it has goes on counting")
	require.Equal(t, 250, fill(b[1]))
	require.Zero(t, b[0].Put(500))
	require.Zero(t, p.lent)
	require.Equal(t, 250, fill(b[1]))
	require.Nil(t, late.Take(1))
}

func TestPool_SparesWhatIsOwnAndHalfOfWhatIsLeft(t *testing.T) {
	_, b := newPool(1000, 5)
	require.True(t, b[0].Spare(100, 250))
	require.False(t, b[0].Spare(100, 251))
	require.Equal(t, 350, fill(b[0]))
	require.Equal(t, 225, fill(b[1]))
	require.True(t, b[2].Spare(100, 62))
	require.False(t, b[2].Spare(100, 63))
	require.Zero(t, b[0].Put(350))
	require.True(t, b[2].Spare(100, 187))
}

func TestPool_HoldsUnderContention(t *testing.T) {
	const limit, n = 10_000, 8
	p, budgets := newPool(limit, n)
	drawn := seed.Of(t)
	var all sync.WaitGroup
	for i := range 2 * n {
		b := budgets[i/2] // two of each
		all.Go(func() {
			random := rand.New(rand.NewPCG(drawn, uint64(i)))
			var held []int
			for range 3000 {
				if len(held) > 0 && random.IntN(2) == 0 {
					b.Put(held[len(held)-1])
					held = held[:len(held)-1]
					continue
				}
				own := b.Used() == 0
				n := 1 + random.IntN(400)
				if b.Take(n) == nil {
					held = append(held, n)
				} else if own && n <= limit/2/8/2 {
					t.Error("its own was refused")
				}
				if random.IntN(100) == 0 {
					p.Divide()
				}
			}
			for _, n := range held {
				b.Put(n)
			}
		})
	}
	all.Wait()
	require.Zero(t, p.lent)
	for _, b := range budgets {
		require.Zero(t, b.Used())
		require.Zero(t, b.borrowed)
		require.EqualValues(t, limit/2/n, b.open.Load())
	}
}

// FuzzPool holds the budgets of a pool against the sums of what they were asked to keep.
func FuzzPool(f *testing.F) {
	f.Add(1000, 5, []byte{0, 50, 1, 50, 0, 200, 128, 0, 2, 10, 3, 99})
	f.Add(3, 20, []byte{0, 1, 1, 1, 2, 1, 3, 1, 130, 0})
	f.Add(200, 1, []byte{0, 255, 0, 255, 128, 0, 0, 1})
	f.Fuzz(func(t *testing.T, limit, n int, steps []byte) {
		limit, n = 1+limit&(1<<20-1), 1+n&15
		p, budgets := newPool(limit, n)
		held := make([][]int, n)
		sums := make([]int, n)
		own := limit / 2 / n
		switch {
		case n == 1:
			own = limit
		case own == 0 && n <= limit:
			own = 1
		}
		lendable := limit - own*n
		borrowed := func(i int) int { return max(sums[i]-own, 0) }
		for ; len(steps) >= 2; steps = steps[2:] {
			i, s := int(steps[0]&127)%n, int(steps[1])
			if steps[0] >= 128 {
				if len(held[i]) > 0 {
					at := s % len(held[i])
					sums[i] -= held[i][at]
					require.EqualValues(t, sums[i], budgets[i].Put(held[i][at]))
					held[i] = append(held[i][:at], held[i][at+1:]...)
				}
				continue
			}
			lent := 0
			for j := range n {
				lent += borrowed(j)
			}
			take := s * max(limit, 100) / 100
			total := sums[i] + take
			more := max(total-own, 0)
			others := lent - borrowed(i)
			left := max(lendable-others, 0)
			fits := take == 0 || total <= own || more <= (left+1)/2 || sums[i] == 0 && others == 0 ||
				more <= left && (sums[i] == 0 || lent == 0)
			exceeded := budgets[i].Take(take)
			require.Equal(t, fits, exceeded == nil)
			if fits {
				held[i], sums[i] = append(held[i], take), total
			} else {
				require.EqualValues(t, total, exceeded.Would)
				require.Less(t, exceeded.Limit, exceeded.Would)
			}
			require.EqualValues(t, sums[i], budgets[i].Used())
			lent = 0
			for j := range n {
				lent += borrowed(j)
			}
			require.EqualValues(t, lent, p.lent)
		}
	})
}
