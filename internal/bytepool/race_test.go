//go:build race

package bytepool

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
	"weak"

	"github.com/stretchr/testify/require"
)

const (
	twice   = "bytepool: buffer put back twice"
	written = "bytepool: buffer written to after it was put back"
)

// Of the smallest class, of two between, of the largest that is kept, and of two that leave the
// pool at once.
var someSizes = []int{MinCap, 700, 4096, 1 << smallBits, 300 << 10, 1 << 20}

func TestPool_StrictOneCatchesMisuse(t *testing.T) {
	before := Out()
	b := Get(512)
	require.Equal(t, before+1, Out())
	b = append(b, "secret"...)
	Put(b)
	require.Equal(t, before, Out())
	require.Equal(t, poison[:512], string(b[:512]), "poisoned")
	require.PanicsWithValue(t, twice, func() { Put(b) })

	old := b[0]
	b[0] = 'x' // on purpose: a write after the put
	require.PanicsWithValue(t, written, func() {
		for range 2 * keep {
			Get(512)
		}
	})
	b[0] = old
}

func TestPool_PoisonsAllOfABuffer(t *testing.T) {
	for _, n := range someSizes {
		b := Get(n)[:n]
		for i := range b {
			b[i] = 'x'
		}
		Put(b[:1])
		from := 0
		if n > 1<<smallBits {
			from = len(gone)
			require.Equal(t, gone, string(b[:from]))
		}
		require.Equal(t, n-from, strings.Count(string(b[from:]), poison[:1]), n)
	}
}

// Buffers of all classes, those that have left the pool, and strangers.
func TestPool_CatchesASecondPut(t *testing.T) {
	for class := range classes {
		n := classSize(class)
		if n > 4<<20 && class != classes-1 {
			continue // for the time that they take
		}
		for _, b := range [][]byte{Get(n), make([]byte, n, n+n/8)} {
			Put(b)
			require.PanicsWithValue(t, twice, func() { Put(b) }, n)
			require.PanicsWithValue(t, twice, func() { Put(b[:0:max(MinCap, n/2)]) }, "of another class")
			if n > 4096 {
				continue
			}
			others := make([][]byte, keep)
			for i := range others {
				others[i] = make([]byte, n)
				Put(others[i])
			}
			require.PanicsWithValue(t, twice, func() { Put(b) }, "it has left")
			require.PanicsWithValue(t, twice, func() { Put(others[0]) }, "it is still there")
		}
	}
}

// While others take and put back buffers of other classes, eight put back one and the same at a
// time: seven of them must panic.
func TestPool_CatchesASecondPutAmongOthers(t *testing.T) {
	before := Out()
	var others, eight sync.WaitGroup
	var end atomic.Bool
	for _, n := range []int{1 << 10, 2 << 10, 64 << 10, 400 << 10} {
		others.Go(func() {
			for !end.Load() {
				Put(append(Get(n), "others"...))
			}
		})
	}
	for range 20 {
		for _, n := range someSizes {
			b, panics := Get(n), make(chan any, 8)
			for range cap(panics) {
				eight.Go(func() {
					defer func() { panics <- recover() }()
					Put(b)
				})
			}
			eight.Wait()
			close(panics)
			values := map[any]int{}
			for p := range panics {
				values[p]++
			}
			require.Equal(t, map[any]int{nil: 1, twice: 7}, values, n)
		}
	}
	end.Store(true)
	others.Wait()
	require.Equal(t, before, Out())
}

// The write is in the first, a middle and the last byte of a buffer. It is seen when the buffer
// comes out again, and when it leaves since others were put back.
func TestPool_CatchesALateWrite(t *testing.T) {
	for _, n := range []int{MinCap, 512, 2 * len(poison), 1 << smallBits} {
		for _, at := range []int{0, n/2 + 1, n - 1} {
			for how, more := range map[string]func(){
				"comes out": func() { Put(Get(n)) },
				"leaves":    func() { Put(make([]byte, n)) },
			} {
				t.Run(fmt.Sprintf("%d of %d bytes %s", at, n, how), func(t *testing.T) {
					before := Out()
					b := Get(n)
					Put(b)
					b[:n][at] = 'x' // on purpose
					require.PanicsWithValue(t, written, func() {
						for range keep + 1 {
							more()
						}
					})
					require.Equal(t, before, Out())
					for range 2 * keep { // it is not there any more, and all others are
						more()
					}
					Put(make([]byte, n))
				})
			}
		}
	}
}

func TestPool_OutIsExactWhileBuffersComeAndGo(t *testing.T) {
	const users = 4
	before := Out()
	var all, first, end sync.WaitGroup
	first.Add(users)
	end.Add(1)
	var stop atomic.Bool
	for i := range users {
		all.Go(func() {
			has := Get(MinCap)
			first.Done()
			for round := i; !stop.Load(); round++ { // has one or two buffers
				next := Get(someSizes[round%len(someSizes)])
				Put(has)
				has = next
				if round%3 == 0 {
					Put(make([]byte, 512)) // a stranger does not count
				}
			}
			end.Wait()
			Put(has)
		})
	}
	first.Wait()
	for range 500 {
		out := Out() - before
		require.True(t, users <= out && out <= 2*users, out)
	}
	stop.Store(true)
	require.Eventually(t, func() bool { return Out()-before == users }, 10*time.Second, time.Millisecond)
	end.Done()
	all.Wait()
	require.Equal(t, before, Out())
}

func TestPool_KeepsNothingThatHasLeftIt(t *testing.T) {
	for _, n := range []int{MinCap, 4096, 300 << 10} {
		b := Get(n)
		at := weak.Make(unsafe.SliceData(b))
		Put(b)
		if n <= 1<<smallBits {
			runtime.GC()
			require.NotNil(t, at.Value(), "it is kept")
		}
		for range keep {
			Put(make([]byte, n))
		}
		runtime.GC()
		require.Nil(t, at.Value(), n)
	}
}
