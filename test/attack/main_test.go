// Package attack holds what a peer that floods can make a node keep: memory, goroutines, sockets,
// and lines of a log. These are measured, so no test of it runs beside another.
package attack

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
