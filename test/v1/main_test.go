// Package v1 holds a node against the protocol as its peers see it, message by message: those of
// version 1, and those that speak its extensions.
package v1

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is a node and its scripted peer, with what the tests of streams do to both.
type wire struct{ *rig.Wire }

// inWire is that of package rig.
func inWire(t *testing.T, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(r *wire)) {
	t.Helper()
	rig.InWire(t, c, edit, func(r *rig.Wire) { f(&wire{r}) })
}

func newWire(t *testing.T, rawDials bool, c rawpeer.Config, edit func(o *grid.ManagerOptions)) *wire {
	t.Helper()
	return &wire{rig.NewWire(t, rawDials, c, edit)}
}
