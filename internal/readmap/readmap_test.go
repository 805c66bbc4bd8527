package readmap

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/seed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// FuzzMap holds a map against one of the language.
func FuzzMap(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 128 + 1, 1, 1})
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 128 + 3, 128 + 17, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		m, want := New[[32]byte, int](), map[[32]byte]int{}
		for i, s := range steps {
			k := [32]byte{31: s & 127}
			_, had := want[k]
			if s >= 128 {
				delete(want, k)
				require.Equal(t, had, m.Remove(k))
			} else {
				require.Equal(t, !had, m.Add(k, i))
				if !had {
					want[k] = i
				}
			}
			require.Equal(t, len(want), m.Len())
		}
		for s := range byte(128) {
			k := [32]byte{31: s}
			v, ok := m.Get(k)
			wantV, wantOK := want[k]
			require.Equal(t, []any{wantV, wantOK}, []any{v, ok})
		}
	})
}

// Whoever reads sees every key that is there all the time, and none that is not any more.
func TestMap_IsReadWhileItChanges(t *testing.T) {
	const stay, n = 100, 2000
	m := New[int, int]()
	for k := range stay {
		require.True(t, m.Add(-k, k))
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				for k := range stay {
					if v, ok := m.Get(-k); !ok || v != k {
						t.Errorf("%d is %d, %v", -k, v, ok)
						return
					}
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	random := seed.Rand(t)
	for i := range n {
		require.True(t, m.Add(i+1, i))
		if k := 1 + random.IntN(i+1); m.Remove(k) {
			_, ok := m.Get(k)
			require.False(t, ok)
		}
	}
	close(stop)
	readers.Wait()
}

func TestMap_GetAllocatesNothing(t *testing.T) {
	m := New[[32]byte, int]()
	require.True(t, m.Add([32]byte{1}, 2))
	require.Zero(t, testing.AllocsPerRun(100, func() { m.Get([32]byte{1}) }))
}

func BenchmarkMap_Get(b *testing.B) {
	m := New[[32]byte, int]()
	for i := range 4000 {
		m.Add([32]byte{byte(i), byte(i >> 8)}, i)
	}
	k := [32]byte{17, 3}
	for b.Loop() {
		m.Get(k)
	}
}
