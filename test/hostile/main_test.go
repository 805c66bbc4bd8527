// Package hostile tests calls and streams with a peer that has been let in and then does what it
// must not. Buffers that are out are counted, so no test of it runs beside another.
package hostile

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
