package clockstep

import "time"

// Possible is whether the clock can be stepped.
const Possible = false

// By steps the wall clock of this process by d, ahead or back. It panics where that is not
// [Possible].
func By(d time.Duration) {
	if !Possible { // which the overlay may change
		panic("clockstep: the program was not built for it, see Run")
	}
}
