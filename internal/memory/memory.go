// Package memory finds out how much memory the process may use.
package memory

import (
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// Unknown is what is assumed where nothing tells how much there is, in bytes.
const Unknown = 2 << 30

// Available is how much memory the process may use, in bytes: the least of the limit of the Go
// runtime (GOMEMLIMIT), that of its control group, and what the machine has. It is looked up anew
// each time.
func Available() int64 {
	return least(runtimeLimit, memlimit.FromCgroup, memlimit.FromSystem)
}

func least(sources ...memlimit.Provider) int64 {
	bytes := uint64(math.MaxInt64)
	for _, limit := range sources {
		if n, err := limit(); err == nil && n > 0 {
			bytes = min(bytes, n)
		}
	}
	if bytes == math.MaxInt64 {
		return Unknown
	}
	return int64(bytes)
}

func runtimeLimit() (uint64, error) {
	n := debug.SetMemoryLimit(-1) // reads it
	if n == math.MaxInt64 {
		return 0, memlimit.ErrNoLimit
	}
	return uint64(n), nil
}
