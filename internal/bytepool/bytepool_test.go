package bytepool

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPool_CapacitiesFitWhatIsAskedFor(t *testing.T) {
	for _, n := range []int{-1, 0, 1, MinCap - 1, MinCap, MinCap + 1, 4096, 4097, MaxCap - 1, MaxCap, MaxCap + 1, 3 * MaxCap} {
		b := Get(n)
		require.Empty(t, b)
		require.GreaterOrEqual(t, cap(b), n)
		if n <= MaxCap {
			require.LessOrEqual(t, cap(b), max(MinCap, 2*n))
		}
		Put(b)
	}
}

// A buffer of odd capacity must serve the class below it, never the one above.
func TestPool_TakesForeignBuffers(t *testing.T) {
	for _, c := range []int{0, 1, MinCap - 1, MinCap, MinCap + 1, 2*MinCap - 1, 1000, 300 << 10, 1<<20 - 1, 2*MaxCap - 1, 2 * MaxCap} {
		Put(make([]byte, c/2, c))
		Put(make([]byte, min(c, 1<<20)+8)[4 : min(c, 1<<20)+4 : min(c, 1<<20)+4])
		n := classSize(classFor(min(c, MaxCap))) // at least c, if a buffer can have that
		taken := [][]byte{Get(n), Get(n)}
		for _, b := range taken {
			require.GreaterOrEqual(t, cap(b), n)
			clear(b[:n])
		}
		for _, b := range taken {
			Put(b)
		}
	}
}

func TestPool_Grow(t *testing.T) {
	b := append(Get(1), "hello"...)
	require.Equal(t, cap(b), cap(Grow(b, MinCap-5)), "room is there")
	b = Grow(b, 10*MinCap)
	require.Equal(t, "hello", string(b))
	require.GreaterOrEqual(t, cap(b)-len(b), 10*MinCap)
	Put(b)
}
