package grid_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

func TestManager_TellsWhoIsWho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 4, nil)
		ids := map[uuid.UUID]bool{uuid.Nil: true}
		for i, n := range g.Nodes() {
			require.Equal(t, g.Host(i), n.HostName())
			require.Len(t, n.Targets(), 3)
			require.IsIncreasing(t, n.Targets())
			require.NotContains(t, n.Targets(), n.HostName())
			require.Nil(t, n.Connection(n.HostName()), "a connection to itself")
			require.Nil(t, n.Connection("http://stranger:9000"))
			require.Nil(t, n.Connection(""))
			require.False(t, ids[n.ID], "an ID was used before")
			ids[n.ID] = true

			st := n.Stats()
			require.Equal(t, g.Host(i), st.HostName)
			require.Equal(t, 3, st.Connected)
			for j, target := range n.Targets() {
				require.Equal(t, target, st.Connections[j].HostName)
				require.Equal(t, target, n.Connection(target).HostName())
				require.Equal(t, rawpeer.DialOrder(g.Host(i), target), st.Connections[j].Dials)
				require.Equal(t, grid.StateConnected, st.Connections[j].State)
				require.Zero(t, st.Connections[j].Reconnects)
				require.False(t, st.Connections[j].LastConnect.IsZero())
			}
		}
	})
}

func TestStats_FollowTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		ctx, cancel := context.WithCancel(t.Context())
		st, err := g.Conn(0, 1).NewStream(ctx, rig.Block, nil)
		require.NoError(t, err)
		time.Sleep(11 * time.Second) // a ping
		synctest.Wait()
		caller, server := g.Conn(0, 1).Stats(), g.Conn(1, 0).Stats()
		require.Equal(t, [4]int{0, 1, 0, 0}, [4]int{caller.Calls, caller.Streams, caller.Handlers, caller.StreamsServed})
		require.Equal(t, [4]int{0, 0, 1, 1}, [4]int{server.Calls, server.Streams, server.Handlers, server.StreamsServed})
		cancel()
		require.ErrorIs(t, st.Results(func([]byte) error { return nil }), context.Canceled)
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
		require.Zero(t, g.Conn(1, 0).Stats().StreamsServed)
		require.Zero(t, g.Conn(0, 1).Stats().Streams)

		before := g.Conn(0, 1).Stats()
		time.Sleep(time.Second)
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
		after := g.Conn(0, 1).Stats()
		require.Equal(t, 1, after.Reconnects)
		require.NotEmpty(t, after.LastError)
		require.True(t, after.LastConnect.After(before.LastConnect))
		require.GreaterOrEqual(t, after.BytesIn, before.BytesIn, "bytes of the first connection are forgotten")
		require.GreaterOrEqual(t, after.BytesOut, before.BytesOut)
	})
}

func TestStats_ByteCountersAgreeOnBothSides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in, out [2]atomic.Int64
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			o.Incoming = func(n int64) { in[i].Add(n) }
			o.Outgoing = func(n int64) { out[i].Add(n) }
		})
		told := func() { // all that was counted
			time.Sleep(time.Second)
			synctest.Wait()
		}
		told()
		dialler := 0
		if g.Conn(1, 0).Stats().Dials {
			dialler = 1
		}
		// The acceptor's HTTP server has read the upgrade request itself.
		request := out[dialler].Load() - in[1-dialler].Load()
		require.Positive(t, request)
		require.Equal(t, out[1-dialler].Load(), in[dialler].Load())
		require.Positive(t, in[dialler].Load())

		const size = 1 << 20
		b, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, make([]byte, size))
		require.NoError(t, err)
		grid.PutByteBuffer(b)
		told()
		require.Greater(t, out[0].Load(), int64(size))
		require.Greater(t, in[0].Load(), int64(size))
		require.Less(t, out[0].Load()+in[0].Load(), int64(2*size+10_000))
		require.Equal(t, out[dialler].Load(), in[1-dialler].Load()+request)
		require.Equal(t, out[1-dialler].Load(), in[dialler].Load())

		// What the connection counts is the same.
		for i := range 2 {
			st := g.Conn(i, 1-i).Stats()
			require.Equal(t, in[i].Load(), st.BytesIn)
			require.Equal(t, out[i].Load(), st.BytesOut)
		}

		// Nothing is lost at the end.
		for i := range 2 {
			c := g.Conn(i, 1-i)
			require.NoError(t, g.Manager(i).Close())
			st := c.Stats()
			require.Equal(t, in[i].Load(), st.BytesIn)
			require.Equal(t, out[i].Load(), st.BytesOut)
		}
	})
}

func TestOptions_DialerIsUsed(t *testing.T) {
	var dialled [2]atomic.Int64
	g := rig.NewTCP(t, 2, func(i int, o *grid.ManagerOptions) {
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, ok := ctx.Deadline(); !ok || network != "tcp" {
				return nil, errors.New("no deadline, or another network: " + network)
			}
			dialled[i].Add(1)
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	for i := range 2 {
		if g.Conn(i, 1-i).Stats().Dials {
			require.Equal(t, int64(1), dialled[i].Load())
		} else {
			require.LessOrEqual(t, dialled[i].Load(), int64(1), "to knock")
		}
	}
	g.RequireWorks()
}

func TestOptions_BlockConnectHoldsBackBothDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, blocked := range [][]int{{0}, {1}, {0, 1}} {
			var dialled atomic.Int64
			block := make(chan struct{})
			g := rig.Setup{Hosts: []string{"http://a:1", "http://b:1"}, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
				for _, b := range blocked {
					if i == b {
						o.BlockConnect = block
					}
				}
				dial := o.Dialer
				o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					dialled.Add(1)
					return dial(ctx, network, addr)
				}
			}}.Start(t)
			g.Start(0)
			g.Start(1)
			time.Sleep(time.Hour)
			synctest.Wait()
			for i := range 2 {
				require.NotEqual(t, grid.StateConnected, g.Conn(i, 1-i).State())
				_, err := g.Conn(i, 1-i).SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorIs(t, err, grid.ErrDisconnected)
			}
			if len(blocked) == 2 {
				require.Zero(t, dialled.Load())
				require.Equal(t, grid.StateUnconnected, g.Conn(0, 1).State())
				require.Equal(t, grid.StateUnconnected, g.Conn(1, 0).State())
			}
			close(block)
			begin := time.Now()
			g.WaitConnected()
			require.Less(t, time.Since(begin), 2*rig.MaxBackoff)
			g.RequireWorks()
			g.StopAll()
		}
	})
}

func TestHandler_RegistrationErrors(t *testing.T) {
	m, err := grid.NewManager(t.Context(), rig.Options(rig.LoneHost, []string{rig.LoneHost}))
	require.NoError(t, err)
	defer m.Close()
	single := func([]byte) ([]byte, *grid.RemoteErr) { return nil, nil }
	stream := func(subroute string) grid.StreamHandler {
		return grid.StreamHandler{Subroute: subroute, Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil }}
	}
	require.ErrorIs(t, m.RegisterSingleHandler(0, single), grid.ErrUnknownHandler)
	require.ErrorIs(t, m.RegisterSingleHandler(0, single, "sub"), grid.ErrUnknownHandler)
	require.ErrorIs(t, m.RegisterStreamingHandler(0, stream("")), grid.ErrUnknownHandler)

	require.NoError(t, m.RegisterSingleHandler(1, single))
	require.NoError(t, m.RegisterSingleHandler(255, single))
	require.NoError(t, m.RegisterSingleHandler(1, single, "sub"))
	require.NoError(t, m.RegisterSingleHandler(1, single, "a", "b"))
	require.NoError(t, m.RegisterStreamingHandler(2, stream("")))
	require.NoError(t, m.RegisterStreamingHandler(2, stream("sub")))
	for _, err := range []error{
		m.RegisterSingleHandler(1, single),
		m.RegisterSingleHandler(1, single, "sub"),
		m.RegisterSingleHandler(1, single, "a/b"),
		m.RegisterSingleHandler(2, single),
		m.RegisterSingleHandler(2, single, "sub"),
		m.RegisterStreamingHandler(1, stream("")),
		m.RegisterStreamingHandler(1, stream("a/b")),
		m.RegisterStreamingHandler(2, stream("sub")),
	} {
		require.ErrorIs(t, err, grid.ErrHandlerAlreadyExists)
		require.Regexp(t, "ID [12]", err.Error())
	}

	require.Error(t, m.RegisterSingleHandler(3, nil))
	require.Error(t, m.RegisterSingleHandler(3, single, ""))
	require.Error(t, m.RegisterSingleHandler(3, single, "a", ""))
	require.Error(t, m.RegisterStreamingHandler(3, grid.StreamHandler{}))
	for _, n := range []int{-1, rig.MaxCapacity + 1} {
		h := stream("")
		h.OutCapacity = n
		require.ErrorContains(t, m.RegisterStreamingHandler(3, h), "OutCapacity")
		h.OutCapacity, h.InCapacity = 0, n
		require.ErrorContains(t, m.RegisterStreamingHandler(3, h), "InCapacity")
	}
	require.NoError(t, m.RegisterSingleHandler(3, single), "a refused registration has left something")
}

// Lesson 23: the race detector watches.
func TestHandler_IsRegisteredWhileRequestsArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		var callers sync.WaitGroup
		for w := range 8 {
			callers.Go(func() {
				for id := rig.Unused; id < 250; id++ {
					for {
						b, err := g.Conn(0, 1).SingleRequest(t.Context(), id, []byte{byte(id)})
						if err == nil {
							if len(b) != 1 || b[0] != byte(id) {
								t.Errorf("handler %d answered %v", id, b)
							}
							grid.PutByteBuffer(b)
							break
						}
						if !grid.IsRemoteErr(err) {
							t.Errorf("handler %d, caller %d: %v", id, w, err)
							return
						}
					}
				}
			})
		}
		for id := rig.Unused; id < 250; id++ {
			echo := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
			require.NoError(t, g.Manager(1).RegisterSingleHandler(id, echo))
			require.NoError(t, g.Manager(1).RegisterSingleHandler(id, echo, "sub"))
		}
		callers.Wait()
	})
}

func TestHandler_ConcurrentRegistrationsAreAllKept(t *testing.T) {
	m, err := grid.NewManager(t.Context(), rig.Options(rig.LoneHost, []string{rig.LoneHost}))
	require.NoError(t, err)
	defer m.Close()
	var registrars sync.WaitGroup
	var kept atomic.Int64
	for range 4 { // all of them want the same
		registrars.Go(func() {
			for id := grid.HandlerID(1); id < 200; id++ {
				for _, sub := range [][]string{nil, {"sub"}} {
					err := m.RegisterSingleHandler(id, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, sub...)
					if err == nil {
						kept.Add(1)
					} else if !errors.Is(err, grid.ErrHandlerAlreadyExists) {
						t.Error(err)
					}
				}
			}
		})
	}
	registrars.Wait()
	require.Equal(t, int64(2*199), kept.Load())
	for id := grid.HandlerID(1); id < 200; id++ {
		require.True(t, grid.HasSingle(m, id, ""))
		require.True(t, grid.HasSingle(m, id, "sub"))
	}
}

func TestManager_EveryMethodOfNilIsSafe(t *testing.T) {
	var c *grid.Connection
	var s *grid.Subroute
	require.Nil(t, c.Subroute("a"))
	require.Nil(t, s.Subroute("a"))
	require.Empty(t, c.HostName())
	require.Empty(t, s.Name())
	require.Equal(t, "<nil>", s.String())
	for _, nobody := range []interface {
		grid.Requester
		grid.Streamer
		State() grid.State
		WaitForConnect(context.Context) error
		Stats() grid.ConnectionStats
	}{c, s} {
		_, err := nobody.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		_, err = nobody.SingleRequest(t.Context(), 0, nil)
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorIs(t, nobody.WaitForConnect(t.Context()), grid.ErrDisconnected)
		require.Equal(t, grid.StateUnconnected, nobody.State())
		require.Zero(t, nobody.Stats())
	}
	_, err := c.NewStream(t.Context(), rig.Stream, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	_, err = s.NewStream(t.Context(), rig.Stream, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
}

// Lesson 24: the HTTP server's timeouts are for its own requests.
func TestUpgrade_ServerTimeoutsDoNotEndALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := rig.Setup{Hosts: []string{"http://a:1", "http://b:1"}, Prepare: func(n *rig.Node) {
			n.Server.ReadTimeout = 3 * time.Second
			n.Server.ReadHeaderTimeout = 2 * time.Second
			n.Server.WriteTimeout = 4 * time.Second
			n.Server.IdleTimeout = time.Second
			n.Server.Handler = n.Handler()
		}}.Start(t)
		st, err := g.Conn(0, 1).NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		for range 100 {
			time.Sleep(7 * time.Second)
			g.RequireWorks()
		}
		require.NoError(t, st.Send([]byte("still here")))
		st.CloseSend()
		require.NoError(t, st.Results(func(b []byte) error { grid.PutByteBuffer(b); return nil }))
		require.Zero(t, g.Conn(0, 1).Stats().Reconnects)
	})
}
