// Package clock tests what becomes of links and calls when the wall clock of a host is stepped.
//
// TestClock_CanBeSteppedUnderLinksAndCalls runs the others, in a program whose clock can be
// stepped: see package clockstep. By hand that is
//
//	go test -v ./test/clock -run Clock
package clock

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/clockstep"
	"github.com/gridrpc/grid/internal/rig"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == peerCommand {
		if err := bePeer(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func TestClock_CanBeSteppedUnderLinksAndCalls(t *testing.T) {
	rig.Long(t)
	clockstep.Run(t, "-run", "^TestStep_", "-parallel", "12", "-v")
}
