package grid_test

import (
	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// What package rig has written down of the limits is what they are: else this does not compile.
var (
	same = [1]struct{}{}
	_    = same[grid.MinBackoff-rig.MinBackoff]
	_    = same[grid.MaxBackoff-rig.MaxBackoff]
	_    = same[grid.StableLife-rig.StableLife]
	_    = same[grid.ProbeTime-rig.ProbeTime]
	_    = same[grid.HangUpTime-rig.HangUpTime]
	_    = same[grid.DrainLook-rig.DrainLook]
	_    = same[grid.DefaultDeadline-rig.DefaultDeadline]
	_    = same[grid.FrameOverhead-rig.FrameOverhead]
	_    = same[grid.PendingLimit-rig.PendingLimit]
	_    = same[grid.WholeSize-rig.WholeSize]
	_    = same[grid.FragmentSize-rig.FragmentSize]
	_    = same[grid.RetainSize-rig.RetainSize]
	_    = same[grid.MaxErrorText-rig.MaxErrorText]
	_    = same[grid.MaxMetadata-rig.MaxMetadata]
	_    = same[grid.MaxCapacity-rig.MaxCapacity]
	_    = same[grid.MaxWindow-rig.MaxWindow]
	_    = same[grid.MaxWindowBytes-rig.MaxWindowBytes]
	_    = same[grid.MessageCost-rig.MessageCost]
	_    = same[grid.MaxInBuffer-rig.MaxInBuffer]
	_    = same[grid.MaxOutBuffer-rig.MaxOutBuffer]
	_    = same[grid.AllCaps-rig.AllCaps]
)
