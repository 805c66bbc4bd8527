package hostile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Who is told that a limit was reached, and who must not take something else for it.

// held registers, at the second node, a request and a stream that wait for release: Handler and the
// one after it. The stream takes no input from its channel.
func held(g *rig.Grid) (release chan struct{}) {
	g.T.Helper()
	release = make(chan struct{})
	g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { <-release; return b, nil })
	require.NoError(g.T, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
		OutCapacity: 100, InCapacity: 100,
		Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		},
	}))
	return release
}

// Each limit, reached by a request or a stream that holds what there is, refuses the next one, and
// says which it was.
func TestOverload_RefusalsNameTheirLimit(t *testing.T) {
	const size = 100 << 10 // goes in fragments
	request := func(t *testing.T, c *grid.Connection, payload []byte) <-chan error {
		return rig.InBackground(func() error {
			b, err := c.SingleRequest(t.Context(), rig.Handler, payload)
			grid.PutByteBuffer(b)
			return err
		})
	}
	open := func(t *testing.T, c *grid.Connection, payload []byte) <-chan error {
		return rig.InBackground(func() error {
			s, err := c.NewStream(t.Context(), rig.Handler+1, payload)
			if err == nil {
				s.CloseSend()
				err = rig.Consume(s)
			}
			return err
		})
	}
	handlers := func(_ int, o *grid.ManagerOptions) { o.MaxHandlers = 1 }
	streams := func(_ int, o *grid.ManagerOptions) { o.MaxStreams = 1 }
	bytes := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = size, size+size/2 }
	type call = func(t *testing.T, c *grid.Connection, payload []byte) <-chan error
	for name, c := range map[string]struct {
		edit        func(int, *grid.ManagerOptions)
		first, next call
		size        int
		option      string
	}{
		"request beside a request":            {handlers, request, request, 0, "MaxHandlers"},
		"request beside a stream":             {handlers, open, request, 0, "MaxHandlers"},
		"stream beside a request":             {handlers, request, open, 0, "MaxHandlers"},
		"request in fragments":                {handlers, request, request, size, "MaxHandlers"},
		"stream beside a stream":              {streams, open, open, 0, "MaxStreams"},
		"stream in fragments":                 {streams, open, open, size, "MaxStreams"},
		"bytes of a request beside a request": {bytes, request, request, size, "MaxHostBytes"},
		"bytes of a stream beside a request":  {bytes, request, open, size, "MaxHostBytes"},
		"bytes of a request beside a stream":  {bytes, open, request, size, "MaxHostBytes"},
		"bytes of a stream beside a stream":   {bytes, open, open, size, "MaxHostBytes"},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, c.edit, func(t *testing.T, g *rig.Grid, conn *grid.Connection) {
				release := held(g)
				first := c.first(t, conn, make([]byte, c.size))
				synctest.Wait()
				for range 3 {
					err := <-c.next(t, conn, make([]byte, c.size))
					require.ErrorIs(t, err, grid.ErrOverloaded)
					require.True(t, grid.IsRemoteErr(err))
					require.ErrorContains(t, err, c.option)
					require.Equal(t, 1, g.Conn(1, 0).Stats().Handlers)
					require.EqualValues(t, c.size, g.Conn(1, 0).Stats().KeptBytes)
				}
				close(release)
				require.NoError(t, <-first)
				synctest.Wait() // what an answer takes while it is sent is given back when that returns
				require.NoError(t, <-c.next(t, conn, make([]byte, c.size)), "there is room again")
				g.RequireNothingKept()
				g.RequireWorks()
			})
		})
	}
}

// An answer for which there is no room is dropped, and its caller told, who still learns that the
// handler has run.
func TestOverload_AnswerThatIsDroppedIsOne(t *testing.T) {
	const size, calls = 50 << 10, 20
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) {
		o.MaxMessageSize, o.MaxHostBytes, o.MaxQueuedBytes = size, 5*size, 64<<10
	}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ran := 0
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { return grid.GetByteBufferCap(size)[:size], nil })
		g.Net.SetBuffer(1 << 10)
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
		g.Net.Stall(g.Addr(1), g.Addr(0), true)
		var results []<-chan error
		for range calls {
			results = append(results, rig.InBackground(func() error {
				b, err := c.SingleRequest(t.Context(), rig.Handler, nil)
				grid.PutByteBuffer(b)
				return err
			}))
		}
		synctest.Wait()
		kept := g.Conn(1, 0).Stats().KeptBytes
		require.LessOrEqual(t, kept, int64(5*size))
		require.Positive(t, kept)
		g.Net.Stall(g.Addr(1), g.Addr(0), false)
		dropped := 0
		for _, result := range results {
			if err := <-result; err != nil {
				dropped++
				require.ErrorIs(t, err, grid.ErrOverloaded)
				require.True(t, grid.IsRemoteErr(err))
				require.ErrorContains(t, err, "the answer was dropped")
				require.ErrorContains(t, err, "MaxHostBytes")
				continue
			}
			ran++
		}
		require.GreaterOrEqual(t, ran, 5)
		require.Positive(t, dropped)
		g.RequireNothingKept()
		g.RequireWorks()
	})
}

// What a handler says is what a handler says.
func TestOverload_HandlerThatSaysSoIsNone(t *testing.T) {
	text := grid.ErrOverloaded.Error() + ": handler 1 refused: 1 handlers are running for this host, the limit of MaxHandlers"
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString(text) })
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
				return grid.NewRemoteErr(fmt.Errorf("%w: as if", grid.ErrOverloaded))
			},
		}))
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler+2, func([]byte) ([]byte, *grid.RemoteErr) {
			panic(fmt.Errorf("%w: as if", grid.ErrOverloaded))
		}))
		_, err := c.SingleRequest(t.Context(), rig.Handler, nil)
		_, panicked := c.SingleRequest(t.Context(), rig.Handler+2, nil)
		s, opened := c.NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, opened)
		require.EqualError(t, err, text)
		for _, err := range []error{err, panicked, rig.Consume(s), s.Err()} {
			require.True(t, grid.IsRemoteErr(err))
			require.NotErrorIs(t, err, grid.ErrOverloaded)
		}
		require.False(t, errors.Is(grid.NewRemoteErrString(grid.ErrOverloaded.Error()), grid.ErrOverloaded))
	})
}

// The same, from a peer that may be of any kind: only what it says for itself counts.
func TestOverload_PeerThatSaysSoSpeaksForItself(t *testing.T) {
	inHostile(t, nil, func(r *hostileRig) {
		text := grid.ErrOverloaded.Error() + ": so it says"
		for _, c := range []struct {
			op, flags uint8
			payload   string
			is        bool
		}{
			{rawpeer.OpMuxConnectError, 0, string(rawpeer.ConnectError(text)), true},
			{rawpeer.OpMuxConnectError, rawpeer.FlagEOF, string(rawpeer.ConnectError("not " + text)), false},
			{rawpeer.OpMuxConnectError, 0, string(rawpeer.ConnectError(grid.ErrOverloaded.Error())), false},
			{rawpeer.OpDisconnectClientMux, rawpeer.FlagPayloadIsErr, text, true},
			{rawpeer.OpDisconnectClientMux, rawpeer.FlagPayloadIsErr, "x" + text, false},
			{rawpeer.OpResponse, rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, text, false},
		} {
			done := make(chan error, 1)
			go func() {
				_, err := r.Conn.SingleRequest(r.Context(), rig.Echo, nil)
				done <- err
			}()
			r.peer.Send(rawpeer.Msg{MuxID: r.peer.Expect(rawpeer.OpRequest).MuxID, Op: c.op, Flags: c.flags, Payload: []byte(c.payload)})
			err := <-done
			require.True(r, grid.IsRemoteErr(err))
			require.Equal(r, c.is, errors.Is(err, grid.ErrOverloaded), "%s: %v", rawpeer.OpName(c.op), err)
		}
	})
}

// A version 1 peer reads why in plain words: there is nothing else that it could.
func TestOverload_LimitsAreToldInPlainWords(t *testing.T) {
	few := func(o *grid.ManagerOptions) {
		o.MaxHandlers, o.MaxStreams, o.MaxMessageSize, o.MaxHostBytes, o.MaxStreamBytes = 2, 1, 100, 150, 120
	}
	inHostile(t, few, func(r *hostileRig) {
		ask := func(id uint64, op uint8, h grid.HandlerID, size int) (text string) {
			r.peer.Send(rawpeer.Msg{MuxID: id, Op: op, Handler: uint8(h), Payload: make([]byte, size)})
			if said := r.clear(); len(said) > 0 && said[0].Op == rawpeer.OpMuxConnectError {
				text = rawpeer.ConnectErrorText(r, said[0].Payload)
				require.Equal(r, id, said[0].MuxID)
			}
			return text
		}
		require.Empty(r, ask(1, rawpeer.OpConnectMux, holdStream, 0))
		require.Equal(r, "grid: overloaded: handler 151 refused: 1 streams are running for this host, the limit of MaxStreams",
			ask(2, rawpeer.OpConnectMux, holdStream, 0))
		require.Empty(r, ask(3, rawpeer.OpRequest, slowRequest, 100))
		require.Equal(r, "grid: overloaded: handler 150 refused: 2 handlers are running for this host, the limit of MaxHandlers",
			ask(4, rawpeer.OpRequest, slowRequest, 0))
		r.peer.Send(rawpeer.Msg{MuxID: 1, Op: rawpeer.OpDisconnectServerMux})
		r.clear()
		text := ask(5, rawpeer.OpRequest, slowRequest, 100)
		require.Contains(r, text, "MaxHostBytes is 150")
		require.True(r, strings.HasPrefix(text, "grid: overloaded: "), text)
		r.quit(3)
	})
}
