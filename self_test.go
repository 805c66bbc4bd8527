package grid

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Calls of a host to itself.

func newLoner(t *testing.T, edit func(o *ManagerOptions)) *Manager {
	t.Helper()
	const host = "http://me:1"
	o := testOptions(host, []string{host})
	o.LocalCalls = true
	if edit != nil {
		edit(&o)
	}
	m, err := NewManager(context.Background(), o)
	require.NoError(t, err)
	registerTestHandlers(t, m)
	t.Cleanup(func() { m.Close() })
	return m
}

func TestLocalCallsAreLikeAllOthers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := newLoner(t, nil)
		c := m.Connection(m.HostName())
		require.Equal(t, StateConnected, c.State(), "from the beginning")
		require.NoError(t, c.WaitForConnect(t.Context()))
		require.Equal(t, m.HostName(), c.HostName())
		require.Empty(t, m.Targets())
		require.Empty(t, m.Stats().Connections)

		payload := []byte("mine")
		answer, err := c.SingleRequest(t.Context(), testEcho, payload)
		require.NoError(t, err)
		require.Equal(t, payload, answer)
		require.NotSame(t, &payload[0], &answer[0], "the payload stays the caller's")
		big := make([]byte, 3<<20)
		answer, err = c.SingleRequest(t.Context(), testEcho, big)
		require.NoError(t, err)
		require.Len(t, answer, len(big))
		_, err = c.SingleRequest(t.Context(), testFail, nil)
		require.True(t, IsRemoteErr(err))
		_, err = c.SingleRequest(t.Context(), testUnused, nil)
		require.ErrorContains(t, err, "no request handler")
		require.NoError(t, twoWays(t.Context(), c))

		require.NoError(t, m.RegisterSingleHandlerContext(testHandler, func(ctx context.Context, _ []byte) ([]byte, *RemoteErr) {
			return []byte(GetCaller(ctx).Name + " " + GetSubroute(ctx)), nil
		}, "a", "b"))
		answer, err = c.Subroute("a/b").SingleRequest(t.Context(), testHandler, nil)
		require.NoError(t, err)
		require.Equal(t, m.HostName()+" a/b", string(answer))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, m.RegisterSingleHandlerContext(testHandler, func(ctx context.Context, _ []byte) ([]byte, *RemoteErr) {
			<-ctx.Done()
			return nil, nil
		}))
		_, err = c.SingleRequest(ctx, testHandler, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Hour) // it is pinged like any other
		require.NoError(t, twoWays(t.Context(), c))
	})
}

func TestLocalCallsHaveTheLimitsOfAHost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := newLoner(t, func(o *ManagerOptions) { o.MaxHandlers, o.MaxMessageSize = 1, 1000 })
		c := m.Connection(m.HostName())
		block, err := c.NewStream(t.Context(), testBlock, nil)
		if err != nil { // MaxStreams is three quarters of one, and so is 1
			require.ErrorIs(t, err, ErrOverloaded)
		}
		_, err = c.SingleRequest(t.Context(), testEcho, nil)
		require.ErrorIs(t, err, ErrOverloaded)
		_, err = c.SingleRequest(t.Context(), testEcho, make([]byte, 1001))
		require.ErrorIs(t, err, ErrMessageTooLarge)
		if block != nil {
			close(block.Requests)
		}
	})
}

// A session of the host with itself that has ended is made anew.
func TestLocalCallsHeal(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := newLoner(t, nil)
		c := m.Connection(m.HostName())
		for _, c := range []*Connection{m.self.near, m.self.far} {
			c.session.Load().close(errors.New("something"))
			time.Sleep(time.Second)
			require.NoError(t, m.self.far.WaitForConnect(t.Context()))
			require.Equal(t, StateConnected, c.State())
		}
		require.NoError(t, twoWays(t.Context(), c))
	})
}

func TestLocalCallsEndWithTheManager(t *testing.T) {
	for name, end := range map[string]func(m *Manager) error{
		"close":    func(m *Manager) error { return m.Close() },
		"shutdown": func(m *Manager) error { return m.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				m := newLoner(t, nil)
				c := m.Connection(m.HostName())
				release := make(chan struct{})
				require.NoError(t, m.RegisterSingleHandler(testHandler, func([]byte) ([]byte, *RemoteErr) {
					<-release
					return []byte("done"), nil
				}))
				call := make(chan error, 1)
				go func() {
					_, err := c.SingleRequest(t.Context(), testHandler, nil)
					call <- err
				}()
				synctest.Wait()
				ended := make(chan error, 1)
				go func() { ended <- end(m) }()
				time.Sleep(time.Second)
				close(release)
				require.NoError(t, <-ended)
				if err := <-call; name == "shutdown" {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, ErrDisconnected)
				}
				_, err := c.SingleRequest(t.Context(), testEcho, nil)
				require.ErrorIs(t, err, ErrDisconnected)
				require.ErrorContains(t, err, "closed")
				require.Equal(t, StateShutdown, c.State())
			})
		})
	}
}

// The host itself is none of the others.
func TestLocalCallsAddNoHost(t *testing.T) {
	inPair(t, func(_ int, o *ManagerOptions) { o.LocalCalls = true }, func(t *testing.T, g *testGrid, _ *Connection) {
		m := g.nodes[0]
		local := m.Connection(g.hosts[0])
		require.NotNil(t, local)
		require.Nil(t, m.peer(g.hosts[0]))
		require.NoError(t, m.SetHosts(g.hosts[:1]))
		require.NoError(t, twoWays(t.Context(), local))
	})
}
