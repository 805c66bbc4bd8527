package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rig"
)

// process is a host, whose address another one may take over while it drains.
type process struct {
	*grid.Manager
	t      *testing.T
	l      net.Listener
	server *http.Server
}

// startProcess starts one, with a handler that says its name.
func startProcess(t *testing.T, n *faultconn.Network, host, name string, log *slog.Logger, edit func(o *grid.ManagerOptions)) *process {
	t.Helper()
	o := rig.Options(host, pairNames())
	longPauses(&o)
	o.Dialer, o.Logger = n.Dialer(rig.HostAddr(host)), log
	if edit != nil {
		edit(&o)
	}
	m, err := grid.NewManager(t.Context(), o)
	require.NoError(t, err)
	rig.RegisterHandlers(t, m)
	require.NoError(t, m.RegisterSingleHandler(rig.Handler, func([]byte) ([]byte, *grid.RemoteErr) { return []byte(name), nil }))
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	p := &process{Manager: m, t: t, server: &http.Server{Handler: mux}}
	p.l, err = n.Listen(rig.HostAddr(host))
	require.NoError(t, err)
	go p.server.Serve(p.l)
	t.Cleanup(func() {
		p.server.Close()
		m.Close()
	})
	return p
}

// name asks whoever is there now.
func (p *process) name(of string) string {
	b, err := p.Connection(of).SingleRequest(context.Background(), rig.Handler, nil)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// While a process drains for long, with a stream, its successor takes over its address: calls go to
// that at once, and the stream ends well.
func TestRollingRestart_SuccessorIsReachedWhileItsPredecessorDrains(t *testing.T) {
	t.Parallel()
	for which, drained := range map[string]int{"one that dials": 0, "one that is dialled": 1} {
		t.Run(which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts, n := pairNames(), faultconn.NewNetwork()
				log, book := rig.NewLogBook()
				host := hosts[drained]
				quiet := slog.New(slog.DiscardHandler)
				other := startProcess(t, n, hosts[1-drained], "other", log, nil)
				old := startProcess(t, n, host, "old", quiet, nil)
				require.NoError(t, other.Connection(host).WaitForConnect(t.Context()))
				require.Equal(t, "old", other.name(host))
				before := len(book.About("level=WARN")) // while one was up and the other was not

				st, err := other.Connection(host).NewStream(t.Context(), rig.TwoWay, nil)
				require.NoError(t, err)
				ended := rig.InBackground(func() error { return old.Shutdown(context.Background()) })
				synctest.Wait()
				require.Contains(t, other.name(host), "the remote host is shutting down")
				time.Sleep(10 * time.Minute) // while it still listens, and answers 503
				require.Contains(t, other.name(host), "the remote host is shutting down")

				for i, name := range []string{"new", "newer"} {
					if i > 0 {
						time.Sleep(10 * time.Minute)
					}
					old.l.Close()
					time.Sleep(10 * time.Minute) // while nobody listens
					begin := time.Now()
					next := startProcess(t, n, host, name, quiet, nil)
					rig.WaitState(t, other.Connection(host), grid.StateConnected)
					require.Less(t, time.Since(begin), 100*time.Millisecond)
					require.Equal(t, name, other.name(host))
					require.Equal(t, "other", next.name(other.HostName()))
					require.Equal(t, 1, other.Connection(host).Stats().Streams)
					if i > 0 {
						break
					}
					next.l.Close() // the second crashes, while the first still drains
					next.server.Close()
					require.NoError(t, next.Close())
				}
				require.Empty(t, ended)
				require.NoError(t, st.Send([]byte("still there")))
				close(st.Requests)
				messages := 0
				require.NoError(t, st.Results(func(b []byte) error { messages++; grid.PutByteBuffer(b); return nil }))
				require.Equal(t, 1, messages)
				require.NoError(t, <-ended)
				synctest.Wait()
				require.Equal(t, "newer", other.name(host))
				require.Equal(t, grid.StateConnected, other.Connection(host).State())
				for _, line := range book.About("level=WARN")[before:] {
					require.Contains(t, line, "connection lost", "the crash of the second")
				}
			})
		})
	}
}

// A successor that does not ask to be dialled is reached by the first who wants it, and soon after
// its predecessor has gone.
func TestRollingRestart_SuccessorThatDoesNotKnockIsReached(t *testing.T) {
	t.Parallel()
	for name, reached := range map[string]func(t *testing.T, c *grid.Connection, end func()){
		"by a call": func(t *testing.T, c *grid.Connection, _ func()) {
			_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
			require.ErrorContains(t, err, "the remote host is shutting down")
		},
		"at the end of the other": func(_ *testing.T, _ *grid.Connection, end func()) { end() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts, n := pairNames(), faultconn.NewNetwork()
				log, book := rig.NewLogBook()
				quiet := slog.New(slog.DiscardHandler)
				mute := func(o *grid.ManagerOptions) {
					o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no way") }
				}
				other := startProcess(t, n, hosts[0], "other", log, nil)
				old := startProcess(t, n, hosts[1], "old", quiet, mute)
				c := other.Connection(hosts[1])
				require.NoError(t, c.WaitForConnect(t.Context()))
				before := len(book.About("level=WARN"))
				ctx, end := context.WithCancel(t.Context())
				st, err := c.NewStream(ctx, rig.Block, nil)
				require.NoError(t, err)
				ended := rig.InBackground(func() error { return old.Shutdown(context.Background()) })
				time.Sleep(time.Minute)
				old.l.Close()
				time.Sleep(time.Hour)
				startProcess(t, n, hosts[1], "new", quiet, mute)
				begin := time.Now()
				reached(t, c, end)
				rig.WaitState(t, c, grid.StateConnected)
				require.Less(t, time.Since(begin), 100*time.Millisecond)
				require.Equal(t, "new", other.name(hosts[1]))
				require.Len(t, book.About("level=WARN"), before)
				end()
				require.Error(t, rig.Consume(st))
				require.NoError(t, <-ended)
			})
		})
	}
}
