package callbacks

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rig"
)

// Register, which is no part of a link, but has it wait.

// registering are the options of a host with another one, which plays no part.
func registering(register func(m *grid.Manager) error) grid.ManagerOptions {
	hosts := rig.Names("http", 2)
	o := rig.Options(hosts[0], hosts)
	o.Dialer = faultconn.NewNetwork().Dialer(rig.HostAddr(hosts[0]))
	o.LocalCalls, o.Register = true, register
	return o
}

func TestRegister_FailureIsThatOfNewManager(t *testing.T) {
	errOwn := errors.New("no such disk")
	for name, c := range map[string]struct {
		register func(m *grid.Manager) error
		text     string // empty for no error
	}{
		"nothing":      {func(*grid.Manager) error { return nil }, ""},
		"nil remote":   {func(*grid.Manager) error { return (*grid.RemoteErr)(nil) }, ""},
		"error":        {func(*grid.Manager) error { return errOwn }, "grid: Register: no such disk"},
		"panic":        {func(*grid.Manager) error { panic("from inside") }, "grid: Register: panicked: from inside"},
		"handler":      {func(m *grid.Manager) error { return m.RegisterSingleHandler(0, nil) }, "grid: Register: grid: nil handler for ID 0"},
		"Close":        {func(m *grid.Manager) error { return m.Close() }, ""},
		"Shutdown":     {func(m *grid.Manager) error { return m.Shutdown(context.Background()) }, ""},
		"Close, error": {func(m *grid.Manager) error { return errors.Join(m.Close(), errOwn) }, "grid: Register: no such disk"},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				var its *grid.Manager
				o := registering(func(m *grid.Manager) error { its = m; return c.register(m) })
				var log *rig.LogBook
				o.Logger, log = rig.NewLogBook()
				m, err := grid.NewManager(t.Context(), o)
				if c.text != "" {
					require.EqualError(t, err, c.text)
					require.Nil(t, m)
					<-its.Done()
				} else {
					require.NoError(t, err)
					require.Same(t, its, m)
					require.NoError(t, m.Close())
				}
				if name == "error" {
					require.ErrorIs(t, err, errOwn)
				}
				if name == "panic" {
					require.Len(t, log.About("grid: Register panicked", "from inside"), 1)
				}
			})
		})
	}
	t.Run("Goexit", func(t *testing.T) {
		rig.InBubble(t, func(t *testing.T) {
			var its *grid.Manager
			ended := make(chan bool)
			go func() {
				defer close(ended)
				_, _ = grid.NewManager(t.Context(), registering(func(m *grid.Manager) error { its = m; runtime.Goexit(); return nil }))
				t.Error("goes on")
			}()
			<-ended
			<-its.Done()
		})
	})
}

// All that a service does when it is made works in Register, but for what needs a link.
func TestRegister_FindsTheManagerComplete(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		hosts := rig.Names("http", 2)
		var conn, own *grid.Connection
		linked := make(chan error, 2)
		m, err := grid.NewManager(t.Context(), registering(func(m *grid.Manager) error {
			rig.RegisterHandlers(t, m)
			require.Equal(t, hosts[1:], m.Targets())
			conn, own = m.Connection(hosts[1]), m.Connection(hosts[0])
			for _, c := range []*grid.Connection{conn, own} {
				require.NotNil(t, c)
				_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrDisconnected)
				require.ErrorContains(t, err, "Register has not returned")
				require.True(t, grid.CanRetry(err))
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				err = c.WaitForConnect(ctx)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "Register has not returned")
			}
			require.NoError(t, m.AddHost("http://node7:9000"))
			require.NotNil(t, m.Connection("http://node7:9000"))
			require.NoError(t, m.RemoveHost("http://node7:9000"))
			require.NoError(t, m.SetHosts(append(hosts, "http://node8:9000")))
			require.NotNil(t, m.Handler())
			require.NotEmpty(t, m.HandlerStats())
			go func() { linked <- own.WaitForConnect(t.Context()) }()
			return nil
		}))
		require.NoError(t, err)
		defer m.Close()
		require.NoError(t, <-linked, "goroutines may wait")
		_, err = own.SingleRequest(t.Context(), rig.Echo, nil)
		require.NoError(t, err)
		require.Same(t, conn, m.Connection(hosts[1]))
		require.Contains(t, m.Targets(), "http://node8:9000")
	})
}

// Whichever side dials, the other finds the handlers, however long it takes to register them.
func TestRegister_IsBeforeAnythingConnects(t *testing.T) {
	for late := range 2 {
		rig.InBubble(t, func(t *testing.T) {
			var dialled atomic.Int64
			g := rig.Setup{Hosts: []string{"http://a:1", "http://b:1"}, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
				if i != late {
					return
				}
				dial := o.Dialer
				o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					dialled.Add(1)
					return dial(ctx, network, addr)
				}
				o.Register = func(m *grid.Manager) error {
					time.Sleep(300 * time.Millisecond) // a journal is read
					if dialled.Load() > 0 || m.Stats().Connected > 0 {
						t.Error("connects")
					}
					return m.RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil })
				}
			}}.Start(t)
			defer g.StopAll()
			g.Start(1 - late)
			ended := rig.InBackground(func() error {
				c := g.Conn(1-late, late).With(grid.CallOptions{WaitForLink: true})
				_, err := c.SingleRequest(t.Context(), rig.Handler, []byte("x"))
				return err
			})
			synctest.Wait()
			g.Start(late)
			require.NoError(t, <-ended)
		})
	}
}
