package clockstep

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Without the packages that tests have otherwise: all that these need of the standard library is
// compiled anew for the overlay.

func TestStep_InAProgramThatIsBuiltForIt(t *testing.T) { Run(t) }

func TestStep_MovesTheWallClockAlone(t *testing.T) {
	Require(t)
	for _, d := range []time.Duration{time.Minute, -time.Minute, time.Hour, -time.Hour, 24 * time.Hour, -24 * time.Hour} {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		By(d)
		now := time.Now()
		By(-d)
		if took := now.Sub(began); took < 0 || took > 10*time.Second {
			t.Errorf("a step of %v has changed an interval: %v", d, took)
		}
		if moved := now.Round(0).Sub(began.Round(0)); (moved - d).Abs() > 10*time.Second {
			t.Errorf("a step of %v has moved the wall clock by %v", d, moved)
		}
		if ctx.Err() != nil {
			t.Errorf("a step of %v has ended a context", d)
		}
		cancel()
	}
}

// Tests of behaviour are in bubbles, whose clock can be stepped as well.
func TestStep_MovesTheWallClockOfABubbleAlone(t *testing.T) {
	Require(t)
	for _, d := range []time.Duration{time.Hour, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			deadline := began.Add(time.Minute)
			Hold(t, d)
			time.Sleep(time.Minute)
			now := time.Now()
			for _, took := range []time.Duration{now.Sub(began), time.Since(began), time.Minute - time.Until(deadline)} {
				if took != time.Minute {
					t.Errorf("after a step of %v a minute is %v", d, took)
				}
			}
			if moved := now.Round(0).Sub(began.Round(0)); moved != d+time.Minute {
				t.Errorf("a step of %v has moved the wall clock by %v", d, moved-time.Minute)
			}
		})
	}
}

func TestStep_PanicsWhereItIsNotPossible(t *testing.T) {
	if Possible {
		t.Skip("the clock can be stepped here")
	}
	defer func() {
		if recover() == nil {
			t.Error("it did nothing")
		}
	}()
	By(time.Second)
}

func TestOverlay_RenamesNow(t *testing.T) {
	for source, want := range map[string]string{
		"package time\n\n// Now is now.\nfunc Now() Time { return now() }\n": "package time\n\n// Now is now.\nfunc unsteppedNow() Time { return now() }\n",
		"package time\n\nfunc (c clock) Now() Time\n":                        "", // there is none
		"time": "", // is no file
	} {
		if got, err := renameNow([]byte(source)); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s\nbecomes\n%s\n%v", source, got, err)
		}
	}
}
