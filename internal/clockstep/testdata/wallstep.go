package time

import "sync/atomic"

var wallStep atomic.Int64 // how far it has been stepped

// StepWall steps the wall clock of this process by d.
func StepWall(d Duration) { wallStep.Add(int64(d)) }

// Now returns the time of the wall clock, stepped, with the reading of the monotonic clock as it
// is. That has a reading in a bubble of testing/synctest as well, where there is none otherwise.
func Now() Time {
	t := unsteppedNow()
	mono := t.mono()
	if mono == 0 {
		mono = runtimeNano() - startNano
	}
	t = t.Add(Duration(wallStep.Load()))
	t.setMono(mono)
	return t
}
