package token

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// As long as a pass may be good, it is remembered that it was used; after that nothing is left.
func TestUsed_RemembersAPassForAsLongAsItMayBeGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Used
		first := NewNonce()
		require.NoError(t, u.Add("a", first, time.Now()))
		require.NoError(t, u.Add("b", first, time.Now()), "another host's")
		for range 120 {
			time.Sleep(5 * time.Second)
			require.ErrorIs(t, u.Add("a", first, time.Now()), ErrUsed)
		}
		time.Sleep(time.Second)
		require.NoError(t, u.Add("c", NewNonce(), time.Now()))
		require.Len(t, u.hosts, 1)
	})
}

// Nothing that one host does keeps another out, and itself it keeps out no longer than it goes on.
func TestUsed_HostThatFillsItKeepsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Used
		honest := NewNonce()
		require.NoError(t, u.Add("honest", honest, time.Now()))
		for range 3 * MaxUsed {
			require.NoError(t, u.Add("flood", NewNonce(), time.Now()))
		}
		require.LessOrEqual(t, cap(u.hosts["flood"]), 4*MaxUsed)
		require.Len(t, u.hosts["flood"], MaxUsed)
		require.ErrorIs(t, u.Add("honest", honest, time.Now()), ErrUsed)
		require.NoError(t, u.Add("honest", NewNonce(), time.Now()))
		require.NoError(t, u.Add("flood", NewNonce(), time.Now()))
	})
}

// Two hosts whose clocks were a day ahead, together, dial each other again at once when they are
// set right, and so does one that was a day behind: nothing of the wrong time is left that is in
// the way.
func TestUsed_ClocksThatAreSetRightAreGoodAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(make([]byte, MinKey))
		require.NoError(t, err)
		for _, wrong := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
			var u Used
			// use checks a pass by a clock that is off.
			use := func(pass string, off time.Duration) error {
				now := time.Now()
				dialler, nonce, err := s.CheckPass(pass, "b", now.Round(0).Add(off))
				if err != nil {
					return err
				}
				return u.Add(dialler, nonce, now) // whose monotonic clock knows nothing of it
			}
			passAt := func(off time.Duration) string { return s.passAt("a", "b", time.Now().Add(off)) }
			var old []string
			for range 2 * MaxUsed {
				pass := passAt(wrong)
				old = append(old, pass)
				require.NoError(t, use(pass, wrong))
			}
			require.ErrorIs(t, use(old[len(old)-1], wrong), ErrUsed)
			require.ErrorIs(t, use(passAt(wrong), 0), ErrTime)
			for range 10 {
				require.NoError(t, use(passAt(0), 0))
			}
			for _, pass := range old {
				require.ErrorIs(t, use(pass, 0), ErrTime)
			}
		}
	})
}

func TestUsed_OneOfManyAtOnceIsTheFirst(t *testing.T) {
	var u Used
	nonce := NewNonce()
	var wg sync.WaitGroup
	var good atomic.Int32
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if u.Add("a", NewNonce(), time.Now()) != nil {
					t.Error("a new one was refused")
				}
			}
			if u.Add("a", nonce, time.Now()) == nil {
				good.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, good.Load())
}

// Those who are no hosts have the room of one together, and a pass is known whether its host was one
// or not when it came.
func TestUsed_StrangersShareTheirRoom(t *testing.T) {
	var u Used
	asHost, asStranger := NewNonce(), NewNonce()
	require.NoError(t, u.Add("a", asHost, time.Now()))
	require.ErrorIs(t, u.AddStranger("a", asHost, time.Now()), ErrUsed)
	require.NoError(t, u.AddStranger("a", asStranger, time.Now()))
	require.ErrorIs(t, u.AddStranger("a", asStranger, time.Now()), ErrUsed)
	require.ErrorIs(t, u.AddStranger("b", asStranger, time.Now()), ErrUsed)
	require.ErrorIs(t, u.Add("a", asStranger, time.Now()), ErrUsed)
	for i := range 3 * MaxUsed {
		require.NoError(t, u.AddStranger(fmt.Sprint("invented", i), NewNonce(), time.Now()))
	}
	require.Len(t, u.hosts, 2)
	require.Len(t, u.hosts[""], MaxUsed)
	require.ErrorIs(t, u.Add("a", asHost, time.Now()), ErrUsed)
}
