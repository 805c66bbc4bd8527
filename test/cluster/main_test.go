// Package cluster tests managers and their links: how these are made, lost, refused and ended.
package cluster

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
