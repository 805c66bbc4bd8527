package grid_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

func answer(text string) grid.SingleHandlerFn {
	return func([]byte) ([]byte, *grid.RemoteErr) { return []byte(text), nil }
}

func TestHandler_IsGoneWhenUnregistered(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		for _, route := range [][]string{nil, {"a", "b"}} {
			var to grid.Requester = c
			if route != nil {
				to = c.Subroute("a").Subroute("b")
			}
			require.False(t, m.Unregister(rig.Handler, route...))
			for range 2 {
				require.NoError(t, m.RegisterSingleHandler(rig.Handler, answer("one"), route...))
				b, err := to.SingleRequest(t.Context(), rig.Handler, nil)
				require.NoError(t, err)
				require.Equal(t, "one", string(b))
				require.True(t, m.Unregister(rig.Handler, route...))
				_, err = to.SingleRequest(t.Context(), rig.Handler, nil)
				require.True(t, grid.IsRemoteErr(err))
				require.ErrorContains(t, err, "no request handler")
			}
			require.NoError(t, m.RegisterSingleHandler(rig.Handler, answer("two"), route...))
			b, err := to.SingleRequest(t.Context(), rig.Handler, nil)
			require.NoError(t, err)
			require.Equal(t, "two", string(b))
			require.NoError(t, m.RegisterSingleHandler(rig.Unused, answer("other"), route...), "others are left alone")
			require.True(t, m.Unregister(rig.Handler, route...))
			require.True(t, m.Unregister(rig.Unused, route...))
		}
		require.False(t, m.Unregister(0))
		require.False(t, m.Unregister(rig.Echo, "a", ""))
		_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
	})
}

// What runs goes on when its handler is taken away.
func TestHandler_ThatRunsGoesOnWhenUnregistered(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		release, let := rig.Gate(t)
		require.NoError(t, m.RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) {
			<-release
			return []byte("late"), nil
		}))
		call := rig.InBackground(func() error {
			_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
			return err
		})
		st, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		synctest.Wait()
		require.True(t, m.Unregister(rig.Handler))
		require.True(t, m.Unregister(rig.TwoWay))
		time.Sleep(30 * time.Second)
		let()
		require.NoError(t, <-call)
		require.NoError(t, st.Send([]byte("x")))
		st.CloseSend()
		var got []string
		require.NoError(t, st.Results(func(b []byte) error { got = append(got, string(b)); return nil }))
		require.Equal(t, []string{"x"}, got)
		_, err = c.NewStream(t.Context(), rig.TwoWay, nil)
		require.ErrorContains(t, err, "no stream handler")
	})
}

// Handlers come and go while they are called: each call is answered by one that was there, or told
// that there is none, and those that stay are always found.
func TestHandler_ComesAndGoesWhileItIsCalled(t *testing.T) {
	const rounds = 300
	g := rig.NewTCP(t, 2, nil)
	m, c := g.Manager(1), g.Conn(0, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for _, route := range []string{"", "a"} {
		var to grid.Requester = c
		var parts []string
		if route != "" {
			to, parts = c.Subroute(route), []string{route}
		}
		for range 2 {
			all.Go(func() {
				for ctx.Err() == nil {
					b, err := to.SingleRequest(ctx, rig.Handler, nil)
					if ctx.Err() != nil {
						return
					}
					if err != nil && !grid.IsRemoteErr(err) || err == nil && string(b) != "here" {
						t.Errorf("%q, %v", b, err)
						return
					}
					if _, err := c.SingleRequest(ctx, rig.Echo, nil); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for i := range rounds {
			require.NoError(t, m.RegisterSingleHandler(rig.Handler, answer("here"), parts...))
			require.NoError(t, m.RegisterSingleHandler(rig.Unused, answer(""), fmt.Sprint("other", route, i)))
			require.True(t, m.Unregister(rig.Handler, parts...))
		}
	}
}

// A registration costs the same however many there are: a host may have a subroute for each disk,
// bucket or tenant.
func TestHandler_RegistrationDoesNotCopyThoseThatAreThere(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		bytes := func() int {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int(m.TotalAlloc)
		}
		before := bytes()
		const n = 8000
		for i := range n {
			require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler, answer(""), fmt.Sprint("route", i)))
		}
		require.Less(t, (bytes()-before)/n, 2000, "bytes for each")
	})
}

func BenchmarkRegister_Subroutes(b *testing.B) {
	for _, n := range []int{1000, 4000, 16000} {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m, err := grid.NewManager(b.Context(), grid.ManagerOptions{Local: "http://a", Hosts: []string{"http://a"}, Insecure: true})
				require.NoError(b, err)
				for i := range n {
					_ = m.RegisterSingleHandler(rig.Handler, answer(""), fmt.Sprint("route", i))
				}
				m.Close()
			}
		})
	}
}
