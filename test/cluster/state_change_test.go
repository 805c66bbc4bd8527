package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// changes keeps what OnStateChange is told.
type changes struct {
	mu  sync.Mutex
	all []grid.StateChange
}

func (c *changes) add(s grid.StateChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s)
}

// take returns what has come, and forgets it.
func (c *changes) take() []grid.StateChange {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

// texts is take, as texts.
func (c *changes) texts() (texts []string) {
	for _, s := range c.take() {
		texts = append(texts, s.String())
	}
	return texts
}

func TestState_OnStateChange(t *testing.T) {
	t.Parallel()
	var seen [2]changes
	rig.InPair(t, func(i int, o *grid.ManagerOptions) { o.OnStateChange = seen[i].add }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		dials, waits := 0, 1
		if !c.Stats().Dials {
			dials, waits = 1, 0
		}
		here, there := g.Host(waits), g.Host(dials)
		got := seen[dials].texts() // it may have dialled before somebody listened
		require.Equal(t, here+": unconnected, now connecting", got[0])
		require.Equal(t, here+": connecting, now connected", got[len(got)-1])
		require.Equal(t, []string{there + ": unconnected, now connected"}, seen[waits].texts())

		begin := time.Now()
		g.Cut(0, 1)
		lost := seen[dials].take()
		require.Len(t, lost, 1)
		require.Equal(t, begin, lost[0].Time)
		require.ErrorIs(t, lost[0].Err, grid.ErrDisconnected)
		require.Regexp(t, here+": connected, now connection error: grid: disconnected: .", lost[0].String())
		g.WaitConnected()
		require.Equal(t, []string{here + ": connection error, now connecting", here + ": connecting, now connected"}, seen[dials].texts())
		seen[waits].take()

		require.NoError(t, g.Manager(dials).RemoveHost(here))
		require.Equal(t, []string{here + ": connected, now shutdown: the host was removed"}, seen[dials].texts())
		require.NoError(t, g.Manager(dials).AddHost(here))
		g.WaitConnected()
		require.Equal(t, []string{here + ": unconnected, now connecting", here + ": connecting, now connected"}, seen[dials].texts())
		seen[waits].take()

		g.Manager(waits).Close()
		require.Equal(t, []string{there + ": connected, now shutdown: the manager is closed"}, seen[waits].texts(), "all is told before Close returns")
		time.Sleep(time.Second)
		got = seen[dials].texts()
		require.Regexp(t, "now connection error: .*refused", got[len(got)-1])
	})
}

// One that is slow, or panics, holds up nobody, and hears of everything, while no more than 16
// wait.
func TestState_OnStateChangeThatIsSlowOrPanics(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	told := make(map[string]int)
	slow := func(i int, o *grid.ManagerOptions) {
		o.OnStateChange = func(c grid.StateChange) {
			time.Sleep(time.Minute)
			mu.Lock()
			told[fmt.Sprint(i, c.To)]++
			told[fmt.Sprint(i, "missed")] += c.Missed
			mu.Unlock()
			panic("no")
		}
	}
	rig.InPair(t, slow, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.Zero(t, rig.Elapsed(func() {
			_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
			require.NoError(t, err)
		}))
		for range 4 {
			g.Cut(0, 1)
			synctest.Wait()
			g.WaitConnected()
		}
		require.LessOrEqual(t, rig.Elapsed(g.StopAll), 10*time.Second, "Close does not wait for it for ever")
		time.Sleep(time.Hour)
		mu.Lock()
		defer mu.Unlock()
		for i := range 2 {
			require.Equal(t, 5, told[fmt.Sprint(i, grid.StateConnected)])
			require.Equal(t, 1, told[fmt.Sprint(i, grid.StateShutdown)])
			require.Zero(t, told[fmt.Sprint(i, "missed")])
		}
	})
}

// Handlers are called by their names where somebody reads it.
func TestHandler_NamesInTexts(t *testing.T) {
	t.Parallel()
	names := map[grid.HandlerID]string{rig.Handler: "worker", rig.Unused: "missing"}
	rig.InPair(t, func(i int, o *grid.ManagerOptions) { o.HandlerNames = names; o.MaxHandlers = 1 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) {
			if b == nil {
				panic("no")
			}
			time.Sleep(time.Second)
			return nil, nil
		})
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		require.EqualError(t, err, "grid: handler 100 (worker) panicked: no")
		_, err = c.SingleRequest(t.Context(), rig.Unused, nil)
		require.ErrorContains(t, err, fmt.Sprintf("no request handler with ID %d (missing)", rig.Unused))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = c.SingleRequest(ctx, rig.Handler, []byte{1}) }()
		synctest.Wait()
		_, err = c.SingleRequest(t.Context(), rig.Handler, nil)
		require.ErrorIs(t, err, grid.ErrOverloaded)
		require.ErrorContains(t, err, "handler 100 (worker) refused")
		time.Sleep(time.Minute)

		h := grid.NewSingleHandler[*grid.MSS, *grid.MSS](rig.Handler, grid.NewMSS, grid.NewMSS)
		require.NoError(t, h.Register(g.Manager(1), func(*grid.MSS) (*grid.MSS, *grid.RemoteErr) { return nil, nil }, "typed"))
		_, err = c.Subroute("typed").SingleRequest(t.Context(), rig.Handler, []byte("no map"))
		require.ErrorContains(t, err, "handler 100 (worker): request: ")

		// And on the calling side, where values can't be encoded or decoded.
		endless := func() *grid.JSON[chan int] { return grid.NewJSONPool[chan int]().NewJSONWith(new(chan int)) }
		bad := grid.NewSingleHandler(rig.Handler, endless, endless)
		_, err = bad.Call(t.Context(), c, endless())
		require.ErrorContains(t, err, "grid: handler 100 (worker): request: encoding")
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) { return []byte("no map"), nil }, "bytes"))
		_, err = h.Call(t.Context(), c.Subroute("bytes"), grid.NewMSS())
		require.ErrorContains(t, err, "grid: handler 100 (worker): response: decoding")
		s := grid.NewStream(rig.Unused, endless, endless, endless)
		_, err = s.Call(t.Context(), c, endless())
		require.ErrorContains(t, err, fmt.Sprintf("grid: handler %d (missing): payload: encoding", rig.Unused))

		// And where they are registered.
		m := g.Manager(1)
		require.EqualError(t, m.RegisterSingleHandler(rig.Handler, nil), "grid: nil handler for ID 100 (worker)")
		require.EqualError(t, h.Register(m, nil), "grid: nil handler for ID 100 (worker)")
		echo := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		require.EqualError(t, m.RegisterSingleHandler(rig.Handler, echo), "grid: handler already exists: ID 100 (worker)")
		require.EqualError(t, m.RegisterSingleHandler(rig.Handler, echo, "bytes"), `grid: handler already exists: ID 100 (worker), subroute "bytes"`)
	})
}
