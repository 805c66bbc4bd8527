// Package resources measures what calls and idle links cost: heap, goroutines and buffers. So no
// test of it runs beside another.
package resources

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
