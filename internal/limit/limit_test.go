package limit

import (
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/seed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSlots_AreThereUpToTheLimit(t *testing.T) {
	var all, some Slots
	all.Init("handlers", "MaxHandlers", 3, nil, nil)
	some.Init("streams", "MaxStreams", 2, nil, &all)
	got := func(s, want *Slots) *Exceeded {
		full, exceeded := s.Acquire()
		require.Same(t, want, full)
		return exceeded
	}
	got(&some, nil)
	got(&some, nil)
	require.Equal(t, &Exceeded{Option: "MaxStreams", Would: 3, Limit: 2}, got(&some, &some))
	require.Equal(t, 2, all.InUse(), "a slot of the parent is left")
	got(&all, nil)
	require.Equal(t, &Exceeded{Option: "MaxHandlers", Would: 4, Limit: 3}, got(&all, &all))
	some.Release()
	got(&all, nil)
	got(&some, &all) // it is the parent that is full
	require.Equal(t, 1, some.InUse())
	require.Equal(t, "streams", some.Kind())
}

// acquire reports whether there was a slot.
func acquire(s *Slots) bool {
	full, _ := s.Acquire()
	return full == nil
}

func TestSlots_SayWhenTheyAreIdle(t *testing.T) {
	var s Slots
	s.Init("", "", 2, nil, nil)
	require.Nil(t, s.UntilIdle())
	require.True(t, acquire(&s))
	require.True(t, acquire(&s))
	idle := s.UntilIdle()
	s.Release()
	select {
	case <-idle:
		require.Fail(t, "one is still taken")
	default:
	}
	s.Release()
	<-idle
	require.Nil(t, s.UntilIdle())
}

// However many take and release at a time, there are never more than the limit, and nobody who
// waits for the end is forgotten.
func TestSlots_HoldUnderContention(t *testing.T) {
	const limit = 3
	var parent, s Slots
	parent.Init("", "", limit+1, nil, nil)
	s.Init("", "", limit, nil, &parent)
	running := make(chan struct{}, limit)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				if !acquire(&s) {
					continue
				}
				select {
				case running <- struct{}{}:
				default:
					t.Error("more run than may")
				}
				<-running
				s.Release()
			}
		})
	}
	for range 1000 {
		if idle := s.UntilIdle(); idle != nil {
			<-idle
		}
	}
	all.Wait()
	require.Zero(t, s.InUse())
	require.Zero(t, parent.InUse())
}

// One who finds all slots taken may be the last to count, where the slot has become free just then:
// whoever waits must hear of it all the same.
func TestSlots_SayThatTheyAreIdleAfterOneWasRefused(t *testing.T) {
	var s Slots
	s.Init("", "", 1, nil, nil)
	var begun, over atomic.Int64
	var stopped atomic.Bool
	// Both come to a round at once, or nearly: without a wake-up, where they can run in parallel.
	until := func(at *atomic.Int64, round int64) {
		for spins := 1; at.Load() < round; spins++ {
			if spins%1000 == 0 {
				runtime.Gosched()
			}
		}
	}
	var other sync.WaitGroup
	other.Go(func() {
		for round := int64(1); ; round++ {
			until(&begun, round)
			if stopped.Load() {
				return
			}
			if acquire(&s) {
				s.Release()
			}
			over.Store(round)
		}
	})
	lost, round := 0, int64(1)
	// On a busy machine they come to few rounds.
	for start := time.Now(); round <= 10_000 && time.Since(start) < 2*time.Second; round++ {
		require.True(t, acquire(&s))
		idle := s.UntilIdle()
		begun.Store(round)
		for range round % 50 { // to meet the other at any point
			over.Load()
		}
		s.Release()
		until(&over, round)
		select {
		case <-idle:
		default:
			lost++
		}
	}
	stopped.Store(true)
	begun.Store(round)
	other.Wait()
	require.Zero(t, lost, "none was taken, and who waited was not told")
}

func TestBudget_TakesUpToItsLimit(t *testing.T) {
	var b Budget
	b.Init("MaxHostBytes", 100, nil)
	require.Nil(t, b.Take(60))
	require.Equal(t, &Exceeded{Option: "MaxHostBytes", Would: 101, Limit: 100}, b.Take(41))
	require.Equal(t, int64(60), b.Used(), "nothing was added")
	require.Nil(t, b.Take(40))
	require.False(t, b.Spare(0, 0))
	require.Nil(t, b.Grow(0, 7, 7))
	require.EqualValues(t, 108, b.Grow(0, 1, 7).Would)
	Charge{&b, 107}.Release()
	require.Zero(t, b.Used())
	require.True(t, b.Spare(50, 50))
	require.False(t, b.Spare(51, 0))
	require.False(t, b.Spare(50, 51))
	require.Nil(t, b.Take(1000), "what comes alone is never too much")
	require.EqualValues(t, 1001, b.Take(1).Would)
	require.Nil(t, b.Take(0))
}

func TestBudget_OfTheGreatestLimitTakesAnything(t *testing.T) {
	var b Budget
	b.Init("MaxHostBytes", math.MaxInt, nil)
	require.Nil(t, b.Take(1000))
	require.Nil(t, b.Grow(0, 168, 168))
	require.True(t, b.Spare(math.MaxInt/2-1168, 1))
	require.False(t, b.Spare(math.MaxInt64-1, 1))
}

func TestBudget_NilHasNoBound(t *testing.T) {
	var b *Budget
	require.Nil(t, b.Take(1<<30))
	b.Put(5)
	require.True(t, b.Spare(math.MaxInt64, 0))
	Charge{}.Release()
}

// FuzzBudget holds a budget against the sum of what it was asked to keep.
func FuzzBudget(f *testing.F) {
	f.Add(100, []byte{50, 50, 1, 255, 0, 3})
	f.Add(1, []byte{200, 1, 255, 255, 7})
	f.Fuzz(func(t *testing.T, limit int, steps []byte) {
		limit &= 1<<20 - 1
		var b Budget
		b.Init("MaxHostBytes", limit, nil)
		var held []int
		sum := 0
		for _, s := range steps {
			if s >= 128 && len(held) > 0 { // give one back
				i := int(s) % len(held)
				b.Put(held[i])
				sum -= held[i]
				held = append(held[:i], held[i+1:]...)
				continue
			}
			n, slack := int(s)*limit/100, int(s)%3
			exceeded := b.Grow(0, n, slack)
			fits := n == 0 || sum+n <= limit+slack || sum == 0
			require.Equal(t, fits, exceeded == nil)
			if fits {
				held, sum = append(held, n), sum+n
			} else {
				require.EqualValues(t, sum+n, exceeded.Would)
			}
			require.Equal(t, int64(sum), b.Used())
			require.Equal(t, sum+n <= limit/2 && sum+n+int(s) <= limit, b.Spare(int64(n), int64(s)))
		}
	})
}

// Where there is room for one of two who come at once, one of them gets it.
func TestBudget_GivesWhatThereIsToOneOfTwo(t *testing.T) {
	var b Budget
	b.Init("MaxHostBytes", 1000, nil)
	require.Nil(t, b.Take(1))
	for range 20_000 {
		var got atomic.Int32
		var both sync.WaitGroup
		start := make(chan struct{})
		for range 2 {
			both.Go(func() {
				<-start
				if b.Take(600) == nil {
					got.Add(1)
				}
			})
		}
		close(start)
		both.Wait()
		require.EqualValues(t, 1, got.Load())
		b.Put(600)
	}
}

func TestBudget_HoldsUnderContention(t *testing.T) {
	var b Budget
	b.Init("MaxHostBytes", 1000, nil)
	var all sync.WaitGroup
	drawn := seed.Of(t)
	for i := range uint64(8) {
		all.Go(func() {
			random := rand.New(rand.NewPCG(drawn, i))
			for range 1000 {
				n := 1 + random.IntN(400)
				if b.Take(n) == nil {
					if used := b.Used(); used > 1000+8*400 {
						t.Errorf("%d are used", used)
					}
					b.Put(n)
				}
			}
		})
	}
	all.Wait()
	require.Zero(t, b.Used())
}

// A second begins with the first event after the last one was over. In each no more than the limit
// are allowed; and whoever keeps to it is never refused.
func TestRate_BoundsWhatHappensInASecond(t *testing.T) {
	random := seed.Rand(t)
	for range 500 {
		most := 1 + random.IntN(10)
		var r Rate
		r.Init(most)
		now, began, n := monotime.Now(), monotime.Time(0), 0
		for i := range random.IntN(50) {
			now = now.Add(time.Duration(random.Int64N(int64(1300 * time.Millisecond))))
			if i == 0 || now.Sub(began) >= time.Second {
				began, n = now, 0
			}
			n++
			require.Equal(t, n <= most, r.Allow(now), "event %d, %d of its second, of %d", i, n, most)
		}
	}
}
