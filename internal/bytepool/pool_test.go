//go:build !race

package bytepool

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPool_SteadyStateAllocatesNothing(t *testing.T) {
	Put(Get(512))
	require.Less(t, testing.AllocsPerRun(1000, func() { Put(Get(512)) }), 0.1)
}
