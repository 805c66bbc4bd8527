package memory

import (
	"errors"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/seed"
)

func TestAvailable_IsNoMoreThanTheRuntimeMayUse(t *testing.T) {
	before := Available()
	require.Positive(t, before)
	old := debug.SetMemoryLimit(123 << 20)
	defer debug.SetMemoryLimit(old)
	require.EqualValues(t, min(before, 123<<20), Available())
}

func TestAvailable_IsNoMoreThanTheMachineHas(t *testing.T) {
	machine, err := memlimit.FromSystem()
	require.NoError(t, err)
	require.LessOrEqual(t, uint64(Available()), machine)
}

// The least of what is known, and never nothing.
func TestAvailable_IsTheLeast(t *testing.T) {
	random := seed.Rand(t)
	for range 1000 {
		want := int64(math.MaxInt64)
		sources := make([]memlimit.Provider, random.IntN(5))
		for i := range sources {
			n := random.Uint64() >> random.UintN(64)
			switch random.IntN(4) {
			case 0:
				sources[i] = func() (uint64, error) { return 0, memlimit.ErrNoLimit }
			case 1:
				sources[i] = func() (uint64, error) { return n, errors.New("no such file") }
			case 2:
				sources[i] = memlimit.Limit(pick(random, 0, math.MaxUint64, math.MaxInt64))
			case 3:
				sources[i] = memlimit.Limit(n)
				if n > 0 && n < math.MaxInt64 {
					want = min(want, int64(n))
				}
			}
		}
		if want == math.MaxInt64 {
			want = Unknown
		}
		require.Equal(t, want, least(sources...))
	}
}

func pick(random *rand.Rand, list ...uint64) uint64 { return list[random.IntN(len(list))] }
