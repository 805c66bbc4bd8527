// Package seed is what randomised tests draw from. Importing it gives a test binary the flag -seed.
package seed

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
)

var given = flag.Uint64("seed", 0, "what randomised tests draw from; 0 draws one, or with -short takes always the same")

// drawn is on standard error at once: what ends the process prints no log of a test.
var drawn = sync.OnceValue(func() uint64 {
	seed := 1 + rand.Uint64N(1<<32)
	fmt.Fprintf(os.Stderr, "-seed %d\n", seed)
	return seed
})

// Of is what a randomised test draws from. It is in the log of the test, and -seed gives it back.
func Of(t testing.TB) uint64 {
	t.Helper()
	seed := *given
	switch {
	case seed != 0:
	case testing.Short():
		seed = 1
	default:
		seed = drawn()
	}
	t.Logf("-seed %d", seed)
	return seed
}

// Rand draws from [Of], for several goroutines at once; what each of them gets is then not in the
// seed alone.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(&lockedSource{s: rand.NewPCG(Of(t), 0)})
}

type lockedSource struct {
	mu sync.Mutex
	s  rand.Source
}

// Uint64 implements rand.Source.
func (l *lockedSource) Uint64() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s.Uint64()
}
