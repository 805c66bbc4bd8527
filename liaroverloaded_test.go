package grid

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Who is told that a limit was reached, and who must not take something else for it.

// held registers, at the second node, a request and a stream that wait for release:
// testHandler and the one after it. The stream takes no input from its channel.
func (g *testGrid) held() (release chan struct{}) {
	g.t.Helper()
	release = make(chan struct{})
	g.single(func(b []byte) ([]byte, *RemoteErr) { <-release; return b, nil })
	require.NoError(g.t, g.nodes[1].RegisterStreamingHandler(testHandler+1, StreamHandler{
		OutCapacity: 100, InCapacity: 100,
		Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *RemoteErr {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		},
	}))
	return release
}

// Each limit, reached by a request or a stream that holds what there is, refuses the
// next one, and says which it was.
func TestRefusalsNameTheirLimit(t *testing.T) {
	const size = 100 << 10 // goes in fragments
	request := func(t *testing.T, c *Connection, payload []byte) <-chan error {
		return inBackground(func() error {
			b, err := c.SingleRequest(t.Context(), testHandler, payload)
			PutByteBuffer(b)
			return err
		})
	}
	open := func(t *testing.T, c *Connection, payload []byte) <-chan error {
		return inBackground(func() error {
			s, err := c.NewStream(t.Context(), testHandler+1, payload)
			if err == nil {
				s.CloseSend()
				err = consume(s)
			}
			return err
		})
	}
	handlers := func(_ int, o *ManagerOptions) { o.MaxHandlers = 1 }
	streams := func(_ int, o *ManagerOptions) { o.MaxStreams = 1 }
	bytes := func(_ int, o *ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = size, size+size/2 }
	type call = func(t *testing.T, c *Connection, payload []byte) <-chan error
	for name, c := range map[string]struct {
		edit        func(int, *ManagerOptions)
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
			inPair(t, c.edit, func(t *testing.T, g *testGrid, conn *Connection) {
				release := g.held()
				first := c.first(t, conn, make([]byte, c.size))
				synctest.Wait()
				for range 3 {
					err := <-c.next(t, conn, make([]byte, c.size))
					require.ErrorIs(t, err, ErrOverloaded)
					require.True(t, IsRemoteErr(err))
					require.ErrorContains(t, err, c.option)
					require.Equal(t, 1, g.conn(1, 0).Stats().Handlers)
					require.EqualValues(t, c.size, g.conn(1, 0).Stats().KeptBytes)
				}
				close(release)
				require.NoError(t, <-first)
				require.NoError(t, <-c.next(t, conn, make([]byte, c.size)), "there is room again")
				g.requireNothingKept()
				g.requireWorks()
			})
		})
	}
}

// An answer for which there is no room is dropped, and its caller told, who still
// learns that the handler has run.
func TestAnswerThatIsDroppedIsOverload(t *testing.T) {
	const size, calls = 50 << 10, 20
	inPair(t, func(_ int, o *ManagerOptions) {
		o.MaxMessageSize, o.MaxHostBytes, o.MaxQueuedBytes = size, 5*size, 64<<10
	}, func(t *testing.T, g *testGrid, c *Connection) {
		ran := 0
		g.single(func([]byte) ([]byte, *RemoteErr) { return GetByteBufferCap(size)[:size], nil })
		g.net.SetBuffer(1 << 10)
		g.cut(0, 1)
		synctest.Wait()
		g.waitConnected()
		g.net.Stall(g.addr(1), g.addr(0), true)
		var results []<-chan error
		for range calls {
			results = append(results, inBackground(func() error {
				b, err := c.SingleRequest(t.Context(), testHandler, nil)
				PutByteBuffer(b)
				return err
			}))
		}
		synctest.Wait()
		kept := g.conn(1, 0).Stats().KeptBytes
		require.LessOrEqual(t, kept, int64(5*size))
		require.Positive(t, kept)
		g.net.Stall(g.addr(1), g.addr(0), false)
		dropped := 0
		for _, result := range results {
			if err := <-result; err != nil {
				dropped++
				require.ErrorIs(t, err, ErrOverloaded)
				require.True(t, IsRemoteErr(err))
				require.ErrorContains(t, err, "the answer was dropped")
				require.ErrorContains(t, err, "MaxHostBytes")
				continue
			}
			ran++
		}
		require.GreaterOrEqual(t, ran, 5)
		require.Positive(t, dropped)
		g.requireNothingKept()
		g.requireWorks()
	})
}

// What a handler says is what a handler says.
func TestHandlerThatSaysOverloadedIsNotOverload(t *testing.T) {
	text := overloadedf("MaxX", "handler 1 refused: 1 handlers are running for this host, the limit of MaxHandlers").Error()
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		g.single(func([]byte) ([]byte, *RemoteErr) { return nil, NewRemoteErrString(text) })
		require.NoError(t, g.nodes[1].RegisterStreamingHandler(testHandler+1, StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr {
				return NewRemoteErr(overloadedf("MaxX", "as if"))
			},
		}))
		require.NoError(t, g.nodes[1].RegisterSingleHandler(testHandler+2, func([]byte) ([]byte, *RemoteErr) {
			panic(overloadedf("MaxX", "as if"))
		}))
		_, err := c.SingleRequest(t.Context(), testHandler, nil)
		_, panicked := c.SingleRequest(t.Context(), testHandler+2, nil)
		s, opened := c.NewStream(t.Context(), testHandler+1, nil)
		require.NoError(t, opened)
		require.EqualError(t, err, text)
		for _, err := range []error{err, panicked, consume(s), s.Err()} {
			require.True(t, IsRemoteErr(err))
			require.NotErrorIs(t, err, ErrOverloaded)
		}
		require.False(t, errors.Is(NewRemoteErrString(ErrOverloaded.Error()), ErrOverloaded))
	})
}

// The same, from a peer that may be of any kind: only what it says for itself counts.
func TestLiarThatSaysOverloaded(t *testing.T) {
	inLiar(t, nil, func(r *liarRig) {
		text := overloadedf("MaxX", "so it says").Error()
		for _, c := range []struct {
			op, flags uint8
			payload   string
			is        bool
		}{
			{rawOpMuxConnectError, 0, string(muxConnectErrorPayload(text)), true},
			{rawOpMuxConnectError, rawFlagEOF, string(muxConnectErrorPayload("not " + text)), false},
			{rawOpMuxConnectError, 0, string(muxConnectErrorPayload(ErrOverloaded.Error())), false},
			{rawOpDisconnectClientMux, rawFlagPayloadIsErr, text, true},
			{rawOpDisconnectClientMux, rawFlagPayloadIsErr, "x" + text, false},
			{rawOpResponse, rawFlagEOF | rawFlagPayloadIsErr, text, false},
		} {
			done := make(chan error, 1)
			go func() {
				_, err := r.conn.SingleRequest(r.Context(), testEcho, nil)
				done <- err
			}()
			r.peer.send(rawMsg{MuxID: r.peer.expect(rawOpRequest).MuxID, Op: c.op, Flags: c.flags, Payload: []byte(c.payload)})
			err := <-done
			require.True(r, IsRemoteErr(err))
			require.Equal(r, c.is, errors.Is(err, ErrOverloaded), "%s: %v", rawOpName(c.op), err)
		}
	})
}

// A version 1 peer reads why in plain words: there is nothing else that it could.
func TestLimitsAreToldInPlainWords(t *testing.T) {
	few := func(o *ManagerOptions) {
		o.MaxHandlers, o.MaxStreams, o.MaxMessageSize, o.MaxHostBytes, o.MaxStreamBytes = 2, 1, 100, 150, 120
	}
	inLiar(t, few, func(r *liarRig) {
		ask := func(id uint64, op uint8, h HandlerID, size int) string {
			r.peer.send(rawMsg{MuxID: id, Op: op, Handler: uint8(h), Payload: make([]byte, size)})
			var e muxConnectError
			if said := r.clear(); len(said) > 0 && said[0].Op == rawOpMuxConnectError {
				require.NoError(r, unmarshal(e.UnmarshalMsg, said[0].Payload))
				require.Equal(r, id, said[0].MuxID)
			}
			return e.Error
		}
		require.Empty(r, ask(1, rawOpConnectMux, liarHold, 0))
		require.Equal(r, "grid: overloaded: handler 151 refused: 1 streams are running for this host, the limit of MaxStreams",
			ask(2, rawOpConnectMux, liarHold, 0))
		require.Empty(r, ask(3, rawOpRequest, liarSlow, 100))
		require.Equal(r, "grid: overloaded: handler 150 refused: 2 handlers are running for this host, the limit of MaxHandlers",
			ask(4, rawOpRequest, liarSlow, 0))
		r.peer.send(rawMsg{MuxID: 1, Op: rawOpDisconnectServerMux})
		r.clear()
		text := ask(5, rawOpRequest, liarSlow, 100)
		require.Contains(r, text, "MaxHostBytes is 150")
		require.True(r, strings.HasPrefix(text, "grid: overloaded: "), text)
		r.quit(3)
	})
}
