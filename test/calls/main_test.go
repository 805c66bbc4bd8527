// Package calls tests calls and streams between two hosts that are well.
package calls

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
