package callbacks

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// textless is an error whose text is made by a function of the application's.
type textless struct{ make func() }

func (e *textless) Error() string { e.make(); return "refused" }

// An error of the application's is one of its functions as well: its text is asked for where that may
// block, and under no lock.
func TestErrorText_DoesAsItLikes(t *testing.T) {
	for name, c := range map[string]struct {
		accepts bool
		install func(o *grid.ManagerOptions, fail func() error)
	}{
		"VerifyPeer": {true, func(o *grid.ManagerOptions, fail func() error) {
			o.VerifyPeer = func(string, *http.Request) error { return fail() }
		}},
		"AuthToken": {true, func(o *grid.ManagerOptions, fail func() error) {
			o.AuthToken = func(string) error { return fail() }
		}},
		"AuthToken, in the handshake": {true, func(o *grid.ManagerOptions, fail func() error) {
			o.AuthToken = func(token string) (err error) {
				_ = inHandshake(func() { err = fail() })(token)
				return err
			}
		}},
		"Dialer": {false, func(o *grid.ManagerOptions, fail func() error) {
			dial := o.Dialer
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if err := fail(); err != nil {
					return nil, err
				}
				return dial(ctx, network, addr)
			}
		}},
	} {
		for doing, do := range map[string]func(r *room){
			"panic":  func(*room) { panic("from inside") },
			"Goexit": func(*room) { runtime.Goexit() },
			"block":  func(r *room) { <-r.stuck },
			"look":   func(r *room) { r.m.Connection(r.Host(r.peer)).Stats(); r.m.Stats() },
			"Close":  func(r *room) { _ = r.m.Close() },
		} {
			t.Run(name+"/"+doing, func(t *testing.T) {
				rig.InBubble(t, func(t *testing.T) {
					var r *room
					var fails atomic.Bool
					r = newRoom(t, callback{accepts: c.accepts, install: func(o *grid.ManagerOptions, _ func()) {
						c.install(o, func() error {
							if fails.Load() {
								return &textless{func() { do(r) }}
							}
							return nil
						})
					}}, nil)
					fails.Store(true)
					r.Cut(r.it, r.peer)
					time.Sleep(time.Minute)
					synctest.Wait()
					fails.Store(false)
					switch doing {
					case "Close":
						require.Equal(t, grid.StateShutdown, r.m.Connection(r.Host(r.other)).State())
						return
					case "block":
						r.requireWorks(r.it, r.other)
						require.LessOrEqual(t, rig.Elapsed(func() { require.NoError(t, r.m.Close()) }), time.Second)
						close(r.stuck)
						return
					}
					r.WaitConnected()
					r.requireWorks(r.it, r.peer)
				})
			})
		}
	}
}

// shut is a context whose Value blocks, once it is armed.
type shut struct {
	context.Context
	armed atomic.Bool
	stuck chan struct{}
}

func (c *shut) Value(key any) any {
	if c.armed.Load() {
		<-c.stuck
	}
	return c.Context.Value(key)
}

// A stream that ends gives up its watch on the context, which asks that for a value.
func TestContext_ThatBlocksHoldsUpNoLink(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		base, cancel := context.WithCancel(t.Context())
		defer cancel()
		ctx := &shut{Context: base, stuck: make(chan struct{})}
		s, err := c.NewStream(context.WithValue(ctx, ctx, true), rig.TwoWay, nil)
		require.NoError(t, err)
		ctx.armed.Store(true)
		s.CloseSend()
		require.NoError(t, rig.Consume(s))
		time.Sleep(2 * time.Minute)
		require.Equal(t, grid.StateConnected, c.State())
		require.Zero(t, c.Stats().Reconnects)
		require.Equal(t, time.Second, rig.Elapsed(func() { require.NoError(t, g.Manager(0).Close()) }))
		close(ctx.stuck)
	})
}

// Nor does it hold up the end of the Manager that was made with it.
func TestContext_OfTheManagerThatBlocksHoldsUpNoClose(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		base, cancel := context.WithCancel(t.Context())
		defer cancel()
		ctx := &shut{Context: base, stuck: make(chan struct{})}
		m, err := grid.NewManager(ctx, rig.Options(rig.LoneHost, []string{rig.LoneHost}))
		require.NoError(t, err)
		ctx.armed.Store(true)
		require.Equal(t, time.Second, rig.Elapsed(func() { require.NoError(t, m.Close()) }))
		close(ctx.stuck)
	})
}
